"""U-Net without batch statistics and without work in place, so that each image has a gradient of its own."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segaudit.models.build import IMAGENET, Network
from segaudit.models.classic._parts import initialise, scaled, statistics


def unet(outputs: int, *, width: float = 1.0, channels: int = 3, groups: int = 8) -> Network:
    """U-Net with GroupNorm and out-of-place activations, padded to keep the size: per-sample gradients work on it.

    channels: of the image. groups: of each norm. Width is rounded to whole groups.
    Parameters: the paper has none, but 23 convolutional layers, as here: 31.0 M (2 classes).
    Source: Ronneberger et al. 2015; GroupNorm: Wu & He 2018.
    """
    sizes = [scaled(64 * 2**depth, width, groups) for depth in range(5)]
    return Network(
        UNet(outputs, channels, sizes, groups), {**(IMAGENET if channels == 3 else statistics(channels)), "stride": 16}
    )


class UNet(nn.Module):
    """Two convolutions at each of the sizes down, and up again beside what was there on the way down."""

    def __init__(self, outputs: int, channels: int, sizes: list[int], groups: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(_twice(i, o, groups) for i, o in pairwise([channels, *sizes]))
        self.up = nn.ModuleList(nn.ConvTranspose2d(deep, skip, 2, 2) for deep, skip in pairwise(sizes[::-1]))
        self.join = nn.ModuleList(_twice(2 * size, size, groups) for size in sizes[-2::-1])
        self.head = nn.Conv2d(sizes[0], outputs, 1)
        initialise(self.down)
        initialise(self.join)

    def forward(self, x: Tensor) -> Tensor:
        """Logits at the input's size."""
        skips: list[Tensor] = []
        for depth, down in enumerate(self.down):
            x = down(F.max_pool2d(x, 2) if depth else x)
            skips.append(x)
        for up, join, skip in zip(self.up, self.join, skips[-2::-1], strict=True):
            x = join(torch.cat([up(x), skip], 1))
        made: Tensor = self.head(x)
        return made


def _twice(inputs: int, outputs: int, groups: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in (inputs, outputs):
        layers += [nn.Conv2d(i, outputs, 3, padding=1), nn.GroupNorm(groups, outputs), nn.ReLU()]
    return nn.Sequential(*layers)
