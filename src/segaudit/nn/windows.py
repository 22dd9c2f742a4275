"""Filters of an image's neighbourhoods, with the edge pixels repeated outside."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_blur(images: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Images N x C x H x W, each smoothed by a Gaussian of its own standard deviation, N in pixels; 0: not at all.

    largest: no sigma is above it; all kernels end at 3 times this, whatever the others of the batch are.
    """
    radius = math.ceil(3 * largest)
    if not radius:
        return images
    places = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = (-(places / sigma.to(images).clamp_min(1e-6)[:, None]).square() / 2).exp()
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(images.shape[1], 0)[:, None, None]
    rows = edged(images, radius).flatten(0, 1)[None]
    rows = F.conv2d(rows, kernel, groups=len(kernel))
    return F.conv2d(rows, kernel.mT, groups=len(kernel)).view(images.shape)


def neighbours(images: Tensor, size: int) -> Iterator[tuple[int, int, Tensor]]:
    """The image moved to every place of a square window, size x size with size odd: dy, dx and N x C x H x W."""
    height, width = images.shape[2:]
    beyond, radius = edged(images, size // 2), size // 2
    for y, x in product(range(size), repeat=2):
        yield y - radius, x - radius, beyond[:, :, y : y + height, x : x + width]


def edged(images: Tensor, radius: int) -> Tensor:
    """The images with their edge pixels repeated around them."""
    return F.pad(images, (radius,) * 4, mode="replicate") if radius else images
