"""The standard recipe: cross-entropy on clean images, and the soft Dice loss beside it where it is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segaudit.types import VOID, Batch, Segmenter, Streams, UserError


def standard(
    model: Segmenter,
    batch: Batch,
    *,
    rng: Streams,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    dice: float = 0.0,
    temperature: float = 1.0,
) -> Tensor:
    """Cross-entropy over the valid pixels of clean images, with optional class weights.

    class_weights: one a class, or in a spec `balanced` (median frequency, counted on the training images). 0 for a
    batch without a valid pixel, or with pixels of weight 0 alone. dice: the factor of the soft Dice loss that is added,
    at least 0. temperature: what the logits are divided by while it trains, for the first teacher of a distillation.
    Raises UserError for numbers out of range, and for another number of weights than classes.
    Source: the common recipe of FCN (Long et al. 2015) and its successors; Milletari et al. 2016 (Dice).
    """
    _check(label_smoothing=label_smoothing, dice=dice, temperature=temperature)
    logits: Tensor = model(batch.images).float() / temperature
    return cross_entropy(logits, batch.labels, class_weights, label_smoothing, dice)


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    dice: float = 0.0,
) -> Tensor:
    """The loss of `standard`, of logits N x K x H x W and labels N x H x W."""
    weight = weights_of(class_weights, logits)
    counted = labels[labels != VOID]
    if not len(counted) or (weight is not None and not weight[counted].any()):
        return logits.sum() * 0  # the mean over no pixel is nan
    loss = F.cross_entropy(logits, labels, weight=weight, ignore_index=VOID, label_smoothing=label_smoothing)
    return loss + dice * soft_dice(logits, labels) if dice else loss


def weights_of(class_weights: Sequence[float] | None, logits: Tensor) -> Tensor | None:
    """Class weights as a tensor beside the logits. Raises UserError for another number than there are classes."""
    if class_weights is not None and len(class_weights) != logits.shape[1]:
        raise UserError(f"recipe: {len(class_weights)} class_weights for {logits.shape[1]} classes")
    return None if class_weights is None else logits.new_tensor(class_weights)


def _check(*, label_smoothing: Any = 0.0, dice: Any = 0.0, temperature: Any = 1.0, **_: Any) -> None:
    """Refuse numbers that cannot be. Raises UserError."""
    if type(label_smoothing) not in (int, float) or not 0 <= label_smoothing <= 1:
        raise UserError(f"recipe: label_smoothing must be a number from 0 to 1, not {label_smoothing!r}")
    if isinstance(dice, bool) or not isinstance(dice, (int, float)) or not 0 <= dice < math.inf:
        raise UserError(f"recipe: dice must be a number of at least 0, not {dice!r}")
    if type(temperature) not in (int, float) or not 0 < temperature < math.inf:
        raise UserError(f"recipe: temperature must be a number above 0, not {temperature!r}")


standard.check = _check  # type: ignore[attr-defined]  # of what a spec says, before anything is written


def soft_dice(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - the Dice coefficient of softmax and labels over the pixels of the batch, the mean of the classes in it."""
    valid = (labels != VOID)[:, None]
    known = labels.where(labels != VOID, 0)[:, None]
    p = logits.softmax(1) * valid
    own = torch.zeros_like(p).scatter_(1, known, 1.0) * valid
    true, both = own.sum((0, 2, 3)), (p * own).sum((0, 2, 3))
    here = true > 0
    return 1 - (2 * both[here] / (p.sum((0, 2, 3)) + true)[here]).mean()
