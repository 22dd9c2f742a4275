"""How far the figures of a score may be chance: intervals of an AUC and of a share, and the luck of a guess."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, stdtr, stdtrit  # type: ignore[import-untyped]

from segaudit.types import Floats

LEVEL = 0.95
"""Of all intervals."""


class Range(NamedTuple):
    """The interval of an AUC. chance: the probability that a guess comes out as far from 0.5; under 5 % where the
    interval does not hold it. nan where nothing is known of it."""

    low: float
    high: float
    chance: float


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


def interval(below: Floats, above: Floats, of_below: NDArray[np.str_], of_above: NDArray[np.str_]) -> Range:
    """The 95 % interval of the AUC of the others' and the members' scores; of_below, of_above: their units.

    A score interval, as Newcombe's: it holds what is less than a quantile of its own standard deviations away, so it
    stays in [0, 1] and reaches towards 0.5 where the AUC is near 1. How the variance falls towards the ends is
    Newcombe's for as many units; its size is what the units' scores say at this AUC (DeLong's where each image is a
    unit), with one more unit on each side that has a random place. The quantile is Student's, as units may be few;
    those of unlike size count as `effective` says. Neither end nor chance says more than those of as many units in
    perfect order, which are Newcombe's. A single score on a side is told by Newcombe's too; a single unit of several
    images has no interval.
    Source: Newcombe 2006 (method 5); DeLong et al. 1988; Obuchowski 1997 (units); Satterthwaite 1946 (degrees of
    freedom).
    """
    auc, m, n = area(below, above), effective(of_above), effective(of_below)
    size, freedom = 1.0, math.inf
    if min(np.unique(of_above).size, np.unique(of_below).size) > 1:
        inside, outside = _variance(placement(below, above), of_above), _variance(placement(above, below), of_below)
        random = (m**-2 + n**-2) / 12
        total, parts = inside + outside + random, inside**2 / (m - 1) + outside**2 / (n - 1)
        size, freedom = total / (_newcombe(auc, m, n) + random), total**2 / parts if parts else math.inf
    elif (m, n) != (above.size, below.size):
        return Range(math.nan, math.nan, math.nan)
    guess, best = math.sqrt(_newcombe(0.5, m, n)), newcombe(1.0, m, n)[0]
    low, high = newcombe(auc, m, n, float(stdtrit(freedom, (1 + LEVEL) / 2)) * math.sqrt(size))
    chance, least = stdtr((freedom, math.inf), (-abs(auc - 0.5) / guess / math.sqrt(size), -0.5 / guess))
    return Range(min(low, best), max(high, 1 - best), 2 * float(max(chance, least)))


def effective(units: NDArray[np.str_]) -> float:
    """As how many units of like size these count, by the unit of each image. Source: Kish 1965 (unequal weights)."""
    sizes = np.unique(units, return_counts=True)[1]
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if sizes.size else 0.0


def newcombe(
    auc: float, m: float, n: float, reach: float = NormalDist().inv_cdf((1 + LEVEL) / 2)
) -> tuple[float, float]:
    """The 95 % interval of an AUC that is known of m and n scores alone. reach: standard deviations on either side.

    Source: Newcombe 2006, method 5.
    """
    ends = []
    for far in (0.0, 1.0):
        near = auc
        for _ in range(60):
            middle = (near + far) / 2
            outside = (auc - middle) ** 2 > reach**2 * _newcombe(middle, m, n)
            near, far = (near, middle) if outside else (middle, far)
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


def _newcombe(true: float, m: float, n: float) -> float:
    """The variance of the AUC of m and n scores where this is the true one."""
    many = (m + n) / 2 - 1
    return true * (1 - true) * (1 + many * ((1 - true) / (2 - true) + true / (1 + true))) / (m * n)
