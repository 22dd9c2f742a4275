"""One shard of one cell: make the adversarial images (or take another cell's), judge them, write the part."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segaudit import registry
from segaudit.audit import build, detect, votes
from segaudit.audit.batches import goal as masks
from segaudit.audit.batches import outside, same_size
from segaudit.audit.parts import ModelSpec, Part
from segaudit.audit.plan import Job, cut
from segaudit.audit.store import Store
from segaudit.data.base import Dataset
from segaudit.defenses.eot import EOT, draws_of
from segaudit.metrics import records
from segaudit.models.ensemble import Ensemble
from segaudit.models.fast import Fast
from segaudit.nn.passes import count_passes
from segaudit.nn.precision import clock, default_device, exact_on_cuda, prepare_process, resolve
from segaudit.rng import ImageStreams, drawing, is_random
from segaudit.types import VOID, Batch, Picture, Records, Segmenter, UserError

SLACK = 1e-6
"""How far float32 arithmetic may carry an image out of its ball or of [0, 1]."""


@dataclass(frozen=True)
class Task:
    """One shard of one cell, with all that a worker on any machine needs.

    fitting: instead, fit the cell's attack; ids are then all images of the run.
    """

    job: Job
    part: int
    ids: tuple[str, ...]
    shown: frozenset[str]
    data: Part
    store: str
    precision: str
    batch: int
    seed: int
    fitting: bool = False

    @property
    def stage(self) -> int:
        """When its turn is: what is fitted (0), the cells that make their images (1), those that borrow them (2)."""
        return 0 if self.fitting else 1 if self.job.source is None else 2


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
    prepare_process()
    exact_on_cuda()
    job, store, device = task.job, Store(task.store), default_device()
    data = _dataset(task.data.model_dump_json())
    model = _model(job.model.model_dump_json(), job.defense.model_dump_json(), data.class_names)
    if job.smoothed is not None:
        shards = (shard.to(device) for shard in same_size(data, task.ids))
        store.write_votes(job.key, task.part, votes.draw(job.smoothed, model, shards, task.batch, task.seed))
        return
    if job.watch is not None and task.fitting:
        detect.learn(job.watch, model, data, store, task.batch, task.seed)
        return
    if job.watch is not None and job.attack is None:
        deltas = {p.id: p.delta for p in store.read_pictures(job.source, task.part)} if job.source else {}
        own = same_size(data, task.ids)
        scores = detect.score(job.watch, model, own, deltas, store, task.batch, task.seed)
        store.write_scores(job.key, task.part, *scores)
        return
    others = tuple(other.model_dump_json() for other in job.together)
    maker = _together(others, data.class_names) if others else model
    if job.lender is not None and job.target is not None:  # the masks that its images were led to
        maker = _model(job.lender.model_dump_json(), Part(name="none").model_dump_json(), data.class_names)
    if task.fitting:
        _fit(task, maker)
        return
    lent = {p.id: p.delta for p in store.read_pictures(job.source, task.part)} if job.source else {}
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
                delta = torch.from_numpy(np.stack([lent[name] for name in clean.ids]))
                made = Made(clean.images + delta.to(device), None if goal is None else goal[part])
            else:
                made = _craft(task, maker, clean, None if goal is None else goal[part])
                delta = half(made.images - clean.images)
                made = Made(clean.images + delta, made.goal, made.forwards, made.backwards, made.seconds)
            with drawing(ImageStreams(task.seed, clean.ids, "score")):
                found, predictions = _judge(job, model, outside(clean, made.images) if job.outside else clean, made)
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


def _fit(task: Task, model: Segmenter) -> None:
    """Fit an attack on images of its own, and write what it has learnt with its cost for each image of the run."""
    job, device = task.job, default_device()
    if job.attack is None or job.fit is None:
        raise ValueError(f"{job.cell} is not fitted")
    own, run = _dataset(job.fit.model_dump_json()), _dataset(task.data.model_dump_json())
    batches, draws = [], ImageStreams(task.seed, ("fit",), job.attack.name)
    for batch in (batch.to(device) for ids in cut(own.ids) for batch in same_size(own, ids)):
        with drawing(draws):
            goal = masks(job.target, model, batch, run)
        images = batch.images.contiguous(memory_format=torch.channels_last)
        batches.append(Batch(images, batch.labels if goal is None else goal, batch.ids))
    view = _fast(model, resolve(task.precision, device), batches[0].images[:1])
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


def _arguments(task: Task, targeted: bool) -> dict[str, Any]:
    """What an attack is handed beside model, images, labels and streams."""
    attack, eps = task.job.attack, task.job.eps
    own: dict[str, Any] = dict(attack.args) if attack else {}
    own |= ({"eps": eps} if eps is not None else {}) | ({"targeted": True} if targeted else {})
    if attack and registry.accepts("attack", attack.name, "class_pixels"):
        own["class_pixels"] = _class_pixels(task.data.model_dump_json())
    if task.job.watch is not None:
        own |= detect.handed(task.job.watch, Store(task.store))
    return own


def _craft(task: Task, model: Segmenter, clean: Batch, goal: Tensor | None) -> Made:
    """The attack's images, checked: an attack is not believed to have stayed in its ball."""
    job = task.job
    if job.attack is None:
        return Made(clean.images)
    attack = registry.load("attack", job.attack.name)
    own, fit_cost = _arguments(task, goal is not None), (0.0, 0.0, 0.0)
    if job.fit is not None:
        fitted, fit_cost = _learnt(task.store, job.key)
        own["fitted"] = fitted.to(clean.images.device)
    view = _fast(model, resolve(task.precision, clean.images.device), clean.images[:1], job.eot)
    rng = ImageStreams(task.seed, clean.ids, job.attack.name)
    labels = clean.labels if goal is None else goal
    began = clock(clean.images.device)
    with count_passes(view) as passes, drawing(rng.child("defense")):
        images = attack(view, clean.images.contiguous(memory_format=torch.channels_last), labels, rng=rng, **own)
    seconds = clock(clean.images.device) - began
    if not isinstance(images, Tensor):
        raise UserError(f"attack {job.cell.attack!r} returned a {type(images).__name__}, not images")
    images = images.detach()
    _check(job, clean, images)
    each = max(1, len(job.together)) * draws_of(model) * job.eot
    spent = (each * passes.forwards, each * passes.backwards, seconds)
    return Made(images, goal, *(used / len(clean) + share for used, share in zip(spent, fit_cost, strict=True)))


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

    cost, draws = (made.forwards, made.backwards, made.seconds), job.draws if is_random(model) else 1
    found, prediction = records.judge(logits_of, clean, made.images, goal=made.goal, cost=cost, draws=draws)
    return found, [row.cpu().numpy().astype(np.uint8) for row in prediction]


