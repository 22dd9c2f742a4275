"""What throws doubt on the numbers: too little data, a model that does not work, signs of masked gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from segaudit.report.headline import with_sign
from segaudit.report.masking import diagnose
from segaudit.report.shots import both, single
from segaudit.report.signs import MARGIN, Diagnostic
from segaudit.report.summary import Row, clean_of, grouped, show_eps, unique
from segaudit.types import Results

FEW = 20
"""Below so many images a mIoU says little."""


def doubts(results: Results, rows: Sequence[Row], found: Sequence[Diagnostic] | None = None) -> list[str]:
    """One sentence each, the gravest kind first. found: the run's masking diagnostics, where they are there already."""
    return [
        *unfinished(results),
        *_failing(results, rows),
        *_outside(rows),
        *(sign.line for sign in (diagnose(results, rows) if found is None else found) if sign.raised),
        *_overshooting(_untargeted(rows)),
        *_rounded(rows),
        *_few(rows),
    ]


def unfinished(results: Results) -> Iterator[str]:
    """Whether cells are missing, or hold different images."""
    images = sorted({len(records) for _, records in results.cells})
    if not images:
        if results.lacking:
            yield f"The run is not finished: {results.lacking} parts are missing. Give `segaudit run` again."
        return
    if results.lacking or len(images) > 1:
        hold = " to ".join(map(str, dict.fromkeys([images[0], images[-1]]))) + " image" + "s" * (images[-1] != 1)
        yield (
            f"The run is not finished: its cells hold {hold} and cannot be compared "
            f"({results.lacking} parts are missing). Give `segaudit run` again."
        )


def _failing(results: Results, rows: Sequence[Row]) -> Iterator[str]:
    clean = [records for cell, records in results.cells if cell.attack == "none"]
    for records, row in zip(clean, (row for row in rows if row.clean), strict=True):
        pixels = records.counts.target.sum(0)
        if pixels.any() and row.accuracy <= pixels.max() / pixels.sum():
            yield (
                f"{row.name} gets {with_sign(row.accuracy)} of the clean pixels right, no more than calling every one "
                f"{results.class_names[int(np.argmax(pixels))]} would: check its weights, preprocess and class_map."
            )


def _outside(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        size = {"linf": row.linf, "l2": row.l2}.get(row.norm, math.nan)
        if row.direct and row.eps and size > row.eps * (1 + 1e-4):
            yield (
                f"{row.label} on {row.name} leaves its ball: a mean of {show_eps(size, row.norm)} at a budget of "
                f"{show_eps(row.eps, row.norm)} ({row.norm})."
            )


def _overshooting(rows: Sequence[Row]) -> Iterator[str]:
    """One step of a larger budget that does less: no sign of masked gradients, which need an iterated attack."""
    worst: dict[str, tuple[Row, Row]] = {}
    for group in grouped([row for row in rows if row.direct and row.eps], "name", "norm", "attack", "threat"):
        group.sort(key=lambda row: row.eps or 0)
        for i, strong in enumerate(group[1:], 1):
            weak = min(group[:i], key=lambda row: row.miou)
            known = worst.get(strong.name)
            least = known[1].miou - known[0].miou if known else 0
            if single(strong) and strong.miou - weak.miou > max(MARGIN, least):
                worst[strong.name] = weak, strong
    for weak, strong in worst.values():
        told = both(weak, strong, (weak.miou, strong.miou))
        yield f"{told}: one long step overshoots, so trust the iterated attacks."


def _rounded(rows: Sequence[Row]) -> Iterator[str]:
    undone = []
    for row in [row for row in rows if row.direct]:
        clean = clean_of(rows, row)
        fall = clean.miou - row.miou if clean else math.nan
        if fall > MARGIN and row.miou_8bit - row.miou >= fall / 2:
            undone.append(row)
    if undone:
        most = max(undone, key=lambda row: row.miou_8bit - row.miou)
        undone.sort(key=lambda row: math.inf if row.eps is None else row.eps)
        yield (
            f"Rounding to 8 bits undoes attacks at eps {', '.join(unique(show_eps(r.eps, r.norm) for r in undone))}: "
            f"{most.label} on {most.name} goes from {with_sign(most.miou)} back to {with_sign(most.miou_8bit)} mIoU. "
            "They need an attacker who hands the model numbers, not a picture file."
        )


def _few(rows: Sequence[Row]) -> Iterator[str]:
    least = min((row.images for row in rows), default=FEW)
    if least < FEW:
        yield f"The audit saw only {least} image{'s' * (least != 1)}: a small difference may be chance."


def _untargeted(rows: Sequence[Row]) -> list[Row]:
    """What is meant to lower the mIoU, and has one."""
    return [row for row in rows if math.isnan(row.goal_accuracy) and not math.isnan(row.miou)]
