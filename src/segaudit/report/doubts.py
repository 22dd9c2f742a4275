"""What throws doubt on the numbers: too little data, a model that does not work, signs of masked gradients."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from segaudit.report.headline import at_budget, with_sign
from segaudit.report.summary import Row, clean_of, grouped, show_eps, unique
from segaudit.types import Records, Results

MARGIN = 0.02
"""A difference in mIoU that is worth a word."""

FEW = 20
"""Below so many images a mIoU says little."""

ONE_STEP = ("fgsm", "fgsm_ll")
"""Attacks of one step, which may be several passes: the mean over a random defense's draws."""

STEPS = re.compile(r"\bsteps=(\d+)")

Pair = tuple[Row, Row]
"""(what should be the weaker attack, what should be the stronger one)."""


def doubts(results: Results, rows: Sequence[Row]) -> list[str]:
    """One sentence each, the gravest kind first."""
    return [
        *unfinished(results, rows),
        *_failing(results, rows),
        *_unmoved(results),
        *_outside(rows),
        *_masked(_untargeted(rows)),
        *_rounded(rows),
        *_few(rows),
    ]


def unfinished(results: Results, rows: Sequence[Row]) -> Iterator[str]:
    """Whether cells are missing, or hold different images."""
    images = [row.images for row in rows]
    if results.lacking or (images and min(images) < max(images)):
        yield (
            f"The run is not finished: its cells hold {min(images)} to {max(images)} images and cannot be compared "
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


def _unmoved(results: Results) -> Iterator[str]:
    """Models of which some attack with a budget followed the gradient and changed no image's loss or predictions."""
    clean = {(cell.model, cell.defense): records for cell, records in results.cells if cell.attack == "none"}
    told: set[tuple[str, str]] = set()
    for cell, records in results.cells:
        key = cell.model, cell.defense
        direct = cell.threat in ("white-box", "adaptive") and cell.eps and records.backwards.any()
        if not direct or key not in clean or key in told:
            continue
        before, after = _outcomes(clean[key]), _outcomes(records)
        shared = [name for name in before if name in set(records.ids)]
        if shared and all(before[name] == after.get(name) for name in shared):
            told.add(key)
            yield (
                f"{cell.attack} follows the gradient of {cell.model}{_behind(cell.defense)} and changes nothing on any "
                "image: the gradient is zero (a constant output, or a step without one), so this is no robustness. Try "
                "square, or images made on another model."
            )


def _outcomes(records: Records) -> dict[str, tuple[str, list[int]]]:
    """id -> (loss, right pixels by class) of the images on which there is something to win."""
    rows = zip(records.ids, records.loss.tolist(), records.counts.intersection.tolist(), strict=True)
    return {name: (repr(loss), hits) for name, loss, hits in rows if not math.isnan(loss) and any(hits)}


def _behind(defense: str) -> str:
    return "" if defense == "none" else f" + {defense}"


def _outside(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        size = {"linf": row.linf, "l2": row.l2}.get(row.norm, math.nan)
        if row.direct and row.eps and size > row.eps * (1 + 1e-4):
            yield (
                f"{row.label} on {row.name} leaves its ball: a mean of {show_eps(size, row.norm)} at a budget of "
                f"{show_eps(row.eps, row.norm)} ({row.norm})."
            )


def _masked(rows: Sequence[Row]) -> Iterator[str]:
    """Athalye et al. 2018 and Carlini et al. 2019: what a sound evaluation cannot show."""
    for weak, strong in _broken(_by_budget(rows)):
        why = (
            "one long step overshoots, so trust the iterated attacks"
            if _single(strong)
            else "the larger budget holds the smaller one, so this is a sign of masked gradients"
        )
        yield f"{_but(weak, strong)}: {why}."
    for weak, strong in _broken(_by_steps(rows)):
        yield f"{_but(weak, strong)}: more steps do worse, a sign of masked gradients."
    for weak, strong in _broken(_by_kind(rows)):
        yield f"{_but(weak, strong)}: one step beats every iterated attack, a sign of masked gradients."
    for weak, strong in _broken(_by_source(rows)):
        yield f"{_but(weak, strong)}: images made on {weak.source} do more than its own, a sign of masked gradients."
    for weak, strong in _broken(_by_knowledge(rows)):
        yield f"{_but(weak, strong)}: knowing the defense does not help, a sign that it masks gradients."


def _by_budget(rows: Sequence[Row]) -> Iterator[Pair]:
    for group in grouped([row for row in rows if row.direct and row.eps], "name", "norm", "attack", "threat"):
        group.sort(key=lambda row: row.eps or 0)
        for i, strong in enumerate(group[1:], 1):
            yield min(group[:i], key=lambda row: row.miou), strong


def _by_steps(rows: Sequence[Row]) -> Iterator[Pair]:
    for group in grouped([row for row in rows if row.direct], "name", "norm", "eps", "threat"):
        for strong in group:
            like = [row for row in group if STEPS.sub("", row.attack) == STEPS.sub("", strong.attack)]
            yield from ((weak, strong) for weak in like if _steps(weak) < _steps(strong))


def _by_kind(rows: Sequence[Row]) -> Iterator[Pair]:
    for group in grouped([row for row in rows if row.direct and row.eps], "name", "norm", "eps", "threat"):
        single, many = [row for row in group if _single(row)], [row for row in group if not _single(row)]
        if single and many:
            yield min(single, key=lambda row: row.miou), min(many, key=lambda row: row.miou)


def _by_source(rows: Sequence[Row]) -> Iterator[Pair]:
    for group in grouped([row for row in rows if not row.clean and row.eps], "name", "norm", "eps"):
        own = [row for row in group if row.direct]
        if own:
            best = min(own, key=lambda row: row.miou)
            yield from ((weak, best) for weak in group if weak.source)


def _by_knowledge(rows: Sequence[Row]) -> Iterator[Pair]:
    for group in grouped([row for row in rows if row.direct], "name", "norm", "eps", "attack"):
        by_threat = {row.threat: row for row in group}
        if {"oblivious", "adaptive"} <= set(by_threat):
            yield by_threat["oblivious"], by_threat["adaptive"]


def _broken(pairs: Iterable[Pair]) -> list[Pair]:
    """For each model, the pair whose stronger attack most clearly leaves more than the weaker one."""
    worst: dict[str, Pair] = {}
    for weak, strong in pairs:
        known = worst.get(strong.name)
        if strong.miou - weak.miou > max(MARGIN, known[1].miou - known[0].miou if known else 0):
            worst[strong.name] = weak, strong
    return list(worst.values())


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


def _single(row: Row) -> bool:
    return row.backwards <= 1 or row.attack.partition("(")[0] in ONE_STEP


def _steps(row: Row) -> int:
    found = STEPS.search(row.attack)
    return int(found[1]) if found else 0


def _but(weak: Row, strong: Row) -> str:
    return (
        f"On {strong.name}, {weak.label} at {at_budget(weak)} leaves {with_sign(weak.miou)} mIoU, but {strong.label} "
        f"at {at_budget(strong)} leaves {with_sign(strong.miou)}"
    )
