"""The numbers behind the curves: one series a model, attack and norm, ready for the page's script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from segaudit.report.headline import norms
from segaudit.report.summary import Row, clean_of, levels, show_eps, unique

QUANTITIES = {
    "miou": "mIoU", "iou_ratio": "IoU ratio", "accuracy": "pixel accuracy", "miou_8bit": "mIoU after 8-bit rounding",
}  # fmt: skip


def curves(rows: Sequence[Row]) -> dict[str, Any]:
    """What the script draws, empty series where nothing was attacked; shares in percent, None for nan."""
    direct = [row for row in rows if row.direct]
    models, attacks = unique(row.name for row in direct), unique(row.attack for row in direct)
    axes = [_axis(rows, norm) for norm in unique([*norms(rows), *(r.norm for r in direct if r.norm in ("linf", "l2"))])]
    series = []
    for axis in axes:
        lines = unique((r.name, r.attack, r.threat) for r in direct if r.norm == axis["norm"])
        for name, attack, threat in lines:
            line = [r for r in direct if (r.name, r.attack, r.threat, r.norm) == (name, attack, threat, axis["norm"])]
            given = sorted((row for row in line if row.eps is not None), key=lambda row: row.eps or 0)
            own = [row for row in line if row.eps is None]
            clean = clean_of(rows, line[0])
            series.append(
                {
                    "model": models.index(name),
                    "attack": attacks.index(attack),
                    "norm": axis["norm"],
                    "threat": threat,
                    "points": [_point(row, axis) for row in ([clean] if clean and given else []) + given],
                    "own": [_point(row, axis) for row in own],
                }
            )
    return {"models": models, "attacks": attacks, "axes": axes, "series": series, "quantities": QUANTITIES}


def _axis(rows: Sequence[Row], norm: str) -> dict[str, Any]:
    """Budgets at their logarithm, evenly spread where they double; the clean value one doubling to the left."""
    own = [_size(row) for row in rows if row.direct and row.norm == norm and row.eps is None]
    budgets = levels(rows, norm) or sorted(size for size in own if size > 0)[:1]
    start = math.log2(budgets[0]) - 1 if budgets else 0.0
    texts = [show_eps(eps, norm) for eps in budgets]
    in_grey = bool(texts) and all(text.endswith("/255") for text in texts)
    return {
        "norm": norm,
        "start": start,
        "at": [start, *(math.log2(eps) for eps in budgets)],
        "text": ["clean", *(text.removesuffix("/255") if in_grey else text for text in texts)],
        "title": f"{norm.capitalize()} budget, {'k/255' if in_grey else 'images in [0, 1]'}",
    }


def _size(row: Row) -> float:
    """Where an attack with a norm of its own stands on the axis."""
    return row.linf if row.norm == "linf" else row.l2


def _point(row: Row, axis: Mapping[str, Any]) -> dict[str, Any]:
    size = row.eps if row.eps is not None else _size(row)
    shares = {key: _number(getattr(row, key)) for key in (*QUANTITIES, "low", "high")}
    return {
        "x": axis["start"] if row.clean or not size > 0 else math.log2(size),
        "at": "clean" if row.clean else show_eps(row.eps, row.norm),
        **shares,
    }


def _number(share: float) -> float | None:
    return None if math.isnan(share) else round(100 * share, 3)
