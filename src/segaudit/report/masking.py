"""Whether robustness is real: the masking diagnostics of every model of a run, and their table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from segaudit.report.grid import Grid
from segaudit.report.shots import View, worlds
from segaudit.report.signs import CHECKS, MARGIN, Diagnostic
from segaudit.report.summary import DASH, Row, percent, unique
from segaudit.types import Results

FLAGS = {True: "raised", False: "quiet", None: "not run"}


def diagnose(results: Results, rows: Sequence[Row] | None = None) -> list[Diagnostic]:
    """Every check of every model, in the order of the plan; those that lack a cell are among them, and say so.

    Each pair of attacks is compared on the same images: on all of the run's, and on the few of the diagnostics. A flag
    takes a difference of more than `MARGIN` in mIoU whose 95 % paired bootstrap interval over the images is above 0;
    of several pairs the clearest is told. An attack that meets a NaN gradient is refused by the audit before. rows:
    of the whole run (`summary.summarise`), where they are there already.
    Source: Athalye et al. 2018; Carlini et al. 2019; Tramer et al. 2020.
    """
    seen, found = list(worlds(results, rows)), []
    for model, defense in unique((cell.model, cell.defense) for cell, _ in results.cells):
        views = [View([s for s in world if (s.row.model, s.row.defense) == (model, defense)]) for world in seen]
        for name, (check, lacking) in CHECKS.items():
            if name != ("oblivious" if defense == "none" else "transfer"):
                none = Diagnostic(model, defense, name, None, f"not run: {lacking}")
                found.append(max((made for view in views for made in check(view)), key=_clarity, default=none))
    return found


def grid(found: Sequence[Diagnostic], name: str, exact: bool) -> Grid:
    """A line a check. name: of the run; exact: numbers in full, for CSV."""

    body = [
        [
            d.model,
            d.defense,
            d.name,
            FLAGS[d.raised],
            *((d.line.removeprefix("not run: "), "") if d.raised is None else d.of),
            *(share(number, exact) for number in d.numbers),
            str(d.images or ("" if exact else DASH)),
        ]
        for d in found
    ]
    title = (
        f"{name}: signs of masked gradients; mIoU in percent (zero gradient: images); raised where the second number "
        f"is larger by {100 * MARGIN:g} points and by more than chance (noise: where it is not clearly smaller; "
        "unbounded: by more than chance)"
    )
    head = ["model", "defense", "diagnostic", "flag", "of the first", "of the second", "first", "second", "images"]
    return Grid(title, head, body, 6)


def spent(results: Results) -> str:
    """What the cells of the diagnostics cost, in a sentence; nothing where there are none."""
    few = [records for _, records in results.diagnostics]
    if not few:
        return ""
    minutes = sum(float(records.seconds.sum()) for records in few) / 60
    images = max(len(records) for records in few)
    return f"{len(few)} cells were computed for them alone, on {images} images, in {minutes:.1f} minutes."


def share(value: float, exact: bool) -> str:
    """A share in percent; exact: as it is, and nothing where there is none."""
    if exact:
        return "" if math.isnan(value) else repr(value)
    return percent(value)


def table(results: Results, rows: Sequence[Row], quantity: str, exact: bool) -> Grid:
    """The checks of a run."""
    return grid(diagnose(results), results.name, exact)


def _clarity(found: Diagnostic) -> tuple[int, float]:
    """A raised flag before a quiet one, the larger excess before a smaller one."""
    return (
        -1 if found.raised is None else int(found.raised),
        -math.inf if math.isnan(found.excess) else found.excess,
    )
