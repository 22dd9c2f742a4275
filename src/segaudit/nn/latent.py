"""Search in the latent space of a generator: all starts of all images at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from segaudit.types import UserError

FIRST, SECOND, TINY = 0.9, 0.99, 1e-8
"""Adam's decay of the mean slope and of the mean squared one, and what keeps the quotient finite."""

Objective = Callable[[Tensor, Tensor], Tensor]
"""`(z, rows) -> values` to descend: points M x D, the row that each is of, M, and the value of each, M."""


class Sampler(Protocol):
    """A generator of images. latent: D, the numbers that an image is made from. classes: K, 0 without labels."""

    latent: int
    classes: int

    def sample(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images M x C x H x W in [0, 1] from z M x D and, where there are classes, labels M."""


def sampler(part: str, generator: Any) -> Any:
    """The generator, an `nn.Module` and a `Sampler`. Raises UserError that names the part for anything else."""
    if not isinstance(generator, nn.Module) or not callable(getattr(generator, "sample", None)):
        given = f"a {type(generator).__name__}" if isinstance(generator, nn.Module) else repr(generator)
        raise UserError(
            f"{part}: generator must be the path of a generator's weights, as `segaudit train` left them with recipe "
            f"wgan_gp, not {given}"
        )
    return generator


def alike(part: str, made: Tensor, images: Tensor) -> None:
    """Refuse a generator whose images are of another size, or of other channels. Raises UserError naming the part."""
    if made.shape[1:] != images.shape[1:]:
        ours, theirs = (" x ".join(map(str, own.shape[1:])) for own in (made, images))
        raise UserError(f"{part}: the generator makes images of {ours}, and these are of {theirs}")


def descend(
    objective: Objective, z: Tensor, *, steps: int, rate: float, starts: int = 1, halvings: int = 0
) -> tuple[Tensor, Tensor]:
    """The best point that each row of z, N x D, comes by in `steps` steps of Adam, N x D, and its value, N.

    rate: the length of the first step, in units of z; it falls to 0 along a cosine. starts: so many rows, one after the
    other, seek the same thing; at each of `halvings` marks (the last at half of the steps, each at half of the next)
    the worse half of them stops where it is. Else no row depends on another, so rows may be searched together or one by
    one. A row that becomes NaN stays so: a broken network is not to be hidden.
    Source: Kingma & Ba 2015 (Adam); Loshchilov & Hutter 2017 (the cosine); Jamieson & Talwalkar 2016 (halving).
    """
    marks = {steps >> i for i in range(1, min(halvings, steps.bit_length()) + 1)}
    best, least, rows = z.clone(), z.new_full((len(z),), torch.inf), torch.arange(len(z), device=z.device)
    mean, square = torch.zeros_like(z), torch.zeros_like(z)
    for step in range(steps + 1):
        last = step == steps
        z = z.detach().requires_grad_(not last)
        with torch.set_grad_enabled(not last):  # a model is scored without gradients, and the search needs them
            values = objective(z, rows)
        found = values.detach()
        better = (found < least[rows]) | found.isnan()
        best[rows] = torch.where(better[:, None], z.detach(), best[rows])
        least[rows] = torch.where(better, found, least[rows])
        if last:
            break
        (slope,) = torch.autograd.grad(values, z, torch.ones_like(values))
        mean, square = mean.lerp(slope, 1 - FIRST), square.lerp(slope.square(), 1 - SECOND)
        ahead, size = mean / (1 - FIRST ** (step + 1)), square / (1 - SECOND ** (step + 1))
        now = rate * (1 + math.cos(math.pi * step / steps)) / 2
        z = z.detach() - now * ahead / (size.sqrt() + TINY)
        if step + 1 in marks and starts > 1:
            kept = least[rows].view(-1, starts).sort(dim=1, stable=True).indices[:, : (starts + 1) // 2]
            left = (kept + starts * torch.arange(len(kept), device=z.device)[:, None]).flatten()
            rows, z, mean, square = rows[left], z[left], mean[left], square[left]
            starts = kept.shape[1]
    return best, least
