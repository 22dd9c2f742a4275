"""A network that looks at the softmax of another."""

from __future__ import annotations

from typing import Any

from torch import Generator, Tensor

from segaudit.privacy.attacks import _check as check
from segaudit.privacy.attacks._network import tried
from segaudit.privacy.experiment import Experiment, Scored

NAME = "type1"


def type1(
    experiment: Experiment,
    *,
    rng: Generator,
    width: int = 16,
    epochs: int = 10,
    batch: int = 16,
    lr: float = 1e-2,
    side: int = 128,
) -> Scored:
    """Type I: a network learns on the shadows' softmax maps who was trained on; it sees the output alone.

    width: its features of a pixel, and of its neighbours. side: maps that are larger are averaged down to so many rows
    and columns. epochs, batch, lr: of its training. The score is its log-odds of a member, the threshold 0. What it
    says of an image without a valid pixel is as good as of any: it needs no mask.
    Raises UserError without shadows and for numbers out of range.
    Source: Chobola et al. 2022 (Type-I attack); Shokri et al. 2017 (shadows).
    """
    _checked(width=width, epochs=epochs, batch=batch, lr=lr, side=side)
    scores = tried(experiment, NAME, softmax, rng, width=width, epochs=epochs, batch=batch, lr=lr, side=side)
    return Scored(scores, 0.0)


def softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """The softmax K x H x W."""
    return logits.softmax(0)


def _checked(*, width: Any = 16, epochs: Any = 10, batch: Any = 16, lr: Any = 1e-2, side: Any = 128, **_: Any) -> None:
    check.learner(NAME, width=width, epochs=epochs, batch=batch, lr=lr, side=side)


type1.check = _checked  # type: ignore[attr-defined]  # of what a spec says, before anything is trained
