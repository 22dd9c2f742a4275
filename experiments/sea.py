"""`camvid-sea.yaml` as curves: by how much the mIoU that SEA and `sea_relay` leave is above that of SEA as published.

    python experiments/sea.py

Reads `results/camvid-sea.csv` and draws `results/camvid-sea.svg`, a panel an eps.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

from _svg import Series, drawing

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Read, draw and write."""
    found: dict[str, dict[str, dict[float, float]]] = defaultdict(lambda: defaultdict(dict))
    with (RESULTS / "camvid-sea.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            attack, eps = row["attack"], float(row["eps"]) * 255
            if attack.startswith("sea_relay") or "mIoU" in attack:
                name = f"~{row['model']}, relay" if attack.startswith("sea_relay") else row["model"]
                found[f"mIoU above SEA's 3 x 300 steps, points, eps {eps:.0f}/255"][name][float(row["backwards"])] = (
                    100 * float(row["miou"])
                )
    panels = {title: _above(panel) for title, panel in found.items()}
    (RESULTS / "camvid-sea.svg").write_text(drawing(panels, "gradients an image", log_x=True))


def _above(panel: dict[str, dict[float, float]]) -> Series:
    """Each curve less what its network has left at the most gradients."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for name in sorted(panel, key=_together):
        whole = panel[_together(name)[0]]
        along = sorted(panel[name])
        curves[name] = along, [panel[name][x] - whole[max(whole)] for x in along]
    return curves


def _together(name: str) -> tuple[str, bool]:
    return name.lstrip("~").partition(",")[0], name.startswith("~")


if __name__ == "__main__":
    main()
