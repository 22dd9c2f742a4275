"""What image scaling attacks came to, from one row a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from segaudit.metrics import confusion, roc
from segaudit.types import Hidden


@dataclass(frozen=True, slots=True)
class Detection:
    """How well a detector tells attacked pictures from clean ones: AUC, and TPR at an FPR of 1 % and of 0.1 %."""

    auc: float
    at_1: float
    at_01: float


@dataclass(frozen=True, slots=True)
class Scaled:
    """What attacks on one resizer did to one model over a data set; mIoUs in [0, 1].

    guard, threat: what stood before the resizer, and what the attack knew of it, as in `Hidden`.
    clean, source: the pictures before and after the attack, resized safely, against their own labels. before, after:
    the same as the network gets them. goal, target: the hidden pictures themselves, and what the network gets of the
    attacked ones, against the hidden pictures' labels. linf, l2: the largest distance from the hidden picture at small
    size. change, similarity, changed: means over the images, as in `Hidden`. detection: by detector.
    """

    model: str
    library: str
    method: str
    guard: str
    threat: str
    images: int
    clean: float
    source: float
    before: float
    after: float
    goal: float
    target: float
    linf: float
    l2: float
    change: float
    similarity: float
    changed: float
    detection: Mapping[str, Detection]


def scaled(hidden: Hidden) -> Scaled:
    """The aggregates of the pictures."""
    return Scaled(
        model=hidden.model,
        library=hidden.library,
        method=hidden.method,
        guard=hidden.guard,
        threat=hidden.threat,
        images=len(hidden.ids),
        clean=confusion.miou(hidden.clean),
        source=confusion.miou(hidden.source),
        before=confusion.miou(hidden.before),
        after=confusion.miou(hidden.after),
        goal=confusion.miou(hidden.goal),
        target=confusion.miou(hidden.target),
        linf=float(hidden.linf.max()),
        l2=float(hidden.l2.max()),
        change=float(hidden.change.mean()),
        similarity=float(hidden.similarity.mean()),
        changed=float(hidden.changed.mean()),
        detection={
            name: Detection(roc.auc(*pair), roc.tpr_at(*pair, 0.01), roc.tpr_at(*pair, 0.001))
            for name, pair in hidden.scores.items()
        },
    )
