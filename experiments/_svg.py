"""Curves as a picture file: panels side by side, a line a series, both axes linear or logarithmic."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import numpy as np
from numpy.typing import ArrayLike, NDArray

COLOURS = ("#1b6ca8", "#d1495b", "#3c8d5a", "#8a5aa8", "#b8860b", "#444444", "#2aa5b3", "#e07be0", "#8bc34a", "#a0522d")
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 360, 240, 44, 24, 28

Series = Mapping[str, tuple[ArrayLike, ArrayLike]]
"""label -> (x, y); a label that begins with `~` is drawn with dashes, in the colour of the one before it."""


def drawing(panels: Mapping[str, Series], x_title: str, *, log_x: bool = False, log_y: bool = False) -> str:
    """SVG of the panels, title -> series; the axes of all are the same."""
    each = [series for panel in panels.values() for series in panel.values()]
    along = _Axis(np.concatenate([np.asarray(x, float) for x, _ in each]), log_x)
    up = _Axis(np.concatenate([np.asarray(y, float) for _, y in each]), log_y)
    made = []
    for column, (title, panel) in enumerate(panels.items()):
        left = LEFT + column * (WIDTH + LEFT)
        made.append(f'<rect x="{left}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#999"/>')
        made.append(f'<text x="{left}" y="{TOP - 8}">{escape(title)}</text>')
        for value in (up.low, up.high):
            y = TOP + HEIGHT * (1 - up.place(value)) + 4
            made.append(f'<text x="{left - 4}" y="{y:.0f}" text-anchor="end">{value:.3g}</text>')
        ends = f"{along.low:.3g} to {along.high:.3g} {x_title}"
        made.append(f'<text x="{left + WIDTH}" y="{TOP + HEIGHT + 16}" text-anchor="end">{escape(ends)}</text>')
        number = -1
        for row, (label, (xs, ys)) in enumerate(panel.items()):
            dashed = label.startswith("~")
            number += not dashed
            style = f'stroke="{COLOURS[number % len(COLOURS)]}" stroke-width="1.5"' + ' stroke-dasharray="5 3"' * dashed
            x, y = (
                left + WIDTH * along.place(np.asarray(xs, float)),
                TOP + HEIGHT * (1 - up.place(np.asarray(ys, float))),
            )
            points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
            made.append(f'<polyline points="{points}" fill="none" {style}/>')
            top = TOP + 16 + 16 * row
            made.append(f'<path d="M{left + WIDTH - 160} {top - 4}h18" {style}/>')
            made.append(f'<text x="{left + WIDTH - 138}" y="{top}">{escape(label.lstrip("~"))}</text>')
    size = f'width="{len(panels) * (WIDTH + LEFT) + LEFT}" height="{TOP + HEIGHT + BOTTOM}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">\n' + "\n".join(
        [*made, "</svg>", ""]
    )


class _Axis:
    """Where values lie between the smallest and the largest, 0 to 1."""

    def __init__(self, values: NDArray[np.float64], log: bool) -> None:
        self.log, self.low, self.high = log, float(values.min()), float(values.max())

    def place(self, values: float | NDArray[np.float64]) -> NDArray[np.float64]:
        turned = np.log if self.log else np.asarray
        low, high = turned(self.low), turned(self.high)
        found: NDArray[np.float64] = (turned(values) - low) / max(high - low, 1e-12)
        return found
