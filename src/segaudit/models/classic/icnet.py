"""ICNet: the picture at three sizes, the smallest through the deepest network."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from segaudit.models.build import IMAGENET, Network
from segaudit.models.classic._backbones import stage
from segaudit.models.classic._parts import resized, scaled
from segaudit.models.tiny import unit

BINS = (1, 2, 3, 6)
"""Sides of the pooled pictures in the pyramid."""


def icnet(outputs: int, *, width: float = 1.0) -> Network:
    """ICNet: an image cascade over a PSPNet50 of half its channels, as the paper compresses it.

    The heads that guide its training at the coarser sizes are left out.
    Parameters: 26.5 M in later comparisons; here 6.7 M, and 26.7 M at `width: 2` (19 classes).
    Source: Zhao et al. 2018.
    """
    return Network(ICNet(outputs, scaled(32, width)), {**IMAGENET, "stride": 32})


class ICNet(nn.Module):
    """Three branches: whole picture (to an eighth), half (to a sixteenth), quarter (to a 32nd); fused from below."""

    def __init__(self, outputs: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            unit(3, width, stride=2), unit(width, width), unit(width, 2 * width), nn.MaxPool2d(3, 2, 1)
        )
        self.middle = nn.Sequential(
            stage("Bottleneck", 2 * width, width, 3), stage("Bottleneck", 4 * width, 2 * width, 1, stride=2)
        )
        self.coarse = nn.Sequential(
            stage("Bottleneck", 8 * width, 2 * width, 3),
            stage("Bottleneck", 8 * width, 4 * width, 6, dilation=2),
            stage("Bottleneck", 16 * width, 8 * width, 3, dilation=4),
        )
        self.join = unit(32 * width, 8 * width, 1)
        self.fine = nn.Sequential(
            unit(3, width, stride=2), unit(width, width, stride=2), unit(width, 2 * width, stride=2)
        )
        self.fuse = nn.ModuleList([Fusion(8 * width, 8 * width, 4 * width), Fusion(4 * width, 2 * width, 4 * width)])
        self.head = nn.Conv2d(4 * width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits at a quarter of the input's size."""
        half = self.middle(self.stem(_by(x, 0.5)))
        low = self.coarse(_by(half, 0.5))
        low = low + sum(resized(F.adaptive_avg_pool2d(low, side), low.shape[2:]) for side in BINS)
        low = self.fuse[0](self.join(low), half)
        low = self.fuse[1](low, self.fine(x))
        made: Tensor = self.head(_by(low, 2))
        return made


class Fusion(nn.Module):
    """Cascade feature fusion: the coarser map, upsampled, and the finer one, projected, added up."""

    def __init__(self, low: int, high: int, outputs: int) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(low, outputs, 3, padding=2, dilation=2, bias=False), nn.BatchNorm2d(outputs))
        self.high = nn.Sequential(nn.Conv2d(high, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """The map at the finer size."""
        return F.relu(self.low(resized(low, high.shape[2:])) + self.high(high))


def _by(x: Tensor, factor: float) -> Tensor:
    return resized(x, [max(1, int(side * factor)) for side in x.shape[2:]])
