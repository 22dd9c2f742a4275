"""Dense adversary generation."""

from __future__ import annotations

import torch
from torch import Tensor

from segaudit.attacks._minimal import Lead, Smallest, check, confirmed
from segaudit.types import Segmenter, Streams

CHECK = 10
"""Steps between two looks at which images are finished: each look makes the host wait for the device."""


def dag(
    model: Segmenter,
    images: Tensor,
    labels: Tensor,
    *,
    rng: Streams,
    steps: int = 200,
    step_size: float = 0.5 / 255,
    success: float = 0.99,
    targeted: bool = False,
) -> Tensor:
    """DAG: steps against the pixels that are still right, until almost all of them are wrong; no norm is minimised.

    Each step is the gradient of the summed leads of the labels over the pixels that are not won yet, scaled to an
    Linf norm of step_size (gamma in the paper) and clipped to [0, 1]. An image stops when `success` of its valid
    pixels are won. One that is not won after `steps` steps is returned as the iterate with the most pixels won.
    Source: Xie et al. 2017, algorithm 1; the stop at 99 % as in Rony et al. 2023.
    """
    check(steps, success)
    sign = -1 if targeted else 1
    rows, truth = torch.arange(len(images), device=images.device), labels
    every = Smallest(images, labels, success=success, norm="linf", targeted=targeted)
    best = every[rows]
    x = images.detach()
    for step in range(steps):
        logits = model(x.requires_grad_())
        lead = Lead(logits, labels)
        won = best.see(x.detach(), lead.values, clean=step == 0)
        lost = sign * (best.valid & ~best.won(lead.values)).to(logits)
        (gradient,) = torch.autograd.grad(logits, x, lead.pull_back(lost))
        largest = gradient.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
        x = torch.where(won.view(-1, 1, 1, 1), x, x - step_size * (gradient / largest)).clamp(0, 1).detach()
        if step % CHECK == 0 and won.any():
            every.images[rows], every.found[rows] = best.images, best.found
            rows, x, labels, best = rows[~won], x[~won], labels[~won], best[~won]
            if not len(rows):
                break
    else:
        with torch.no_grad():
            best.see(x, Lead(model(x), labels).values)
        every.images[rows], every.found[rows] = best.images, best.found
    return confirmed(model, every, truth)
