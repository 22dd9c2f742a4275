"""The mean of each pixel's neighbours that are like it."""

from __future__ import annotations

import torch
from torch import Tensor

from segaudit.defenses._check import odd, real
from segaudit.defenses._filter import Filtered
from segaudit.nn.windows import neighbours
from segaudit.types import Segmenter


def bilateral(
    model: Segmenter, *, size: int = 5, space: float = 1.5, colour: float = 0.1, gradient: str = "exact"
) -> Segmenter:
    """Bilateral: each pixel is the mean of the size x size around it, weighted by nearness in place and colour.

    size: odd; 1 changes nothing. space: standard deviation of the place in pixels. colour: of the Euclidean distance
    between colours in [0, 1]. The exact gradient goes through the weights too.
    Source: Tomasi & Manduchi 1998; as a defense Xu et al. 2018 (non-local means, its relative).
    """
    side = odd("bilateral", "size", size)
    space, colour = (real("bilateral", k, v, above=0) for k, v in (("space", space), ("colour", colour)))

    def smooth(images: Tensor) -> Tensor:
        total, weights = torch.zeros_like(images), torch.zeros_like(images[:, :1])
        for dy, dx, moved in neighbours(images, side):
            apart = (moved - images).square().sum(1, keepdim=True) / colour**2 + (dy * dy + dx * dx) / space**2
            weight = (-apart / 2).exp()
            total, weights = total + weight * moved, weights + weight
        return total / weights

    return Filtered(model, smooth, gradient, "bilateral")
