"""The Adaptive Segmentation Mask Attack."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from segaudit.attacks._iterate import whole
from segaudit.types import NEVER, VOID, Segmenter, Streams, UserError

CHECK = 10
"""Steps from one look for finished images to the next: each look waits for the device."""


def asma(
    model: Segmenter,
    images: Tensor,
    labels: Tensor,
    *,
    rng: Streams,
    steps: int = 300,
    tau: float = 1e-5,
    beta: float = 3e-6,
    targeted: bool = False,
) -> Tensor:
    """ASMA: climbs the target's logits where it is not reached yet, by longer steps the more of it is.

    x <- clip(x + alpha g) to [0, 1]: g is the gradient of the sum, over the valid pixels not predicted as their
    target, of the target's logit, less the squared L2 distance to the clean image; alpha = tau + beta IoU, the mean
    over the classes in the image's target. The published tau and beta are 1e-7 and 1e-6 (two classes); those of the
    multiclass study are the defaults (MobileNetV3), or a beta of 1e-4 (ResNet50). They are in units of g, which grows
    with logits and pixels: a network that does not move, or moves wildly, needs others.

    Without `targeted` a pixel's target is its likeliest class other than its label, found anew at each step.
    Of an image's iterates the last of those with the most pixels on target is kept. It is finished when they all are:
    at once, as the clean image, where nothing is to be won. It keeps to no eps.

    The published code takes the IoU of one class (0 before the first step) on the image before its clip, which costs
    a second forward pass a step; here it is that of the iterate which the gradient is taken at.
    Source: Ozbulak et al. 2019, eq. 2.
    """
    whole(steps=steps)
    if not (_finite(tau) and tau > 0):
        raise UserError(f"tau must be a number above 0, not {tau!r}")
    if not (_finite(beta) and beta >= 0):
        raise UserError(f"beta must be a number of at least 0, not {beta!r}")
    made, rows = images.clone(), torch.arange(len(images), device=images.device)
    clean = current = best = images
    fewest = torch.full_like(rows, torch.iinfo(rows.dtype).max)
    for step in range(steps + 1):
        current = current.detach().requires_grad_()
        logits = model(current)
        prediction = logits.detach().max(1).indices  # argmax takes up to five times as long
        goal = labels if targeted else _likeliest_other(logits.detach(), labels)
        off = (prediction != goal) & (goal != VOID)
        missed = off.flatten(1).sum(1)
        better = (missed <= fewest) & (fewest > 0)
        if step == 0:
            better = missed == 0  # where it is not, the clean image is not what an attack has made
        best = torch.where(better.view(-1, 1, 1, 1), current.detach(), best)
        fewest = missed.where(better, fewest)
        if step == steps:
            break
        wanted = logits.gather(1, goal.where(goal != VOID, 0)[:, None]).squeeze(1)
        (slope,) = torch.autograd.grad(wanted.where(off, 0).sum(), current)
        current = current.detach()
        alpha = tau + beta * _mean_iou(prediction, goal, logits.shape[1]).to(images)
        current = (current + alpha.view(-1, 1, 1, 1) * (slope - 2 * (current - clean))).clamp_(0, 1)
        going = fewest > 0
        if step % CHECK == 0 and not going.all():
            made[rows] = best
            rows, labels, clean, current, best, fewest = (
                kept[going] for kept in (rows, labels, clean, current, best, fewest)
            )
            if not len(rows):
                break
    broken = current.isnan() & (fewest > 0).view(-1, 1, 1, 1)  # a gradient of nan is not taken for robustness
    made[rows] = current.detach().where(broken, best)
    return made


def _likeliest_other(logits: Tensor, labels: Tensor) -> Tensor:
    """The most likely class of each pixel other than its label, N x H x W; void at void."""
    known = labels.where(labels != VOID, 0)[:, None]
    return logits.scatter(1, known, 2 * NEVER).max(1).indices.where(labels != VOID, VOID)


def _mean_iou(prediction: Tensor, goal: Tensor, classes: int) -> Tensor:
    """Each image's IoU over its valid pixels, averaged over the classes in its goal, N; 0 without a valid pixel."""
    valid = goal != VOID

    def pixels(of: Tensor, where: Tensor) -> Tensor:
        counts = torch.zeros(len(of), classes, dtype=torch.int64, device=of.device)
        return counts.scatter_add_(1, of.flatten(1), where.flatten(1).long())

    known = goal.where(valid, 0)
    both, wanted, found = pixels(known, valid & (prediction == goal)), pixels(known, valid), pixels(prediction, valid)
    iou = both.double() / (wanted + found - both).clamp_min(1)
    return iou.sum(1) / (wanted > 0).sum(1).clamp_min(1)


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
