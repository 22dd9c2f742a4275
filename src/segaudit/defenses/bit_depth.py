"""Fewer bits a channel."""

from __future__ import annotations

import torch
from torch import Tensor

from segaudit.defenses._check import whole
from segaudit.defenses._filter import Filtered
from segaudit.types import Segmenter


def bit_depth(model: Segmenter, *, bits: int = 3, gradient: str = "straight_through") -> Segmenter:
    """Bit depth: each channel is rounded to 2^bits levels.

    bits: 1 to 16. gradient: straight_through, or exact, which is zero everywhere and hides the model.
    Source: Xu et al. 2018 (feature squeezing).
    """
    levels = 2 ** whole("bit_depth", "bits", bits, 1, 16) - 1

    def fewer(images: Tensor) -> Tensor:
        return torch.round(images * levels).div(levels)

    return Filtered(model, fewer, gradient, "bit_depth")
