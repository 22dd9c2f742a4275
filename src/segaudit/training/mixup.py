"""The mixup recipe: cross-entropy on images that are mixed in pairs, or put together of two parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from scipy.special import betaincinv  # type: ignore[import-untyped]
from torch import Tensor

from segaudit.training.standard import cross_entropy, standard
from segaudit.types import Batch, Segmenter, Streams, UserError


def mixup(
    model: Segmenter,
    batch: Batch,
    *,
    rng: Streams,
    cut: bool = False,
    alpha: float = 2.0,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    dice: float = 0.0,
) -> Tensor:
    """Cross-entropy on l x + (1 - l) x' with l times the loss of its labels, and the rest that of those of x'.

    x': the next image of the batch. l: of Beta(alpha, alpha), one a batch. cut: in place of that the left l of x, with
    its labels, and the right of x', a vertical cut-mix. Raises UserError for other numbers, for a batch of one image,
    and where images with one label each are to be cut.
    Source: Zhang et al. 2018 (mix-up); Yun et al. 2019 (cut-mix).
    """
    _check(cut=cut, alpha=alpha, label_smoothing=label_smoothing, dice=dice)
    if len(batch) < 2:
        raise UserError("recipe mixup: a batch of one image has no other to mix it with; give a batch of 2 at least")
    drawn = float(rng.child("mixup").uniform(torch.empty(len(batch), 1))[0])
    share = float(betaincinv(alpha, alpha, drawn))
    own = {"class_weights": class_weights, "label_smoothing": label_smoothing, "dice": dice}
    return mixed_loss(model, batch, share, cut, **own)


def mixed_loss(model: Segmenter, batch: Batch, share: float, cut: bool, **own: Any) -> Tensor:
    """The loss of `mixup` with l = share; own: what `standard.cross_entropy` takes."""
    others, theirs = batch.images.roll(-1, 0), batch.labels.roll(-1, 0)
    if not cut:
        mixed = share * batch.images + (1 - share) * others
        logits: Tensor = model(mixed).float()
        return share * cross_entropy(logits, batch.labels, **own) + (1 - share) * cross_entropy(logits, theirs, **own)
    if batch.labels.shape[1:] != batch.images.shape[2:]:
        raise UserError("recipe mixup: an image with one label cannot be cut; leave `cut` out")
    left = torch.arange(batch.images.shape[3], device=batch.images.device) < round(share * batch.images.shape[3])
    images = torch.where(left, batch.images, others).contiguous(memory_format=torch.channels_last)
    return cross_entropy(model(images).float(), torch.where(left, batch.labels, theirs), **own)


def _check(*, cut: Any = False, alpha: Any = 2.0, **others: Any) -> None:
    """Refuse numbers that cannot be. Raises UserError."""
    if type(cut) is not bool:
        raise UserError(f"recipe mixup: cut must be true or false, not {cut!r}")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha < math.inf:
        raise UserError(f"recipe mixup: alpha must be a number above 0, not {alpha!r}")
    standard.check(**others)  # type: ignore[attr-defined]


mixup.check = _check  # type: ignore[attr-defined]  # of what a spec says, before anything is written
