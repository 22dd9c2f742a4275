"""Image scaling attacks: what the models see of them, what a guard makes them cost, and what a detector notices."""

from __future__ import annotations

import math
from collections.abc import Sequence

from segaudit.metrics.scaling import Scaled, scaled
from segaudit.report.grid import Grid
from segaudit.report.summary import DASH, Row
from segaudit.types import EVADING, Results, UserError

MIOUS = {"clean": "clean", "full size": "source", "hidden": "goal", "resized": "target"}
GUARDED = {"clean as got": "before", "own as got": "after"}


def attacks(rows: Sequence[Scaled], exact: bool = False, name: str = "") -> Grid:
    """A row a model, resizer, guard and threat: mIoUs and shares in %, Linf in 1/255; all in [0, 1] if exact.

    Guards and threats have columns only where there are any; `cost` is the change in multiples of that without a guard.
    """
    guarded = any((row.guard, row.threat) != ("none", "white-box") for row in rows)
    told = ["model", "library", "method", *(["guard", "threat"] if guarded else [])]
    mious = MIOUS | (GUARDED if guarded else {})
    body = [
        [
            *(getattr(row, word) for word in told),
            *(_share(getattr(row, key), exact, 2) for key in mious.values()),
            _number(row.linf if exact else 255 * row.linf, exact, 2),
            _number(row.change, exact, 2),
            _number(row.similarity, exact, 3),
            _share(row.changed, exact, 1),
            *([_number(_cost(rows, row), exact, 2)] if guarded else []),
        ]
        for row in rows
    ]
    head = [*told, *mious, "Linf", "L2", "SSIM", "changed" if exact else "changed %", *(["cost"] if guarded else [])]
    pictures = f"{rows[0].images if rows else 0} pictures"
    title = f"{_of(name)}mIoU (%) on {pictures} at full size, and of the hidden ones after the resize"
    if guarded:
        title += "; as got: of the pictures' own labels behind the guard; cost: the change over that without a guard"
    return Grid(title, head, body, len(told))


def detectors(rows: Sequence[Scaled], exact: bool = False, name: str = "") -> Grid:
    """A row a resizer, guard, threat and detector: AUC, and TPR in % at an FPR of 1 % and of 0.1 %; shares if exact."""
    each = {(row.library, row.method, row.guard, row.threat): row for row in rows}
    body = [
        [*words, detector, _number(made.auc, exact, 3), _share(made.at_1, exact, 1), _share(made.at_01, exact, 1)]
        for words, row in each.items()
        for detector, made in row.detection.items()
    ]
    head = ["library", "method", "guard", "threat", "detector", "AUC", "TPR at 1 %", "TPR at 0.1 %"]
    images = rows[0].images if rows else 0
    title = f"{_of(name)}detectors of image scaling attacks, {images} clean pictures against as many attacked ones"
    few = "; 0.1 % of fewer than 1000 is no false alarm, as is 1 % of fewer than 100" if images < 1000 else ""
    return Grid(f"{title}; TPR in % at an FPR{few}", head, body, 5)


def grid(results: Results, rows: Sequence[Row], quantity: str, exact: bool) -> Grid:
    """The attacks of a run. Raises UserError where it made none."""
    return attacks(_rows(results), exact, results.name)


def detection(results: Results, rows: Sequence[Row], quantity: str, exact: bool) -> Grid:
    """The detectors of a run. Raises UserError where it asked for none."""
    made = _rows(results)
    if not any(row.detection for row in made):
        raise UserError(
            f"table: {results.name} holds no detectors of scaling attacks; ask for them in its spec with "
            "`scaling: {detectors: [down_up_mse]}`"
        )
    return detectors(made, exact, results.name)


def grids(results: Results) -> list[Grid]:
    """What the page shows: the attacks, and the detectors if there are any; nothing without attacks."""
    made = [scaled(hidden) for hidden in results.scaling]
    return [*([attacks(made)] if made else []), *([detectors(made)] if any(row.detection for row in made) else [])]


def lines(results: Results) -> list[str]:
    """What each guard bought, a line for each model and resizer."""
    made = [scaled(hidden) for hidden in results.scaling]
    told = []
    for row in made:
        own = {(*_attacked(other), other.guard, other.threat): other for other in made}
        blind = own.get((*_attacked(row), row.guard, "oblivious"))
        if row.threat != "adaptive" or blind is None:
            continue
        cost = _cost(made, row)
        times = "" if math.isnan(cost) else f", {cost:.1f} times the change without a guard"
        told.append(
            f"{row.model} behind {row.library} {row.method} with {row.guard}: of the hidden pictures' mIoU of "
            f"{100 * row.goal:.1f} the attack that knows nothing of the guard gets {100 * blind.target:.1f}, "
            f"the one that knows of it {100 * row.target:.1f} at an SSIM of {row.similarity:.2f}{times}."
        )
    return told


def _rows(results: Results) -> list[Scaled]:
    if not results.scaling:
        raise UserError(
            f"table: {results.name} holds no image scaling attacks; ask for them in its spec with "
            "`scaling: {library: opencv, factor: 4}`"
        )
    return [scaled(hidden) for hidden in results.scaling]


def _cost(rows: Sequence[Scaled], row: Scaled) -> float:
    """The change in multiples of that of the attack on the resizer alone; nan where that is not known, or none."""
    blind = (
        other.change
        for other in rows
        if other.threat != "adaptive" and not other.threat.startswith(EVADING) and _attacked(other) == _attacked(row)
    )
    bare = next(blind, 0.0)
    return row.change / bare if bare else math.nan


def _attacked(row: Scaled) -> tuple[str, str, str]:
    return row.model, row.library, row.method


def _of(name: str) -> str:
    return f"{name}: " if name else ""


def _number(value: float, exact: bool, digits: int) -> str:
    if math.isnan(value):
        return "" if exact else DASH
    return repr(value) if exact else f"{value:.{digits}f}"


def _share(value: float, exact: bool, digits: int) -> str:
    return _number(value if exact else 100 * value, exact, digits)
