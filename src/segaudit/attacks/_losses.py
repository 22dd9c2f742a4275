"""The losses of segmentation attacks: a map to ascend, N x H x W, 0 at void; an image's loss is its sum.

All are made from one forward pass, and all but the margin from each pixel's cross-entropy alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from segaudit.registry import suggest
from segaudit.types import VOID, UserError


class Seen:
    """One forward pass beside its labels; what is asked of it is computed once.

    logits: N x K x H x W. labels: N x H x W, the truth, or with `targeted` the masks to reach. known: `truth(labels)`,
    from who has it.
    """

    def __init__(
        self, logits: Tensor, labels: Tensor, targeted: bool = False, known: tuple[Tensor, Tensor] | None = None
    ) -> None:
        self.logits, self.labels, self.targeted, self.known = logits, labels, targeted, known

    @property
    def ce(self) -> Tensor:
        """The cross-entropy of each pixel, N x H x W; 0 at void. It carries the gradient."""
        return self._softmax[0]

    @cached_property
    def open(self) -> Tensor:
        """Where there is still something to win, N x H x W bool: right pixels, or those not yet on target."""
        hit = self._softmax[1]
        return ~hit & (self.labels != VOID) if self.targeted else hit

    @property
    def p(self) -> Tensor:
        """The softmax, N x K x H x W, without a gradient; when that of `ce` is taken it is overwritten."""
        return self._softmax[2]

    @cached_property
    def _softmax(self) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = _CrossEntropy.apply(self.logits, *(self.known or truth(self.labels)))
        return found

    def toward(self, loss: Tensor) -> Tensor:
        """A loss that grows as the label loses, with the sign to ascend."""
        return -loss if self.targeted else loss


Loss = Callable[[Seen], Tensor]
"""A forward pass -> N x H x W to ascend."""

PixelLoss = Callable[[Tensor, Tensor, bool], Tensor]
"""`(logits N x K x H x W, labels N x H x W, targeted) -> N x H x W` to ascend."""


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """Where no other class has a larger logit than the label, N x H x W bool; nowhere at void."""
    own = logits.gather(1, _known(labels)[:, None]).squeeze(1)
    return (own >= logits.amax(1)) & (labels != VOID)  # argmax would take up to 200 times as long


def open_pixels(logits: Tensor, labels: Tensor, targeted: bool) -> Tensor:
    """Where there is still something to win: right pixels, or with `targeted` those not yet on target."""
    hit = right(logits, labels)
    return ~hit & (labels != VOID) if targeted else hit


def ce(seen: Seen) -> Tensor:
    """Cross-entropy."""
    return seen.toward(seen.ce)


def masked_ce(seen: Seen) -> Tensor:
    """Cross-entropy of the pixels that are still to be won. Source: Croce et al. 2024 (SEA), masked CE."""
    return seen.toward(seen.ce * seen.open)


def js(seen: Seen) -> Tensor:
    """Jensen-Shannon divergence of softmax and label, in [0, log 2]. Source: Croce et al. 2024 (SEA), eq. 5."""
    found: Tensor = _JensenShannon.apply(seen.ce)  # 0 where the cross-entropy is, as it is at void
    return seen.toward(found)


def margin(seen: Seen) -> Tensor:
    """By how much the best other class beats the label, cut off at 0 where it does: from two classes on."""
    known = _known(seen.labels)[:, None]
    other = seen.logits.scatter(1, known, -torch.inf).amax(1)
    gap = (other - seen.logits.gather(1, known).squeeze(1)) * (seen.labels != VOID)
    return -gap.clamp_min(0) if seen.targeted else gap.clamp_max(0)


LOSSES: dict[str, Loss] = {
    "ce": ce,
    "masked_ce": masked_ce,
    "balanced_masked_ce": masked_ce,
    "js": js,
    "margin": margin,
}
"""By name; `balanced_masked_ce` is masked cross-entropy times `class_weights`."""


def loss_named(name: str) -> Loss:
    """A loss by its name: ce, masked_ce, balanced_masked_ce (without its weights), js or margin."""
    if name not in LOSSES:
        raise UserError(f"loss must be one of {', '.join(LOSSES)}, not {name!r}{suggest(str(name), LOSSES)}")
    return LOSSES[name]


def class_weights(labels: Tensor, classes: int, class_pixels: Tensor | Sequence[float] | None) -> Tensor:
    """The weight of each pixel that makes rare classes count as much as common ones, N x H x W float64.

    It is 1 / the pixels of the label's class. class_pixels: K, those in the data; None counts each image's own.
    Source: Croce et al. 2024 (SEA), balanced masked CE.
    """
    known = _known(labels).flatten(1)
    if class_pixels is None:
        valid = (labels != VOID).flatten(1).double()
        counts = valid.new_zeros(len(labels), classes).scatter_add_(1, known, valid)
    else:
        counts = torch.as_tensor(class_pixels).to(labels.device, torch.float64)
        if counts.shape != (classes,):
            raise UserError(f"class_pixels must be {classes} numbers, one a class, not {class_pixels!r}")
        counts = counts.expand(len(labels), -1)
    return (1 / counts.clamp_min(1)).gather(1, known).view_as(labels)


def pixel_loss(name: str, class_pixels: Tensor | Sequence[float] | None = None) -> PixelLoss:
    """A loss by its name, as a function of logits and labels alone."""
    loss = loss_named(name)

    def of(logits: Tensor, labels: Tensor, targeted: bool = False) -> Tensor:
        found = loss(Seen(logits, labels, targeted))
        if name == "balanced_masked_ce":
            found = found * class_weights(labels, logits.shape[1], class_pixels).to(found)
        return found

    return of


class _CrossEntropy(torch.autograd.Function):
    """(cross-entropy, right pixels, softmax) in the time that torch takes for the cross-entropy alone."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, known: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own, top, p = logits.gather(1, known), logits.amax(1, keepdim=True), logits.softmax(1)
        right = (own >= top) & valid
        # log p of the top class is exact where p of another is 0; exp(log_softmax) would take 10 times as long there
        loss = (top - own).sub_(p.amax(1, keepdim=True).log_())
        ctx.save_for_backward(p, known, valid)
        ctx.mark_non_differentiable(right, p)
        ctx.set_materialize_grads(False)  # or zeros of the size of the logits would be made for p
        return torch.where(valid, loss, 0).squeeze(1), right.squeeze(1), p

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, None, None]:
        p, known, valid = ctx.saved_tensors
        weight = gradient[:, None] * valid
        # softmax - one-hot, in place: torch refuses a second call, and new memory would take longer than the sums
        return p.mul_(weight).scatter_add_(1, known, -weight), None, None


class _JensenShannon(torch.autograd.Function):
    """It depends on p = exp(-cross-entropy) alone: (2 log 2 + p log p - (1 + p) log(1 + p)) / 2.

    Its slope, p (cross-entropy + log(1 + p)) / 2, is a term of it.
    """

    @staticmethod
    def forward(ctx: Any, ce: Tensor) -> Tensor:
        ce = ce.clamp_max(80)  # exp(-ce) too small for a float takes 10 times as long, and inf * 0 is nan
        p = ce.neg().exp_()
        log = p.log1p()
        slope = (ce + log).mul_(p).div_(2)
        ctx.save_for_backward(slope)
        return (slope.new_ones(()).log1p() - slope).sub_(log, alpha=0.5)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        found: Tensor = gradient * slope
        return found


def _known(labels: Tensor) -> Tensor:
    """The labels, with class 0 in the place of void."""
    return labels.where(labels != VOID, 0)


def truth(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The labels, with class 0 in the place of void, and where they are valid; each N x 1 x H x W."""
    return _known(labels)[:, None], (labels != VOID)[:, None]
