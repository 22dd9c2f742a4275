"""The tables of the page: cells with a colour that deepens with the share of the clean value that is lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from segaudit.metrics.confusion import SIZES
from segaudit.report.headline import norms, standings
from segaudit.report.shots import inside
from segaudit.report.summary import DASH, Row, grouped, levels, percent, show_eps, strongest
from segaudit.report.tables import transfers
from segaudit.types import Results

EFFECT = 0.005
"""A change of the mIoU by rounding that the page shows."""


class Box(NamedTuple):
    """One cell. lost: the share of the clean value that is gone, None for no colour. colour: a class's, as `r g b`."""

    text: str
    lost: float | None = None
    colour: str = ""


@dataclass(frozen=True, slots=True)
class Sheet:
    """key: what a selector tells it by. groups: (text, columns) above the header. words: leading columns of words."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Box]]
    words: int = 1
    groups: Sequence[tuple[str, int]] = ()
    key: tuple[str, str] = ("", "")


def glance(rows: Sequence[Row]) -> Sheet | None:
    """Each model against the strongest attack, the best first."""
    found = [(norm, standing) for norm in norms(rows) for standing in standings(rows, norm)]
    if not found:
        return None
    most = max(len(standing.worst) for _, standing in found)
    binary = all(len(standing.clean.iou_by_class) == 2 for _, standing in found)
    body = []
    for norm, standing in found:
        clean, halved, worst = standing.clean, standing.halved, standing.worst
        ends = [worst[len(worst) // 2 if most > 2 else 0], worst[-1]][-most:]
        body.append(
            [
                Box(clean.name),
                Box(norm.capitalize()),
                Box(str(clean.images)),
                Box(percent(clean.miou)),
                Box(_interval(clean)),
                *([Box(percent(clean.dice))] if binary else []),
                Box(f"{show_eps(halved.eps, norm)} by {halved.label}" if halved else "not halved"),
                *(Box(f"{percent(row.miou)} at {show_eps(row.eps, norm)}", _lost(row)) for row in ends),
            ]
        )
    budgets = ["middle budget" if most > 2 else "smallest budget", "largest budget"][-most:]
    dice = ["clean Dice"] if binary else []
    head = ["model", "norm", "images", "clean mIoU", "95 % interval", *dice, "halved at", *budgets]
    return Sheet("mIoU in percent, clean and under the strongest attack", head, body, 2)


def own(rows: Sequence[Row]) -> Sheet | None:
    """Attacks that find their own norm."""
    body = [
        [Box(r.name), Box(r.label), Box(percent(r.miou), _lost(r)), Box(_size(r.linf)), Box(f"{r.l2:.3g}"),
         Box(percent(r.share))]
        for r in rows if r.direct and r.eps is None
    ]  # fmt: skip
    head = ["model", "attack", "mIoU", "mean Linf", "mean L2", "pixels changed"]
    return Sheet("Attacks that find their own norm, in percent", head, body, 2) if body else None


def goals(rows: Sequence[Row]) -> Sheet | None:
    """How near targeted attacks came to their masks."""
    body = [
        [Box(r.name), Box(r.label), Box(show_eps(r.eps, r.norm)), Box(percent(r.goal_accuracy)),
         Box(percent(r.goal_miou)), Box(percent(r.miou), _lost(r))]
        for r in rows if r.direct and not math.isnan(r.goal_accuracy)
    ]  # fmt: skip
    head = ["model", "attack", "eps", "pixels of the target's class", "mIoU with the target", "mIoU with the truth"]
    return Sheet("Targeted attacks, in percent", head, body, 2) if body else None


def matrices(rows: Sequence[Row]) -> list[Sheet]:
    """Source x target, one sheet an attack and budget."""
    clean = {row.name: row.miou for row in rows if row.clean}
    sheets = []
    for matrix in transfers(rows, "miou"):
        body = []
        for source in matrix.sources:
            values = [matrix.values.get((source, target), math.nan) for target in matrix.targets]
            boxes = [
                Box(percent(value), 1 - value / clean[target] if clean.get(target, 0) > 0 else None)
                for value, target in zip(values, matrix.targets, strict=True)
            ]
            body.append([Box(source), *boxes])
        body.append([Box("clean"), *(Box(percent(clean.get(target, math.nan))) for target in matrix.targets)])
        budget = show_eps(matrix.eps, matrix.norm)
        caption = f"{matrix.attack}, {matrix.norm.capitalize()} {budget}: mIoU in percent"
        sheets.append(Sheet(caption, ["made on", *matrix.targets], body, key=(matrix.attack, budget)))
    return sheets


def classes(results: Results, rows: Sequence[Row]) -> Sheet | None:
    """IoU of each class, clean and under each model's typical attack."""
    clean = [row for row in rows if row.clean]
    if not clean:
        return None
    first = next(records for cell, records in results.cells if cell.attack == "none")
    pixels = first.counts.target.sum(0)
    body = []
    for i, name in enumerate(results.class_names):
        boxes = [Box(name, colour=colour(results, i)), Box(percent(pixels[i] / max(1, pixels.sum())))]
        for row in clean:
            boxes += _pair(row.iou_by_class[i], None if (hit := typical(rows, row)) is None else hit.iou_by_class[i])
        body.append(boxes)
    head = ["class", "pixels", *_heads(rows, clean)]
    return Sheet("IoU of each class in percent", head, body, 1, [("", 2), *_titles(rows, clean)])


