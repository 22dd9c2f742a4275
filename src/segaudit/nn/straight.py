"""Steps without a useful gradient, in a form that an attack can go through (BPDA)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

GRADIENTS = ("straight_through", "exact")
"""What goes back through such a step: what came, as if it were not there; or its own derivative, mostly zero."""


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, made: Tensor) -> Tensor:
        return made.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        return slopes[0], None


def through(images: Tensor, made: Tensor) -> Tensor:
    """The values of `made` with the gradient of `images`, of the same shape: a straight-through step.

    Source: Bengio et al. 2013; as an attack Athalye et al. 2018 (BPDA).
    """
    if images.shape != made.shape:
        raise ValueError(f"a straight-through step from {tuple(images.shape)} to {tuple(made.shape)}")
    taken: Tensor = _Through.apply(images, made.detach())
    return taken
