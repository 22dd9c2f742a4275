"""What a detector makes of the images of a cell: fitted on clean ones first, where it is, and handed to what evades."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segaudit import registry
from segaudit.attacks.evading import Score
from segaudit.audit import build
from segaudit.audit.batches import same_size
from segaudit.audit.detection import Watch
from segaudit.audit.parts import Part, Tuned
from segaudit.audit.plan import cut
from segaudit.audit.store import Store
from segaudit.data.base import Dataset
from segaudit.defenses.detectors import reference
from segaudit.nn.precision import default_device
from segaudit.rng import ImageStreams, drawing, is_random
from segaudit.types import Batch, Floats, Segmenter, UserError


def scorer(watch: Watch, store: Store) -> Score:
    """The scores of a detector, fitted where it is."""
    numbers = numbers_of(watch.detector)
    if not watch.reference:
        return numbers
    known = store.read_fit(watch.reference)[0].to(default_device())
    return lambda model, images: reference.distance(numbers(model, images), known)


def handed(watch: Watch, store: Store) -> dict[str, Any]:
    """What the attack that evades a detector is handed of it: its scores, and the one that is not noticed."""
    allowed = {"threshold": float(store.read_fit(watch.allowed)[0])} if watch.allowed else {}
    return {"detector": scorer(watch, store)} | allowed


def learn(watch: Watch, model: Segmenter, data: Dataset, store: Store, size: int, seed: int) -> None:
    """Fit a detector on clean images, where it is, and then find what it must allow those of the run; keep both.

    data: of the run. size: images at once, of a model that is not random.
    """
    if watch.fit is not None and not store.has_fit(watch.reference):
        _fit(watch, model, watch.fit, store, size, seed)
    if watch.allowed:
        shards = (shard for ids in cut(data.ids) for shard in same_size(data, ids))
        scores = score(watch, model, shards, {}, store, size, seed)[1]
        store.write_fit(watch.allowed, reference.allowed(torch.from_numpy(scores)), (0.0, 0.0, 0.0))


@torch.no_grad()
def score(
    watch: Watch,
    model: Segmenter,
    shards: Iterable[Batch],
    deltas: Mapping[str, Any],
    store: Store,
    size: int,
    seed: int,
) -> tuple[tuple[str, ...], Floats]:
    """The ids of the images of shards and a detector's scores of them; size: images at once, unless it is random.

    deltas: by id, what an attack has added to the image; nothing where they are clean.
    """
    found, ids, detector = list[Tensor](), list[str](), scorer(watch, store)
    for shard in shards:
        for batch in _parts(model, shard, size):
            images = batch.images
            if deltas:
                images = images + torch.from_numpy(np.stack([deltas[name] for name in batch.ids])).to(images)
            scores = drawn(detector, model, images, batch.ids, seed).double().cpu()
            for name, value in zip(batch.ids, scores.tolist(), strict=True):
                if not math.isfinite(value):
                    raise UserError(f"detector {watch.detector.label()!r} scores {name} {value}; let it be a number")
            found.append(scores)
            ids += batch.ids
    return tuple(ids), torch.cat(found).numpy()


def numbers_of(detector: Tuned) -> Score:
    """What a detector says of images, N or N x F."""
    function, own = registry.load("detector", detector.name), build.handed(detector.name, detector.args)
    for part in own.values():
        if isinstance(part, nn.Module):
            part.to(default_device())

    def numbers(model: Segmenter, images: Tensor) -> Tensor:
        made: Tensor = function(model, images, **own)
        return made

    return numbers


def drawn(numbers: Score, model: Segmenter, images: Tensor, ids: Sequence[str], seed: int) -> Tensor:
    """The numbers of some images; what a detector draws comes from the start of each image's stream."""
    with drawing(ImageStreams(seed, ids, "detection")):
        return numbers(model, images)


@torch.no_grad()
def _fit(watch: Watch, model: Segmenter, fit: Part, store: Store, size: int, seed: int) -> None:
    data, numbers = build.dataset(fit), numbers_of(watch.detector)
    features = [
        drawn(numbers, model, batch.images, batch.ids, seed)
        for ids in cut(data.ids)
        for shard in same_size(data, ids)
        for batch in _parts(model, shard, size)
    ]
    try:
        known = reference.learnt(torch.cat(features))
    except UserError as error:
        raise UserError(f"detector {watch.detector.label()!r}: {error}") from error
    store.write_fit(watch.reference, known, (0.0, 0.0, 0.0))


def _parts(model: Segmenter, shard: Batch, size: int) -> Iterator[Batch]:
    """A shard in batches; a detector may make copies, and with one image it is certain whose draw it is."""
    size = 1 if is_random(model) else size
    return (shard[start : start + size].to(default_device()) for start in range(0, len(shard), size))
