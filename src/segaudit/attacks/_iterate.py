"""The gradient steps that most attacks are made of: ascend an objective inside a norm ball and the [0, 1] box."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from segaudit.types import VOID, Segmenter, Streams, UserError

Objective = Callable[[Tensor, int], Tensor]
"""`(images, step) -> scalar` to ascend: a sum over images, so that no image depends on its neighbours."""


def cross_entropy(model: Segmenter, labels: Tensor, sign: float = 1.0) -> Objective:
    """The summed cross-entropy over the valid pixels, times `sign`."""
    return lambda images, _: sign * F.cross_entropy(model(images), labels, ignore_index=VOID, reduction="sum")


def iterate(
    objective: Objective, start: Tensor, clean: Tensor, *, eps: float, step_size: float, steps: int, norm: str
) -> Tensor:
    """`steps` steps of length `step_size` along the objective's gradient from `start`, each projected.

    start, clean: N x C x H x W in [0, 1]. norm: `linf` (sign steps) or `l2` (steps of that L2 length an image).
    """
    whole(steps=steps)
    images = start
    for step in range(steps):
        images = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(images, step), images)
        images = project(images.detach().add(direction(gradient, norm), alpha=step_size), clean, eps, norm)
    return images.detach()


def direction(gradient: Tensor, norm: str) -> Tensor:
    """The steepest direction of length 1 in the norm, an image at a time; 0 where the gradient is 0."""
    if norm == "linf":
        healthy = 1 + 0 * gradient.sum((1, 2, 3), keepdim=True)  # or nan: sign(nan) is 0, which hides a broken net
        return gradient.sign().mul_(healthy)
    if norm == "l2":
        largest = gradient.abs().amax((1, 2, 3), keepdim=True)
        scaled = gradient / largest.clamp_min(torch.finfo(gradient.dtype).tiny)  # the squares of 1e-25 would be 0
        return scaled / _l2(scaled).clamp_min(1)
    raise UserError(f"norm must be linf or l2, not {norm!r}")


def project(images: Tensor, clean: Tensor, eps: float, norm: str) -> Tensor:
    """The nearest images in the ball of radius eps around the clean ones, then clipped to [0, 1]."""
    if norm == "linf":
        return torch.clamp(images, clean - eps, clean + eps).clamp_(0, 1)
    delta = images - clean
    return (clean + delta * (eps / _l2(delta).clamp_min(1e-12)).clamp_max(1)).clamp_(0, 1)


def random_start(clean: Tensor, eps: float, norm: str, rng: Streams) -> Tensor:
    """A point of the ball around each image, clipped to [0, 1]: uniform (linf: a cube; l2: by volume)."""
    if norm == "linf":
        return (clean + rng.uniform(clean, -eps, eps)).clamp_(0, 1)
    dimensions = clean[0].numel()
    radius = rng.uniform(clean.new_empty(len(clean), 1, 1, 1)) ** (1 / dimensions)
    return (clean + direction(rng.normal(clean), norm) * (eps * radius)).clamp_(0, 1)


def whole(**counts: int) -> None:
    """Refuse `steps` or `restarts` that are not whole numbers of at least 1."""
    for key, value in counts.items():
        if type(value) is not int or value < 1:
            raise UserError(f"{key} must be a whole number of at least 1, not {value!r}")


def _l2(images: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(images, dim=(1, 2, 3), keepdim=True)
    return norms
