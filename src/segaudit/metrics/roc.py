"""How well a score tells two kinds of images apart: ROC curve, area under it, and the hits at few false alarms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segaudit.types import Floats


@dataclass(frozen=True, slots=True)
class Curve:
    """A ROC curve from (0, 0) to (1, 1): at each threshold the share of either kind that scores at least that.

    fpr: of the negatives. tpr: of the positives. thresholds: falling, the first one infinite. One point for each
    score that occurs, so that equal scores are never parted.
    """

    fpr: Floats
    tpr: Floats
    thresholds: Floats


def curve(negatives: Sequence[float] | NDArray[Any], positives: Sequence[float] | NDArray[Any]) -> Curve:
    """The ROC curve of a score that is to be higher for the positives.

    Raises ValueError where either kind is missing, or a score is nan. Source: Fawcett 2006.
    """
    below, above = (np.asarray(scores, np.float64).ravel() for scores in (negatives, positives))
    if not below.size or not above.size:
        raise ValueError(f"{below.size} negatives and {above.size} positives: a curve needs both")
    if np.isnan(below).any() or np.isnan(above).any():
        raise ValueError("a score is nan")
    thresholds = np.unique(np.concatenate([below, above]))[::-1]
    fpr, tpr = (1 - np.searchsorted(np.sort(kind), thresholds) / kind.size for kind in (below, above))
    return Curve(*(np.concatenate([[first], rest]) for first, rest in ((0, fpr), (0, tpr), (np.inf, thresholds))))


def auc(negatives: Sequence[float] | NDArray[Any], positives: Sequence[float] | NDArray[Any]) -> float:
    """The chance that a positive scores above a negative, where equal scores count half: the area under the curve.

    0.5: the score tells nothing. Raises ValueError as `curve` does. Source: Hanley and McNeil 1982.
    """
    made = curve(negatives, positives)
    return float((np.diff(made.fpr) * (made.tpr[1:] + made.tpr[:-1]) / 2).sum())


def tpr_at(negatives: Sequence[float] | NDArray[Any], positives: Sequence[float] | NDArray[Any], fpr: float) -> float:
    """The largest share of the positives that a threshold finds with at most `fpr` false alarms, in [0, 1].

    Points of the curve alone, nothing between them: with fewer than 1 / fpr negatives there may be no false alarm at
    all. Raises ValueError as `curve` does. Source: Carlini et al. 2022.
    """
    made = curve(negatives, positives)
    return float(made.tpr[made.fpr <= fpr + 1e-12].max())
