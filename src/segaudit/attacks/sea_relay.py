"""SEA's losses one after another on one path, in place of three runs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from segaudit.attacks._apgd import Ball, climb
from segaudit.attacks._iterate import whole
from segaudit.attacks.apgd import make_goal, search
from segaudit.types import Segmenter, Streams

LEGS = ("masked_ce", "balanced_masked_ce")
"""What follows on the Jensen-Shannon divergence, each for a quarter of the steps."""


def sea_relay(
    model: Segmenter,
    images: Tensor,
    labels: Tensor,
    *,
    rng: Streams,
    eps: float,
    steps: int = 210,
    norm: str = "linf",
    targeted: bool = False,
    class_pixels: Tensor | Sequence[float] | None = None,
) -> Tensor:
    """SEA at under a quarter of its gradients: APGD with its losses in turn, each from the best image so far.

    Half of the steps climb the Jensen-Shannon divergence with radius reduction, a quarter each masked and balanced
    masked cross-entropy in the ball of eps. An image that is won leaves. It returns the iterate with the fewest pixels
    right (with `targeted` the most on target). class_pixels: see `apgd`.
    Source: of our own, from the parts of Croce et al. 2024 (SEA).
    """
    whole(steps=steps)
    count = steps // (2 * len(LEGS))
    goals = [
        make_goal(model, images, labels, loss=loss, targeted=targeted, class_pixels=class_pixels)
        for loss in ("js", *LEGS)
    ]
    first = steps - count * len(LEGS)
    found = search(goals[0], images, rng, eps=eps, steps=first, norm=norm, radius_reduction=True)
    for goal in goals[1:] if count else ():
        rows = (found.left > 0).nonzero().flatten()
        if not len(rows):
            break
        found.put(rows, climb(goal[rows], Ball.around(images[rows], eps, norm), found.images[rows], count))
    return found.images
