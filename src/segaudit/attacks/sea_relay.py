"""SEA's losses on one path, in place of three runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from segaudit.attacks._iterate import whole
from segaudit.attacks.apgd import make_goal, search, slots, through
from segaudit.rng import is_random
from segaudit.types import Segmenter, Streams


def sea_relay(
    model: Segmenter,
    images: Tensor,
    labels: Tensor,
    *,
    rng: Streams,
    eps: float,
    steps: int = 225,
    norm: str = "linf",
    targeted: bool = False,
    class_pixels: Tensor | Sequence[float] | None = None,
) -> Tensor:
    """Aims at SEA's worst case by mIoU with a quarter of its gradients: one path through two of its losses.

    3/7 of the steps are APGD on the Jensen-Shannon divergence; from its best image on, the rest climb the balanced
    masked cross-entropy; both with radius reduction. An image that is won leaves. It returns the better end of the
    two: with the fewest pixels right, each as 1 / the pixels of its class, which is about how the mIoU counts them
    (with `targeted` the most on target); of a random model the second end. class_pixels: see `apgd`.
    Source: of our own, from the parts of Croce et al. 2024 (SEA).
    """
    whole(steps=steps)
    js, balanced = (
        make_goal(model, images, labels, loss=loss, targeted=targeted, class_pixels=class_pixels)
        for loss in ("js", "balanced_masked_ce")
    )
    js, balanced = (replace(goal, counts=balanced.weights) for goal in (js, balanced))
    first = max(1, 3 * steps // 7)
    found = search(js, images, rng, eps=eps, steps=first, norm=norm, radius_reduction=True)
    noisy = is_random(model)  # then the count is that of one draw
    rows = ((found.left > 0) | noisy).nonzero().flatten()
    if len(rows) and steps > first:
        balls = slots(steps - first, eps, radius_reduction=True)
        second = through(balanced[rows], images[rows], found.images[rows], balls, norm)
        better = (second.left < found.left[rows]) | noisy
        found.put(rows[better], second[better])
    return found.images
