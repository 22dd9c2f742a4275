"""Detectors of attacked images: how well each tells them from clean ones, and what is left of that if it is evaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from segaudit.defenses.detectors.reference import FPR
from segaudit.metrics import confusion, roc
from segaudit.report.certified import COLOURS
from segaudit.report.grid import Grid
from segaudit.report.summary import Row, percent, show_eps, unique
from segaudit.types import EVADING, Cell, Floats, Results, UserError

SIDE, LEFT, TOP, BELOW = 280, 44, 10, 44
"""Of a plot of ROC curves, and the margins around it, in its own pixels."""


@dataclass(frozen=True, slots=True)
class Noticed:
    """One detector on one attacked cell, whose images are to be told from the model's clean ones.

    miou: of the cell, in [0, 1]. negatives, positives: the scores of the clean and of the attacked images. still: how
    many of these are the clean ones. whole: the run is finished, so that what is not there was not made.
    """

    detector: str
    cell: Cell
    miou: float
    negatives: Floats
    positives: Floats
    still: int = 0
    whole: bool = True

    @property
    def auc(self) -> float:
        """The area under the ROC curve: the chance that an attacked image scores above a clean one."""
        return roc.auc(self.negatives, self.positives)

    @property
    def tpr(self) -> float:
        """The share of the attacked images that is found at an FPR of `FPR`."""
        return roc.tpr_at(self.negatives, self.positives, FPR)


@dataclass(frozen=True, slots=True)
class Duel:
    """A detector at one budget: blind, the oblivious attack that leaves the lowest mIoU; knowing, one that evades.

    knowing: None where nothing that evades the detector was made.
    """

    blind: Noticed
    knowing: Noticed | None


def noticed(results: Results) -> list[Noticed]:
    """One for each detector and attacked cell, in the order of the plan; none where the clean scores are lacking."""
    clean = {(own.cell.model, own.detector): own.scores for own in results.detection if own.cell.attack == "none"}
    return [
        Noticed(
            own.detector,
            own.cell,
            miou=confusion.miou(own.records.counts),
            negatives=negatives,
            positives=own.scores,
            still=int((own.records.norms.linf == 0).sum()),
            whole=not results.lacking,
        )
        for own in results.detection
        if own.cell.attack != "none" and (negatives := clean.get((own.cell.model, own.detector))) is not None
    ]


def duels(found: Sequence[Noticed]) -> list[Duel]:
    """One for each cell that evades, beside the white-box cells of its model, detector, norm and budget.

    Of a detector that nothing evades, in a finished run, one for each norm and budget of the white-box cells.
    """
    evaded = {(own.cell.model, own.detector) for own in found if own.cell.threat == EVADING}
    blind: dict[tuple[Any, ...], list[Noticed]] = {}
    for own in (own for own in found if own.cell.threat == "white-box" and not math.isnan(own.miou)):
        blind.setdefault(_words(own), []).append(own)
    made = [
        Duel(min(beside, key=lambda n: n.miou), knowing)
        for knowing in (own for own in found if own.cell.threat == EVADING)
        if (beside := blind.get(_words(knowing)))
    ]
    for same in blind.values():
        cell = same[0].cell
        if same[0].whole and cell.eps is not None and (cell.model, same[0].detector) not in evaded:
            made.append(Duel(min(same, key=lambda n: n.miou), None))
    return made


def grid(results: Results, rows: Sequence[Row], quantity: str, exact: bool) -> Grid:
    """The table of a run. Raises UserError where it has no detectors."""
    found = noticed(results)
    if not found:
        raise UserError(
            f"table: {results.name} holds no scores of detectors; ask for them in its spec with "
            "`detection: {detectors: [squeezing]}`"
        )
    return table(found, results.name, exact)


def table(found: Sequence[Noticed], name: str, exact: bool) -> Grid:
    """A row a model, detector and attacked cell: mIoU and TPR in percent, AUC in [0, 1]; all in full if exact."""

    def number(value: float | None, text: str) -> str:
        return text if not exact else "" if value is None or math.isnan(value) else repr(value)

    body = [
        [
            *(own.cell.model, own.detector, own.cell.threat, own.cell.attack, own.cell.norm),
            number(own.cell.eps, show_eps(own.cell.eps, own.cell.norm)),
            str(len(own.positives)),
            number(own.miou, percent(own.miou)),
            number(own.auc, f"{own.auc:.3f}"),
            number(own.tpr, percent(own.tpr)),
        ]
        for own in found
    ]
    head = ["model", "detector", "threat", "attack", "norm", "eps", "images", "mIoU", "AUC", f"TPR at {100 * FPR:g} %"]
    clean = len(found[0].negatives) if found else 0
    title = (
        f"{name}: attacked images told from {clean} clean ones; mIoU and TPR in percent; "
        f"{EVADING}: the attack knew of the detector"
    )
    return Grid(title, head, body, 5)


def lines(found: Sequence[Noticed]) -> list[str]:
    """What each detector is worth at the largest budget, a sentence for each model and detector."""
    return [_line(duel) for duel in _largest(duels(found))]


def figures(found: Sequence[Noticed]) -> list[dict[str, Any]]:
    """The ROC curves of each model at its largest budget, in the coordinates of a plot; dashed: evading."""
    shown, bottom = _largest(duels(found)), TOP + SIDE

    def at(x: float, y: float) -> tuple[float, float]:
        return round(LEFT + SIDE * x, 1), round(bottom - SIDE * y, 1)

    made = []
    for model in unique(duel.blind.cell.model for duel in shown):
        own = [duel for duel in shown if duel.blind.cell.model == model]
        drawn = []
        for i, duel in enumerate(own):
            for one, dash in ((duel.blind, ""), *([(duel.knowing, "5 4")] if duel.knowing else [])):
                name = f"{one.detector}, {one.cell.attack if not dash else EVADING}: AUC {one.auc:.2f}"
                line = {"name": name, "colour": COLOURS[i % len(COLOURS)], "dash": dash, "points": _path(one, at)}
                drawn.append(line)
        made.append(
            {
                "title": f"{model}, {_at(own[0].blind.cell)}", "lines": drawn,
                "width": LEFT + SIDE + 12, "height": bottom + BELOW, "left": LEFT, "right": LEFT + SIDE,
                "bottom": bottom, "chance": (at(0, 0), at(1, 1)),
                "x": [(at(share / 100, 0)[0], str(share)) for share in range(0, 101, 20)],
                "y": [(at(0, share / 100)[1], str(share)) for share in range(0, 101, 20)],
            }
        )  # fmt: skip
    return made


def _line(duel: Duel) -> str:
    blind, knowing = duel.blind, duel.knowing
    told = (
        f"{blind.cell.model}, {blind.detector}, {_at(blind.cell)}: at {100 * FPR:g} % false positives "
        f"{percent(blind.tpr)} % are found of the images of {blind.cell.attack}, which leaves a mIoU of "
        f"{percent(blind.miou)} and does not know of the detector (AUC {blind.auc:.2f}); "
    )
    if knowing is None:
        return told + "no attack that does was made, as it or the model has no gradient, or one of zeros."
    lost = f", which left {knowing.still} of {len(knowing.positives)} images as they were" if knowing.still else ""
    return (
        told + f"{percent(knowing.tpr)} % of those of the attack that does, at a mIoU of {percent(knowing.miou)} "
        f"(AUC {knowing.auc:.2f}){lost}."
    )


def _words(own: Noticed) -> tuple[Any, ...]:
    return own.detector, own.cell.model, own.cell.norm, own.cell.eps


def _path(own: Noticed, at: Callable[[float, float], tuple[float, float]]) -> str:
    """The ROC curve as an SVG path; where clean and attacked images score the same it slopes."""
    curve = roc.curve(own.negatives, own.positives)
    points = (at(x, y) for x, y in zip(curve.fpr.tolist(), curve.tpr.tolist(), strict=True))
    return " ".join(f"{x},{y}" for x, y in points)


def _largest(made: Sequence[Duel]) -> list[Duel]:
    """Of each model and detector the one at the largest budget."""
    last: dict[tuple[str, str], Duel] = {}
    for duel in sorted(made, key=lambda duel: duel.blind.cell.eps or 0.0):
        last[duel.blind.cell.model, duel.blind.detector] = duel
    order = unique((own.cell.model, own.detector) for own in (duel.blind for duel in made))
    return [last[key] for key in order]


def _at(cell: Cell) -> str:
    return f"{cell.norm.capitalize()} {show_eps(cell.eps, cell.norm)}"
