"""One row a cell, made from its per-image records alone; and how numbers are written."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from segaudit.metrics import bootstrap, confusion
from segaudit.metrics.records import each_draw, pick
from segaudit.types import Cell, Records, Results

Thing = TypeVar("Thing", bound=Hashable)

FIELDS = (
    "model", "defense", "threat", "attack", "norm", "eps", "images", "miou", "image_miou", "accuracy", "iou_ratio",
    "miou_8bit", "linf", "l2", "forwards", "backwards", "seconds",
)  # fmt: skip
"""The columns of the long form, in their order; the other fields of a row are for the page and the wider tables."""

DASH = "\u2013"
"""What a table shows where there is no number."""


@dataclass(frozen=True, slots=True)
class Row(Cell):
    """A cell with its aggregates. Shares in [0, 1]; nan where there is nothing to measure.

    iou_ratio: mIoU over the clean mIoU of the same model and defense (Arnab et al. 2018). linf, l2, share (of the
    places, changed), forwards, backwards, seconds: means over the images. low, high: 95 % bootstrap interval of the
    mIoU. success: the share of images of which 99 % of the valid pixels are won. `_8bit`: after rounding to 8 bits;
    unchanged: the share of images that are then the clean ones. goal: against the masks that a targeted attack was
    to reach. spread: of a random defense that is scored several times, two standard deviations of the mIoU over the
    draws, of which `miou` and `accuracy` are the means; all else is of the first draw. dice: `confusion.dice`.
    scoring: of a clean cell, the seconds that the model itself takes for an image, the median of those that were timed.
    """

    images: int
    miou: float
    image_miou: float
    accuracy: float
    iou_ratio: float
    miou_8bit: float
    linf: float
    l2: float
    forwards: float
    backwards: float
    seconds: float
    low: float
    high: float
    share: float
    success: float
    image_miou_8bit: float
    accuracy_8bit: float
    iou_ratio_8bit: float
    linf_8bit: float
    l2_8bit: float
    unchanged: float
    goal_miou: float
    goal_accuracy: float
    iou_by_class: tuple[float, ...]
    iou_by_size: Mapping[str, float]
    iou_by_size_8bit: Mapping[str, float]
    dice: float
    spread: float = math.nan
    scoring: float = math.nan

    @property
    def cell(self) -> Cell:
        """The cell that it sums up; a budget within an attack's own norm has none of its own in the store."""
        return Cell(self.model, self.defense, self.threat, self.attack, self.norm, self.eps)

    @property
    def clean(self) -> bool:
        """Whether nothing was attacked."""
        return self.attack == "none"

    @property
    def source(self) -> str:
        """The model that a transferred image was made on, or nothing."""
        return self.threat.removeprefix("transfer:") if self.threat.startswith("transfer:") else ""

    @property
    def direct(self) -> bool:
        """Whether the scored model was itself attacked."""
        return not self.clean and not self.source

    @property
    def label(self) -> str:
        """The attack, with what it knew of a defense or where it came from."""
        if self.source:
            return f"{self.attack} from {self.source}"
        return f"{self.attack} ({self.threat})" if self.defense != "none" and not self.clean else self.attack

    @property
    def name(self) -> str:
        """The model, with the defense where it has one."""
        return self.model if self.defense == "none" else f"{self.model} + {self.defense}"


def summarise(results: Results) -> list[Row]:
    """One row for each of the `judged` cells."""
    return tabulate(judged(results))


def judged(results: Results) -> list[tuple[Cell, Records]]:
    """Every cell, in the order of the plan; an untargeted attack with a norm of its own has one at each eps too.

    There an image counts as attacked where its norm is within the budget, and as clean where it is not: thresholded,
    nothing is clamped.
    """
    unharmed = {(cell.model, cell.defense): records for cell, records in results.cells if cell.attack == "none"}
    cells = []
    for cell, records in results.cells:
        cells.append((cell, records))
        clean = unharmed.get((cell.model, cell.defense))
        own_norm = cell.eps is None and cell.norm in ("linf", "l2") and records.goal is None
        if own_norm and clean and clean.ids == records.ids:
            for eps in results.spec.get("eps", ()):
                near = getattr(records.norms, cell.norm) <= eps * (1 + 1e-6)
                cells.append((replace(cell, eps=eps), pick([clean, records], near.astype(np.int64))))
    return cells


