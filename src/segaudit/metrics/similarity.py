"""How alike two pictures look."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segaudit.types import Floats, UserError

WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def ssim(first: Tensor, second: Tensor) -> Floats:
    """The structural similarity of each pair of images, N, in [-1, 1]; 1: the same. Both N x C x H x W in [0, 1].

    The mean over channels and over the places where the whole window, a Gaussian of 11 x 11 pixels with a standard
    deviation of 1.5, lies inside. Raises UserError for images of two shapes, or smaller than the window.
    Source: Wang et al. 2004, eq. 13 and section III-C.
    """
    if first.shape != second.shape:
        raise UserError(f"second must be of the first's shape {tuple(first.shape)}, not {tuple(second.shape)}")
    if min(first.shape[2:]) < WINDOW:
        height, width = first.shape[2:]
        raise UserError(f"images must be at least {WINDOW} x {WINDOW} pixels, not {height} x {width}")
    return np.array([_ssim(one.double(), other.double()) for one, other in zip(first, second, strict=True)])


def _ssim(x: Tensor, y: Tensor) -> float:
    """Of one image C x H x W: in float64, as variances are differences of nearly equal numbers."""
    mean_x, mean_y, xx, yy, xy = (_blur(values) for values in (x, y, x * x, y * y, x * y))
    likeness = (2 * mean_x * mean_y + K1**2) / (mean_x**2 + mean_y**2 + K1**2)
    structure = (2 * (xy - mean_x * mean_y) + K2**2) / (xx - mean_x**2 + yy - mean_y**2 + K2**2)
    return float((likeness * structure).mean())


def _blur(values: Tensor) -> Tensor:
    """The Gaussian mean around each place of C x H x W that is a whole window from the border."""
    place = torch.arange(WINDOW, dtype=values.dtype, device=values.device) - WINDOW // 2
    weight = torch.exp(-(place**2) / (2 * SIGMA**2))
    weight /= weight.sum()
    rows = F.conv2d(values[:, None], weight.view(1, 1, -1, 1))
    return F.conv2d(rows, weight.view(1, 1, 1, -1))[:, 0]
