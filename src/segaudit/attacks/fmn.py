"""Fast minimum-norm attack."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from segaudit.attacks._iterate import direction
from segaudit.attacks._minimal import Lead, Smallest, check, confirmed, size
from segaudit.types import Segmenter, Streams


def fmn(
    model: Segmenter,
    images: Tensor,
    labels: Tensor,
    *,
    rng: Streams,
    steps: int = 200,
    success: float = 0.99,
    norm: str = "linf",
    alpha: float = 0.1,
    gamma: float = 0.05,
    targeted: bool = False,
) -> Tensor:
    """FMN: steps along the gradient inside a ball that shrinks after a success and grows after a failure.

    norm: `linf` or `l2`. The loss is the sum of the leads over the pixels that are not won yet. alpha: the length of
    the first step as a share of the ball's radius (linf: of the L2 length of its corner), where the paper has a
    length that suits one image size; it falls to a hundredth. gamma: the share by which the ball first changes; it
    falls to a fiftieth. Until the first success the ball reaches as far as a linear model would need, and gamma more.
    Without a success, the iterate with the most pixels won is returned.
    Source: Pintor et al. 2021 (FMN), algorithm 1, with the pixels of an image summed.
    """
    check(steps, success, norm)
    sign, corner = -1 if targeted else 1, images[0].numel() ** 0.5 if norm == "linf" else 1.0
    best = Smallest(images, labels, success=success, norm=norm, targeted=targeted)
    delta = torch.zeros_like(images)
    radius, largest = images.new_zeros(len(images), 1, 1, 1), size(torch.maximum(images, 1 - images), norm)
    for step in range(steps):
        cosine = (1 + math.cos(math.pi * step / steps)) / 2
        change = gamma * (0.02 + 0.98 * cosine)
        x = (images + delta).requires_grad_()
        logits = model(x)
        lead = Lead(logits, labels)
        won = best.see(x.detach(), lead.values, clean=step == 0).view(-1, 1, 1, 1)
        lost = sign * (best.valid & ~best.won(lead.values)).to(images)
        (gradient,) = torch.autograd.grad(logits, x, lead.pull_back(-lost))
        now = size(delta, norm)
        reach = (now + _needed(gradient, lost * lead.values, norm)) * (1 + change)  # not to land on the very boundary
        failed = torch.where(best.found.view(-1, 1, 1, 1), radius * (1 + change), reach)
        shrunk = torch.minimum(radius, best.size) * (1 - change)  # below the best: a tie would be decided by rounding
        radius = torch.where(won, shrunk, failed).minimum(largest)
        length = alpha * (0.01 + 0.99 * cosine) * corner * radius
        delta = delta + length * direction(gradient, "l2")
        if norm == "linf":
            delta = torch.clamp(delta, -radius, radius)
        else:
            delta = delta * (radius / size(delta, "l2").clamp_min(torch.finfo(delta.dtype).tiny)).clamp_max(1)
        delta = torch.clamp(delta, -images, 1 - images)
    with torch.no_grad():
        best.see(images + delta, Lead(model(images + delta), labels).values)
    return confirmed(model, best, labels)


def _needed(gradient: Tensor, loss: Tensor, norm: str) -> Tensor:
    """How far a linear model would have to be followed to a loss of 0, N x 1 x 1 x 1; 0 without a gradient."""
    dual = gradient.abs().sum((1, 2, 3), keepdim=True) if norm == "linf" else size(gradient, "l2")
    return loss.sum((1, 2)).view(-1, 1, 1, 1) / dual.masked_fill(dual == 0, torch.inf)
