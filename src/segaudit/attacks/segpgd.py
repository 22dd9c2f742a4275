"""SegPGD."""

from __future__ import annotations

from torch import Tensor

from segaudit.attacks._iterate import iterate, random_start, whole
from segaudit.attacks._losses import Seen
from segaudit.types import Segmenter, Streams


def segpgd(
    model: Segmenter,
    images: Tensor,
    labels: Tensor,
    *,
    rng: Streams,
    eps: float,
    steps: int = 20,
    step_size: float | None = None,
    norm: str = "linf",
    targeted: bool = False,
    start: bool = True,
) -> Tensor:
    """SegPGD: PGD on a cross-entropy that weighs the pixels still to be won most, and ever less so.

    Step t = 1..T weighs them 1 - lambda and the others lambda, with lambda = (t - 1) / 2T. step_size: 2.5 eps / steps
    unless given. start: begin at a random point of the ball.
    Source: Gu et al. 2022 (SegPGD).
    """
    whole(steps=steps)

    def goal(images: Tensor, step: int) -> Tensor:
        seen = Seen(model(images), labels, targeted)
        share = step / (2 * steps)
        return seen.toward(((1 - 2 * share) * seen.open.to(seen.ce) + share) * seen.ce).sum()

    begin = random_start(images, eps, norm, rng.child("restart0")) if start else images
    step_size = 2.5 * eps / steps if step_size is None else step_size
    return iterate(goal, begin, images, eps=eps, step_size=step_size, steps=steps, norm=norm)
