"""The signs of masked gradients that the cells of one model may show, each with its two numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from segaudit.metrics import bootstrap, confusion
from segaudit.report.headline import at_budget, with_sign
from segaudit.report.shots import Pair, Shot, View, best, both, paired, shorter, single
from segaudit.types import Records

MARGIN = 0.02
"""A difference in mIoU that is worth a word."""
UNMOVED = 0.1
"""The share of the images on which a gradient may be zero."""
LEFT = 0.1
"""The share of the clean mIoU that an attack without a bound may leave."""
FEWEST = 6
"""Of fewer images, all may lean to one side by chance: of five, once in 32 times."""
ALONE = f"not run: fewer than {FEWEST} images"
STEPS = re.compile(r"\bsteps=(\d+)")


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One check of a model, with its defense where it has one.

    raised: whether it is a sign of masked gradients; None where that cannot be told, and `line` says why. numbers: two
    shares in [0, 1], of which the second should not be the larger, and nan where there are none; of: what each is.
    images: how many they are measured on.
    """

    model: str
    defense: str
    name: str
    raised: bool | None
    line: str
    numbers: tuple[float, float] = (math.nan, math.nan)
    of: tuple[str, str] = ("", "")
    images: int = 0

    @property
    def excess(self) -> float:
        """By how much the second number is the larger."""
        return self.numbers[1] - self.numbers[0]


Check = Callable[[View], Iterator[Diagnostic]]


def _zero(view: View) -> Iterator[Diagnostic]:
    """An attack with a budget follows the gradient, and an image's loss and predictions are what they were.

    One image of several is no sign yet, nor is one whose target is reached.
    """
    for shot in (shot for shot in view.direct if shot.fresh):
        chosen = shot.records.choice is not None  # a worst case, or one that is cut at a budget
        if view.clean is None or not shot.row.eps or not shot.records.backwards.any() or chosen:
            continue
        before, after, goal = _outcomes(view.clean.records), _outcomes(shot.records), shot.records.goal
        there = goal.intersection.sum(1) == goal.target.sum(1) if goal else np.zeros(len(shot.records), dtype=bool)
        asked = {name for name, done in zip(shot.records.ids, there, strict=True) if not done}
        shared = [name for name in before if name in asked]
        if not shared:
            continue
        still = sum(before[name] == after.get(name) for name in shared)
        line = f"{shot.row.attack} follows the gradient of {shot.row.name} and changes every image."
        if still:
            where = "any image" if still == len(shared) else f"{still} of {len(shared)} images"
            line = (
                f"{shot.row.attack} follows the gradient of {shot.row.name} and changes nothing on {where}: the "
                "gradient is zero (a constant output, or a step without one), so this is no robustness. Try square, or "
                "images made on another model."
            )
        numbers, of = (UNMOVED, still / len(shared)), ("images at most", f"images that {shot.told} leaves as they were")
        raised = numbers[1] > UNMOVED and (still > 1 or len(shared) == 1)
        yield _told("zero gradient", shot, raised, line, numbers, of, len(shared))


def _noise(view: View) -> Iterator[Diagnostic]:
    """The best attack must clearly beat noise, where either has an effect."""
    for weak, strong in _fresh(best(view.noise, view.white)):
        by_chance, by_gradient = paired(weak, strong)
        left = confusion.miou(by_chance), confusion.miou(by_gradient)
        low, _ = bootstrap.difference(by_chance, by_gradient)
        raised: bool | None = not low > 0 and left[1] > MARGIN
        line = both(weak.row, strong.row, left, "and")
        line += ": no attack does more than random noise, a sign of masked gradients." if raised else "."
        if len(by_chance.target) < FEWEST:
            raised, line = None, ALONE
        elif raised and view.clean and view.clean.miou - min(left) <= MARGIN:
            raised, line = None, f"not run: {at_budget(strong.row)} is too little for noise and attacks alike"
        elif raised and left[0] - left[1] > MARGIN:
            raised, line = None, f"not run: {len(by_chance.target)} images are too few to tell attacks from noise"
        yield _told("noise", strong, raised, line, left, (weak.told, strong.told), len(by_chance.target))


def _unbounded(view: View) -> Iterator[Diagnostic]:
    """With every picture in reach, an attack that leaves more than a tenth of the clean mIoU has lost its way."""
    free = [shot for shot in view.white if shot.fresh and shot.row.norm == "linf" and shot.row.eps and not shot.bounded]
    if free and view.clean:
        shot = min(free, key=lambda shot: shot.miou)
        left, low = (LEFT * view.clean.miou, shot.miou), bootstrap.interval(shot.counts)[0]
        raised = None if len(shot.records) < FEWEST else left[1] > left[0] and low > left[0]
        line = f"On {shot.row.name}, {shot.row.label} without a bound leaves {with_sign(left[1])} mIoU"
        line += ": it should leave nothing, so this is a sign of masked gradients." if raised else "."
        of = "a tenth of the clean mIoU", f"{shot.row.label} without a bound"
        yield _told("unbounded", shot, raised, ALONE if raised is None else line, left, of, len(shot.records))


