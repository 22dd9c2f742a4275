"""The noise recipe: cross-entropy on images in Gaussian noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from segaudit.training.standard import standard
from segaudit.types import Batch, Segmenter, Streams, UserError


def noise(
    model: Segmenter,
    batch: Batch,
    *,
    rng: Streams,
    sigma: float,
    varied: bool = False,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    dice: float = 0.0,
) -> Tensor:
    """Cross-entropy on images in Gaussian noise of sigma: what randomised smoothing asks of the network it smooths.

    sigma: on images in [0, 1]. The noisy ones are not clipped, as those that certification draws are not either.
    varied: each image draws its own sigma, uniform up to this one. Raises UserError for a sigma that is not above 0.
    Source: Cohen et al. 2019 (fixed sigma); Fischer et al. 2021 (segmentation).
    """
    _check(sigma=sigma)
    draws = rng.child("noise").normal(batch.images)
    size = sigma * rng.child("sigma").uniform(batch.images[:, :1, :1, :1]) if varied else sigma
    noisy = Batch(batch.images + size * draws, batch.labels, batch.ids)
    return standard(model, noisy, rng=rng, class_weights=class_weights, label_smoothing=label_smoothing, dice=dice)


def _check(*, sigma: Any, **others: Any) -> None:
    """Refuse numbers that cannot be. Raises UserError."""
    if isinstance(sigma, bool) or not isinstance(sigma, (int, float)) or not 0 < sigma < math.inf:
        raise UserError(f"recipe noise: sigma must be a number above 0, not {sigma!r}; images are in [0, 1]")
    standard.check(**others)  # type: ignore[attr-defined]


noise.check = _check  # type: ignore[attr-defined]
