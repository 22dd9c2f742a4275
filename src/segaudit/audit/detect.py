"""Detectors of attacked images in a run: the cells that evade them, and the scores of all, as the parts of a plan."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from segaudit import registry
from segaudit.attacks.evading import Score
from segaudit.audit import build
from segaudit.audit import plan as planning
from segaudit.audit.batches import same_size
from segaudit.audit.detection import ATTACK, Watch, fitted
from segaudit.audit.fit import DETECTION
from segaudit.audit.keys import Contents, data_content, key_of, part_content, shortened
from segaudit.audit.parts import ModelSpec, Part, Tuned
from segaudit.audit.plan import Job, Plan, cut
from segaudit.audit.resizing import NONE
from segaudit.audit.spec import AttackSpec, RunSpec, Transfer
from segaudit.audit.store import Store
from segaudit.data.base import Dataset
from segaudit.defenses.detectors import reference
from segaudit.metrics.records import only
from segaudit.nn.precision import default_device
from segaudit.rng import ImageStreams, drawing, is_random
from segaudit.types import EVADING, Batch, Cell, Floats, Segmenter, UserError, Watched

if TYPE_CHECKING:
    from segaudit.audit.work import Task

VERSION = 2
"""Raised by hand when the code scores, fits or evades otherwise for the same spec."""


def plan(planned: Plan, spec: RunSpec, data: Dataset, contents: Contents) -> Plan:
    """For each model and detector of a `detection` block the cells that evade it, and the scores of all cells.

    What is scored is the clean images, those of each attacked cell of the run without a defense, and of the cells
    that evade the detector; of these there are none where model or detector has no gradient. Nothing without a block.
    Raises UserError, before any image is attacked, for a detector that does not score a model's images.
    """
    asked, jobs = spec.detection, list[Job]()
    if asked is None:
        return Plan((), (), ())
    fit = asked.fit_data(spec.data)
    chosen = [attack for attack in spec.attacks if asked.attacks is None or attack.label() in asked.attacks]
    labels = {own.label() for attack in chosen for own in (attack, *planning.members(attack))} | {"none"}
    bare = [job for job in planned.jobs if job.defense == NONE and not job.members and job.cell.attack in labels]
    for model in spec.models:
        net = build.model(model, data.class_names).to(default_device())
        for detector in asked.detectors:
            sloped = _check(net, detector, data) and model.title() not in contents.opaque
            content: dict[str, Any] = {"detection": VERSION, "detector": part_content("detector", detector)}
            watch = Watch(detector)
            if fit is not None and fitted(detector):
                own = content | {"fit": data_content(fit) | {"content": contents.fits.get(DETECTION)}}
                watch = Watch(detector, fit, key_of(spec, (), contents, model, NONE, own))
            content["reference"] = watch.reference
            if sloped and not {"threshold", "weight"} & set(asked.evading):
                own = content | {"false positives": reference.FPR}
                watch = replace(watch, allowed=key_of(spec, data.ids, contents, model, NONE, own))
            evading = list(_evading(spec, data.ids, contents, model, watch, content)) if sloped else []
            for job in (*(job for job in bare if job.model == model), *evading):
                made = None if job.cell.attack == "none" else job.source or job.key
                scored = replace(
                    job,
                    key=key_of(spec, data.ids, contents, model, NONE, content | {"cell": made}),
                    attack=None,
                    source=made,
                    keep=False,
                    show=False,
                    fit=None,
                    target=None,
                    lender=None,
                    together=(),
                    watch=replace(watch, of=job.key),
                )
                jobs += [job, scored] if job.watch else [scored]
    return Plan(tuple(jobs), cut(data.ids), ())


def references(planned: Plan) -> set[str]:
    """The keys of what is learnt of detectors before their turn comes."""
    return {job.watch.learnt for job in planned.jobs if job.watch and job.watch.learnt}


def fits(tasks: Sequence[Task], store: Store) -> list[Task]:
    """The tasks that learn what these tasks need of detectors and the store lacks."""
    needed = {task.job.watch.learnt: (task, task.job.watch) for task in tasks if task.job.watch}
    return [
        replace(task, part=0, ids=(), fitting=True)
        for task, watch in needed.values()
        if not all(store.has_fit(key) for key in (watch.reference, watch.allowed) if key)
    ]


def scorer(watch: Watch, store: Store) -> Score:
    """The scores of a detector, fitted where it is."""
    numbers = _numbers(watch.detector)
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
def _fit(watch: Watch, model: Segmenter, fit: Part, store: Store, size: int, seed: int) -> None:
    data, numbers = build.dataset(fit), _numbers(watch.detector)
    features = [
        _drawn(numbers, model, batch.images, batch.ids, seed)
        for ids in cut(data.ids)
        for shard in same_size(data, ids)
        for batch in _parts(model, shard, size)
    ]
    try:
        known = reference.learnt(torch.cat(features))
    except UserError as error:
        raise UserError(f"detector {watch.detector.label()!r}: {error}") from error
    store.write_fit(watch.reference, known, (0.0, 0.0, 0.0))


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
            scores = _drawn(detector, model, images, batch.ids, seed).double().cpu()
            for name, value in zip(batch.ids, scores.tolist(), strict=True):
                if not math.isfinite(value):
                    raise UserError(f"detector {watch.detector.label()!r} scores {name} {value}; let it be a number")
            found.append(scores)
            ids += batch.ids
    return tuple(ids), torch.cat(found).numpy()


def index(planned: Plan) -> dict[str, Any]:
    """What the report needs of the plan when models and data are gone; nothing where nothing is watched."""
    jobs = [
        {"key": job.key, "detector": job.watch.detector.label(), "cell": asdict(job.cell), "of": job.watch.of}
        for job in planned.jobs
        if job.watch
    ]
    return {"detection": {"jobs": jobs, "parts": len(planned.shards)}} if jobs else {}


def read(store: Store, kept: Mapping[str, Any]) -> tuple[list[Watched], int]:
    """The scores that are there, with the records of their cells, and how many parts are lacking."""
    asked = kept.get("detection", {"jobs": [], "parts": 0})
    found, lacking = [], 0
    for job in asked["jobs"]:
        done = store.parts("cells", job["key"])
        lacking += asked["parts"] - len(done)
        if job["of"] and done and store.parts("cells", job["of"]):
            ids, scores = store.read_scores(job["key"])
            records = only(store.read_records(job["of"]), ids)
            known = set(records.ids)
            rows = [i for i, name in enumerate(ids) if name in known]
            found.append(Watched(job["detector"], Cell(**job["cell"]), records, scores[rows]))
    return found, lacking


def _evading(
    spec: RunSpec, ids: Sequence[str], contents: Contents, model: ModelSpec, watch: Watch, content: Mapping[str, Any]
) -> Iterator[Job]:
    """The cells of the attack that knows of the detector, at every eps."""
    if spec.detection is None:
        return
    attack = AttackSpec(name=ATTACK, args=spec.detection.evading)
    over = {"models": [model], "attacks": [attack], "defenses": [NONE], "threats": ["adaptive"]}
    small = spec.model_copy(update=over | {"transfer": Transfer(each=False), "keep": True, "draws": 1})
    for job in planning.plan(small, ids, replace(contents, opaque=frozenset())).jobs:
        if job.attack is not None:
            cell = replace(job.cell, threat=EVADING, attack=f"{attack.label()} {watch.detector.label()}")
            key = shortened({"cell": job.key, "allowed": watch.allowed, **content})
            yield replace(job, key=key, cell=cell, show=False, watch=watch)


def _numbers(detector: Tuned) -> Score:
    """What a detector says of images, N or N x F."""
    function, own = registry.load("detector", detector.name), build.handed(detector.name, detector.args)
    for part in own.values():
        if isinstance(part, nn.Module):
            part.to(default_device())

    def numbers(model: Segmenter, images: Tensor) -> Tensor:
        made: Tensor = function(model, images, **own)
        return made

    return numbers


def _check(model: Segmenter, detector: Tuned, data: Dataset) -> bool:
    """Whether a detector's numbers of the first image have a gradient; refuse it where their shape is wrong."""
    first, numbers = data.batch(data.ids[:1]), _numbers(detector)
    images = first.images.to(default_device())
    with torch.no_grad():
        made = _drawn(numbers, model, images, first.ids, 0)
    wanted = 2 if fitted(detector) else 1
    if not isinstance(made, Tensor) or made.ndim != wanted or len(made) != 1:
        got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise UserError(
            f"detector {detector.label()!r} gives {got} for one image; let it be N scores, or N x F features and the "
            "function have a true `fitted`"
        )
    try:
        images = images.clone().requires_grad_()
        slope = torch.autograd.grad(_drawn(numbers, model, images, first.ids, 0).sum(), images, allow_unused=True)[0]
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, UserError):  # nothing to go back through, in the detector or in a model that is a function
        return False
    return slope is not None


def _drawn(numbers: Score, model: Segmenter, images: Tensor, ids: Sequence[str], seed: int) -> Tensor:
    """The numbers of some images; what a detector draws comes from the start of each image's stream."""
    with drawing(ImageStreams(seed, ids, "detection")):
        return numbers(model, images)


def _parts(model: Segmenter, shard: Batch, size: int) -> Iterator[Batch]:
    """A shard in batches; a detector may make copies, and with one image it is certain whose draw it is."""
    size = 1 if is_random(model) else size
    return (shard[start : start + size].to(default_device()) for start in range(0, len(shard), size))
