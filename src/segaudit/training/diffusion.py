"""The diffusion recipe: the squared error of the noise that a diffusion model tells in noised images."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from segaudit.rng import ImageStreams
from segaudit.training.loop import Judge, stack
from segaudit.training.schedule import Samples
from segaudit.types import Batch, Streams, UserError

LEVELS = 4
"""At how many levels of the process the held-out images are scored."""


def diffusion(model: nn.Module, batch: Batch, *, rng: Streams, share: float = 1.0) -> Tensor:
    """Squared error of the noise in images at levels of a noising process that each image draws for itself.

    It trains the purifier `diffusion`. share: above 0 and up to 1, how far into the process the levels go; what is to
    purify needs none beyond the share that the defense noises to, and learns the others faster.
    Raises UserError for another share, and for a network of another kind.
    Source: Ho et al. 2020, eq. 14.
    """
    _check(share=share)
    net = _diffuses(model)
    if net.training:
        net.track(net.level(share))
    levels = 1 + rng.child("level").integers(net.level(share)).to(batch.images.device)
    noise = rng.child("noise").normal(batch.images)
    told: Tensor = net.noise(net.noised(batch.images, levels, noise), levels)
    return (told.float() - noise).square().mean()


@torch.no_grad()
def noise_error(model: nn.Module, samples: Samples, batch: int = 8, *, share: float = 1.0) -> dict[str, float]:
    """`noise_mse`: the mean squared error of the noise that is told in held-out images, of which each value is 1.

    Each image is scored at `LEVELS` levels, evenly up to the share; the noise is the same in every call.
    """
    net, errors = _diffuses(model.eval()), []
    device = next(net.parameters()).device
    for start in range(0, len(samples.ids), batch):
        ids = samples.ids[start : start + batch]
        clean = stack([samples.sample(name)[0] for name in ids]).to(device)
        for i in range(LEVELS):
            level = net.level(share * (2 * i + 1) / (2 * LEVELS))
            noise = ImageStreams(0, ids, f"noise {i}").normal(clean)
            told = net.noise(net.noised(clean, level, noise).contiguous(memory_format=torch.channels_last), level)
            errors.append((told - noise).double().square().flatten(1).mean(1))
    return {"noise_mse": float(torch.cat(errors).mean())}


def _judge(*, share: float = 1.0, **_: Any) -> Judge:
    """Up to the share that is trained for."""
    return partial(noise_error, share=share)


diffusion.judge = _judge  # type: ignore[attr-defined]  # which those read who train: what it trains is no segmenter
diffusion.trains = ("diffusion",)  # type: ignore[attr-defined]


def _check(*, share: Any = 1.0, **_: Any) -> None:
    """Refuse numbers that cannot be. Raises UserError."""
    if type(share) not in (int, float) or not 0 < share <= 1:
        raise UserError(f"recipe diffusion: share must be a number above 0 and at most 1, not {share!r}")


diffusion.check = _check  # type: ignore[attr-defined]


def _diffuses(model: nn.Module) -> Any:
    """The model, where it has a noising process."""
    if not hasattr(model, "noised"):
        raise UserError(
            "recipe diffusion: it trains a diffusion model: give `model: {source: purifier, name: diffusion}`"
        )
    return model
