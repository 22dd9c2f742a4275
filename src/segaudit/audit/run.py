"""`segaudit run`: a spec -> a store with every cell in it. The same call resumes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import yaml
from torch import nn

from segaudit.audit import build, detect, diagnostics, fit, hidden, log, votes
from segaudit.audit.cells.kept import forget
from segaudit.audit.cells.task import Task
from segaudit.audit.execute import Executor
from segaudit.audit.keys import Contents
from segaudit.audit.membership import experiment, joint, networks
from segaudit.audit.membership import work as membership
from segaudit.audit.plan import Job, Plan, plan
from segaudit.audit.spec import RunSpec
from segaudit.audit.store import Store
from segaudit.data.base import Dataset
from segaudit.metrics.records import pick
from segaudit.metrics.worst_case import RULES
from segaudit.models.opaque import has_gradient
from segaudit.nn.precision import default_device, resolve
from segaudit.rng import is_random
from segaudit.types import Cell, Results, Scene, UserError

Tell = Callable[[int, int], None]
"""`(parts done, parts in all)`."""
NOTE = 5.0
"""Seconds between two notes in the log, so that a killed session has one of nearly all it did."""


def run(spec: RunSpec, path: str, executor: Executor, how: str, tell: Tell = lambda *_: None) -> Store:
    """Compute what the store lacks of a spec's cells; returns the store.

    Raises UserError where the folder holds something else, and for all that is wrong with models, data or disk.
    """
    store = Store(path)
    claim(store, spec)
    forget()
    networks.forget()
    spec = spec.model_copy(update={"precision": resolve(spec.precision, default_device())})  # one for all workers
    if not joint.meant(spec):
        return _compute(spec, spec, store, executor, how, tell)
    _compute(spec, joint.alone(spec), store, executor, how, tell)
    return _compute(spec, joint.audited(spec, store), store, executor, how, tell)


def _compute(asked: RunSpec, spec: RunSpec, store: Store, executor: Executor, how: str, tell: Tell) -> Store:
    """Compute the cells of a spec, and the membership experiment of the one that was asked for."""
    data = build.dataset(spec.data)
    private = experiment.plan(asked, build.dataset(asked.data), store.path)
    models, opaque, random, parameters = {}, set(), set(), dict[str, int]()
    denoisers = spec.certification.denoisers if spec.certification else []
    for model in spec.models:  # before any work: a wrong model is said at once
        for defense in [*spec.defenses, *denoisers]:
            bare = build.model(model, data.class_names)
            models[model.title()] = build.digest(bare)
            if not has_gradient(bare):
                opaque.add(model.title())
            defended = build.defended(bare, defense)
            if is_random(defended):
                random.add(defense.label())
            parameters[defense.label()] = _count(defended) - _count(bare)
    contents = Contents(data.digest(), models, fit.digests(spec, data), frozenset(opaque), frozenset(random))
    planned, certified = plan(spec, data.ids, contents), votes.plan(spec, data.ids, contents)
    scaled = hidden.plan(spec, data, contents)
    checked = diagnostics.plan(planned, spec, data.ids, contents)
    watched = detect.plan(planned, spec, data, contents)
    index = _index(spec, planned, data) | votes.index(certified) | hidden.index(scaled) | diagnostics.index(checked)
    index |= detect.index(watched) | membership.index(private)
    index |= {"parameters": parameters} if set(parameters) - {"none"} else {}
    index |= {"later": 1} if asked.attacks and not spec.attacks else {}  # what is attacked is not there yet
    store.write_json("plan.json", index)  # first: by it a folder is known as a run
    store.write("spec.yaml", yaml.safe_dump(asked.model_dump(mode="json"), sort_keys=False).encode())
    membership.keep(private, store)
    store.write_scenes([_scene(data, name) for name in planned.shown if planned.jobs])
    tasks = [task for own in (planned, certified, checked, watched) for task in pending(spec, own, store)]
    tasks += detect.fits(tasks, store)
    chosen = [job for job in planned.jobs if job.members and not store.parts("cells", job.key)]
    steps = membership.pending(private, store)
    todo = len(steps) + len(tasks) + len(chosen)
    total = sum(_parts(job.members, planned.shards) for job in planned.jobs)
    total += sum(job.fit is not None and not job.members for job in planned.jobs)
    total += sum(len(own.jobs) * len(own.shards) for own in (certified, checked, watched))
    total += len(detect.references(watched)) + len(membership.steps(private))
    hiding = hidden.pending(scaled, store)
    todo, total = todo + len(hiding), total + len(scaled)
    history = log.RunLog.model_validate(store.read_json("log.json")).sessions if store.has("log.json") else []
    session, began, done, noted = log.session(how, spec.precision), time.perf_counter(), 0, time.perf_counter()

    def note(finished: str | None) -> None:
        own = session.model_copy(
            update={"finished": finished, "computed": done, "seconds": round(time.perf_counter() - began, 1)}
        )
        store.write_json("log.json", log.RunLog(name=spec.name, parts=total, sessions=[*history, own]).model_dump())

    def advance() -> None:
        nonlocal done, noted
        done += 1
        tell(total - todo + done, total)
        if time.perf_counter() > noted + NOTE:
            note(None)
            noted = time.perf_counter()

    note(None)
    tell(total - todo, total)
    try:
        for stage in range(membership.STAGES):
            for _ in executor([step for step in steps if step.stage == stage]):
                advance()
        for stage in range(3):
            for _ in executor([task for task in tasks if task.stage == stage]):
                advance()
        for job in chosen:
            options = [store.read_records(key) for key in job.members]
            choice = RULES[job.rule]([records.counts for records in options])
            store.write_records(job.key, 0, pick(options, choice))
            advance()
        for _ in hidden.fill(spec, data, hiding, store):
            advance()
    finally:
        note(log.now() if done == todo else None)
    return store


def claim(store: Store, spec: RunSpec) -> None:
    """Refuse a folder that holds another spec's run, or something that is no run."""
    if store.has("plan.json"):
        name = store.read_json("plan.json").get("name")
        if name != spec.name:
            raise UserError(
                f"{store.path} holds the run of another spec ({name!r}, not {spec.name!r}); give another --out"
            )
    elif not store.empty():
        raise UserError(f"{store.path} is not empty and holds no run of segaudit; give another --out")


