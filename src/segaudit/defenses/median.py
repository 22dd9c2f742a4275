"""The median of each pixel's neighbourhood."""

from __future__ import annotations

import torch
from torch import Tensor

from segaudit.defenses._check import odd
from segaudit.defenses._filter import Filtered
from segaudit.nn.windows import neighbours
from segaudit.types import Segmenter


def median(model: Segmenter, *, size: int = 3, gradient: str = "exact") -> Segmenter:
    """Median: each value is the median of the size x size values around it, a channel at a time.

    size: odd; 1 changes nothing. gradient: exact goes to the value that was chosen; or straight_through.
    Source: Xu et al. 2018 (feature squeezing).
    """
    side = odd("median", "size", size)

    def middle(images: Tensor) -> Tensor:
        return torch.stack([moved for _, _, moved in neighbours(images, side)]).median(0).values

    return Filtered(model, middle, gradient, "median")