def _pairs(name: str, pairs: Callable[[View], Iterator[Pair]], why: str) -> Check:
    """The check that of each pair the second leaves no more than the first. why: what it means if it does."""

    def check(view: View) -> Iterator[Diagnostic]:
        for weak, strong in _fresh(pairs(view)):
            first, second = paired(weak, strong)
            left = confusion.miou(first), confusion.miou(second)
            larger = left[1] - left[0] > MARGIN and bootstrap.difference(second, first)[0] > 0
            raised = None if len(first.target) < FEWEST else larger
            if raised:
                line = f"{both(weak.row, strong.row, left)}: {why.replace('{source}', weak.row.source)}."
            else:
                line = ALONE if raised is None else f"{both(weak.row, strong.row, left, 'and')}."
            yield _told(name, strong, raised, line, left, (weak.told, strong.told), len(first.target))

    return check


def _one_step(view: View) -> Iterator[Pair]:
    one = [shot for shot in view.white if single(shot.row)]
    return best(one, [shot for shot in view.white if not single(shot.row)])


def _fewer_steps(view: View) -> Iterator[Pair]:
    for strong in view.white:
        for weak in (shot for shot in view.white if shot.at == strong.at and shot.own):
            like = STEPS.sub("", weak.row.attack) == STEPS.sub("", strong.row.attack)
            if like and _steps(weak) < _steps(strong):
                yield weak, strong


def _smaller_budget(view: View) -> Iterator[Pair]:
    bounded = [shot for shot in view.white if shot.bounded and not single(shot.row)]
    for strong in bounded:
        for weak in bounded:
            like = (weak.row.attack, weak.row.norm) == (strong.row.attack, strong.row.norm)
            if like and (weak.row.eps or 0) < (strong.row.eps or 0):
                yield weak, strong


def _more(view: View) -> Iterator[Pair]:
    """An attack with more steps or draws, and the best of the run: of two attacks the weaker one may go on."""
    for longer in view.white:
        label = shorter(longer.row.attack)
        others = [shot for shot in view.white if shot.at == longer.at and shot is not longer]
        if label != longer.row.attack and any(shot.row.attack == label for shot in others):
            yield longer, min(others, key=lambda shot: shot.miou)


def _fresh(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """Those that were not compared before, on more images."""
    return (pair for pair in pairs if any(shot.fresh for shot in pair))


def _outcomes(records: Records) -> dict[str, tuple[str, list[int]]]:
    """id -> (loss, right pixels by class) of the images on which there is something to win."""
    rows = zip(records.ids, records.loss.tolist(), records.counts.intersection.tolist(), strict=True)
    return {name: (repr(loss), hits) for name, loss, hits in rows if not math.isnan(loss) and any(hits)}


def _steps(shot: Shot) -> int:
    found = STEPS.search(shot.row.attack)
    return int(found[1]) if found else 0


def _told(
    name: str,
    shot: Shot,
    raised: bool | None,
    line: str,
    numbers: tuple[float, float],
    of: tuple[str, str],
    images: int,
) -> Diagnostic:
    return Diagnostic(shot.row.model, shot.row.defense, name, raised, line, numbers, of, images)


CHECKS: dict[str, tuple[Check, str]] = {
    "zero gradient": (_zero, "no attack with a budget that follows the gradient"),
    "one step": (
        _pairs("one step", _one_step, "one step beats every iterated attack, a sign of masked gradients"),
        "no one-step attack beside an iterated one",
    ),
    "steps": (
        _pairs("steps", _fewer_steps, "more steps do worse, a sign of masked gradients"),
        "no attack with several numbers of steps",
    ),
    "budget": (
        _pairs(
            "budget",
            _smaller_budget,
            "the larger budget holds the smaller one, so this is a sign of masked gradients",
        ),
        "no iterated attack at two budgets",
    ),
    "black box": (
        _pairs(
            "black box",
            lambda view: best(view.black, view.white),
            "scores alone do more than gradients, a sign that they are masked",
        ),
        "no black-box attack beside an iterated one that follows the gradient",
    ),
    "transfer": (
        _pairs(
            "transfer",
            lambda view: best(view.elsewhere, view.white),
            "images made on {source} do more than its own, a sign of masked gradients",
        ),
        "no images made on another model beside an iterated attack on its own gradient",
    ),
    "oblivious": (
        _pairs(
            "oblivious",
            lambda view: best(view.elsewhere, view.white),
            "knowing the defense does not help, a sign that it masks gradients",
        ),
        "no images made on the bare model beside an iterated attack on the defended one's gradient",
    ),
    "noise": (_noise, "no random noise beside an iterated attack that follows the gradient"),
    "unbounded": (_unbounded, "no attack without a bound"),
    "convergence": (
        _pairs(
            "convergence", _more, "more steps or draws do more than every attack of this run, so that they are too weak"
        ),
        "no run of more steps or draws (an attack that has max_steps of `diagnostics` already is given none)",
    ),
}
"""name -> (the check, what is lacking where it has nothing to compare). `transfer` is asked of bare models,
`oblivious` of defended ones."""
