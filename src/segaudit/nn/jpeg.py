"""JPEG's loss without its files: what is left of a picture, with a gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from segaudit.nn.straight import through

LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99,) * 8,
    (99,) * 8,
    (99,) * 8,
    (99,) * 8,
)
"""The quantisation tables of the standard (ITU-T T.81, annex K) at quality 50, vertical frequency first."""
HALF = 0.5 + 1e-4
"""Ties are rounded away from zero, as the Independent JPEG Group's library does, and they are frequent."""
Table = tuple[tuple[int, ...], ...]
TO_YCC = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))


def jpeg(images: Tensor, quality: Tensor, *, exact: bool = False) -> Tensor:
    """Images N x C x H x W in [0, 1] as JPEG files of some quality (N numbers from 1 to 100) would give them back.

    Three channels are RGB, with the colours at half the resolution; any other number are grey pictures on their own.
    exact: the derivative of the rounding, which is zero; otherwise the rounding and the clipping are gone straight
    through, and what is left is linear.
    Source: ITU-T T.81; differentiable by straight-through rounding as in Athalye et al. 2018.
    """
    height, width = images.shape[2:]

    def rounded(values: Tensor) -> Tensor:
        made = values.sign() * (values.abs() + HALF).floor()
        return made if exact else through(values, made)

    def clipped(values: Tensor) -> Tensor:
        made = values.clamp(0, 255).round()
        return made if exact else through(values, made)

    colour = images.shape[1] == 3
    side = 16 if colour else 8
    pixels = rounded(images * 255)
    pixels = F.pad(pixels, (0, -width % side, 0, -height % side), mode="replicate")
    if not colour:
        made = _coded(pixels, LUMA, quality, rounded)
        return clipped(made)[:, :, :height, :width] / 255
    matrix = torch.tensor(TO_YCC, dtype=torch.float64)
    mixed = torch.einsum("kc,nchw->nkhw", matrix.to(pixels), pixels)
    luma, chroma = rounded(mixed[:, :1]), rounded(mixed[:, 1:] + 128)
    luma = clipped(_coded(luma, LUMA, quality, rounded))
    chroma = F.avg_pool2d(chroma, 2)
    bias = torch.tensor([-0.25, 0.0]).repeat(chroma.shape[3] // 2).to(chroma)  # the library's: ties down, then up
    chroma = clipped(_coded(rounded(chroma + bias), CHROMA, quality, rounded))
    chroma = chroma[:, :, : -(-height // 2), : -(-width // 2)]  # beyond is padding, which is not to bleed in
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)[:, :, :height, :width]
    seen = torch.cat([luma[:, :, :height, :width], chroma - 128], 1)
    return clipped(torch.einsum("ck,nkhw->nchw", matrix.inverse().to(pixels), seen)) / 255


def tables(base: Table, quality: Tensor) -> Tensor:
    """The quantisation table of each quality, N x 8 x 8, scaled as the Independent JPEG Group's library does."""
    quality = quality.to(torch.float64).view(-1, 1, 1)
    scale = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)
    own = torch.tensor(base, dtype=torch.float64, device=quality.device)
    return ((own * scale + 50) / 100).floor().clamp(1, 255)


def _coded(plane: Tensor, base: Table, quality: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    """Planes N x C x H x W around 128, their 8 x 8 blocks' cosine coefficients rounded to multiples of the table."""
    n, channels, height, width = plane.shape
    cosines = _cosines().to(plane)
    steps = tables(base, quality).to(plane).view(n, 1, 1, 1, 8, 8)
    blocks = plane.view(n, channels, height // 8, 8, width // 8, 8).transpose(3, 4) - 128
    found = rounded(cosines @ blocks @ cosines.mT * 8) / 8  # as the library's whole numbers are
    kept = rounded(found / steps) * steps
    return (cosines.mT @ kept @ cosines).transpose(3, 4).reshape(plane.shape) + 128


def _cosines() -> Tensor:
    """The orthonormal cosine transform of 8 numbers, a frequency a row."""
    rows, places = torch.meshgrid(torch.arange(8.0).double(), torch.arange(8.0).double(), indexing="ij")
    made = torch.cos((2 * places + 1) * rows * math.pi / 16) / 2
    made[0] /= math.sqrt(2)
    return made
