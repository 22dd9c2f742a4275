"""Momentum iterative FGSM, with the input diversity and the translation invariance that make its images transfer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segaudit.attacks._iterate import direction, project, whole
from segaudit.types import VOID, Segmenter, Streams, UserError

SMALLEST = 0.9
"""The side of a resized image, as a share of the image's, is drawn from [0.9, 1): Xie et al. take 299 to 330 of 330."""


def mifgsm(
    model: Segmenter,
    images: Tensor,
    labels: Tensor,
    *,
    rng: Streams,
    eps: float,
    steps: int = 10,
    step_size: float | None = None,
    norm: str = "linf",
    momentum: float = 1.0,
    diversity: float = 0.0,
    translation: int = 0,
    targeted: bool = False,
) -> Tensor:
    """MI-FGSM: iterative FGSM along a running sum of the gradients, each scaled to an L1 norm of 1.

    step_size: eps / steps unless given. momentum: what the sum keeps of itself at each step; 0 is iterative FGSM.
    diversity: the chance that a step sees an image shrunk to 0.9 to 1 of its sides on black, at a random place (DI);
    its labels are shrunk with it, so that the loss stays one of pixels. translation: the side of a Gaussian, an odd
    number of pixels, that the gradient is smoothed with (TI); 0 is none.
    Source: Dong et al. 2018; DI: Xie et al. 2019; TI: Dong et al. 2019.
    """
    whole(steps=steps)
    _check(momentum, diversity, translation)
    kernel = gaussian(translation).to(images) if translation else None
    step_size = eps / steps if step_size is None else step_size
    made, total = images, torch.zeros_like(images)
    for _ in range(steps):
        made = made.detach().requires_grad_()
        seen, goal = shrunk(made, labels, diversity, rng) if diversity else (made, labels)
        loss = F.cross_entropy(model(seen), goal, ignore_index=VOID, reduction="sum")
        (gradient,) = torch.autograd.grad(-loss if targeted else loss, made)
        gradient = gradient if kernel is None else smoothed(gradient, kernel)
        total = momentum * total + _unit_l1(gradient)
        made = project(made.detach().add(direction(total, norm), alpha=step_size), images, eps, norm)
    return made.detach()


def shrunk(images: Tensor, labels: Tensor, chance: float, rng: Streams) -> tuple[Tensor, Tensor]:
    """Some of the images shrunk on black with their labels, void around them; the others as they are.

    Bilinear in the images, nearest in the labels; the 1 x 1 label of a classifier stays.
    """
    pick, scale, *place = rng.uniform(images.new_empty(len(images), 4)).unbind(1)
    scale = SMALLEST + (1 - SMALLEST) * scale
    rows, across = (_sources(side, scale, at) for side, at in zip(images.shape[2:], place, strict=True))
    small = torch.einsum("nij,ncjk,nlk->ncil", _weights(rows), images, _weights(across))
    chosen = pick < chance
    images = torch.where(chosen.view(-1, 1, 1, 1), small, images)
    if labels.shape[1:] != images.shape[2:]:
        return images, labels
    y, x = (place.round().nan_to_num(-1).long() for place in (rows, across))
    image = torch.arange(len(labels), device=labels.device).view(-1, 1, 1)
    inside = (y >= 0)[:, :, None] & (x >= 0)[:, None, :]
    moved = labels[image, y.clamp_min(0)[:, :, None], x.clamp_min(0)[:, None, :]].where(inside, VOID)
    return images, torch.where(chosen.view(-1, 1, 1), moved, labels)


def gaussian(side: int) -> Tensor:
    """A Gaussian of `side` numbers that reach three standard deviations each way and sum to 1, float64."""
    places = torch.linspace(-3, 3, side, dtype=torch.float64) if side > 1 else torch.zeros(1, dtype=torch.float64)
    return torch.softmax(-(places**2) / 2, 0)


def smoothed(gradient: Tensor, kernel: Tensor) -> Tensor:
    """Each channel convolved with the kernel, down and across, as if the gradient were 0 outside the image."""
    channels, reach = gradient.shape[1], len(kernel) // 2
    down = kernel.view(1, 1, -1, 1).expand(channels, -1, -1, -1)
    gradient = F.conv2d(gradient, down, padding=(reach, 0), groups=channels)
    return F.conv2d(gradient, down.transpose(2, 3), padding=(0, reach), groups=channels)


def _unit_l1(gradient: Tensor) -> Tensor:
    largest = gradient.abs().amax((1, 2, 3), keepdim=True)
    scaled = gradient / largest.clamp_min(torch.finfo(gradient.dtype).tiny)
    return scaled / scaled.abs().sum((1, 2, 3), keepdim=True).clamp_min(1)


def _sources(side: int, scale: Tensor, place: Tensor) -> Tensor:
    """N x side: the place in the image that each place of the shrunk one shows; nan on the black around it."""
    start = (place * (1 - scale) * side)[:, None]
    at = (torch.arange(side, device=scale.device) + 0.5 - start) / scale[:, None] - 0.5
    return at.clamp(0, side - 1).where((at >= -0.5) & (at < side - 0.5), torch.nan)


def _weights(sources: Tensor) -> Tensor:
    """N x side x side: what each place takes of each place of the image."""
    every = torch.arange(sources.shape[1], device=sources.device)
    return (1 - (sources[:, :, None] - every).abs()).clamp_min(0).nan_to_num(0)


def _check(momentum: float, diversity: float, translation: int) -> None:
    if type(momentum) not in (int, float) or not 0 <= momentum < torch.inf:
        raise UserError(f"momentum must be a number of at least 0, not {momentum!r}")
    if type(diversity) not in (int, float) or not 0 <= diversity <= 1:
        raise UserError(f"diversity must be a chance from 0 to 1, not {diversity!r}")
    if type(translation) is not int or not (translation == 0 or (translation > 0 and translation % 2)):
        raise UserError(f"translation must be 0 or an odd number of pixels, not {translation!r}")
