"""The standard recipe: cross-entropy on clean images."""

from __future__ import annotations

from collections.abc import Sequence

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
) -> Tensor:
    """Cross-entropy over the valid pixels of clean images, with optional class weights.

    class_weights: one a class, or in a spec `balanced` (median frequency, counted on the training images). 0 for a
    batch without a valid pixel, or with pixels of weight 0 alone. Raises UserError for another number of weights than
    classes.
    Source: the common recipe of FCN (Long et al. 2015) and its successors.
    """
    logits: Tensor = model(batch.images).float()
    weight = None if class_weights is None else logits.new_tensor(class_weights)
    if weight is not None and len(weight) != logits.shape[1]:
        raise UserError(f"recipe: {len(weight)} class_weights for {logits.shape[1]} classes")
    counted = batch.labels[batch.labels != VOID]
    if not len(counted) or (weight is not None and not weight[counted].any()):
        return logits.sum() * 0  # the mean over no pixel is nan
    return F.cross_entropy(logits, batch.labels, weight=weight, ignore_index=VOID, label_smoothing=label_smoothing)
