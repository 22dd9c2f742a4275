"""One shard of one cell: make the adversarial images (or take another cell's), judge them, write the part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segaudit import registry
from segaudit.audit import build
from segaudit.audit.parts import ModelSpec, Part
from segaudit.audit.plan import Job
from segaudit.audit.store import Store
from segaudit.data.base import Dataset
from segaudit.metrics import records
from segaudit.models.fast import Fast
from segaudit.nn.passes import count_passes
from segaudit.nn.precision import clock, default_device, exact_on_cuda, flush_denormals, resolve
from segaudit.rng import ImageStreams
from segaudit.types import VOID, Batch, Picture, Records, Segmenter, UserError

SLACK = 1e-6
"""How far float32 arithmetic may carry an image out of its ball or of [0, 1]."""


@dataclass(frozen=True)
class Task:
    """One shard of one cell, with all that a worker on any machine needs."""

    job: Job
    part: int
    ids: tuple[str, ...]
    shown: frozenset[str]
    data: Part
    store: str
    precision: str
    batch: int
    seed: int


@dataclass(frozen=True)
class Made:
    """Adversarial images of some images, with what they cost an image and the masks that were to be reached."""

    images: Tensor
    goal: Tensor | None = None
    forwards: float = 0.0
    backwards: float = 0.0
    seconds: float = 0.0


def work(task: Task) -> None:
    """Compute a task and write its part; the images first, so that finished records always have theirs."""
    flush_denormals()
    exact_on_cuda()
    job, store, device = task.job, Store(task.store), default_device()
    data = _dataset(task.data.model_dump_json())
    model = _model(job.model.model_dump_json(), job.defense.model_dump_json(), data.class_names)
    lent = {p.id: p.delta for p in store.read_pictures(job.source, task.part)} if job.source else {}
    rows, pictures = [], []
    for shard in _same_size(data, task.ids):
        goal = _goal(job, model, shard.to(device), data)
        for start in range(0, len(shard), task.batch):
            part = slice(start, start + task.batch)
            clean = shard[part].to(device)
            if job.source:
                delta = torch.from_numpy(np.stack([lent[name] for name in clean.ids]))
                made = Made(clean.images + delta.to(device), None if goal is None else goal[part])
            else:
                made = _craft(task, model, clean, None if goal is None else goal[part])
                delta = half(made.images - clean.images)
                made = Made(clean.images + delta, made.goal, made.forwards, made.backwards, made.seconds)
            found, predictions = _judge(job, model, clean, made)
            rows.append(found)
            pictures += [
                Picture(name, delta[i].cpu().numpy().astype(np.float16), predictions[i])
                for i, name in enumerate(clean.ids)
                if job.keep or (job.show and name in task.shown)
            ]
    if pictures:
        store.write_pictures(job.key, task.part, pictures)
    store.write_records(job.key, task.part, records.join(rows))


def half(delta: Tensor) -> Tensor:
    """The delta on the float16 grid, rounded towards zero so that it stays in its ball and box.

    Every image is judged on this grid: what is kept of it is then exactly what was judged.
    """
    rounded = delta.half().float()
    beyond = rounded.abs() > delta.abs()
    down = torch.from_numpy(np.nextafter(rounded.half().cpu().numpy(), np.float16(0))).to(delta.device)
    return torch.where(beyond, down.float(), rounded)


def _craft(task: Task, model: Segmenter, clean: Batch, goal: Tensor | None) -> Made:
    """The attack's images, checked: an attack is not believed to have stayed in its ball."""
    job = task.job
    if job.attack is None:
        return Made(clean.images)
    attack = registry.load("attack", job.attack.name)
    own: dict[str, Any] = dict(job.attack.args)
    if job.eps is not None:
        own["eps"] = job.eps
    if goal is not None:
        own["targeted"] = True
    if registry.accepts("attack", job.attack.name, "class_pixels"):
        own["class_pixels"] = _class_pixels(task.data.model_dump_json())
    view = _fast(model, resolve(task.precision, clean.images.device), clean.images[:1])
    rng = ImageStreams(task.seed, clean.ids, job.attack.name)
    labels = clean.labels if goal is None else goal
    began = clock(clean.images.device)
    with count_passes(view) as passes:
        images = attack(view, clean.images.contiguous(memory_format=torch.channels_last), labels, rng=rng, **own)
    seconds = clock(clean.images.device) - began
    if not isinstance(images, Tensor):
        raise UserError(f"attack {job.cell.attack!r} returned a {type(images).__name__}, not images")
    images = images.detach()
    _check(job, clean, images)
    n = len(clean)
    return Made(images, goal, passes.forwards / n, passes.backwards / n, seconds / n)


