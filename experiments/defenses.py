"""The tables and drawings of the studies of defenses, from their stores.

    python experiments/defenses.py [STUDY ...] [--runs runs]

Writes of each study `results/STUDY.csv`, every cell, and `results/STUDY.md`: of `camvid-scales` the IoU ratios as Arnab
et al. 2018 have them in their table 1, theirs in brackets; of the others what is left of each quantity by threat, the
verdicts and the signs of masked gradients. Where networks are attacked at several eps, `results/STUDY.svg` has curves.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from _svg import Series, drawing

from segaudit.audit.run import results
from segaudit.report.grid import Grid, markdown
from segaudit.report.summary import Row, percent, summarise, unique
from segaudit.report.tables import table, transfers
from segaudit.types import Results

HERE = Path(__file__).parent / "results"
STUDIES = {
    "camvid-scales": (),
    "camvid-multiscale": ("miou", "accuracy", "goal_miou", "goal_accuracy"),
    "camvid-transforms": ("miou", "spread", "iou_ratio"),
    "camvid-crf": ("miou", "iou_ratio", "goal_miou", "goal_accuracy"),
    "camvid-masking": ("miou",),
    "camvid-purified": ("miou", "accuracy"),
    "kvasir-purified": ("miou", "dice"),
    "mnist-autoencoder": ("accuracy",),
    "mnist-purified": ("accuracy",),
    "mnist-generative": ("accuracy",),
    "mnist-inversion": ("accuracy",),
    "mnist-manifold": ("accuracy",),
    "mnist-distillation": ("accuracy",),
    "cifar10": ("accuracy",),
}
"""study -> the quantities whose tables are printed."""
KNOWS = ("eot=", "gradient=")
"""Arguments of a defense that only an attack through it meets."""
DEEPLAB = ("50 %", "75 %", "100 %", "multi-scale, max", "multi-scale, average")
PUBLISHED = {
    "fgsm": ((37.3, 70.5, 84.8, 60.3), (85.5, 39.7, 62.2, 50.8), (93.6, 57.9, 37.7, 37.2), (83.7, 57.6, 62.3, 53.1)),
    "ifgsm_ll": (
        (18.0, 92.0, 96.9, 20.0),
        (99.5, 17.9, 89.9, 20.4),
        (100.0, 79.0, 15.5, 16.8),
        (99.6, 90.2, 91.9, 21.5),
    ),
}
"""Arnab et al. 2018, table 1: IoU ratio in percent of DeepLab v2 at 50, 75 and 100 % and at all scales (maximum), a row
each; a column each for the images made on them."""


def main() -> None:
    """Read, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", nargs="*", default=list(STUDIES), help=", ".join(STUDIES))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--to", type=Path, default=HERE)
    given = parser.parse_args()
    for name in given.studies:
        found = results(str(given.runs / name))
        rows, place = summarise(found), given.to / name
        place.with_suffix(".csv").write_text(table(found, "csv"))
        place.with_suffix(".md").write_text(_tables(found, rows, STUDIES[name]) if STUDIES[name] else _matrix(rows))
        if len({row.eps for row in rows if row.direct}) > 1:
            place.with_suffix(".svg").write_text(drawing(_curves(rows), "255ths"))


def _tables(found: Results, rows: Sequence[Row], quantities: Sequence[str]) -> str:
    aimed = unique(row.attack for row in rows if _targeted(row))
    each = [
        table(found, quantity=quantity, attack=attack)
        for quantity in quantities
        for attack in (aimed if quantity.startswith("goal") else [None])
    ]
    has = {"transfer": any(row.source for row in rows), "defenses": any(row.defense != "none" for row in rows)}
    forms = [*(form for form, here in has.items() if here), "masking"]
    first = [_beside(found, rows)] if has["defenses"] and _labels(found) else []
    return "\n".join([*first, *each, *(table(found, form=form) for form in forms)])


