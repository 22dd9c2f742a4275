"""Primal-dual proximal gradient descent, with one dual variable a pixel."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from segaudit.attacks import _prox
from segaudit.attacks._minimal import Lead, Smallest, check, confirmed
from segaudit.types import VOID, Segmenter, Streams

FIRST, SECOND = 0.9, 0.999
"""Adam's moving averages."""


def pdpgd(
    model: Segmenter,
    images: Tensor,
    labels: Tensor,
    *,
    rng: Streams,
    steps: int = 500,
    success: float = 0.99,
    step_size: float = 0.003,
    decrease: float = 0.01,
    dual_lr: float = 0.1,
    dual_ema: float = 0.5,
    targeted: bool = False,
) -> Tensor:
    """PDPGD: the smallest Linf perturbation, by Adam with a proximal step and dual ascent on one multiplier a pixel.

    step_size falls geometrically to `decrease` of itself, dual_lr linearly to a tenth. The multipliers and the weight
    of the norm share 1 between them (a softmax); dual_ema is the weight of the past in their moving average. The
    proximal step is exact, in Adam's metric and inside the box, where the paper iterates. The form for L2 is left
    out: with a multiplier a pixel it stays a tenth and more above the smallest norm of a linear model; use `fmn`.
    Without a success, the iterate with the most pixels won is returned.
    Source: Matyasko and Chau 2021 (PDPGD); on segmentation as in Rony et al. 2023.
    """
    check(steps, success)
    sign = -1 if targeted else 1
    best = Smallest(images, labels, success=success, norm="linf", targeted=targeted)
    valid = labels != VOID
    pixels = valid.sum((1, 2)).clamp_min(1).to(images).log().view(-1, 1, 1)
    dual = -pixels.expand(valid.shape)
    delta, mean, square = torch.zeros_like(images), torch.zeros_like(images), torch.zeros_like(images)
    average = _shares(dual, valid)
    for step in range(steps):
        x = (images + delta).requires_grad_()
        logits = model(x)
        lead = Lead(logits, labels)
        best.see(x.detach(), lead.values, clean=step == 0)
        margin = sign * lead.values
        if step > 0:
            average = torch.lerp(_shares(dual, valid), average, dual_ema)
        held = average.sum((1, 2), keepdim=True).clamp_min(torch.finfo(images.dtype).tiny)
        slope = sign * average / held * margin.sigmoid()
        (gradient,) = torch.autograd.grad(logits, x, lead.pull_back(slope))
        mean, square = torch.lerp(gradient, mean, FIRST), torch.lerp(gradient.square(), square, SECOND)
        metric = (square / (1 - SECOND ** (step + 1))).sqrt_().add_(1e-8)
        rate = step_size * decrease ** (step / steps)
        weight = rate * ((1 - held) / held)[..., None]
        delta = _prox.linf(delta - rate / (1 - FIRST ** (step + 1)) * (mean / metric), weight, metric, images)
        dual_rate = dual_lr * (1 - 0.9 * step / steps)
        dual = (dual + dual_rate * margin.sign()).clamp(math.log(1e-12), -math.log(1e-12))
    with torch.no_grad():
        best.see(images + delta, Lead(model(images + delta), labels).values)
    return confirmed(model, best, labels)


def _shares(dual: Tensor, valid: Tensor) -> Tensor:
    """The multipliers N x H x W: a softmax over the valid pixels and a 0 that stands for the norm; 0 at void."""
    flat = F.pad(dual.masked_fill(~valid, -torch.inf).flatten(1), (1, 0))
    return flat.softmax(1)[:, 1:].view_as(dual)
