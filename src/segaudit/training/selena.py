"""The SELENA recipe: on what those networks say of an image that were not trained on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from segaudit.types import VOID, Batch, Segmenter, Streams, UserError


def selena(
    model: Segmenter,
    batch: Batch,
    *,
    rng: Streams,
    teachers: Sequence[Segmenter] = (),
    trained_on: Sequence[Sequence[str]] = (),
    temperature: float = 1.0,
) -> Tensor:
    """Cross-entropy with the mean softmax of those teachers that were not trained on the image.

    teachers: networks, which are not trained. trained_on: of each of them, the ids of what it was trained on.
    temperature: what the logits of both sides are divided by. 0 for a batch without a valid pixel. Raises UserError for
    an image that every teacher was trained on, and for other numbers.
    Source: Tang et al. 2022 (SELENA).
    """
    _check(teachers=teachers, trained_on=trained_on, temperature=temperature)
    soft = held_out_answers(batch, teachers, trained_on, temperature)
    logits: Tensor = model(batch.images).float() / temperature
    valid = batch.labels != VOID
    if not valid.any():
        return logits.sum() * 0  # the mean over no pixel is nan
    return -(soft * logits.log_softmax(1)).sum(1)[valid].mean()


@torch.no_grad()
def held_out_answers(
    batch: Batch, teachers: Sequence[Segmenter], trained_on: Sequence[Sequence[str]], temperature: float = 1.0
) -> Tensor:
    """The mean softmax N x K x H x W of the teachers that were not trained on each image.

    Raises UserError for an image that all of them were trained on.
    """
    total: Tensor | None = None
    counts = torch.zeros(len(batch), device=batch.images.device)
    for teacher, ids in zip(teachers, trained_on, strict=True):
        seen = set(ids)
        rows = [row for row, name in enumerate(batch.ids) if name not in seen]
        if not rows:
            continue
        found = (teacher.to(batch.images.device)(batch.images[rows]).float() / temperature).softmax(1)
        total = found.new_zeros(len(batch), *found.shape[1:]) if total is None else total
        total[rows] += found
        counts[rows] += 1
    if total is None or not bool(counts.all()):
        name = batch.ids[int(counts.argmin())]
        raise UserError(f"recipe selena: every teacher was trained on {name}; hold each image out of one at least")
    return total / counts.view(-1, 1, 1, 1)


def _check(*, teachers: Any = (), trained_on: Any = (), temperature: Any = 1.0, **_: Any) -> None:
    """Refuse what cannot be. Raises UserError."""
    if len(teachers) != len(trained_on):
        raise UserError(
            f"recipe selena: {len(teachers)} teachers, and trained_on of {len(trained_on)}; give one of each"
        )
    if type(temperature) not in (int, float) or not 0 < temperature < math.inf:
        raise UserError(f"recipe selena: temperature must be a number above 0, not {temperature!r}")


selena.check = _check  # type: ignore[attr-defined]  # of what a spec says, before anything is written
