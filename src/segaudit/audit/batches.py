"""The images of a shard as batches, and the masks that a targeted attack is to reach on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from segaudit import registry
from segaudit.audit.parts import Part
from segaudit.data.base import Dataset
from segaudit.types import VOID, Batch, Segmenter, UserError


def same_size(data: Dataset, ids: Sequence[str]) -> Iterator[Batch]:
    """The images of a shard, as one batch for each image size among them."""
    samples = [data.sample(name) for name in ids]
    shapes = [(tuple(image.shape), tuple(labels.shape)) for image, labels in samples]
    for shape in dict.fromkeys(shapes):
        rows = [i for i, own in enumerate(shapes) if own == shape]
        yield Batch(
            torch.stack([samples[i][0] for i in rows]),
            torch.stack([samples[i][1] for i in rows]),
            tuple(ids[i] for i in rows),
        )


def outside(clean: Batch, images: Tensor) -> Batch:
    """The clean images with void labels wherever an attack has changed them; a classifier's label stays."""
    if clean.labels.shape[1:] != clean.images.shape[2:]:
        return clean
    return Batch(clean.images, clean.labels.where((images == clean.images).all(1), VOID), clean.ids)


def goal(target: Part | None, model: Segmenter, shard: Batch, data: Dataset) -> Tensor | None:
    """The masks that a targeted attack is to reach, for a whole shard; data: where an id is looked up."""
    if target is None:
        return None
    make = partial(registry.load("target", target.name), **target.args)

    def look_up(name: str) -> Tensor:
        try:
            return data.sample(name)[1]
        except KeyError:
            near = registry.suggest(str(name), data.ids)
            raise UserError(f"target {target.name!r}: there is no image with the id {name!r}{near}") from None

    made: Tensor = make(model, shard.images, shard.labels, ids=shard.ids, look_up=look_up)
    return made.where(shard.labels != VOID, VOID)  # void is neither attacked nor scored
