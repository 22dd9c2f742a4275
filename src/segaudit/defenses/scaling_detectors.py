"""Detectors of pictures that become others when they are resized: a score each, higher = more likely attacked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]

from segaudit.attacks._resize import Resizer, Size
from segaudit.defenses._check import real
from segaudit.metrics.similarity import ssim
from segaudit.types import Floats

Pictures = Sequence[NDArray[np.uint8]]

SMOOTH = 1.0
"""The standard deviation, in frequencies, that a spectrum is smoothed with before its points are counted."""
AROUND = 8
"""How many frequencies around a sampling frequency its own are compared with, at most."""
FLOOR = 1e-6
"""What is less of a spectrum than this is nothing."""


def down_up_mse(pictures: Pictures, resizer: Resizer, size: Size) -> Floats:
    """Down and up, MSE: the mean squared difference between a picture and itself resized and brought back.

    pictures: H x W x C uint8 each. resizer: the one that the pictures may be made for, both ways. size: what it makes
    of them. Scores in [0, 1], one a picture.
    Source: Kim et al. 2021 (Decamouflage, scaling detection).
    """
    return np.array([np.square(picture / 255 - _down_up(picture, resizer, size)).mean() for picture in pictures])


def down_up_ssim(pictures: Pictures, resizer: Resizer, size: Size) -> Floats:
    """Down and up, SSIM: how unlike a picture and itself resized and brought back are, 1 - SSIM.

    As `down_up_mse`. Scores in [0, 2]. Raises UserError for pictures smaller than the window of 11 x 11.
    Source: Kim et al. 2021 (Decamouflage, scaling detection).
    """
    return np.array([1 - _alike(picture / 255, _down_up(picture, resizer, size)) for picture in pictures])


def spectrum_points(pictures: Pictures, resizer: Resizer, size: Size, *, level: float = 50.0) -> Floats:
    """Spectrum, points: how many bright spots the centred spectrum has; the sampling repeats the middle one.

    level: how many decibels below the middle, the mean, a spot may be. Scores: whole numbers from 1 on.
    Source: Kim et al. 2021 (Decamouflage, centred spectrum points; they binarise a picture of it).
    """
    real("spectrum_points", "level", level, "scaling_detector", above=0)
    return np.array([_points(_spectrum(picture), level) for picture in pictures])


def spectrum_energy(pictures: Pictures, resizer: Resizer, size: Size) -> Floats:
    """Spectrum, energy: how far the sampling frequencies stand out of those around them, in decibels.

    The mean over the multiples of the size (in periods a picture) but 0, each its 3 x 3 frequencies' mean less the
    median of those around it, in the logarithm of the spectrum.
    Source: Quiring et al. 2020 (section 3, what a sampling leaves); Quiring et al. 2023 (peak spectrum).
    """
    return np.array([_energy(_spectrum(picture), size) for picture in pictures])


def _down_up(picture: NDArray[np.uint8], resizer: Resizer, size: Size) -> Floats:
    small = (resizer(picture, size) * 255).round().astype(np.uint8)
    return resizer(small, (picture.shape[0], picture.shape[1]))


def _alike(first: Floats, second: Floats) -> float:
    pair = (torch.from_numpy(values.transpose(2, 0, 1).copy())[None] for values in (first, second))
    return float(ssim(*pair)[0])


def _spectrum(picture: NDArray[np.uint8]) -> Floats:
    """The size of each frequency of a picture, H x W, in shares of that of frequency 0, at (0, 0).

    The root of the summed squares of its channels: hidden colours may have the brightness of those that hide them.
    Under a Hann window, as the jump from one edge to the other would lie over the whole axes.
    """
    height, width = picture.shape[:2]
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])[:, :, None]
    power = np.square(np.abs(np.fft.fft2(picture * window, axes=(0, 1)))).sum(2)
    sizes: Floats = np.sqrt(power / (power[0, 0] or 1.0))
    return sizes


def _points(spectrum: Floats, level: float) -> float:
    """The spots that reach -level decibels of the middle, which is one of them."""
    smooth = ndimage.gaussian_filter(np.fft.fftshift(spectrum), SMOOTH, mode="wrap")
    middle = smooth[spectrum.shape[0] // 2, spectrum.shape[1] // 2]
    return float(ndimage.label(smooth >= middle * 10 ** (-level / 20), np.ones((3, 3)))[1])


def _energy(spectrum: Floats, size: Size) -> float:
    height, width = spectrum.shape
    decibels = 20 * np.log10(np.maximum(spectrum, FLOOR))
    reach = max(2, min(AROUND, (min(size) - 1) // 2))
    near = np.arange(-reach, reach + 1)
    inner = np.maximum(np.abs(near)[:, None], np.abs(near)) <= 1
    found = []
    for down in _multiples(size[0], height):
        for along in _multiples(size[1], width):
            if (down, along) != (0, 0):
                patch = decibels[np.ix_((down + near) % height, (along + near) % width)]
                found.append(patch[inner].mean() - np.median(patch[~inner]))
    return float(np.mean(found))


def _multiples(sampling: int, side: int) -> list[int]:
    """The frequencies at which a sampling repeats a spectrum, 0 among them, in periods a picture."""
    most = max(1, side // (2 * sampling))
    return sorted({(k * sampling) % side for k in range(-most, most + 1)})
