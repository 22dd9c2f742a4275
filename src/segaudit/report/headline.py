"""What a person can act on, in sentences: who stands best, and how far each attack gets."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from segaudit.report.summary import Row, grouped, levels, percent, show_eps, strongest, unique

SHORT = "there are signs that the attacks on it fall short"


@dataclass(frozen=True, slots=True)
class Standing:
    """One model against the direct attacks in one norm.

    worst: the strongest attack at each budget, small to large. halved: the first that leaves less than half of the
    clean mIoU.
    """

    clean: Row
    worst: tuple[Row, ...]
    halved: Row | None

    @property
    def rank(self) -> tuple[float, float]:
        """Larger stands better: the budget that halves the mIoU, then the mIoU that is left there."""
        at = self.halved or self.worst[-1]
        return (at.eps or 0) if self.halved else math.inf, at.miou


def standings(rows: Sequence[Row], norm: str) -> list[Standing]:
    """Every attacked model in a norm, the best first."""
    found = []
    for clean in [row for row in rows if row.clean]:
        at = (strongest(rows, clean.name, norm, eps) for eps in levels(rows, norm))
        worst = tuple(row for row in at if row is not None)
        if worst:
            found.append(Standing(clean, worst, next((row for row in worst if row.iou_ratio < 0.5), None)))
    return sorted(found, key=lambda standing: standing.rank, reverse=True)


def norms(rows: Sequence[Row]) -> list[str]:
    """The norms in which direct attacks were given a budget, in the order of the plan."""
    return unique(row.norm for row in rows if row.direct and row.eps is not None)


def headline(rows: Sequence[Row], flagged: Collection[str] = ()) -> list[str]:
    """A few sentences a norm; the clean scores where nothing was attacked with a budget.

    flagged: the names (`Row.name`) of models of which a masking diagnostic is raised; none is called the best.
    """
    told = [sentence for norm in norms(rows) for sentence in _compare(standings(rows, norm), flagged)]
    if not told:
        clean = [row for row in rows if row.clean]
        told = [f"{row.name} scores {with_sign(row.miou)} mIoU on {row.images} clean images." for row in clean]
    return told or ["No model is scored on the clean images yet."]


def notes(rows: Sequence[Row]) -> list[str]:
    """How far each attack with its own norm, and each targeted one, got at its best."""
    direct = [row for row in rows if row.direct]
    own = grouped([row for row in direct if row.eps is None], "attack", "norm")
    aimed = grouped([row for row in direct if not math.isnan(row.goal_accuracy)], "attack", "norm")
    return [*map(_own, own), *map(_aimed, aimed)]


def at_budget(row: Row) -> str:
    """`Linf 8/255`."""
    return f"{row.norm.capitalize()} {show_eps(row.eps, row.norm)}" if row.eps is not None else "its own norm"


def with_sign(value: float) -> str:
    """`61.3 %`."""
    return f"{percent(value)}\u00a0%"


def _compare(found: Sequence[Standing], flagged: Collection[str]) -> Iterator[str]:
    """The best, the worst, and the largest budget."""
    if not found:
        return
    sound = [standing for standing in found if standing.clean.name not in flagged]
    best, last = (sound or found)[0], found[-1]
    name, doubt = best.clean.name, "" if sound else f" Do not rely on it: {SHORT} (below)."
    if len(found) == 1:
        clean = f"{name} scores {with_sign(best.clean.miou)} mIoU on {best.clean.images} clean images."
        yield f"{clean} {_fall(best)}{doubt}"
        return
    ahead = [standing.clean.name for standing in takewhile(lambda standing: standing is not best, found)]
    if ahead:
        seem = "seems" if len(ahead) == 1 else "seem"
        yield f"{', '.join(ahead)} {seem} to stand better than {name}, but do not rely on it: {SHORT} (below)."
        yield f"Of those without one, {name} stands best. {_fall(best)}"
    else:
        yield f"{name} stands best of {len(found)}. {_fall(best)}{doubt}"
    if last is best:
        return
    if last.halved is None:
        yield f"{last.clean.name} keeps the least: {_drop(last, last.worst[-1])}."
    elif best.halved and best.halved.eps == last.halved.eps:
        yield f"All fall below half there; {last.clean.name} keeps the least: {_drop(last, last.halved)}."
    else:
        yield f"{last.clean.name} falls first, at {at_budget(last.halved)}: {_drop(last, last.halved)}."
    most = max((standing.worst[-1] for standing in sound or found), key=lambda row: row.miou)
    yield f"At {at_budget(most)} no {'other ' * bool(ahead)}model keeps more than {with_sign(most.miou)} mIoU."


def _fall(standing: Standing) -> str:
    row = standing.halved or standing.worst[-1]
    if standing.halved is None:
        return f"No attack up to {at_budget(row)} halves its mIoU: there, {_drop(standing, row)}."
    return f"The smallest tested budget that halves its mIoU is {at_budget(row)}: {_drop(standing, row)}."


def _drop(standing: Standing, row: Row) -> str:
    return f"{row.label} takes it from {with_sign(standing.clean.miou)} to {with_sign(row.miou)}"


def _own(group: Sequence[Row]) -> str:
    row = min(group, key=lambda row: math.inf if math.isnan(row.miou) else row.miou)
    if row.norm == "l0":
        left = f"{with_sign(row.miou)} mIoU on the other pixels"
        return f"{row.label} brings {row.name} to {left}, and covers {with_sign(row.share)} of an image."
    return (
        f"{row.label}, which finds its own norm, brings {row.name} to {with_sign(row.miou)} mIoU with a mean Linf of "
        f"{show_eps(row.linf, 'linf')} and a mean L2 of {row.l2:.3g}."
    )


def _aimed(group: Sequence[Row]) -> str:
    best = max(group, key=lambda row: row.goal_accuracy)
    least = min(group, key=lambda row: math.inf if row.eps is None or row.name != best.name else row.eps)
    beside = f"; {with_sign(least.goal_accuracy)} at {at_budget(least)}" if least is not best else ""
    return (
        f"Targeted: at {at_budget(best)}, {best.label} makes {best.name} give {with_sign(best.goal_accuracy)} of the "
        f"pixels the target's class (mIoU with the target {with_sign(best.goal_miou)}{beside})."
    )
