"""The image of least total variation near the one given."""

from __future__ import annotations

import torch
from torch import Tensor

from segaudit.defenses._check import real, whole
from segaudit.defenses._filter import Filtered
from segaudit.types import Segmenter

STEP = 0.25
"""Of the dual ascent."""
LEAST = 1e-12
"""Added to a squared slope, whose root would have no derivative where the image is flat."""


def tv(model: Segmenter, *, weight: float = 0.05, steps: int = 10, gradient: str = "exact") -> Segmenter:
    """Total variation: steps towards the image that is near the given one and has little variation.

    weight: of the variation, a channel at a time, against half the squared distance; 0 changes nothing. steps: of
    Chambolle's projection; the exact gradient goes back through all of them.
    Source: Rudin et al. 1992; Chambolle 2004; as a defense Guo et al. 2018.
    """
    amount, count = real("tv", "weight", weight, least=0), whole("tv", "steps", steps, 1)

    def smooth(images: Tensor) -> Tensor:
        return flattened(images, amount, count) if amount else images

    return Filtered(model, smooth, gradient, "tv")


def flattened(images: Tensor, weight: float, steps: int) -> Tensor:
    """Images after some steps of the dual projection: the image plus the divergence of a field p in the unit ball."""
    across, down = torch.zeros_like(images), torch.zeros_like(images)
    for _ in range(steps):
        made = images + weight * _divergence(across, down)
        right, below = _ahead(made, 3), _ahead(made, 2)
        size = (right.square() + below.square() + LEAST).sqrt()
        shrink = 1 + STEP / weight * size
        across, down = (across + STEP / weight * right) / shrink, (down + STEP / weight * below) / shrink
    return images + weight * _divergence(across, down)


def _ahead(images: Tensor, dim: int) -> Tensor:
    """The difference to the next pixel, 0 at the last."""
    last = images.narrow(dim, -1, 1)
    return torch.diff(images, dim=dim, append=last)


def _divergence(across: Tensor, down: Tensor) -> Tensor:
    """What is the opposite of the adjoint of the differences; the last column and row of the fields are 0."""
    return torch.diff(across, dim=3, prepend=torch.zeros_like(across[..., :1])) + torch.diff(
        down, dim=2, prepend=torch.zeros_like(down[..., :1, :])
    )
