"""The mean answer of a model to noisy copies of an image."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segaudit.defenses._check import choice, real, whole
from segaudit.defenses.denoise import denoise
from segaudit.nn.straight import through
from segaudit.rng import streams_of
from segaudit.types import Segmenter


def smoothing(
    model: Segmenter,
    *,
    sigma: float = 0.25,
    draws: int = 16,
    fusion: str = "softmax",
    eot: int = 1,
    denoiser: Any = None,
) -> Segmenter:
    """Smoothing: the mean answer to copies of the image in Gaussian noise, drawn anew in each pass.

    sigma: of the noise on values in [0, 1]; the copies are not clipped. draws: copies of an image in a pass. fusion:
    softmax, the logarithm of the mean probabilities, which the gradient goes through; or votes, that of the share of
    copies that say a class, with the same gradient. eot: passes that an attack takes the mean gradient of. denoiser:
    the weights of one that the copies go through, as `denoise` has it: denoised smoothing; any other defense may be
    one behind it in a `chain` (`parts: [smoothing, tv]`). What is certified of it is asked for under `certification`.
    Source: Cohen et al. 2019; gradient: Salman et al. 2019; denoised: Salman et al. 2020; maps: Fischer et al. 2021.
    """
    return Smoothing(
        model if denoiser is None else denoise(model, denoiser=denoiser),
        real("smoothing", "sigma", sigma, above=0),
        whole("smoothing", "draws", draws, 1),
        choice("smoothing", "fusion", fusion, ("softmax", "votes")),
        whole("smoothing", "eot", eot, 1),
    )


class Smoothing(Segmenter):
    """A model that is asked about several copies of each image in noise, which is drawn from `segaudit.rng`."""

    random = True

    def __init__(self, model: Segmenter, sigma: float, draws: int, fusion: str, eot: int) -> None:
        super().__init__()
        self.model, self.sigma, self.draws, self.fusion, self.eot = model, sigma, draws, fusion, eot
        self.class_names = model.class_names

    def forward(self, images: Tensor) -> Tensor:
        """Logits N x K x H x W: logarithms of shares that sum to 1."""
        rows = torch.arange(len(images)).repeat_interleave(self.draws)
        copies = images.repeat_interleave(self.draws, 0)
        noise = streams_of(images)[rows].normal(copies.detach())
        logits = self.model(copies + self.sigma * noise).to(images)
        each = F.log_softmax(logits, 1).view(len(images), self.draws, *logits.shape[1:])
        mean = each.logsumexp(1) - math.log(self.draws)
        if self.fusion == "softmax":
            return mean
        said = torch.zeros_like(each).scatter_(2, each.argmax(2, keepdim=True), 1.0).sum(1)
        # A class without a vote would be at minus infinity: every class starts with an equal part of one more vote.
        return through(mean, ((said + 1 / said.shape[1]) / (self.draws + 1)).log())
