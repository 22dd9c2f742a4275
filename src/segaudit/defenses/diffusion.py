"""Noise over the image, and a diffusion model that takes it off again, and the perturbation with it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segaudit.defenses._check import choice, real, whole
from segaudit.defenses.purify import Purified, network
from segaudit.nn.straight import through
from segaudit.rng import streams_of
from segaudit.types import Segmenter, UserError

OWN = "diffusion"
GRADIENTS = ("exact", "coarse", "straight_through")


def diffusion(
    model: Segmenter,
    *,
    purifier: Any,
    share: float = 0.1,
    steps: int = 10,
    sampler: str = "ddpm",
    gradient: str = "coarse",
    gradient_steps: int = 5,
    eot: int = 10,
) -> Segmenter:
    """Diffusion: noise is put over the image, and a diffusion model takes it off again; drawn anew in each pass.

    purifier: the path of a diffusion model's weights, as `segaudit train` left them with recipe `diffusion`; in Python,
    the network. share: of the process, how far it noises, at most as far as it was trained; more hides more of the
    perturbation, and of the image. steps: back. sampler: ddpm, which draws in each step, or ddim, which draws the first
    noise alone. gradient: exact, through every step as it is; coarse, through a way back of `gradient_steps` from the
    same noise, where clipping is left out, at the images that the fine way gives; straight_through, as if the
    defense were not there. A gradient holds the memory of one step, which is computed again on the way back. eot:
    passes that an attack takes the mean gradient of.
    Source: Nie et al. 2022 (DiffPure); the coarse gradient after Lee & Kim 2023 (surrogate process).
    """
    net: Any = network(OWN, purifier)
    if not hasattr(net, "noised"):
        raise UserError(f"defense {OWN!r}: purifier must be a diffusion model, not a {type(net).__name__}")
    if real(OWN, "share", share, above=0.0) > 1:
        raise UserError(f"defense {OWN!r}: share must be a number above 0 and at most 1, not {share!r}")
    whole(OWN, "steps", steps, 1, net.level(share))
    whole(OWN, "gradient_steps", gradient_steps, 1)
    ways = net.path(share, steps), net.path(share, min(steps, gradient_steps))
    random = choice(OWN, "sampler", sampler, ("ddpm", "ddim")) == "ddpm"
    slope = choice(OWN, "gradient", gradient, GRADIENTS)
    process = Process(net, *ways, ddpm=random, coarse=slope == "coarse")
    return Purified(model, process, "exact" if slope == "coarse" else slope, whole(OWN, "eot", eot, 1), OWN)


class Process(nn.Module):
    """Images N x C x H x W in [0, 1] -> the same, noised and led back along `fine`, levels from the first noise to 0.

    What it draws it takes from `segaudit.rng`. coarse: with a gradient along `rough` instead, which has no more steps.
    """

    random = True

    def __init__(self, net: Any, fine: Sequence[int], rough: Sequence[int], *, ddpm: bool, coarse: bool) -> None:
        super().__init__()
        self.net, self.fine, self.rough, self.ddpm, self.coarse = net, fine, rough, ddpm, coarse

    def forward(self, images: Tensor) -> Tensor:
        """Purified images."""
        streams, like = streams_of(images), images.detach()
        x = self.net.noised(images, self.fine[0], streams.normal(like))
        drawn = [streams.normal(like) for _ in self.fine[2:]] if self.ddpm else None
        if not (self.coarse and torch.is_grad_enabled() and images.requires_grad):
            return self._back(x, self.fine, drawn)
        with torch.no_grad():
            made = self._back(x, self.fine, drawn)
        steps, fewer = len(self.fine) - 1, len(self.rough) - 1
        some = drawn and [drawn[i * steps // fewer] for i in range(fewer - 1)]  # of the steps that are taken together
        return through(self._back(x, self.rough, some, loose=True), made)

    def _back(self, x: Tensor, path: Sequence[int], drawn: Sequence[Tensor] | None, loose: bool = False) -> Tensor:
        for i, (level, to) in enumerate(pairwise(path)):
            step = partial(self.net.back, loose=loose)
            own = x, level, to, drawn[i] if drawn and to else None
            again = torch.is_grad_enabled() and x.requires_grad
            x = checkpoint(step, *own, use_reentrant=False, preserve_rng_state=False) if again else step(*own)
        found: Tensor = self.net.image(x)
        return found
