"""SSIM against a loop over windows, and against what is known of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from segaudit.metrics.similarity import ssim
from segaudit.types import UserError

pytestmark = pytest.mark.usefixtures("one_thread")


def pair(count: int = 2, channels: int = 3, height: int = 19, width: int = 23) -> tuple[Tensor, Tensor]:
    """Smooth pictures, and the same ones with noise, each pair with more of it."""
    rng = torch.Generator().manual_seed(0)
    first = torch.rand(count, channels, height, width, generator=rng).cumsum(3)
    first = first / first.amax()
    noise = torch.randn(first.shape, generator=rng) * torch.linspace(0.02, 0.2, count).view(-1, 1, 1, 1)
    return first, (first + noise).clamp(0, 1)


def by_hand(x: np.ndarray, y: np.ndarray) -> float:
    """One image C x H x W, a window and a channel at a time, with weighted means, variances and covariance."""
    weight = np.array([[math.exp(-(i * i + j * j) / (2 * 1.5**2)) for j in range(-5, 6)] for i in range(-5, 6)])
    weight /= weight.sum()
    c1, c2 = 0.01**2, 0.03**2
    found = []
    for one, other in zip(x, y, strict=True):
        for i in range(x.shape[1] - 10):
            for j in range(x.shape[2] - 10):
                a, b = one[i : i + 11, j : j + 11], other[i : i + 11, j : j + 11]
                ma, mb = (weight * a).sum(), (weight * b).sum()
                va, vb = (weight * (a - ma) ** 2).sum(), (weight * (b - mb) ** 2).sum()
                cov = (weight * (a - ma) * (b - mb)).sum()
                found.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return float(np.mean(found))


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_the_mean_over_windows(channels: int) -> None:
    first, second = pair(channels=channels)
    expected = [by_hand(x, y) for x, y in zip(first.double().numpy(), second.double().numpy(), strict=True)]
    np.testing.assert_allclose(ssim(first, second), expected, rtol=0, atol=1e-9)
    assert expected[0] > expected[1] + 0.1


def test_ssim_is_that_of_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    first, second = pair(3, height=40, width=31)
    expected = [
        metrics.structural_similarity(
            x, y, channel_axis=0, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for x, y in zip(first.double().numpy(), second.double().numpy(), strict=True)
    ]
    np.testing.assert_allclose(ssim(first, second), expected, rtol=0, atol=1e-9)


def test_what_is_known_of_it() -> None:
    first, second = pair()
    np.testing.assert_allclose(ssim(first, first), 1)
    np.testing.assert_array_equal(ssim(first, second), ssim(second, first))
    np.testing.assert_array_equal(ssim(first, second)[1:], ssim(first[1:], second[1:]))
    black, grey = torch.zeros(1, 1, 11, 11), torch.full((1, 1, 11, 11), 0.5)
    np.testing.assert_allclose(ssim(black, grey), 1e-4 / (0.25 + 1e-4), rtol=1e-9)  # flat: the means alone
    assert ssim(first, 1 - first)[0] < 0


def test_what_cannot_be_compared_is_said() -> None:
    first, second = pair()
    with pytest.raises(
        UserError, match=r"^second must be of the first's shape \(2, 3, 19, 23\), not \(2, 3, 19, 22\)$"
    ):
        ssim(first, second[..., 1:])
    with pytest.raises(UserError, match=r"^images must be at least 11 x 11 pixels, not 19 x 10$"):
        ssim(first[..., :10], second[..., :10])
