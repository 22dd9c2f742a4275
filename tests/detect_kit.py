"""Detectors of attacked images to be tried: models and denoisers that are known by heart, and runs that are watched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from audit_kit import content, write_net, write_pictures
from report_kit import cell, scored
from segaudit.audit.spec import RunSpec
from segaudit.types import Segmenter, Watched


class Fixed(Segmenter):
    """The logits of a pixel are its channels, times a gain."""

    class_names = ("a", "b", "c")

    def __init__(self, gain: float = 10.0) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, images: Tensor) -> Tensor:
        return self.gain * images


class Halves(nn.Module):
    """A denoiser that gives back half of the picture's brightness."""

    def forward(self, images: Tensor) -> Tensor:
        return images / 2


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def watching(folder: Path, **over: Any) -> RunSpec:
    """A run on four pictures, watched by detectors of which one is fitted on four others."""
    block = {"detectors": ["entropy_map", "squeezing"], "evading": {"steps": 8}} | over.pop("block", {})
    if not (folder / "images").exists():
        write_pictures(folder, 9)
        write_net(folder)
    made = content(folder, detection=block, **over)
    made["data"] |= {"only": [f"p{i:02d}" for i in range(4)]}
    block.setdefault("fit", {"only": [f"p{i:02d}" for i in range(4, 9)]})
    if block["fit"] is None:
        del block["fit"]
    return RunSpec.model_validate(made)


def watched(scores: dict[tuple[str, str, float], list[float]], miou: float = 0.3) -> list[Watched]:
    found = []
    for (threat, attack, eps), own in scores.items():
        kind = cell(attack=attack, eps=eps, threat=threat)
        found.append(Watched("squeezing", kind, scored(miou, images=len(own), size=eps), np.array(own)))
    return found