def pending(spec: RunSpec, planned: Plan, store: Store) -> list[Task]:
    """The tasks whose part is not finished, in the order of the plan: the cells of a model stand together."""
    shown = frozenset(planned.shown)
    tasks: list[Task] = []
    for job in (job for job in planned.jobs if not job.members):
        done, kept, first = store.parts("cells", job.key), store.parts("images", job.key), len(tasks)
        for part, ids in enumerate(planned.shards):
            wanted = job.keep or (job.show and not shown.isdisjoint(ids))
            if part in done and (not wanted or _has_images(job, ids, part, kept, shown, store)):
                continue
            tasks.append(Task(job, part, ids, shown, spec.data, store.path, spec.precision, spec.batch, spec.seed))
        if job.fit is not None and len(tasks) > first and not store.has_fit(job.key):
            every = tuple(name for ids in planned.shards for name in ids)
            tasks.insert(first, replace(tasks[first], ids=every, fitting=True))
    return tasks


def _has_images(job: Job, ids: Sequence[str], part: int, kept: set[int], shown: frozenset[str], store: Store) -> bool:
    """Whether the kept images of a part are all there: a spec may ask for more of them than before."""
    if part not in kept:
        return False
    needed = set(ids) if job.keep else shown.intersection(ids)
    return needed <= store.picture_ids(job.key, part)


def results(path: str) -> Results:
    """A run read back from its store alone; cells without a finished part are left out."""
    store = Store(path)
    index = store.read_json("plan.json")
    scenes = store.read_scenes()
    shown = {scene.id for scene in scenes}
    cells, pictures, lacking = [], {}, 0
    for job in index["jobs"]:
        cell = Cell(**job["cell"])
        done = store.parts("cells", job["key"])
        lacking += _parts(job.get("members", ()), index["shards"]) - len(done)
        if not done:
            continue
        cells.append((cell, store.read_records(job["key"])))
        if job["show"]:
            parts = sorted(store.parts("images", job["key"]))
            found = [p for part in parts for p in store.read_pictures(job["key"], part) if p.id in shown]
            if found:
                pictures[cell] = found
    cast, uncast = votes.read(store, index)
    scaled, unscaled = hidden.read(store, index)
    checked, unchecked = diagnostics.read(store, index)
    detected, undetected = detect.read(store, index)
    private, untold = membership.read(store, index)
    if not cells and not (private and (private.victims or private.inferences)):
        raise UserError(f"{path}: no part of this run is finished yet; give `segaudit run` again")
    spec = yaml.safe_load(store.read("spec.yaml"))
    return Results(
        name=spec["name"],
        spec=spec,
        log=store.read_json("log.json"),
        class_names=tuple(index["class_names"]),
        palette=tuple((r, g, b) for r, g, b in index["palette"]),
        cells=cells,
        scenes=scenes,
        pictures=pictures,
        lacking=lacking + uncast + unscaled + unchecked + undetected + untold + index.get("later", 0),
        votes=cast,
        scaling=scaled,
        diagnostics=checked,
        detection=detected,
        parameters=index.get("parameters", {}),
        privacy=private,
    )


def _parts(members: Sequence[str], shards: Sequence[Sequence[str]]) -> int:
    """How many parts a cell has: a worst case is chosen over all images at once."""
    return 1 if members else len(shards)


def _count(model: nn.Module) -> int:
    """The parameters of a model."""
    return sum(weight.numel() for weight in model.parameters())


def _index(spec: RunSpec, planned: Plan, data: Dataset) -> dict[str, Any]:
    """What the report needs of the plan when models and data are gone."""
    return {
        "name": spec.name,
        "jobs": [
            {"key": job.key, "cell": asdict(job.cell), "show": job.show, "members": job.members} for job in planned.jobs
        ],
        "shards": planned.shards,
        "class_names": data.class_names,
        "palette": data.palette,
    }


def _scene(data: Dataset, name: str) -> Scene:
    image, labels = data.sample(name)
    pixels = (image * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    return Scene(name, pixels, labels.numpy().astype(np.uint8))
