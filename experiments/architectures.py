"""`camvid-architectures.yaml` as curves and a ranking: what each network keeps under the attacks of Arnab et al.

    python experiments/architectures.py [--results experiments/results]

Reads `camvid-architectures.csv`; draws `camvid-architectures.svg`, a panel an attack, and writes
`camvid-architectures.md`, the networks in the order of the mean of their IoU ratios over attacks and eps.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from _svg import drawing

RESULTS = Path(__file__).parent / "results"
ATTACKS = {"fgsm": "FGSM", "fgsm_ll": "FGSM II", "ifgsm": "iterative FGSM", "ifgsm_ll": "iterative FGSM II"}
Curves = dict[str, dict[str, dict[float, float]]]
"""attack -> network -> eps in 255ths -> IoU ratio in percent."""


def main() -> None:
    """Read, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    folder = parser.parse_args().results
    curves, clean = read(folder / "camvid-architectures.csv")
    order = ranking(curves)
    panels = {
        f"{title}: IoU ratio, %": {
            net: (list(curves[attack][net]), list(curves[attack][net].values())) for net in order
        }
        for attack, title in ATTACKS.items()
    }
    (folder / "camvid-architectures.svg").write_text(drawing(panels, "255ths", log_x=True))
    (folder / "camvid-architectures.md").write_text(table(curves, clean, order))


def read(path: Path) -> tuple[Curves, dict[str, float]]:
    """The curves, and the clean mIoU of each network in percent."""
    curves: Curves = defaultdict(lambda: defaultdict(dict))
    clean: dict[str, float] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["attack"] == "none":
                clean[row["model"]] = 100 * float(row["miou"])
            elif row["threat"] == "white-box":
                curves[row["attack"]][row["model"]][255 * float(row["eps"])] = 100 * float(row["iou_ratio"])
    return curves, clean


def ranking(curves: Curves) -> list[str]:
    """The networks, the one that keeps most first."""
    return sorted(curves["fgsm"], key=lambda net: -fmean(_mean(curves, attack, net) for attack in ATTACKS))


def table(curves: Curves, clean: dict[str, float], order: list[str]) -> str:
    """Markdown: the mean IoU ratio over eps under each attack, with the network's place among all in brackets."""
    head = ["place", "network", "clean mIoU, %", *ATTACKS.values(), "mean"]
    lines = [head, ["---"] * len(head)]
    for place, net in enumerate(order, 1):
        means = [_mean(curves, attack, net) for attack in ATTACKS]
        places = [
            1 + sum(_mean(curves, attack, other) > mean for other in order)
            for attack, mean in zip(ATTACKS, means, strict=True)
        ]
        shown = [f"{mean:.1f} ({rank})" for mean, rank in zip(means, places, strict=True)]
        lines.append([str(place), net, f"{clean[net]:.1f}", *shown, f"{fmean(means):.1f}"])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _mean(curves: Curves, attack: str, net: str) -> float:
    return fmean(curves[attack][net].values())


if __name__ == "__main__":
    main()
