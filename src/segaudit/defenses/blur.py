"""A Gaussian blur before the model."""

from __future__ import annotations

from torch import Tensor

from segaudit.defenses._check import real
from segaudit.defenses._filter import Filtered
from segaudit.nn.windows import gaussian_blur
from segaudit.types import Segmenter


def blur(model: Segmenter, *, sigma: float = 1.0, gradient: str = "exact") -> Segmenter:
    """Blur: the image is smoothed by a Gaussian, its edge pixels repeated outside.

    sigma: its standard deviation in pixels; 0 is no blur. The kernel ends at 3 sigma.
    Source: the usual low-pass filter; a mean filter against attacks: Li & Li 2017.
    """
    width = real("blur", "sigma", sigma, least=0)

    def smooth(images: Tensor) -> Tensor:
        return gaussian_blur(images, images.new_full((len(images),), width), width)

    return Filtered(model, smooth, gradient, "blur")
