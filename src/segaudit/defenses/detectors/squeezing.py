"""Whether a model says of an image what it says of plainer copies of it."""

from __future__ import annotations

import torch
from torch import Tensor

from segaudit.defenses._check import odd, whole
from segaudit.defenses.bit_depth import bit_depth
from segaudit.defenses.median import median
from segaudit.types import Segmenter


def squeezing(model: Segmenter, images: Tensor, *, bits: int = 5, size: int = 3) -> Tensor:
    """Feature squeezing: how another the softmax of an image is from that of the image with fewer bits, or smoothed.

    bits: a channel, as in the defense `bit_depth`. size: of the window of the defense `median`. Scores N in [0, 2]:
    the mean L1 distance over the pixels, of the two copies' the larger one. Nothing has to be trained for it.
    Source: Xu et al. 2018 (feature squeezing, joint detection), a pixel at a time.
    """
    whole("squeezing", "bits", bits, 1, 16, kind="detector")
    odd("squeezing", "size", size, kind="detector")
    own = model(images).softmax(1)
    plainer = bit_depth(model, bits=bits), median(model, size=size)
    apart = [(own - squeezed(images).softmax(1)).abs().sum(1).flatten(1).mean(1) for squeezed in plainer]
    return torch.stack(apart).amax(0)
