"""The loss curves of `camvid-asma.yaml`: the cross-entropy to the target at each forward pass, a mean over images.

    python experiments/asma.py [--images 2] [--run runs/camvid-asma]

Writes `results/camvid-asma-loss.csv` (model, attack, pass, cross-entropy, share of pixels on target) and a drawing of
it, `camvid-asma-loss.svg` (--images 0: leaves them); of the run's store `camvid-asma.jpg`, for its first shown image a
row a model: clean image and prediction, then for each attack the image and the prediction on it, and the target. Needs
$SEGAUDIT_DATA.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from _svg import Series, drawing
from numpy.typing import NDArray
from PIL import Image

from segaudit import registry
from segaudit.audit import build, parts
from segaudit.audit.run import results
from segaudit.audit.spec import AttackSpec, RunSpec
from segaudit.data.base import Dataset
from segaudit.models.fast import Fast
from segaudit.nn.passes import watch
from segaudit.nn.precision import prepare_process, resolve
from segaudit.rng import ImageStreams
from segaudit.types import VOID, Results, Segmenter

HERE = Path(__file__).parent
NAME = HERE / "results" / "camvid-asma-loss"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--run", default="runs/camvid-asma")
    given = parser.parse_args()
    prepare_process()
    spec = parts.read(RunSpec, HERE / "camvid-asma.yaml")
    data = build.dataset(spec.data)
    sheet(results(given.run), data, spec).save(HERE / "results" / "camvid-asma.jpg", quality=88)
    if given.images:
        curves(data, spec, given.images)


def curves(data: Dataset, spec: RunSpec, count: int) -> None:
    """Measure the curves, and write and draw them."""
    panels: dict[str, dict[str, NDArray[np.float64]]] = {}
    for model in spec.models:
        net = build.model(model, data.class_names)
        for attack in spec.attacks:
            found = curve(net, data, attack, spec, count)
            panels.setdefault(model.title(), {})[attack.label().partition(" to ")[0]] = found
            print(f"{model.title()}, {attack.label()}: {found[0, 0]:.3f} -> {found[-1, 0]:.3f}", flush=True)
    lines = ["model,attack,pass,cross_entropy,on_target"]
    for model_name, curves in panels.items():
        for label, values in curves.items():
            lines += [f'{model_name},"{label}",{i},{loss:.5f},{share:.5f}' for i, (loss, share) in enumerate(values)]
    NAME.with_suffix(".csv").write_text("\n".join([*lines, ""]))
    shown = {f"{name}: cross-entropy to the target": _series(curves) for name, curves in panels.items()}
    NAME.with_suffix(".svg").write_text(drawing(shown, "forward passes", log_y=True))


def _series(curves: dict[str, NDArray[np.float64]]) -> Series:
    return {label: (range(len(values)), values[:, 0]) for label, values in curves.items()}


def curve(net: Segmenter, data: Dataset, attack: AttackSpec, spec: RunSpec, count: int) -> NDArray[np.float64]:
    """passes x (cross-entropy, share on target): each image by itself, so that a finished one stays in the mean."""
    assert attack.target is not None
    goal = data.batch([attack.target.args["id"]]).labels
    found = []
    for name in [name for name in data.ids if name != attack.target.args["id"]][:count]:
        batch = data.batch([name])
        pixels = batch.images.contiguous(memory_format=torch.channels_last)
        labels = goal.where(batch.labels != VOID, VOID)
        view = Fast(net, resolve(spec.precision), pixels)
        own = {**attack.args, **({"eps": spec.eps[0]} if registry.accepts("attack", attack.name, "eps") else {})}
        with watch(view, labels) as passes:
            streams = ImageStreams(spec.seed, batch.ids, attack.name)
            registry.load("attack", attack.name)(view, pixels, labels, rng=streams, targeted=True, **own)
        found.append(passes)
    longest = max(map(len, found))
    return np.array([passes + passes[-1:] * (longest - len(passes)) for passes in found]).mean(0)


def sheet(found: Results, data: Dataset, spec: RunSpec) -> Image.Image:
    """The pictures of the run's first shown image."""
    scene = found.scenes[0]
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(found.palette)] = found.palette
    assert spec.attacks[0].target is not None
    goal = colours[data.batch([spec.attacks[0].target.args["id"]]).labels[0].numpy()]
    rows: dict[str, list[NDArray[np.uint8]]] = {}
    for cell, pictures in found.pictures.items():
        (own,) = [picture for picture in pictures if picture.id == scene.id]
        shown = scene.image / 255 + own.delta.transpose(1, 2, 0)
        rows.setdefault(cell.model, []).extend([(shown.clip(0, 1) * 255).astype(np.uint8), colours[own.prediction]])
    return Image.fromarray(np.concatenate([np.concatenate([*row, goal], 1) for row in rows.values()]))


if __name__ == "__main__":
    main()
