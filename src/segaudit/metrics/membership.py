"""What a membership attack finds out: area, accuracy, hits at few false alarms, and how far another draw may differ."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from segaudit.metrics.chance import LEVEL, Range, area, by_luck, clopper_pearson, interval, placement
from segaudit.metrics.roc import curve, tpr_at
from segaudit.types import Floats, Inference

RATES = (0.01, 0.001, 0.0)
"""The shares of false alarms at which hits are counted."""
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Hits:
    """The share of the members that is found with at most so many false alarms, and its interval; in [0, 1].

    chance: the probability that a guess finds as many (Fisher's exact test, of units). nan where that rate is not
    resolvable: fewer than 1 / fpr others. At an fpr of 0, those above all of the others.
    """

    fpr: float
    tpr: float
    low: float
    high: float
    chance: float

    @property
    def resolvable(self) -> bool:
        """Whether there are others enough to speak of this rate."""
        return not math.isnan(self.tpr)


@dataclass(frozen=True, slots=True)
class Measured:
    """One attack on one victim, or on a few of its images. Shares in [0, 1]; nan without members or without others.

    members, others, units: images trained on, others like them, and what both are parts of. low, high: the 95 %
    interval of the AUC. chance: the probability that a guess's AUC is as far from 0.5. tuned: the attack has no
    threshold, so the best one on these very images was taken (the largest balanced accuracy), and it calls scores of at
    least that members; else those above its own. f1: of the members. hits: at each of `RATES`.
    """

    members: int
    others: int
    units: int
    auc: float
    low: float
    high: float
    chance: float
    threshold: float
    tuned: bool
    accuracy: float
    balanced_accuracy: float
    f1: float
    hits: tuple[Hits, ...]

    @property
    def by_chance(self) -> bool:
        """Whether the interval of the AUC holds 0.5."""
        return self.low <= 0.5 <= self.high

    @property
    def beyond_chance(self) -> bool:
        """Whether there is an interval of the AUC, and 0.5 is outside of it."""
        return self.low > 0.5 or self.inverted

    def telling(self, attacks: int) -> bool:
        """Whether one of so many attacks is beyond chance, or finds more at a rate of false alarms than a guess does.

        By two tests of 5 %: that of the AUC is shared among the attacks, which is an interval of 1 - 0.05 / attacks in
        place of the printed one; that of the hits among attacks and rates. Source: Bonferroni 1936.
        """
        each = (1 - LEVEL) / attacks
        return self.chance < each or any(hit.chance < each / len(RATES) for hit in self.hits)

    @property
    def inverted(self) -> bool:
        """Whether it does worse than a guess: all of the interval of the AUC is below 0.5."""
        return self.high < 0.5

    @property
    def turned(self) -> Measured:
        """The same with AUC and interval of the scores' opposites."""
        return replace(self, auc=1 - self.auc, low=1 - self.high, high=1 - self.low)


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit under an attack: a patient, a video, or an image.

    member: None where some of its images are, and some are not. exposure: the mean over its images of the share of the
    other units' non-members that score lower, equal ones by half: 0.5 for an image like those. called: the share of
    its images that the attack calls members.
    """

    name: str
    member: bool | None
    images: int
    exposure: float
    called: float


def measure(of: Inference, rows: Mask | None = None) -> Measured:
    """All measures of an attack, or of these rows of it (N booleans). Raises ValueError where a score is nan."""
    kept = np.ones(len(of.member), np.bool_) if rows is None else rows
    member, scores, units = of.member[kept], of.scores[kept].astype(float), np.asarray(of.units)[kept]
    above, below = scores[member], scores[~member]
    of_above, of_below = np.unique(units[member]).size, units[~member]
    both = bool(above.size and below.size)
    near = interval(below, above, of_below, units[member]) if both else Range(*[math.nan] * 3)
    tuned = of.threshold is None
    threshold, called = _called(of, scores, below, above)
    hit, false = int((called & member).sum()), int((called & ~member).sum())
    found = hit / above.size if above.size else math.nan
    spared = 1 - false / below.size if below.size else math.nan
    return Measured(
        above.size,
        below.size,
        np.unique(units).size,
        auc=area(below, above) if both else math.nan,
        low=near.low,
        high=near.high,
        chance=near.chance,
        threshold=threshold,
        tuned=tuned,
        accuracy=float((called == member).mean()) if both else math.nan,
        balanced_accuracy=(found + spared) / 2,
        f1=2 * hit / (hit + false + above.size) if both else math.nan,
        hits=tuple(_hits(below, above, fpr, of_above, np.unique(of_below).size) for fpr in RATES),
    )


def by_class(of: Inference) -> list[Measured]:
    """The measures on the images in which a class occurs, one for each class; an image counts for all of its own."""
    return [measure(of, of.target[:, k] > 0) for k in range(of.target.shape[1])]


def by_unit(of: Inference) -> list[Unit]:
    """What the attack says of each unit, in the order of their first image."""
    units, called = np.asarray(of.units), _called(of, of.scores, of.scores[~of.member], of.scores[of.member])[1]
    made = []
    for name in dict.fromkeys(of.units):
        own = units == name
        known = np.unique(of.member[own])
        below = of.scores[~of.member & ~own]
        exposure = float(placement(below, of.scores[own]).mean()) if below.size else math.nan
        member = bool(known[0]) if known.size == 1 else None
        made.append(Unit(name, member, int(own.sum()), exposure, float(called[own].mean())))
    return made


def fall(one: Measured, other: Measured) -> tuple[float, float]:
    """The 95 % interval of how much lower the AUC of `other` is, as if they were of different images (wider so)."""
    return _between((one.auc, one.low, one.high), (other.auc, other.low, other.high))


def rise(one: Hits, other: Hits) -> tuple[float, float]:
    """The same of how much more `other` finds; nan where that is not resolvable."""
    return _between((other.tpr, other.low, other.high), (one.tpr, one.low, one.high))


def _between(one: tuple[float, float, float], other: tuple[float, float, float]) -> tuple[float, float]:
    """The interval of a difference, from each number with its own. Source: Zou and Donner 2008."""
    (more, low, high), (less, bottom, top) = one, other
    return more - less - math.hypot(more - low, top - less), more - less + math.hypot(high - more, less - bottom)


def _hits(below: Floats, above: Floats, fpr: float, inside: int, outside: int) -> Hits:
    """inside, outside: the units of the members and of the others."""
    if not above.size or not below.size or 0 < below.size * fpr < 1 - 1e-9:
        return Hits(fpr, *[math.nan] * 4)
    tpr = tpr_at(below, above, fpr)
    chance = by_luck(math.floor(tpr * inside + 1e-9), math.floor(fpr * outside + 1e-9), inside, outside)
    return Hits(fpr, tpr, *clopper_pearson(tpr, inside), chance)


def _called(of: Inference, scores: Floats, below: Floats, above: Floats) -> tuple[float, Mask]:
    """The threshold, and which of the scores it calls members."""
    if of.threshold is not None:
        return of.threshold, scores > of.threshold
    if not below.size or not above.size:
        return math.nan, np.zeros(scores.size, np.bool_)
    made = curve(below, above)
    best = float(made.thresholds[int((made.tpr - made.fpr).argmax())])
    return best, scores >= best
