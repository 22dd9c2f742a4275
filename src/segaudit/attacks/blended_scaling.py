"""Image scaling attacks that know of a detector of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from segaudit.attacks._iterate import whole
from segaudit.attacks.image_scaling import Picture, Resizer, image_scaling
from segaudit.types import UserError


def blended_scaling(
    source: Picture,
    target: Picture,
    resizer: Resizer,
    *,
    noticed: Callable[[Picture], float],
    eps: float = 2 / 255,
    steps: int = 5,
) -> Picture:
    """Image scaling, blended: the source goes towards the target until a detector's score is that of the source.

    source, target, resizer, eps: as in `image_scaling`. noticed: the score of a picture H x W x C uint8, higher = more
    suspicious. steps: halvings of the share of the target, as the resizer enlarges it, that is mixed into the source
    first; the smallest share found with a score no higher than the source's is taken, and where there is none the
    picture of the lowest score. Of each share it is the least sum of squared changes and of squared differences from
    itself resized and brought back, weighed by share / (1 - share). Costs steps + 2 times `image_scaling`.
    Raises UserError as that does.
    Source: ours; what is evaded are the detectors of Kim et al. 2021 and Quiring et al. 2020.
    """
    whole(steps=steps)
    if not callable(noticed):
        raise UserError(f"noticed must be a function of a picture that gives its score, not {noticed!r}")
    made = image_scaling(source, target, resizer, eps=eps)  # which refuses what cannot be
    enlarged, allowed = resizer(target, (source.shape[0], source.shape[1])) * 255, noticed(source)
    tried = {0.0: (noticed(made), made)}

    def fails(share: float) -> bool:
        mixed = np.rint((1 - share) * source + share * enlarged).astype(np.uint8)
        made = image_scaling(mixed, target, resizer, eps=eps)
        tried[share] = noticed(made), made
        return tried[share][0] > allowed

    if tried[0.0][0] <= allowed:
        return made
    if fails(1.0):
        return min(tried.values(), key=lambda pair: pair[0])[1]
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if fails(middle) else (low, middle)
    return tried[high][1]