def sizes(rows: Sequence[Row]) -> Sheet | None:
    """Mean IoU by the share of the image that a class covers, clean and under each model's typical attack."""
    clean = [row for row in rows if row.clean]
    if not clean:
        return None
    body = []
    for size, (low, high) in SIZES.items():
        boxes = [Box(f"{size}: {_range(low, high)} of the image")]
        for row in clean:
            boxes += _pair(
                row.iou_by_size[size], None if (hit := typical(rows, row)) is None else hit.iou_by_size[size]
            )
        body.append(boxes)
    groups = [("", 1), *_titles(rows, clean)]
    return Sheet("Mean IoU in percent by size", ["a class covers", *_heads(rows, clean)], body, 1, groups)


def rounding(rows: Sequence[Row]) -> Sheet | None:
    """The cells that rounding to 8 bits changes."""
    body = [
        [Box(r.name), Box(r.label), Box(show_eps(r.eps, r.norm)), Box(percent(r.miou), _lost(r)),
         Box(percent(r.miou_8bit), _lost(r, r.miou_8bit)), Box(_size(r.linf)), Box(_size(r.linf_8bit)),
         Box(percent(r.unchanged))]
        for r in rows if r.direct and (abs(r.miou_8bit - r.miou) >= EFFECT or r.unchanged > 0)
    ]  # fmt: skip
    head = ["model", "attack", "eps", "mIoU", "rounded", "mean Linf", "rounded", "images unchanged"]
    return Sheet("In percent; each `rounded` is of the column before it", head, body, 2) if body else None


def cost(rows: Sequence[Row]) -> Sheet | None:
    """Passes and seconds of each attack, means over all images and budgets."""
    body = []
    for group in grouped([row for row in rows if row.direct], "name", "attack", "norm", "threat"):
        images = sum(row.images for row in group)
        forwards, backwards, seconds = (
            sum(getattr(row, field) * row.images for row in group) / images if images else math.nan
            for field in ("forwards", "backwards", "seconds")
        )
        passes = [f"{forwards:.1f}", f"{backwards:.1f}"] if forwards or not inside(group[0]) else [DASH, DASH]
        values = [*passes, f"{seconds:.3f}", f"{seconds * images / 60:.1f}"]
        body.append([Box(group[0].name), Box(group[0].label), Box(str(len(group))), *map(Box, values)])
    head = ["model", "attack", "cells", "forwards", "backwards", "seconds", "minutes in all"]
    caption = "Passes through the whole model and seconds an image, minutes for all cells"
    return Sheet(caption, head, body, 2) if body else None


def typical(rows: Sequence[Row], clean: Row) -> Row | None:
    """The strongest attack on a model at the middle budget of its first norm; of those with their own norm else."""
    direct = [row for row in rows if row.direct and row.name == clean.name and not math.isnan(row.miou)]
    for norm in norms(direct):
        budgets = levels(direct, norm)
        return strongest(direct, clean.name, norm, budgets[len(budgets) // 2])
    return min(direct, key=lambda row: row.miou, default=None)


def colour(results: Results, i: int) -> str:
    """A class's colour as `r g b`."""
    return " ".join(map(str, results.palette[i]))


def _pair(clean: float, attacked: float | None) -> list[Box]:
    if attacked is None:
        return [Box(percent(clean))]
    return [Box(percent(clean)), Box(percent(attacked), 1 - attacked / clean if clean > 0 else None)]


def _heads(rows: Sequence[Row], clean: Sequence[Row]) -> list[str]:
    return [word for row in clean for word in (["clean", "attacked"] if typical(rows, row) else ["clean"])]


def _titles(rows: Sequence[Row], clean: Sequence[Row]) -> list[tuple[str, int]]:
    return [
        (f"{row.name}: {hit.label} {show_eps(hit.eps, hit.norm)}", 2) if (hit := typical(rows, row)) else (row.name, 1)
        for row in clean
    ]


def _lost(row: Row, miou: float | None = None) -> float | None:
    ratio = row.iou_ratio if miou is None or not row.miou else row.iou_ratio * miou / row.miou
    return None if math.isnan(ratio) else 1 - ratio


def _interval(row: Row) -> str:
    return DASH if math.isnan(row.low) else f"{percent(row.low)} to {percent(row.high)}"


def _size(linf: float) -> str:
    return DASH if math.isnan(linf) else f"{255 * linf:.3g}/255"


def _range(low: float, high: float) -> str:
    if low == 0:
        return f"under {100 * high:.0f} %"
    return f"{100 * low:.0f} % or more" if high > 1 else f"{100 * low:.0f} to {100 * high:.0f} %"
