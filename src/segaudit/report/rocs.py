"""ROC curves on log axes, where few false alarms are seen, in the coordinates of a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from segaudit.metrics.roc import curve
from segaudit.report.certified import COLOURS
from segaudit.report.leaks import Leak

SIDE, LEFT, TOP, BELOW = 280, 52, 10, 44
"""Of a plot, and the margins around it, in its own pixels."""
GREY = "128 128 128"
"""The colour of what sees no network."""


def figure(title: str, leaks: Sequence[tuple[str, Leak]], blind: Sequence[Leak] = ()) -> dict[str, Any]:
    """The curves of named attacks, of the baselines in grey, and of a guess; dashed: it does not know of the defense.

    Both axes end at the decade that holds one false alarm among the others; what is below stands on the edge.
    Source: Carlini et al. 2022 (log axes).
    """
    named = [(name, leak, COLOURS[i % len(COLOURS)]) for i, (name, leak) in enumerate(leaks)]
    named += [(f"{leak.of.attack} (no network)", leak, GREY) for leak in blind]
    named = [own for own in named if not math.isnan(own[1].measured.auc)]
    others = max((leak.measured.others for _, leak, _ in named), default=10)
    decades = max(1, math.ceil(math.log10(others) - 1e-9))
    bottom = TOP + SIDE

    def at(fpr: float, tpr: float) -> tuple[float, float]:
        x, y = (max(0.0, 1 + math.log10(max(share, 1e-12)) / decades) for share in (fpr, tpr))
        return round(LEFT + SIDE * x, 1), round(bottom - SIDE * y, 1)

    ticks = [(10.0**-k, f"{100 * 10.0**-k:g}") for k in range(decades, -1, -1)]
    lines = [
        {
            "name": f"{name}: AUC {leak.measured.auc:.3f}",
            "colour": colour,
            "dash": "5 4" if leak.of.threat == "oblivious" else "",
            "points": _path(leak, at),
        }
        for name, leak, colour in named
    ]
    guess = [at(share, share) for share in np.logspace(-decades, 0, 2)]
    return {
        "title": title, "lines": lines, "chance": guess, "width": LEFT + SIDE + 12, "height": bottom + BELOW,
        "left": LEFT, "right": LEFT + SIDE, "bottom": bottom,
        "x": [(at(share, 0)[0], text) for share, text in ticks],
        "y": [(at(0, share)[1], text) for share, text in ticks],
    }  # fmt: skip


def _path(leak: Leak, at: Any) -> str:
    """The curve as an SVG path of steps: only what a threshold reaches, each place of the plot once."""
    of = leak.of
    made, path, before = curve(of.scores[~of.member], of.scores[of.member]), [], 0.0
    for fpr, tpr in zip(made.fpr.tolist(), made.tpr.tolist(), strict=True):
        path += [at(fpr, before), at(fpr, tpr)]
        before = tpr
    return " ".join(f"{x},{y}" for x, y in dict.fromkeys(path))
