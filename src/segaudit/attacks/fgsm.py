"""FGSM, FGSM II and their iterative forms, as Arnab et al. use them on segmentation."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from segaudit.attacks._iterate import Objective, cross_entropy, iterate
from segaudit.types import NEVER, VOID, Segmenter, Streams, UserError


def fgsm(
    model: Segmenter,
    images: Tensor,
    labels: Tensor,
    *,
    rng: Streams,
    eps: float,
    norm: str = "linf",
    label: str = "truth",
    targeted: bool = False,
) -> Tensor:
    """FGSM: one step of length eps up the gradient of the cross-entropy.

    label: ascend away from the `truth`, or from the network's own clean `prediction` (the authors' code).
    Source: Goodfellow et al. 2015; on segmentation Arnab et al. 2018, eq. 1.
    """
    goal = _untargeted(model, images, labels, label, targeted)
    return iterate(goal, images, images, eps=eps, step_size=eps, steps=1, norm=norm)


def fgsm_ll(
    model: Segmenter, images: Tensor, labels: Tensor, *, rng: Streams, eps: float, norm: str = "linf"
) -> Tensor:
    """FGSM II: one step of length eps towards each pixel's least likely class.

    Source: Kurakin et al. 2017; Arnab et al. 2018, eq. 2.
    """
    return iterate(_least_likely(model, labels), images, images, eps=eps, step_size=eps, steps=1, norm=norm)


def ifgsm(
    model: Segmenter,
    images: Tensor,
    labels: Tensor,
    *,
    rng: Streams,
    eps: float,
    steps: int | None = None,
    step_size: float = 1 / 255,
    norm: str = "linf",
    label: str = "truth",
    targeted: bool = False,
) -> Tensor:
    """Iterative FGSM: steps of 1/255 in the eps box, `arnab_steps(eps)` of them unless told otherwise.

    Source: Kurakin et al. 2017; Arnab et al. 2018, eq. 3.
    """
    goal = _untargeted(model, images, labels, label, targeted)
    steps = arnab_steps(eps) if steps is None else steps
    return iterate(goal, images, images, eps=eps, step_size=step_size, steps=steps, norm=norm)


def ifgsm_ll(
    model: Segmenter,
    images: Tensor,
    labels: Tensor,
    *,
    rng: Streams,
    eps: float,
    steps: int | None = None,
    step_size: float = 1 / 255,
    norm: str = "linf",
) -> Tensor:
    """Iterative FGSM II: as `ifgsm`, towards the least likely classes, found anew at each step.

    Source: Kurakin et al. 2017; Arnab et al. 2018, eq. 4.
    """
    steps = arnab_steps(eps) if steps is None else steps
    goal = _least_likely(model, labels)
    return iterate(goal, images, images, eps=eps, step_size=step_size, steps=steps, norm=norm)


def arnab_steps(eps: float) -> int:
    """N = max(1, ceil(min(e + 4, 1.25 e))) with e = 255 eps (Arnab et al. 2018, section 4)."""
    in_255 = round(eps * 255, 6)
    return max(1, math.ceil(min(in_255 + 4, 1.25 * in_255)))


def _untargeted(model: Segmenter, images: Tensor, labels: Tensor, label: str, targeted: bool) -> Objective:
    if label not in ("truth", "prediction"):
        raise UserError(f"label must be truth or prediction, not {label!r}")
    if label == "prediction" and not targeted:
        with torch.no_grad():
            labels = model(images).argmax(1).where(labels != VOID, VOID)
    return cross_entropy(model, labels, sign=-1.0 if targeted else 1.0)


def _least_likely(model: Segmenter, labels: Tensor) -> Objective:
    def goal(images: Tensor, step: int) -> Tensor:
        logits = model(images)
        known = logits.detach()
        target = known.masked_fill(known < 0.9 * NEVER, torch.inf).argmin(1).where(labels != VOID, VOID)
        return -F.cross_entropy(logits, target, ignore_index=VOID, reduction="sum")

    return goal
