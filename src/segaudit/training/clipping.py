"""Gradients of single units, clipped and with noise: the step of DP-SGD."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segaudit.training.budget import NEEDED
from segaudit.types import Batch, UserError

Losses = Callable[[nn.Module, Batch], Tensor]
"""`(model, batch) -> N`: a loss for each image, of which none depends on another image."""


def unit_gradients(model: nn.Module, losses: Losses, batch: Batch, slots: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """The gradient of each unit's losses, summed over its images, and the losses, N.

    slots: N, the unit of each image, from 0 without a gap. Of each weight that is learnt units x its shape, in their
    order. The model is in train mode, and left as it was. Raises UserError for a layer that Opacus does not know, and
    for one whose output the network changes in place.
    """
    count = max(slots) + 1
    units = None if list(slots) == list(range(count)) else torch.tensor(slots, device=batch.images.device)
    learnt = [weight for weight in model.parameters() if weight.requires_grad]
    watched = _watched(model)
    try:
        with warnings.catch_warnings():  # the images themselves need no slope, which torch remarks on
            warnings.filterwarnings("ignore", "Full backward hook is firing")
            found = losses(watched, batch)
            found.sum().backward()  # type: ignore[no-untyped-call]
        sums = [_by_unit(weight, units, count) for weight in learnt]
    except RuntimeError as error:
        if "inplace" not in str(error) and "in-place" not in str(error):
            raise
        raise UserError(
            "recipe private: the network changes what a layer gave in place, which gradients of single images do not "
            "bear; write `x = x + y` for `x += y`"
        ) from error
    finally:
        watched.to_standard_module()
        model.zero_grad(set_to_none=True)
    return sums, found.detach()


def _by_unit(weight: Any, units: Tensor | None, count: int) -> Tensor:
    """The sums over each unit of a weight's gradients of single images, which are let go; units: None, each is one."""
    each: Tensor | None = weight.grad_sample
    weight.grad_sample = None
    if each is None:  # a weight that had no part in it
        return torch.zeros(count, *weight.shape, dtype=weight.dtype, device=weight.device)
    return each if units is None else each.new_zeros(count, *weight.shape).index_add_(0, units, each)


def _watched(model: nn.Module) -> Any:
    """The model under Opacus' hooks. Raises UserError for one that they cannot be put on."""
    try:
        from opacus import GradSampleModule
    except ImportError as error:
        raise UserError(NEEDED) from error

    class Dense(GradSampleModule):  # type: ignore[misc]
        """Opacus cuts a layer's input into patches by strides, which are others where channels come last."""

        def rearrange_grad_samples(self, **own: Any) -> tuple[list[Tensor], Tensor]:
            inputs, slopes = super().rearrange_grad_samples(**own)
            return [one.contiguous() for one in inputs], slopes.contiguous()

    try:
        return Dense(model, loss_reduction="sum")
    except NotImplementedError as error:
        line = " ".join(str(error).split())
        raise UserError(f"recipe private: there is no gradient of single images in this network ({line})") from error


def verify(model: nn.Module, losses: Losses, batch: Batch) -> None:
    """Raise UserError where the gradients of single images are not those of each image's own loss, taken by itself."""
    learnt = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    with torch.random.fork_rng():
        torch.manual_seed(0)  # what the network draws while it trains is the same both times
        sums, _ = unit_gradients(model, losses, batch, range(len(batch)))
        torch.manual_seed(0)
        found = losses(model, batch)
    for row in range(len(batch)):
        slopes = torch.autograd.grad(found[row], list(learnt.values()), retain_graph=True, allow_unused=True)
        for (name, weight), each, slope in zip(learnt.items(), sums, slopes, strict=True):
            own = torch.zeros_like(weight) if slope is None else slope
            slack = 1e-3 * float(own.abs().max()) + 1e-6
            if len(each) != len(batch) or not torch.allclose(each[row], own, rtol=1e-2, atol=slack):
                raise UserError(
                    f"recipe private: Opacus gets the gradients of single images in {name} wrong; build the network "
                    "of other layers, such as convolutions padded with zeros"
                )


def clipped_sum(gradients: Sequence[Tensor], norm: float) -> list[Tensor]:
    """The sum over units of their gradients, each scaled to an L2 norm over all weights of at most `norm`."""
    norms = torch.stack([one.flatten(1).norm(dim=1) for one in gradients]).norm(dim=0)
    factors = (norm / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_max(1)
    return [torch.tensordot(factors, one, 1) for one in gradients]


def private_gradient(
    model: nn.Module,
    losses: Losses,
    batch: Batch,
    units: Sequence[str],
    rng: np.random.Generator,
    *,
    norm: float,
    sigma: float,
    expected: float,
    most: int,
) -> tuple[list[Tensor], float]:
    """The gradient of a step, and the sum of its losses: the units' clipped gradients with noise, over `expected`.

    units: N, what each image is one of. The noise of each number is normal, of sigma * norm. It is drawn for a batch
    without an image too. expected: how many units a step draws on average. most: images in memory at once, unless one
    unit has more of them, which then goes in several passes.
    """
    learnt = [weight for weight in model.parameters() if weight.requires_grad]
    total, loss = [torch.zeros_like(weight) for weight in learnt], 0.0
    for rows in _packed(units, most):
        own = list(dict.fromkeys(units[row] for row in rows))
        sums: list[Tensor] = []
        for part in (rows[start : start + most] for start in range(0, len(rows), most)):  # several of one unit alone
            images = Batch(batch.images[part], batch.labels[part], tuple(batch.ids[row] for row in part))
            found, each = unit_gradients(model, losses, images, [own.index(units[row]) for row in part])
            sums = [one + more for one, more in zip(sums, found, strict=True)] if sums else found
            loss += float(each.sum())
        for one, more in zip(total, clipped_sum(sums, norm), strict=True):
            one += more
    for one in total:
        if sigma:
            one += sigma * norm * torch.from_numpy(rng.standard_normal(one.shape, np.float32)).to(one)
        one /= expected
    return total, loss


def _packed(units: Sequence[str], most: int) -> Iterator[list[int]]:
    """The rows of all units, whole ones together as long as they are `most` at most."""
    rows: dict[str, list[int]] = {}
    for row, unit in enumerate(units):
        rows.setdefault(unit, []).append(row)
    pack: list[int] = []
    for own in rows.values():
        if pack and len(pack) + len(own) > most:
            yield pack
            pack = []
        pack = pack + own
    if pack:
        yield pack
