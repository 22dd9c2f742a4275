"""What another draw of images from the same source could have scored."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from segaudit.metrics import confusion
from segaudit.types import Counts, Floats


def interval(counts: Counts, *, level: float = 0.95, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """The percentile interval of the data set's mIoU over images drawn anew with replacement.

    Each draw averages over the classes in its own truth. Cells of as many images share their draws, so the intervals
    of one image list are paired. (nan, nan) for fewer than two images, or where no class has truth.
    Source: Efron 1979.
    """
    return _range(_scores(counts, draws, seed), level)


def difference(
    one: Counts, other: Counts, *, level: float = 0.95, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """The interval, as above, of how much the mIoU of `one` is higher than that of `other`; both of the same images.

    (nan, nan) for fewer than two images, or where no class has truth.
    """
    return _range(_scores(one, draws, seed) - _scores(other, draws, seed), level)


def _scores(counts: Counts, draws: int, seed: int) -> Floats:
    """The mIoU of each draw; nan where none of its images has truth, and none at all of fewer than two images."""
    if len(counts.target) < 2:
        return np.empty(0)
    times = _times(len(counts.target), draws, seed)
    parts = (times @ part.astype(float) for part in (counts.intersection, counts.union, counts.target))
    each = confusion.iou(*parts)
    present = (~np.isnan(each)).sum(1)
    return np.where(present > 0, np.nansum(each, 1) / np.maximum(1, present), np.nan)


def _range(scores: Floats, level: float) -> tuple[float, float]:
    scores = scores[~np.isnan(scores)]
    if not scores.size:
        return float("nan"), float("nan")
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@lru_cache(maxsize=2)  # all images of a run, and the few of its diagnostics
def _times(images: int, draws: int, seed: int) -> Floats:
    """How often each draw holds each image, draws x images: all cells of a run ask for the same one."""
    rng = np.random.default_rng(seed)
    return np.stack([np.bincount(rng.integers(images, size=images), minlength=images) for _ in range(draws)]).astype(
        float
    )
