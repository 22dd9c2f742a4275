"""Random noise: the control of every attack."""

from __future__ import annotations

import torch
from torch import Tensor

from segaudit.attacks._iterate import direction, project, whole
from segaudit.types import VOID, Segmenter, Streams


@torch.no_grad()
def noise(
    model: Segmenter,
    images: Tensor,
    labels: Tensor,
    *,
    rng: Streams,
    eps: float,
    steps: int = 10,
    norm: str = "linf",
) -> Tensor:
    """Noise: random signs of size eps, which every attack that finds its way must beat.

    steps: draws, of which an image keeps the one that leaves the fewest pixels right. norm: linf, or l2, where a draw
    is a random direction of length eps.
    Source: Carlini et al. 2019 (random search as a check of a gradient attack).
    """
    whole(steps=steps)
    best, kept = images, torch.full((len(images),), torch.inf, device=images.device)
    for _ in range(steps):
        made = project(images.add(direction(rng.normal(images), norm), alpha=eps), images, eps, norm)
        right = ((model(made).argmax(1) == labels) & (labels != VOID)).flatten(1).sum(1).float()
        best = torch.where((right < kept).view(-1, 1, 1, 1), made, best)
        kept = torch.minimum(right, kept)
    return best


noise.gradient_free = True  # type: ignore[attr-defined]  # as `square.gradient_free`