def tabulate(cells: Sequence[tuple[Cell, Records]]) -> list[Row]:
    """One row a cell."""
    clean = {
        (cell.model, cell.defense): _mean(map(confusion.miou, each_draw(records)))
        for cell, records in cells
        if cell.attack == "none"
    }
    return [_row(cell, records, clean.get((cell.model, cell.defense), math.nan)) for cell, records in cells]


def clean_of(rows: Sequence[Row], row: Row) -> Row | None:
    """The clean row of the same model and defense."""
    return next((r for r in rows if r.clean and (r.model, r.defense) == (row.model, row.defense)), None)


def levels(rows: Sequence[Row], norm: str) -> list[float]:
    """The budgets of the direct attacks in a norm, from small to large."""
    return sorted({row.eps for row in rows if row.direct and row.norm == norm and row.eps is not None})


def strongest(rows: Sequence[Row], name: str, norm: str, eps: float) -> Row | None:
    """The direct attack of this budget that leaves a model the lowest mIoU."""
    found = [r for r in rows if r.direct and (r.name, r.norm, r.eps) == (name, norm, eps) and not math.isnan(r.miou)]
    return min(found, key=lambda r: r.miou, default=None)


def unique(things: Iterable[Thing]) -> list[Thing]:
    """Each thing once, in the order of its first appearance."""
    return list(dict.fromkeys(things))


def grouped(rows: Iterable[Row], *fields: str) -> list[list[Row]]:
    """The rows that agree in these fields, in the order of their first appearance."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(getattr(row, field) for field in fields), []).append(row)
    return list(groups.values())


def show_eps(eps: float | None, norm: str) -> str:
    """A budget as people write it: `8/255`, or `0.5` for a norm that is not counted in grey levels."""
    if eps is None:
        return "own"
    if eps == 0:
        return "0"
    grey = eps * 255
    whole = float(f"{eps:.4g}") != eps and abs(4 * grey - round(4 * grey)) < 1e-9
    return f"{grey:.4g}/255" if norm == "linf" or whole else f"{eps:.4g}"


def percent(value: float) -> str:
    """A share in percent with one decimal, without the sign."""
    return DASH if math.isnan(value) else f"{100 * value:.1f}"


def _row(cell: Cell, records: Records, clean: float) -> Row:
    draws = each_draw(records)
    mious = [confusion.miou(counts) for counts in draws]
    miou = _mean(mious)
    low, high = bootstrap.interval(records.counts)
    rounded = records.norms_rounded
    return Row(
        cell.model,
        cell.defense,
        cell.threat,
        cell.attack,
        cell.norm,
        cell.eps,
        images=len(records),
        miou=miou,
        image_miou=confusion.image_miou(records.counts),
        accuracy=_mean(map(confusion.accuracy, draws)),
        iou_ratio=miou / clean if clean > 0 else math.nan,
        miou_8bit=confusion.miou(records.rounded),
        linf=confusion.mean(records.norms.linf),
        l2=confusion.mean(records.norms.l2),
        forwards=confusion.mean(records.forwards),
        backwards=confusion.mean(records.backwards),
        seconds=confusion.mean(records.seconds),
        low=low,
        high=high,
        share=confusion.mean(records.norms.l0 / records.places),
        success=confusion.success(records.counts if records.goal is None else records.goal, records.goal is not None),
        image_miou_8bit=confusion.image_miou(records.rounded),
        accuracy_8bit=confusion.accuracy(records.rounded),
        iou_ratio_8bit=confusion.miou(records.rounded) / clean if clean > 0 else math.nan,
        linf_8bit=confusion.mean(rounded.linf),
        l2_8bit=confusion.mean(rounded.l2),
        unchanged=confusion.mean((rounded.l0 == 0).astype(float)),
        goal_miou=confusion.miou(records.goal) if records.goal else math.nan,
        goal_accuracy=confusion.accuracy(records.goal) if records.goal else math.nan,
        iou_by_class=tuple(confusion.iou_by_class(records.counts).tolist()),
        iou_by_size=confusion.iou_by_size(records.counts),
        iou_by_size_8bit=confusion.iou_by_size(records.rounded),
        dice=confusion.dice(records.counts),
        spread=2 * statistics.stdev(mious) if len(mious) > 1 else math.nan,
        scoring=math.nan if records.scoring is None else float(np.nanmedian(records.scoring)),
    )


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)
