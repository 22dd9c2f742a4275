"""How far the figures of a score may be chance: intervals of an AUC and of a share, and the luck of a guess."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, stdtrit  # type: ignore[import-untyped]

from segaudit.types import Floats

LEVEL = 0.95
"""Of all intervals."""


def placement(below: Floats, scores: Floats) -> Floats:
    """The share of `below` that is under each score, equal ones by half."""
    ordered = np.sort(below)
    made: Floats = (np.searchsorted(ordered, scores) + np.searchsorted(ordered, scores, "right")) / 2 / below.size
    return made


def area(below: Floats, above: Floats) -> float:
    """The AUC: the chance that a member scores above another, equal scores by half. Raises ValueError for a nan."""
    if np.isnan(below).any() or np.isnan(above).any():
        raise ValueError("a score is nan")
    return float(placement(below, above).mean())


def interval(
    below: Floats, above: Floats, of_below: NDArray[np.str_], of_above: NDArray[np.str_]
) -> tuple[float, float]:
    """The 95 % interval of the AUC of the others' and the members' scores; of_below, of_above: their units.

    Its variance is that of the units, so DeLong's where each image is one, and its quantile Student's, as units may be
    few. Where it has no width, as at an AUC of 1, and of a single score on a side, the score interval of Newcombe for
    as many units; (nan, nan) of a single unit of several images.
    Source: DeLong et al. 1988; Obuchowski 1997 (units); Satterthwaite 1946 (degrees of freedom); Newcombe 2006
    (method 5).
    """
    middle, m, n = area(below, above), np.unique(of_above).size, np.unique(of_below).size
    if min(m, n) < 2:
        return newcombe(middle, m, n) if (m, n) == (above.size, below.size) else (math.nan, math.nan)
    inside, outside = _variance(placement(below, above), of_above), _variance(placement(above, below), of_below)
    if inside + outside < 1e-24:
        return newcombe(middle, m, n)
    freedom = (inside + outside) ** 2 / (inside**2 / (m - 1) + outside**2 / (n - 1))
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * math.sqrt(inside + outside)
    return max(0.0, middle - half), min(1.0, middle + half)


def newcombe(auc: float, m: int, n: int) -> tuple[float, float]:
    """The 95 % interval of an AUC that is known of m and n scores alone. Source: Newcombe 2006, method 5."""
    many, z = (m + n) / 2 - 1, NormalDist().inv_cdf((1 + LEVEL) / 2)

    def outside(true: float) -> bool:
        width = true * (1 - true) * (1 + many * ((1 - true) / (2 - true) + true / (1 + true))) / (m * n)
        return (auc - true) ** 2 > z * z * width

    ends = []
    for far in (0.0, 1.0):
        near = auc
        for _ in range(60):
            middle = (near + far) / 2
            near, far = (near, middle) if outside(middle) else (middle, far)
        ends.append(near)
    return ends[0], ends[1]


def clopper_pearson(share: float, count: int) -> tuple[float, float]:
    """The exact 95 % interval of a share that was seen in so many independent things.

    Where the things are whole units the share is any number, as if it were one of so many.
    Source: Clopper and Pearson 1934; Korn and Graubard 1998.
    """
    hit, tail = share * count, (1 - LEVEL) / 2
    low = float(betaincinv(hit, count - hit + 1, tail)) if hit > 0 else 0.0
    high = float(betaincinv(hit + 1, count - hit, 1 - tail)) if hit < count else 1.0
    return low, high


def by_luck(hits: int, false: int, members: int, others: int) -> float:
    """The probability that among scores in random order so many members stand above all but `false` of the others.

    Source: Fisher 1922 (the exact test).
    """
    top = hits + false
    ways = sum(math.comb(others, j) * math.comb(members, top - j) for j in range(false + 1) if top - j <= members)
    return ways / math.comb(members + others, top)


def _variance(places: Floats, units: NDArray[np.str_]) -> float:
    """Of the mean of the places of one kind's scores among the other's, from the sums of at least two units."""
    row = np.unique(units, return_inverse=True)[1]
    sums = np.bincount(row, places - places.mean())
    return float((sums**2).sum() / places.size**2 * sums.size / (sums.size - 1))
