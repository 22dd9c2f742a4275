"""A cell of images, attacked or clean: made here or borrowed from another cell, judged, and written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segaudit.audit.batches import goal as masks
from segaudit.audit.batches import outside, same_size
from segaudit.audit.cells import kept
from segaudit.audit.cells.crafting import Made, craft
from segaudit.audit.cells.task import Task
from segaudit.audit.plan import Job
from segaudit.audit.store import Store
from segaudit.data.base import Dataset
from segaudit.defenses._filter import purified
from segaudit.metrics import records
from segaudit.nn.precision import clock, default_device
from segaudit.rng import ImageStreams, drawing, is_random
from segaudit.types import Batch, Picture, Records, Segmenter, UserError


def attacked(task: Task, model: Segmenter, maker: Segmenter, data: Dataset) -> None:
    """Make or borrow the images of a shard, judge them, and write what is kept of them and then their records.

    In that order, so that finished records always have theirs. maker: what the images are made on.
    """
    job, device, store = task.job, default_device(), Store(task.store)
    added = lent(task)
    rows, pictures = [], []
    # An attack may leave images out on its way, and a defense make copies: with one image, whose draw it is is certain.
    size = 1 if is_random(maker) or is_random(model) else task.batch
    for shard in same_size(data, task.ids):
        with drawing(ImageStreams(task.seed, shard.ids[:1], "target")):
            goal = masks(job.target, maker, shard.to(device), data)
        for start in range(0, len(shard), size):
            part = slice(start, start + size)
            clean = shard[part].to(device)
            if job.source:
                delta = torch.from_numpy(np.stack([added[name] for name in clean.ids]))
                made = Made(clean.images + delta.to(device), None if goal is None else goal[part])
            else:
                made = craft(task, maker, clean, None if goal is None else goal[part])
                delta = half(made.images - clean.images)
                made = Made(clean.images + delta, made.goal, made.forwards, made.backwards, made.seconds)
            with drawing(ImageStreams(task.seed, clean.ids, "score")):
                found, predictions = _judge(job, model, outside(clean, made.images) if job.outside else clean, made)
            rows.append(found)
            seen = _purified(task, model, clean.ids, made.images, data.class_names)
            pictures += [
                Picture(name, delta[i].cpu().numpy().astype(np.float16), predictions[i], *seen.get(name, ()))
                for i, name in enumerate(clean.ids)
                if job.keep or (job.show and name in task.shown)
            ]
    if pictures:
        store.write_pictures(job.key, task.part, pictures)
    store.write_records(job.key, task.part, records.join(rows))


def lent(task: Task) -> dict[str, NDArray[np.float16]]:
    """By id, what was added to the images of a shard in the cell that it borrows from; nothing without one."""
    source = task.job.source
    return {p.id: p.delta for p in Store(task.store).read_pictures(source, task.part)} if source else {}


def half(delta: Tensor) -> Tensor:
    """The delta on the float16 grid, rounded towards zero so that it stays in its ball and box.

    Every image is judged on this grid: what is kept of it is then exactly what was judged.
    """
    rounded = delta.half().float()
    beyond = rounded.abs() > delta.abs()
    down = torch.from_numpy(np.nextafter(rounded.half().cpu().numpy(), np.float16(0))).to(delta.device)
    return torch.where(beyond, down.float(), rounded)


@torch.no_grad()
def _judge(job: Job, model: Segmenter, clean: Batch, made: Made) -> tuple[Records, list[NDArray[np.uint8]]]:
    """Score the images in fp32, as they are and rounded to 8 bits."""

    def logits_of(images: Tensor) -> Tensor:
        logits: Tensor = model(images)
        wrong = ~logits.isfinite().flatten(1).all(1)
        if wrong.any():
            raise UserError(
                f"model {job.cell.model!r} gives NaN or infinite logits on {clean.ids[int(wrong.nonzero()[0])]}"
            )
        wanted = (model.num_classes, *clean.labels.shape[1:])
        if logits.shape[1:] != wanted:
            raise UserError(f"model {job.cell.model!r} gives logits of {tuple(logits.shape[1:])}, not {wanted}")
        return logits

    cost, draws = (made.forwards, made.backwards, made.seconds), job.draws if is_random(model) else 1
    found, prediction = records.judge(logits_of, clean, made.images, goal=made.goal, cost=cost, draws=draws)
    if job.attack is None and job.source is None:
        found = replace(found, scoring=_timed(model, clean.images))
    return found, [row.cpu().numpy().astype(np.uint8) for row in prediction]


def _timed(model: Segmenter, images: Tensor) -> NDArray[np.float64]:
    """The seconds that the first image takes by itself, as a random model takes them all; nan for the others."""
    began = clock(images.device)
    model(images[:1])
    return np.array([clock(images.device) - began] + [np.nan] * (len(images) - 1))


@torch.no_grad()
def _purified(
    task: Task, model: Segmenter, ids: Sequence[str], images: Tensor, class_names: tuple[str, ...]
) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Of the shown images, what a defense that purifies makes of each, and the bare model's classes on it as it is."""
    rows = [i for i, name in enumerate(ids) if task.job.show and name in task.shown]
    names = [ids[i] for i in rows]
    with drawing(ImageStreams(task.seed, names, "score")):  # what was drawn when it was scored
        seen = purified(model, images[rows]) if rows else None
    if seen is None:
        return {}
    pixels = (seen.clamp(0, 1) * 255).round().byte().movedim(1, 3).contiguous().cpu().numpy()
    with drawing(ImageStreams(task.seed, names, "score")):  # a bare model may draw too
        said = kept.model(task.job.model, class_names)(images[rows]).argmax(1).byte().cpu().numpy()
    return dict(zip(names, zip(pixels, said, strict=True), strict=True))
