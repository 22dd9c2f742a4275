"""A network that looks at where the loss is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from segaudit.privacy.attacks import _check as check
from segaudit.privacy.attacks._evidence import settled
from segaudit.privacy.attacks._network import tried
from segaudit.privacy.experiment import Experiment, Scored
from segaudit.privacy.signals import CLIP
from segaudit.types import VOID

NAME = "loss_map"


def loss_map(
    experiment: Experiment,
    *,
    rng: Generator,
    patch: int = 64,
    patches: int = 8,
    width: int = 16,
    epochs: int = 10,
    batch: int = 16,
    lr: float = 1e-2,
    side: int = 256,
) -> Scored:
    """Loss map: a network sees the loss of each pixel as an image, in random patches, and learns on the shadows' maps.

    patch: its side in pixels (cut to the smallest map). patches: how many of a candidate are judged, their log-odds
    added up. Void pixels have no loss, and a second channel says where they are. width, side, epochs, batch, lr: as
    those of Type I. The threshold is 0, which an image without a valid pixel scores.
    Raises UserError without shadows and for numbers out of range.
    Source: He et al. 2020 (Segmentations-Leak: structured loss map, patches of 90 pixels of larger images).
    """
    _checked(patch=patch, patches=patches, width=width, epochs=epochs, batch=batch, lr=lr, side=side)
    scores = tried(
        experiment,
        NAME,
        losses,
        rng,
        width=width,
        epochs=epochs,
        batch=batch,
        lr=lr,
        side=side,
        patch=patch,
        patches=patches,
    )
    blind = np.isnan(experiment.victim.signals(experiment.candidates)["loss"])
    return Scored(settled(np.where(blind, np.nan, scores), 0.0), 0.0)


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each pixel in shares of the largest one, 0 at void, and where it is known, 2 x H x W."""
    valid = labels != VOID
    loss = -logits.log_softmax(0).gather(0, labels.where(valid, 0)[None])[0]
    return torch.stack([(loss / CLIP).clamp(0, 1).where(valid, 0), valid.to(logits)])


def _checked(
    *,
    patch: Any = 64,
    patches: Any = 8,
    width: Any = 16,
    epochs: Any = 10,
    batch: Any = 16,
    lr: Any = 1e-2,
    side: Any = 256,
    **_: Any,
) -> None:
    check.whole(NAME, "patch", patch, 1)
    check.whole(NAME, "patches", patches, 1)
    check.learner(NAME, width=width, epochs=epochs, batch=batch, lr=lr, side=side)


loss_map.check = _checked  # type: ignore[attr-defined]  # of what a spec says, before anything is trained
