"""Small things to train: images in memory, nets, a short schedule, and how two trainings are compared."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets import KINDS, Net, draw
from segaudit.training.schedule import Schedule
from segaudit.types import VOID, Batch


class Drawn:
    """Samples in memory, with some void; a given place may be changed."""

    def __init__(self, kind: str, count: int, seed: int) -> None:
        self.images, self.labels = draw(kind, count, seed)
        if kind != "classifier":
            self.labels[:, 2:5, 3:9] = VOID
        self.ids = tuple(f"{kind} {i}" for i in range(count))

    def sample(self, image_id: str) -> tuple[Tensor, Tensor]:
        row = self.ids.index(image_id)
        return self.images[row], self.labels[row]


class Noisy(Net):
    """With dropout, so that a resumed training must draw the same masks."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(F.dropout(images, 0.1, self.training))


def net(kind: str = "segmentation", make: Callable[..., Net] = Net, seed: int = 0) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(KINDS[kind], whole=kind == "classifier")


def schedule(**own: Any) -> Schedule:
    return Schedule(**{"epochs": 3, "batch": 8, "lr": 0.02, "precision": "fp32", "validate_every": 1} | own)


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(model: nn.Module) -> Mapping[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items())


def batch_of(kind: str, count: int = 4) -> Batch:
    samples = Drawn(kind, count, 3)
    return Batch(samples.images, samples.labels, samples.ids)
