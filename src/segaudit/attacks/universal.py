"""One perturbation for all images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from segaudit.attacks._fitted import Fitted, gathered, mini_batches
from segaudit.attacks._iterate import direction, project, whole
from segaudit.attacks._losses import pixel_loss
from segaudit.types import Batch, Segmenter, Streams, UserError


def _fit(
    model: Segmenter,
    batches: Sequence[Batch],
    *,
    rng: Streams,
    eps: float,
    steps: int = 100,
    step_size: float | None = None,
    batch_size: int = 8,
    norm: str = "linf",
    loss: str = "ce",
    targeted: bool = False,
) -> Tensor:
    """The perturbation 1 x C x H x W, in the eps ball."""
    whole(steps=steps, batch_size=batch_size)
    images, labels = gathered(batches)
    ascend = pixel_loss(loss)
    step_size = 10 * eps / steps if step_size is None else step_size
    delta = torch.zeros_like(images[:1])
    for rows in mini_batches(rng.child("order"), len(images), batch_size, steps):
        shifted = images[rows] + delta
        clipped = shifted.clamp(0, 1).requires_grad_()
        (slope,) = torch.autograd.grad(ascend(model(clipped), labels[rows], targeted).sum(), clipped)
        slope = (slope * (shifted == clipped)).sum(0, keepdim=True)  # an image has no say where it is clipped
        delta = _within(delta + step_size * direction(slope, norm), eps, norm)
    return delta


@partial(Fitted, _fit)
def universal(
    model: Segmenter, images: Tensor, labels: Tensor, *, rng: Streams, fitted: Tensor, eps: float, norm: str = "linf"
) -> Tensor:
    """Universal perturbation: one delta for all images, fitted on other images than those that are attacked.

    steps gradient steps, each over batch_size of the images to fit on, which are shuffled; step_size is 10 eps / steps
    unless given. loss: ce, masked_ce, balanced_masked_ce, js or margin. With `targeted` each image to fit on has a mask
    of its own to be led to (a dynamic target). Raises UserError for images of another size than it was fitted on.
    Source: Moosavi-Dezfooli et al. 2017; on segmentation Metzen et al. 2017.
    """
    if fitted.shape[1:] != images.shape[1:]:
        sizes = [" x ".join(map(str, shape)) for shape in (images.shape[1:], fitted.shape[1:])]
        raise UserError(f"fitted must be of the images' size {sizes[0]} (give data a `size: [H, W]`), not {sizes[1]}")
    return project(images + fitted, images, eps, norm)


def _within(delta: Tensor, eps: float, norm: str) -> Tensor:
    if norm == "linf":
        return delta.clamp(-eps, eps)
    length: Tensor = torch.linalg.vector_norm(delta)
    return delta * (eps / length.clamp_min(1e-12)).clamp_max(1)
