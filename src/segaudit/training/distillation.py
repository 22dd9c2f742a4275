"""The distillation recipe: cross-entropy with what a teacher says, both softened by a temperature."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segaudit.types import VOID, Batch, Segmenter, Streams, UserError


def distillation(
    model: Segmenter,
    batch: Batch,
    *,
    rng: Streams,
    teacher: Segmenter,
    temperature: float = 20.0,
    hard: float = 0.0,
) -> Tensor:
    """Cross-entropy with a teacher's softmax over the valid pixels, both at a temperature: defensive distillation.

    teacher: a model as a run's spec has it, which is not trained. temperature: what its logits and the network's are
    divided by; the network is then used without it, and is as much surer of itself. The teacher is to be trained at the
    same one: recipe `standard` with that `temperature`. hard: from 0 to below 1, the share of the loss that is
    cross-entropy with the labels. More rounds are more trainings, each with the network of the one before as teacher.
    0 for a batch without a valid pixel. Raises UserError for other numbers, and for a teacher of other logits.
    Source: Papernot et al. 2016 (as a defense); Hinton et al. 2015; the attack on it: Carlini & Wagner 2017.
    """
    _check(temperature=temperature, hard=hard)
    teacher.to(batch.images.device)
    with torch.no_grad():
        soft = (teacher(batch.images).float() / temperature).softmax(1)
    logits: Tensor = model(batch.images).float() / temperature
    if soft.shape != logits.shape:
        raise UserError(
            f"recipe distillation: the teacher gives logits of {tuple(soft.shape[1:])}, and the network of "
            f"{tuple(logits.shape[1:])}"
        )
    valid = batch.labels != VOID
    if not valid.any():
        return logits.sum() * 0  # the mean over no pixel is nan
    loss: Tensor = -(soft * logits.log_softmax(1)).sum(1)[valid].mean()
    if hard:
        loss = (1 - hard) * loss + hard * F.cross_entropy(logits, batch.labels, ignore_index=VOID)
    return loss


def _check(*, temperature: Any = 20.0, hard: Any = 0.0, **_: Any) -> None:
    """Refuse numbers that cannot be. Raises UserError."""
    if type(temperature) not in (int, float) or not 0 < temperature < math.inf:
        raise UserError(f"recipe distillation: temperature must be a number above 0, not {temperature!r}")
    if type(hard) not in (int, float) or not 0 <= hard < 1:
        raise UserError(f"recipe distillation: hard must be from 0 to below 1, not {hard!r}")


distillation.check = _check  # type: ignore[attr-defined]  # of what a spec says, before anything is written