def _labels(found: Results) -> bool:
    """Whether the images have one label each."""
    return bool((found.cells[0][1].counts.target.sum(1) == 1).all())


def _beside(found: Results, rows: Sequence[Row]) -> str:
    """The defenses of classifiers side by side: accuracy under the worst attack of each threat, a line a budget."""
    body = []
    attacked = [row for row in rows if row.direct and row.eps is not None]
    for name, eps in unique((row.name, row.eps) for row in attacked):
        own = [row for row in attacked if (row.name, row.eps) == (name, eps)]
        clean = next(row for row in rows if row.clean and row.name == name)
        worst = {row.threat: min(r.accuracy for r in own if r.threat == row.threat) for row in own}
        left = (clean.accuracy, worst.get("oblivious", math.nan), worst.get("adaptive", worst.get("white-box")))
        count = found.parameters.get(clean.defense)
        told = [clean.model, clean.defense, f"{eps:.3g}", *map(percent, left), f"{clean.scoring:.2g}"]
        body.append([*told, "-" if count is None else str(count)])
    head = ["model", "defense", "eps", "clean", "oblivious", "adaptive", "seconds", "parameters"]
    title = f"{found.name}: accuracy in percent under the worst attack of each threat; seconds an image, with the model"
    return markdown(Grid(title, head, body, 3))


def _matrix(rows: Sequence[Row]) -> str:
    """Where images were scored by where they were made, the attacks side by side."""
    made = {matrix.attack: matrix for matrix in transfers(rows, "iou_ratio")}
    clean = {row.model: percent(row.miou) for row in rows if row.clean}
    body = []
    for target in clean:
        line = [target, clean[target]]
        for attack, published in PUBLISHED.items():
            for column, scale in enumerate(DEEPLAB):
                own = percent(made[attack].values[f"DeepLabV3+ {scale}", target])
                place = target.removeprefix("DeepLabV3+ ")
                known = place in DEEPLAB[:4] and column < 4
                line.append(f"{own} ({published[DEEPLAB.index(place)][column]})" if known else own)
        body.append(line)
    head = ["scored on", "clean mIoU", *(f"{attack}: {scale}" for attack in PUBLISHED for scale in DEEPLAB)]
    title = "IoU ratio in percent at eps 8/255 by what of DeepLabV3+ the images were made on; in brackets Arnab et al."
    return markdown(Grid(title, head, body, 1))


def _curves(rows: Sequence[Row]) -> dict[str, Series]:
    """IoU ratio against eps, a panel a network and untargeted attack."""
    panels: dict[str, Series] = {}
    attacked = [row for row in rows if row.direct and not _targeted(row)]
    for model, attack in unique((row.model, row.attack) for row in attacked):
        lines: dict[str, tuple[list[float], list[float]]] = {}
        for row in sorted((r for r in attacked if (r.model, r.attack) == (model, attack)), key=lambda r: r.eps or 0):
            along, up = lines.setdefault(_label(row), ([0.0], [1.0]))
            if along[-1] < 255 * (row.eps or 0):  # what the defenses of one study know alike is drawn once
                along.append(255 * (row.eps or 0))
                up.append(row.iou_ratio)
        panels[f"IoU ratio, {attack} on {model}"] = lines
    return panels


def _targeted(row: Row) -> bool:
    return not math.isnan(row.goal_miou)


def _label(row: Row) -> str:
    own = row.defense.partition("(")[2].removesuffix(")").split(", ")
    network = [_stem(part) for part in own if part.startswith(("purifier=", "generator="))]
    known = [part for part in own if row.threat == "adaptive" and part.startswith(KNOWS)]
    return ", ".join([row.threat, *network, *known])


def _stem(part: str) -> str:
    """What a network's weights are called: `runs/NAME/model.safetensors` and `NAME.safetensors` are NAME."""
    path = Path(part.partition("=")[2])
    return path.parent.name if path.stem == "model" else path.stem


if __name__ == "__main__":
    main()
