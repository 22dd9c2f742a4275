"""An attack on a model and on what is to notice attacks."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from segaudit.attacks._iterate import Objective, direction, iterate, project, whole
from segaudit.attacks._losses import open_pixels
from segaudit.types import VOID, Segmenter, Streams, UserError

Score = Callable[[Segmenter, Tensor], Tensor]
"""`(model, images) -> N`: how much each image looks like an attacked one, with a gradient."""


def evading(
    model: Segmenter,
    images: Tensor,
    labels: Tensor,
    *,
    rng: Streams,
    eps: float,
    detector: Score | None = None,
    steps: int = 40,
    step_size: float | None = None,
    norm: str = "linf",
    targeted: bool = False,
    threshold: float | None = None,
    weight: float | None = None,
) -> Tensor:
    """Evading: PGD that keeps a detector's score of each image at a threshold, or at what it is of the clean one.

    detector: `(model, images) -> N` scores, higher = more suspicious; `segaudit run` hands it in, under `detection`.
    threshold: a score that is not noticed either; `segaudit run` hands in that at 5 % false positives. Without one each
    image must look as clean as it was, which no defender asks: what is left of the mIoU is then an upper bound on what
    the detector is worth. Of one that draws anew in every pass the clean score is a single draw. A step climbs the
    cross-entropy where the image is not noticed, and lowers the score where it is; of all steps that do not undo the
    other, to first order, the one that gains most. Of the iterates that are not noticed, the clean image among them,
    the one with the fewest pixels right is returned (targeted: the most on target), of several the one of the largest
    loss. It starts at the image, as a random start would be noticed. step_size: 2.5 eps / steps unless given. weight:
    climb the mean cross-entropy less `weight` times the score instead, and return the last iterate. Where the score's
    gradient is zero nothing leads back from an image that is noticed: it comes back as it was before, or clean. Raises
    UserError for no detector, and for one without a gradient.
    Source: Bryniarski et al. 2022 (orthogonal and selective PGD); with a weight Carlini and Wagner 2017.
    """
    whole(steps=steps)
    if not callable(detector):
        raise UserError(
            f"detector must be a function of model and images that gives N scores, not {detector!r}; `segaudit run` "
            "hands it in for each of a spec's `detection: {detectors: [squeezing]}`"
        )
    step_size = 2.5 * eps / steps if step_size is None else step_size
    view, sign = _Once(model), -1.0 if targeted else 1.0
    if weight is not None:
        objective = _weighted(view, labels, detector, sign, weight)
        return iterate(objective, images, images, eps=eps, step_size=step_size, steps=steps, norm=norm)
    at, best = images, images.clone()
    least, most = images.new_full((len(images),), torch.inf), images.new_full((len(images),), -torch.inf)
    allowed = least
    for step in range(steps + 1):
        last = step == steps
        at = at.detach().requires_grad_(not last)
        with torch.set_grad_enabled(not last):
            logits, scores = view(at), _scores(detector, view, at)
            losses = sign * F.cross_entropy(logits, labels, ignore_index=VOID, reduction="none").flatten(1).sum(1)
        left = _left(logits.detach(), labels, targeted)
        if step == 0:
            allowed = scores.detach().clamp_min(-torch.inf if threshold is None else threshold)
        noticed = scores.detach() > allowed
        better = ~noticed & ((left < least) | ((left == least) & (losses.detach() > most)))
        best = torch.where(_wide(better), at.detach(), best)
        least, most = torch.where(better, left, least), torch.where(better, losses.detach(), most)
        if last:
            break
        (up,) = torch.autograd.grad(losses.sum(), at, retain_graph=True)
        (down,) = torch.autograd.grad(-scores.sum(), at)
        goal, kept = torch.where(_wide(noticed), down, up), torch.where(_wide(noticed), up, down)
        at = at.detach()
        if norm == "linf":
            low, high = ((images + way * eps).clamp(0, 1) - at for way in (-1, 1))
            move = box_step(goal, kept, low.clamp(-step_size, 0), high.clamp(0, step_size))
        else:
            move = step_size * direction(_beside(goal, kept), norm)
        at = project(at + move, images, eps, norm)
    return torch.where(_wide(at.isnan().flatten(1).any(1)), at.detach(), best)  # a broken net is not to be hidden


def box_step(goal: Tensor, kept: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The corner of a box of steps that climbs `goal` most without descending `kept`, an image at a time.

    goal, kept: gradients N x C x H x W. low, high: how far each value may go down (at most 0) and up. All go where
    `goal` leads; then those that cost it least for what `kept` gains turn round, until that is not descended.
    Source: ours; a linear program with one constraint, as the fractional knapsack (Dantzig 1957).
    """
    flat, kept, low, high = (own.flatten(1) for own in (goal, kept, low, high))
    healthy = 1 + 0 * (flat + kept).sum(1, keepdim=True)  # or nan: no comparison with it is true
    first = torch.where(flat > 0, high, torch.where(flat < 0, low, 0))
    turned = torch.where(kept > 0, high, torch.where(kept < 0, low, first))
    cost, gain = _scaled(flat) * (first - turned), _scaled(kept) * (turned - first)
    lacking = -(_scaled(kept) * first).sum(1, keepdim=True, dtype=torch.float64)
    order = torch.where(gain > 0, cost / gain.clamp_min(torch.finfo(gain.dtype).tiny), torch.inf).argsort(1)
    each = gain.gather(1, order)
    before = each.cumsum(1, dtype=torch.float64) - each
    turn = torch.zeros_like(gain, dtype=torch.bool).scatter(1, order, (before < lacking) & (each > 0))
    return (torch.where(turn, turned, first) * healthy).view_as(goal)


