"""The worst of several attacks, image by image: the choice that lowers the accuracy or the data set's mIoU most."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from segaudit.metrics.confusion import join
from segaudit.types import Counts, Ints


def by_accuracy(attacks: Sequence[Counts]) -> Ints:
    """For each image the attack that leaves the fewest pixels right, N numbers of attacks; the first of equals."""
    choice: Ints = np.stack([counts.intersection.sum(1) for counts in attacks]).argmin(0)
    return choice


def by_miou(attacks: Sequence[Counts], seed: int = 0) -> Ints:
    """For each image the attack that makes the data set's mIoU as low as a greedy search gets it, N numbers.

    All images start at the attack with the lowest mIoU. In shuffled passes each image takes the attack that is best
    beside what the others have at that moment, until a pass gains nothing; `by_accuracy` is tried as a start too, so
    that the result is never above it. Source: Croce et al. 2024 (SEA), section 4.
    """
    hit, union = (np.stack([getattr(c, part) for c in attacks]).astype(float) for part in ("intersection", "union"))
    present = join(attacks).target.sum(0) > 0
    if not present.any():
        return np.zeros(hit.shape[1], dtype=np.int64)
    hit, union = hit[..., present], union[..., present]
    each = (hit.sum(1) / union.sum(1)).mean(1)
    rng = np.random.default_rng(seed)
    starts = (np.full(hit.shape[1], each.argmin()), by_accuracy(attacks))
    ends = [_descend(hit, union, start, rng) for start in starts]
    return min(ends, key=lambda choice: _miou(hit, union, choice))


RULES: dict[str, Callable[[Sequence[Counts]], Ints]] = {"accuracy": by_accuracy, "mIoU": by_miou}
"""What the worst case is the worst of."""


def _descend(hit: np.ndarray, union: np.ndarray, choice: Ints, rng: np.random.Generator) -> Ints:
    """hit, union: attacks x images x classes. Each switch lowers the mIoU, so that it ends."""
    choice, images = choice.copy(), np.arange(hit.shape[1])
    sum_hit, sum_union = hit[choice, images].sum(0), union[choice, images].sum(0)
    best, before = (sum_hit / sum_union).mean(), np.inf
    while best < before:
        before = best
        for i in rng.permutation(images):
            new_hit = sum_hit - hit[choice[i], i] + hit[:, i]
            new_union = sum_union - union[choice[i], i] + union[:, i]
            scores = (new_hit / new_union).mean(1)
            k = int(scores.argmin())
            if scores[k] < best - 1e-12:
                choice[i], best, sum_hit, sum_union = k, scores[k], new_hit[k], new_union[k]
    return choice


def _miou(hit: np.ndarray, union: np.ndarray, choice: Ints) -> float:
    images = np.arange(hit.shape[1])
    return float((hit[choice, images].sum(0) / union[choice, images].sum(0)).mean())
