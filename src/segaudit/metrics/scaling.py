"""What image scaling attacks came to, from one row a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from segaudit.metrics import confusion, roc
from segaudit.types import Hidden, Hiding

WORDS = ("model", "library", "method", "guard", "threat")
SEEN = ("clean", "source", "before", "after", "goal", "target")
"""What is counted of the pictures as a model sees them."""
LARGEST = ("linf", "l2")
MEANS = ("change", "similarity", "changed")
SIZES = LARGEST + MEANS
"""What is measured of one attacked picture."""


@dataclass(frozen=True, slots=True)
class Detection:
    """How well a detector tells attacked pictures from clean ones: AUC, and TPR at an FPR of 1 % and of 0.1 %."""

    auc: float
    at_1: float
    at_01: float


@dataclass(frozen=True, slots=True)
class Scaled(Hiding[float, float]):
    """All pictures together: mIoUs in [0, 1], the largest linf and l2, the means of what else is measured of a picture.

    detection: by detector.
    """

    images: int
    detection: Mapping[str, Detection]


def scaled(hidden: Hidden) -> Scaled:
    """The aggregates of the pictures."""
    made: dict[str, Any] = {word: getattr(hidden, word) for word in WORDS}
    made |= {what: confusion.miou(getattr(hidden, what)) for what in SEEN}
    made |= {size: float(getattr(hidden, size).max()) for size in LARGEST}
    made |= {size: float(getattr(hidden, size).mean()) for size in MEANS}
    detection = {
        name: Detection(roc.auc(*pair), roc.tpr_at(*pair, 0.01), roc.tpr_at(*pair, 0.001))
        for name, pair in hidden.scores.items()
    }
    return Scaled(images=len(hidden.ids), detection=detection, **made)
