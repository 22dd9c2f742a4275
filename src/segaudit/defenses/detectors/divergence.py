"""Whether a model says of an image what it says of the image an autoencoder makes of it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from segaudit.defenses._check import real
from segaudit.defenses.detectors.reconstruction import made
from segaudit.types import Segmenter


def divergence(model: Segmenter, images: Tensor, *, denoiser: Any, temperature: float = 10.0) -> Tensor:
    """Divergence: how another the softmax of an image is from that of what a denoiser makes of it (Jensen-Shannon).

    denoiser: as `reconstruction` has it. temperature: what the logits are divided by before. Scores N, the mean over
    the pixels, in [0, log 2].
    Source: Meng and Chen 2017 (MagNet, detector by probability divergence), a pixel at a time.
    """
    real("divergence", "temperature", temperature, "detector", above=0)
    seen = images, made("divergence", denoiser, images)
    first, second = (model(own).div(temperature).log_softmax(1) for own in seen)
    middle = torch.logaddexp(first, second) - math.log(2)
    each: Tensor = first.exp() * (first - middle) + second.exp() * (second - middle)
    return each.sum(1).div(2).flatten(1).mean(1)