def _check(job: Job, clean: Batch, images: Tensor) -> None:
    name = f"attack {job.cell.attack!r}"
    if images.shape != clean.images.shape:
        raise UserError(f"{name} returned images {tuple(images.shape)} for {tuple(clean.images.shape)}")
    if not images.isfinite().all():
        raise UserError(f"{name} on model {job.cell.model!r} returned NaN; are the model's gradients finite?")
    if images.min() < -SLACK or images.max() > 1 + SLACK:
        raise UserError(f"{name} left the image range [0, 1]: {float(images.min()):g} to {float(images.max()):g}")
    if job.eps is not None and job.cell.norm in ("linf", "l2"):
        delta = (images - clean.images).flatten(1)
        size = float((delta.abs().amax(1) if job.cell.norm == "linf" else delta.norm(dim=1)).max())
        if size > job.eps * (1 + 1e-5) + SLACK:
            raise UserError(f"{name} left its {job.cell.norm} ball: {size:g} with eps {job.eps:g}")


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

    found, prediction = records.judge(
        logits_of, clean, made.images, goal=made.goal, cost=(made.forwards, made.backwards, made.seconds)
    )
    return found, [row.cpu().numpy().astype(np.uint8) for row in prediction]


def _goal(job: Job, model: Segmenter, shard: Batch, data: Dataset) -> Tensor | None:
    """The masks that a targeted attack is to reach, for a whole shard."""
    target = job.target
    if target is None:
        return None
    make = partial(registry.load("target", target.name), **target.args)

    def look_up(name: str) -> Tensor:
        try:
            return data.sample(name)[1]
        except KeyError:
            near = registry.suggest(str(name), data.ids)
            raise UserError(f"target {target.name!r}: there is no image with the id {name!r}{near}") from None

    goal: Tensor = make(model, shard.images, shard.labels, ids=shard.ids, look_up=look_up)
    return goal.where(shard.labels != VOID, VOID)  # void is neither attacked nor scored


def _same_size(data: Dataset, ids: Sequence[str]) -> Iterator[Batch]:
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


def forget() -> None:
    """Drop the data and models of an earlier run in this process: their files may have changed since."""
    _dataset.cache_clear()
    _class_pixels.cache_clear()
    _model.cache_clear()
    _views.clear()


@lru_cache(maxsize=2)
def _dataset(part: str) -> Dataset:
    return build.dataset(Part.model_validate_json(part))


@lru_cache(maxsize=2)
def _class_pixels(part: str) -> Tensor:
    data = _dataset(part)
    flat = torch.cat([data.sample(name)[1].flatten() for name in data.ids])
    return torch.bincount(flat[flat != VOID], minlength=len(data.class_names))


@lru_cache(maxsize=4)
def _model(spec: str, defense: str, class_names: tuple[str, ...]) -> Segmenter:
    model = build.model(ModelSpec.model_validate_json(spec), class_names)
    model = build.defended(model, Part.model_validate_json(defense))
    return model.to(default_device(), memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


_views: dict[tuple[int, str], tuple[Segmenter, Fast]] = {}


def _fast(model: Segmenter, precision: str, probe: Tensor) -> Fast:
    """The cheap copy of a model, made once."""
    key = (id(model), precision)
    if key not in _views or _views[key][0] is not model:
        if len(_views) >= 4:
            _views.clear()
        _views[key] = (model, Fast(model, precision, probe))
    return _views[key][1]