def _beside(goal: Tensor, kept: Tensor) -> Tensor:
    """The goal without its part against `kept`: in L2 the steepest way that does not descend that."""
    flat, other = _scaled(goal.flatten(1)), _scaled(kept.flatten(1))
    along = (flat * other).sum(1, keepdim=True) / other.square().sum(1, keepdim=True).clamp_min(1e-12)
    return (flat - along.clamp_max(0) * other).view_as(goal)


def _scaled(gradient: Tensor) -> Tensor:
    """N x D with a largest value of 1 a row: products of 1e-25 would be 0."""
    return gradient / gradient.abs().amax(1, keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)


def _weighted(view: Segmenter, labels: Tensor, detector: Score, sign: float, weight: float) -> Objective:
    """The mean cross-entropy over an image's valid pixels less `weight` times its score, summed over the images."""
    pixels = (labels != VOID).flatten(1).sum(1).clamp_min(1)

    def goal(images: Tensor, step: int) -> Tensor:
        losses = F.cross_entropy(view(images), labels, ignore_index=VOID, reduction="none").flatten(1).sum(1) / pixels
        return sign * losses.sum() - weight * _scores(detector, view, images).sum()

    return goal


def _scores(detector: Score, view: Segmenter, images: Tensor) -> Tensor:
    """What the detector says, N. Raises UserError where a gradient is wanted and it has none."""
    scores = detector(view, images)
    if images.requires_grad and not scores.requires_grad:
        raise UserError(
            "the detector's scores have no gradient, without which no attack can evade it: give steps that have none "
            "a straight-through form (segaudit.nn.straight)"
        )
    return scores


def _left(logits: Tensor, labels: Tensor, targeted: bool) -> Tensor:
    """How many of each image's pixels are still to be won, N."""
    return open_pixels(logits, labels, targeted).flatten(1).sum(1).to(logits)


def _wide(rows: Tensor) -> Tensor:
    return rows.view(-1, 1, 1, 1)


class _Once(Segmenter):
    """A model that is not asked twice for the same images: the loss and a detector share a pass."""

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.model, self.class_names = model, model.class_names
        self._seen: tuple[Tensor, Tensor] | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Logits N x K x H x W."""
        if self._seen is None or self._seen[0] is not images:
            self._seen = images, self.model(images)
        return self._seen[1]
