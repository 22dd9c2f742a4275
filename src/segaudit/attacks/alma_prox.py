"""ALMA prox: an augmented Lagrangian with one constraint a pixel, and a proximal step for the Linf norm."""

from __future__ import annotations

import torch
from torch import Tensor

from segaudit.attacks import _prox
from segaudit.attacks._minimal import Lead, Smallest, check, confirmed
from segaudit.types import NEVER, VOID, Segmenter, Streams

TOLERANCE = 1e-4
"""Added to the lead that a label must lose, in logits."""
CHECK, IMPROVED, GROWTH, LARGEST_RHO = 10, 0.95, 2.0, 1e6
"""Every so many steps rho grows where a pixel was never won and its constraint fell by less. Beyond 1e6 only ratios of
slopes that are already lost in float32 would change, and squares would overflow."""
SCALE_STEP, SMALLEST_SCALE = 0.02, 0.1
"""How the constraints' common scale w follows success."""


def alma_prox(
    model: Segmenter,
    images: Tensor,
    labels: Tensor,
    *,
    rng: Streams,
    steps: int = 500,
    success: float = 0.99,
    step_size: float = 1e-3,
    lr_reduction: float = 0.1,
    rho: float = 0.01,
    mu: float = 10.0,
    alpha: float = 0.8,
    targeted: bool = False,
) -> Tensor:
    """ALMA prox: the smallest Linf perturbation that wins `success` of the valid pixels, by an augmented Lagrangian.

    step_size falls to `lr_reduction` of itself, from the first success on. rho: the first penalty parameter. alpha:
    of the moving averages of the multipliers and of the squared gradient, whose root is the metric of the step.
    mu: the L1 norm of the first step's gradient, to which the multipliers are scaled; the norm itself pulls with 1.
    The paper starts every multiplier at 1, from where many steps can pass before the norm is felt at all.

    The constraints are the leads of the labels over z_(1) - z_(3), taken as a constant of each step: in targeted form
    its slope would cancel that of the lead. Where there is no third logit (two classes), it is put below the second
    by the mean lead of the clean image, so that the constraint stays in [-1, 1] and moves with the lead.
    Without a success, the iterate with the most pixels won is returned.
    Source: Rony et al. 2023, algorithm 1 (ALMA prox).
    """
    check(steps, success)
    sign = -1 if targeted else 1
    best = Smallest(images, labels, success=success, norm="linf", targeted=targeted)
    valid, counts = best.valid.to(images), (labels != VOID).sum((1, 2)).tolist()
    delta, square = torch.zeros_like(images), torch.zeros_like(images)
    rhos, mus = torch.full_like(valid, rho), torch.ones_like(valid)
    scale, spread = valid.new_ones(len(images), 1, 1), valid.new_zeros(len(images), 1, 1)
    previous, ever_won = valid, torch.zeros_like(valid)
    start = valid.new_full((len(images), 1, 1, 1), steps // 2)  # of the decay: the first success, or half-way
    for step in range(steps):
        x = (images + delta).requires_grad_()
        logits = model(x)
        lead = Lead(logits, labels)
        won = best.see(x.detach(), lead.values, clean=step == 0).view(-1, 1, 1)
        start = torch.where(won[..., None] & (start > step), start.clamp_max(step), start)
        scale = (scale / (1 + SCALE_STEP * (2 * won.to(scale) - 1))).clamp(SMALLEST_SCALE, 1)
        first, second, third = _largest_three(logits.detach())
        if step == 0:
            total = ((first - second) * valid).sum((1, 2), keepdim=True)
            spread = total / valid.sum((1, 2), keepdim=True).clamp_min(1)
        third = torch.where(third > 0.9 * NEVER, third, second - spread)
        weight = sign * scale / (first - third + 1e-8)
        constraint = weight * lead.values + scale * TOLERANCE / (first - third + 1e-8)
        kept = valid * _but_largest(constraint, best.valid, counts, (1 - success) * step / max(steps - 1, 1))
        ever_won = torch.maximum(ever_won, (sign * lead.values < 0).to(valid))
        if step == 0:
            previous = constraint
        elif (step + 1) % CHECK == 0:
            stuck = (1 - ever_won) * (constraint * kept > IMPROVED * previous).to(valid)
            rhos = (rhos * (1 + (GROWTH - 1) * stuck)).clamp_max(LARGEST_RHO)
            previous, ever_won = constraint, torch.zeros_like(valid)
        if step > 0:
            mus = torch.lerp(_slope(constraint, rhos, mus) * kept, mus, alpha).clamp(1e-12, 1)
        slope = _slope(constraint, rhos, mus) * kept * weight
        (gradient,) = torch.autograd.grad(logits, x, lead.pull_back(slope))
        if step == 0:
            pull = gradient.abs().sum((1, 2, 3), keepdim=True)
            balance = (mu / pull.clamp_min(1e-12)).clamp_max(1)
            mus, gradient = mus * balance[:, 0], gradient * balance
        slack = lr_reduction * (steps - start).clamp_min(1)
        rate = step_size * slack / ((1 - lr_reduction) * (step - start).clamp_min(0) + slack)
        square = torch.lerp(gradient.square(), square, alpha)
        metric = (square / (1 - alpha ** (step + 1))).sqrt_().clamp_min_(1e-8)
        delta = _prox.linf(delta - rate * (gradient / metric), rate, metric, images)
    with torch.no_grad():
        best.see(images + delta, Lead(model(images + delta), labels).values)
    return confirmed(model, best, labels)


def _slope(y: Tensor, rho: Tensor, mu: Tensor) -> Tensor:
    """dP/dy of P = mu y + mu rho y^2 + rho^2 y^3 / 6 for y >= 0, and of mu y / (1 - max(rho, 1) y) below."""
    above, below = rho * y.clamp_min(0), rho.clamp_min(1) * y.clamp_max(0)
    return mu / (1 - below).square() + 2 * mu * above + above.square() / 2


def _largest_three(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three largest logits of each pixel, N x H x W: a pass over the classes is much faster than topk."""
    first = torch.full_like(logits[:, 0], 2 * NEVER)
    second, third = first, first
    for own in logits.contiguous().unbind(1):
        third = torch.maximum(third, torch.minimum(second, own))
        second = torch.maximum(second, torch.minimum(first, own))
        first = torch.maximum(first, own)
    return first, second, third


def _but_largest(constraint: Tensor, valid: Tensor, counts: list[int], share: float) -> Tensor:
    """1 but for the largest constraints, that share of each image's valid pixels: they may stay as they are."""
    dropped = [int(share * count) for count in counts]
    if not any(dropped):
        return torch.ones_like(constraint)
    ranked = constraint.masked_fill(~valid, -torch.inf).flatten(1)
    limits = [row.topk(k + 1).values[-1] for row, k in zip(ranked, dropped, strict=True)]
    return (constraint <= torch.stack(limits).view(-1, 1, 1)).to(constraint)
