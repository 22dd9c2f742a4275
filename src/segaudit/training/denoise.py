"""The denoise recipe: squared error to the clean picture, and what a segmenter sees in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segaudit.rng import ImageStreams, drawing
from segaudit.training.loop import Judge, stack
from segaudit.training.schedule import Samples
from segaudit.types import Batch, Segmenter, Streams, UserError

TRAINS = ("residual", "bottleneck", "autoencoder", "vae", "cvae")
"""The purifiers that learn from the squared error of an image: no generator, no embedding, no diffusion model."""
LEAST = 1e-10
"""The mean squared error below which two pictures are the same: 100 dB."""


def denoise(
    model: nn.Module,
    batch: Batch,
    *,
    rng: Streams,
    sigma: float | Sequence[float],
    segmenter: Segmenter | None = None,
    stability: float = 0.01,
) -> Tensor:
    """Mean squared error to the clean image, of images in Gaussian noise that a denoiser has seen.

    sigma: of the noise on images in [0, 1], which is not clipped: a number, or [low, high], between which each image
    draws its own; 0 is no noise, for an autoencoder. segmenter: a model as a run's spec has it, which is not trained:
    its cross-entropy on the denoised image, against the classes that it sees in the clean one, is added `stability`
    times. Raises UserError for other numbers.
    Source: Zhang et al. 2017 (the squared error); Salman et al. 2020 (denoised smoothing: the stability).
    """
    _check(sigma=sigma, stability=stability)
    made: Tensor = model(noisy(batch.images, sigma, rng))
    loss = (made.float() - batch.images).square().mean()
    if segmenter is None:
        return loss
    segmenter.to(batch.images.device)
    with torch.no_grad():
        seen = segmenter(batch.images).argmax(1)
    return loss + stability * F.cross_entropy(segmenter(made).float(), seen)


def noisy(images: Tensor, sigma: float | Sequence[float], rng: Streams) -> Tensor:
    """Images in Gaussian noise of sigma, or of one that each image draws from [low, high]; not clipped."""
    low, high = sigmas(sigma)
    sizes = rng.child("sigma").uniform(images[:, :1, :1, :1], low, high)
    return images + sizes * rng.child("noise").normal(images)


@torch.no_grad()
def psnr(model: nn.Module, samples: Samples, batch: int = 8, *, sigma: float) -> dict[str, float]:
    """The mean over the images, in dB, of the peak signal-to-noise ratio with and without the model, at most 100.

    `psnr` is that of the denoised images, `psnr_noisy` that of the noisy ones, which are the same in every call, as is
    what a random model draws.
    """
    model.eval()
    device = next(model.parameters()).device
    before, after = [], []
    for start in range(0, len(samples.ids), batch):
        ids = samples.ids[start : start + batch]
        clean = stack([samples.sample(name)[0] for name in ids]).to(device)
        seen = clean + sigma * ImageStreams(0, ids, "psnr").normal(clean)
        before.append(_decibels(seen, clean))
        with drawing(ImageStreams(0, ids, "psnr/model")):
            after.append(_decibels(model(seen.contiguous(memory_format=torch.channels_last)), clean))
    return {"psnr": float(torch.cat(after).mean()), "psnr_noisy": float(torch.cat(before).mean())}


denoise.trains = TRAINS  # type: ignore[attr-defined]  # which those read who train, as `judge` and `check`


def _judge(*, sigma: float | Sequence[float], **_: Any) -> Judge:
    """At the largest sigma that is trained for."""
    return partial(psnr, sigma=sigmas(sigma)[1])


denoise.judge = _judge  # type: ignore[attr-defined]  # what it trains is no segmenter


def _check(*, sigma: Any, stability: Any = 0.01, **_: Any) -> None:
    """Refuse numbers that cannot be. Raises UserError."""
    sigmas(sigma)
    if isinstance(stability, bool) or not isinstance(stability, (int, float)) or not 0 < stability < math.inf:
        raise UserError(f"recipe denoise: stability must be a number above 0, not {stability!r}")


denoise.check = _check  # type: ignore[attr-defined]


def sigmas(sigma: Any, recipe: str = "denoise") -> tuple[float, float]:
    """The smallest and the largest. Raises UserError for what is no such range."""
    ends = list(sigma) if isinstance(sigma, (list, tuple)) else [sigma, sigma]
    plain = all(type(end) in (int, float) and 0 <= end < math.inf for end in ends)
    if len(ends) != 2 or not plain or ends[0] > ends[1]:
        raise UserError(
            f"recipe {recipe}: sigma must be a number of at least 0, or [low, high], not {sigma!r}; "
            "images are in [0, 1]"
        )
    return float(ends[0]), float(ends[1])


def _decibels(made: Tensor, clean: Tensor) -> Tensor:
    """Of each image, N."""
    return -10 * (made - clean).double().square().flatten(1).mean(1).clamp_min(LEAST).log10()
