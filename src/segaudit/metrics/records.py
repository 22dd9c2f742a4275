"""From a model and its adversarial images to the rows that everything else is made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from segaudit.metrics.confusion import count
from segaudit.metrics.perturbation import norms, to_8bit
from segaudit.types import VOID, Batch, Counts, Ints, Norms, Records


def judge(
    logits_of: Callable[[Tensor], Tensor],
    clean: Batch,
    adversarial: Tensor,
    *,
    goal: Tensor | None = None,
    cost: tuple[float, float, float] = (0.0, 0.0, 0.0),
    draws: int = 1,
) -> tuple[Records, Tensor]:
    """The records of adversarial images N x C x H x W and the predictions N x H x W on them.

    goal: the masks N x H x W that were to be reached. cost: forwards, backwards and seconds an image.
    draws: how often a random model is asked; only the counts of the images as they are are kept of all.
    """
    logits = logits_of(adversarial)
    classes, labels, n = logits.shape[1], clean.labels, len(clean)
    prediction = logits.argmax(1)
    rounded = to_8bit(adversarial)
    valid = (labels != VOID).flatten(1)
    losses = F.cross_entropy(logits.float(), labels, ignore_index=VOID, reduction="none").flatten(1)
    forwards, backwards, seconds = cost
    made = Records(
        ids=clean.ids,
        counts=count(prediction, labels, classes),
        rounded=count(logits_of(rounded).argmax(1), labels, classes),
        norms=norms(adversarial, clean.images),
        norms_rounded=norms(rounded, to_8bit(clean.images)),
        goal=None if goal is None else count(prediction, goal.where(labels != VOID, VOID), classes),
        places=np.full(n, labels[0].numel() if labels.shape[1:] != (1, 1) else clean.images[0, 0].numel()),
        loss=(losses.sum(1).double() / valid.sum(1)).cpu().numpy(),
        forwards=np.full(n, forwards),
        backwards=np.full(n, backwards),
        seconds=np.full(n, seconds),
    )
    if draws > 1:
        more = [count(logits_of(adversarial).argmax(1), labels, classes) for _ in range(draws - 1)]
        each = [[getattr(own, field.name) for own in (made.counts, *more)] for field in fields(Counts)]
        made = replace(made, redrawn=Counts(*(np.stack(own, 1) for own in each)))
    return made, prediction


def each_draw(records: Records) -> list[Counts]:
    """The counts N x K of each draw of a random model; of any other, or one that is scored once, its only ones."""
    drawn = records.redrawn
    if drawn is None:
        return [records.counts]
    rows = [getattr(drawn, field.name) for field in fields(Counts)]
    return [Counts(*(own[:, i] for own in rows)) for i in range(drawn.target.shape[1])]


def pick(options: Sequence[Records], choice: Ints) -> Records:
    """The records whose row i is row i of `options[choice[i]]`; all options are of the same images.

    Its cost is that of all options together: they had to be computed before one could be chosen.
    """
    rows = np.arange(len(choice))

    def chosen(values: Sequence[Any]) -> Any:
        if isinstance(values[0], (Counts, Norms)):
            return type(values[0])(*(chosen([getattr(v, f.name) for v in values]) for f in fields(values[0])))
        return None if any(value is None for value in values) else np.stack(values)[choice, rows]

    cost = {name: np.sum([getattr(o, name) for o in options], 0) for name in ("forwards", "backwards", "seconds")}
    names = [field.name for field in fields(Records) if field.name not in ("ids", "choice", *cost)]
    picked = {name: chosen([getattr(option, name) for option in options]) for name in names}
    return Records(ids=options[0].ids, choice=choice, **picked, **cost)


def only(records: Records, ids: Sequence[str]) -> Records:
    """The rows of these images, in their order; an image that has none is left out."""
    places = {name: row for row, name in enumerate(records.ids)}
    kept = [name for name in ids if name in places]
    rows = np.array([places[name] for name in kept], dtype=np.int64)

    def chosen(value: Any) -> Any:
        if isinstance(value, (Counts, Norms)):
            return type(value)(*(getattr(value, field.name)[rows] for field in fields(value)))
        return None if value is None else value[rows]

    rest = {field.name: chosen(getattr(records, field.name)) for field in fields(Records) if field.name != "ids"}
    return Records(ids=tuple(kept), **rest)


def join(parts: Sequence[Records]) -> Records:
    """The records of several batches as one."""
    first = parts[0]
    joined: dict[str, Any] = {"ids": tuple(name for part in parts for name in part.ids)}
    for field in fields(Records):
        values = [getattr(part, field.name) for part in parts]
        if isinstance(values[0], (Counts, Norms)):
            kind = type(values[0])
            joined[field.name] = kind(*(np.concatenate([getattr(v, f.name) for v in values]) for f in fields(kind)))
        elif field.name != "ids":
            joined[field.name] = None if values[0] is None else np.concatenate(values)
    return type(first)(**joined)
