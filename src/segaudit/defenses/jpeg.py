"""The image as a JPEG file would give it back."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from segaudit.defenses._check import choice, whole
from segaudit.defenses._filter import Filtered
from segaudit.nn.jpeg import jpeg as compressed
from segaudit.nn.straight import GRADIENTS
from segaudit.types import Segmenter


def jpeg(model: Segmenter, *, quality: int = 75, gradient: str = "straight_through") -> Segmenter:
    """JPEG: the image is compressed and opened again.

    quality: 1 to 100. gradient: straight_through goes through the rounding alone, all else is differentiated; exact
    is zero everywhere and hides the model. Colours are kept at half the resolution, as files usually do.
    Source: Dziugaite et al. 2016; Guo et al. 2018; the gradient: Athalye et al. 2018.
    """
    number = whole("jpeg", "quality", quality, 1, 100)
    exact = choice("jpeg", "gradient", gradient, GRADIENTS) == "exact"
    return Filtered(model, partial(_at, quality=number, exact=exact), "exact", "jpeg")


def _at(images: Tensor, quality: int, exact: bool) -> Tensor:
    return compressed(images, torch.full((len(images),), quality), exact=exact)
