"""How much of an image an autoencoder or a denoiser does not give back."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from segaudit.defenses._check import choice, remade
from segaudit.types import Segmenter, UserError

POWERS = {"l1": 1, "l2": 2}


def reconstruction(model: Segmenter, images: Tensor, *, denoiser: Any, norm: str = "l1") -> Tensor:
    """Reconstruction: how far an image is from what a denoiser or an autoencoder makes of it.

    denoiser: the path of its weights, as `segaudit train` left them with recipe `denoise`; in Python, the network.
    norm: l1, the mean absolute difference, or l2, the mean squared one. Scores N in [0, 1]; the model has no part.
    Source: Meng and Chen 2017 (MagNet, detector by reconstruction error).
    """
    power = POWERS[choice("reconstruction", "norm", norm, tuple(POWERS), kind="detector")]
    off: Tensor = images - made("reconstruction", denoiser, images)
    return off.abs().pow(power).flatten(1).mean(1)


def made(detector: str, denoiser: Any, images: Tensor) -> Tensor:
    """What the network that a detector was handed makes of images. Raises UserError for anything else."""
    if not isinstance(denoiser, nn.Module):
        raise UserError(f"detector {detector!r}: denoiser must be the path of a denoiser's weights, not {denoiser!r}")
    return remade(detector, denoiser(images), images, kind="detector")
