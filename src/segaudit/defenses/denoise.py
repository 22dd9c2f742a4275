"""A network that takes the noise out of a picture before the model sees it."""

from __future__ import annotations

from typing import Any

from torch import nn

from segaudit.defenses.purify import Purified
from segaudit.types import Segmenter, UserError

EOT = 10
"""Draws that an attack takes the mean gradient of, where the network draws anew in each pass."""


def denoise(model: Segmenter, *, denoiser: Any) -> Segmenter:
    """Denoise: a network that was trained to give back the clean image stands before the model.

    denoiser: the path of its weights, as `segaudit train` left them with recipe `denoise`; in Python, the network.
    Behind noise it is denoised smoothing: under `certification` as one of the `denoisers`, or as the `denoiser` of
    `smoothing`. The gradient goes through it, the mean of 10 draws where the network draws anew in each pass.
    Source: Salman et al. 2020 (denoised smoothing); Meng & Chen 2017 (MagNet's reformer).
    """
    if not isinstance(denoiser, nn.Module):
        raise UserError(f"defense 'denoise': denoiser must be the path of a denoiser's weights, not {denoiser!r}")
    return Purified(model, denoiser.eval().requires_grad_(False), "exact", EOT, "denoise")