def forget() -> None:
    """Drop the data and models of an earlier run in this process: their files may have changed since."""
    _dataset.cache_clear()
    _class_pixels.cache_clear()
    _learnt.cache_clear()
    _model.cache_clear()
    _together.cache_clear()
    _views.clear()


@lru_cache(maxsize=4)
def _dataset(part: str) -> Dataset:
    return build.dataset(Part.model_validate_json(part))


@lru_cache(maxsize=2)
def _class_pixels(part: str) -> Tensor:
    data = _dataset(part)
    flat = torch.cat([data.sample(name)[1].flatten() for name in data.ids])
    return torch.bincount(flat[flat != VOID], minlength=len(data.class_names))


@lru_cache(maxsize=4)
def _learnt(store: str, key: str) -> tuple[Tensor, tuple[float, float, float]]:
    return Store(store).read_fit(key)


@lru_cache(maxsize=4)
def _model(spec: str, defense: str, class_names: tuple[str, ...]) -> Segmenter:
    model = build.model(ModelSpec.model_validate_json(spec), class_names)
    model = build.defended(model, Part.model_validate_json(defense))
    return model.to(default_device(), memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


@lru_cache(maxsize=2)
def _together(specs: tuple[str, ...], class_names: tuple[str, ...]) -> Segmenter:
    none = Part(name="none").model_dump_json()
    return Ensemble([_model(spec, none, class_names) for spec in specs])


_views: dict[tuple[int, str, int], tuple[Segmenter, Fast]] = {}


def _fast(model: Segmenter, precision: str, probe: Tensor, times: int = 1) -> Fast:
    """The cheap copy of a model, made once; of a random one its expectation over `times` the draws that it asks for."""
    key = (id(model), precision, times)
    if key not in _views or _views[key][0] is not model:
        if len(_views) >= 4:
            _views.clear()
        draws = draws_of(model) * times
        _views[key] = (model, Fast(EOT(model, draws) if draws > 1 else model, precision, probe))
    return _views[key][1]
