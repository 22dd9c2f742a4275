"""The adversarial images of a cell: what its attack learns first, what it is handed, and whether it kept its word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segaudit import registry
from segaudit.audit import build
from segaudit.audit.batches import goal as masks
from segaudit.audit.batches import same_size
from segaudit.audit.cells import kept, watched
from segaudit.audit.cells.task import Task
from segaudit.audit.plan import Job, cut
from segaudit.audit.store import Store
from segaudit.data.base import Dataset
from segaudit.defenses.eot import draws_of
from segaudit.nn.passes import count_passes
from segaudit.nn.precision import clock, default_device, resolve
from segaudit.rng import ImageStreams, drawing
from segaudit.types import Batch, Segmenter, UserError

SLACK = 1e-6
"""How far float32 arithmetic may carry an image out of its ball or of [0, 1]."""


@dataclass(frozen=True)
class Made:
    """Adversarial images of some images, with what they cost an image and the masks that were to be reached."""

    images: Tensor
    goal: Tensor | None = None
    forwards: float = 0.0
    backwards: float = 0.0
    seconds: float = 0.0


def maker_of(task: Task, model: Segmenter, data: Dataset) -> Segmenter:
    """What a cell's images are made on, or the masks found that borrowed ones were led to; model: the cell's own."""
    job = task.job
    if job.lender is not None and job.target is not None:
        return kept.model(job.lender, data.class_names)
    return kept.together(job.together, data.class_names) if job.together else model


def fit(task: Task, model: Segmenter) -> None:
    """Fit an attack on images of its own, and write what it has learnt with its cost for each image of the run."""
    job, device = task.job, default_device()
    if job.attack is None or job.fit is None:
        raise ValueError(f"{job.cell} is not fitted")
    own, run = kept.dataset(job.fit), kept.dataset(task.data)
    batches, draws = [], ImageStreams(task.seed, ("fit",), job.attack.name)
    for batch in (batch.to(device) for ids in cut(own.ids) for batch in same_size(own, ids)):
        with drawing(draws):
            goal = masks(job.target, model, batch, run)
        batches.append(Batch(_channels_last(batch.images), batch.labels if goal is None else goal, batch.ids))
    view = kept.fast(model, resolve(task.precision, device), batches[0].images[:1])
    rng = ImageStreams(task.seed, [name for batch in batches for name in batch.ids], f"{job.attack.name}/fit")
    learn: Any = registry.load("attack", job.attack.name)
    began = clock(device)
    with count_passes(view) as passes, drawing(draws):
        fitted = learn.fit(view, batches, rng=rng, **_arguments(task, job.target is not None))
    seconds, n = clock(device) - began, len(task.ids)
    if not isinstance(fitted, Tensor) or not fitted.isfinite().all():
        name = f"attack {job.cell.attack!r} on model {job.cell.model!r}"
        raise UserError(f"{name} learnt NaN, or no tensor; are the model's gradients finite?")
    each = max(1, len(job.together)) * draws_of(model)  # a pass is one through each model and draw
    cost = (each * passes.forwards / n, each * passes.backwards / n, seconds / n)
    Store(task.store).write_fit(job.key, fitted.detach(), cost)


def craft(task: Task, model: Segmenter, clean: Batch, goal: Tensor | None) -> Made:
    """The attack's images, checked: an attack is not believed to have stayed in its ball."""
    job = task.job
    if job.attack is None:
        return Made(clean.images)
    attack = registry.load("attack", job.attack.name)
    own, fit_cost = _arguments(task, goal is not None), (0.0, 0.0, 0.0)
    if job.fit is not None:
        fitted, fit_cost = kept.learnt(task.store, job.key)
        own["fitted"] = fitted.to(clean.images.device)
    view = kept.fast(model, resolve(task.precision, clean.images.device), clean.images[:1], job.eot)
    rng = ImageStreams(task.seed, clean.ids, job.attack.name)
    labels = clean.labels if goal is None else goal
    began = clock(clean.images.device)
    with count_passes(view, clean.images.shape[2:]) as passes, drawing(rng.child("defense")):
        images = attack(view, _channels_last(clean.images), labels, rng=rng, **own)
    seconds = clock(clean.images.device) - began
    if not isinstance(images, Tensor):
        raise UserError(f"attack {job.cell.attack!r} returned a {type(images).__name__}, not images")
    images = images.detach()
    _check(job, clean, images)
    each = max(1, len(job.together)) * draws_of(model) * job.eot
    spent = (each * passes.forwards, each * passes.backwards, seconds)
    return Made(images, goal, *(used / len(clean) + share for used, share in zip(spent, fit_cost, strict=True)))


def _arguments(task: Task, targeted: bool) -> dict[str, Any]:
    """What an attack is handed beside model, images, labels and streams."""
    attack, eps = task.job.attack, task.job.eps
    own: dict[str, Any] = build.handed(attack.name, attack.args) if attack else {}
    own |= ({"eps": eps} if eps is not None else {}) | ({"targeted": True} if targeted else {})
    if attack and registry.accepts("attack", attack.name, "class_pixels"):
        own["class_pixels"] = kept.class_pixels(task.data)
    if task.job.watch is not None:
        own |= watched.handed(task.job.watch, Store(task.store))
    return own


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


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)
