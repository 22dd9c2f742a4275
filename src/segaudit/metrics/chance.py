"""How far the figures of a score may be chance: intervals of an AUC and of a share, and the luck of a guess."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv  # type: ignore[import-untyped]

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
    below: Floats,
    above: Floats,
    of_below: NDArray[np.str_],
    of_above: NDArray[np.str_],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95 % interval of the AUC of the others' and the members' scores; of_below, of_above: their units.

    DeLong's where each image is its own unit; else percentiles over units drawn anew with replacement, members' and
    others' apart, (nan, nan) of fewer than two of either. Where either has no width, as at an AUC of 1, the score
    interval of Newcombe for as many units. Source: DeLong et al. 1988; Newcombe 2006 (method 5).
    """
    m, n = np.unique(of_above).size, np.unique(of_below).size
    if (m, n) == (above.size, below.size):
        spread = math.sqrt(_variance(below, above))
        middle, z = area(below, above), _normal()
        low, high = max(0.0, middle - z * spread), min(1.0, middle + z * spread)
    elif min(m, n) < 2:
        return math.nan, math.nan
    else:
        drawn = _redrawn(below, above, of_below, of_above, draws, np.random.default_rng(seed))
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return (low, high) if high - low > 1e-12 else newcombe(area(below, above), m, n)


def newcombe(auc: float, m: int, n: int) -> tuple[float, float]:
    """The 95 % interval of an AUC that is known of m and n scores alone. Source: Newcombe 2006, method 5."""
    many, z = (m + n) / 2 - 1, _normal()

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


def _variance(below: Floats, above: Floats) -> float:
    """Of the AUC, by how each score stands among those of the other kind; 0 of fewer than two of a kind."""
    if min(below.size, above.size) < 2:
        return 0.0
    hits, spared = placement(below, above), placement(above, below)
    return float(hits.var(ddof=1) / above.size + spared.var(ddof=1) / below.size)


def _redrawn(
    below: Floats,
    above: Floats,
    of_below: NDArray[np.str_],
    of_above: NDArray[np.str_],
    draws: int,
    rng: np.random.Generator,
) -> Floats:
    """The AUC of each draw of units, from how many pairs of images each pair of units has the right way round."""
    names, row = np.unique(of_above, return_inverse=True)
    columns = np.unique(of_below)
    right = np.empty((names.size, columns.size))
    for j, column in enumerate(columns):
        own = below[of_below == column]
        right[:, j] = np.bincount(row, placement(own, above) * own.size, names.size)
    rows, others = np.bincount(row), np.array([(of_below == column).sum() for column in columns])
    times = (rng.multinomial(k, np.full(k, 1 / k), draws) for k in right.shape)
    inside, outside = (each.astype(float) for each in times)
    made: Floats = ((inside @ right) * outside).sum(1) / ((inside @ rows) * (outside @ others))
    return made


def _normal() -> float:
    return NormalDist().inv_cdf((1 + LEVEL) / 2)
