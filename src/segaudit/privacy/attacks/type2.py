"""A network that looks at the softmax of another beside the true mask."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from segaudit.privacy.attacks import _check as check
from segaudit.privacy.attacks._network import tried
from segaudit.privacy.attacks.loss_map import losses
from segaudit.privacy.experiment import Experiment, Scored
from segaudit.types import VOID

NAME = "type2"


def type2(
    experiment: Experiment,
    *,
    rng: Generator,
    width: int = 16,
    epochs: int = 10,
    batch: int = 16,
    lr: float = 1e-2,
    side: int = 128,
) -> Scored:
    """Type II: as Type I, and the network sees the true mask beside the softmax, a channel a class.

    A third map is the loss of each pixel, which small networks are slow to find in the two. A void pixel is in no
    channel of the mask, and has no loss. width, side, epochs, batch, lr, score, threshold: as those of Type I. Of
    an image without a valid pixel it goes by the softmax alone.
    Raises UserError without shadows and for numbers out of range.
    Source: Chobola et al. 2022 (Type-II attack); Shokri et al. 2017 (shadows).
    """
    _checked(width=width, epochs=epochs, batch=batch, lr=lr, side=side)
    scores = tried(experiment, NAME, beside, rng, width=width, epochs=epochs, batch=batch, lr=lr, side=side)
    return Scored(scores, 0.0)


def beside(logits: Tensor, labels: Tensor) -> Tensor:
    """The softmax, the one-hot mask and the loss in shares of the largest one, (2K + 1) x H x W."""
    valid = labels != VOID
    mask = F.one_hot(labels.where(valid, 0), len(logits)).movedim(2, 0) * valid
    return torch.cat([logits.softmax(0), mask.to(logits), losses(logits, labels)[:1]])


def _checked(*, width: Any = 16, epochs: Any = 10, batch: Any = 16, lr: Any = 1e-2, side: Any = 128, **_: Any) -> None:
    check.learner(NAME, width=width, epochs=epochs, batch=batch, lr=lr, side=side)


type2.check = _checked  # type: ignore[attr-defined]  # of what a spec says, before anything is trained
