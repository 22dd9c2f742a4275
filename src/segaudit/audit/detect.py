"""Detectors of attacked images in a run: the cells that evade them and the scores of all, planned and read back."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from segaudit.attacks.evading import Score
from segaudit.attacks.fgsm import fgsm
from segaudit.audit import build
from segaudit.audit import plan as planning
from segaudit.audit.cells.task import Task
from segaudit.audit.cells.watched import drawn, numbers_of
from segaudit.audit.detection import ATTACK, Watch, fitted
from segaudit.audit.fit import DETECTION
from segaudit.audit.keys import Contents, data_content, key_of, part_content, shortened
from segaudit.audit.parts import ModelSpec, Tuned
from segaudit.audit.plan import Job, Plan, cut
from segaudit.audit.resizing import NONE
from segaudit.audit.spec import AttackSpec, RunSpec, Transfer
from segaudit.audit.store import Store
from segaudit.data.base import Dataset
from segaudit.defenses.detectors import reference
from segaudit.metrics.records import only
from segaudit.nn.precision import default_device
from segaudit.rng import ImageStreams, drawing
from segaudit.types import EVADING, Batch, Cell, Segmenter, UserError, Watched

VERSION = 2
"""Raised by hand when the code scores, fits or evades otherwise for the same spec."""


def plan(planned: Plan, spec: RunSpec, data: Dataset, contents: Contents) -> Plan:
    """For each model and detector of a `detection` block the cells that evade it, and the scores of all cells.

    What is scored is the clean images, those of each attacked cell of the run without a defense, and of the cells
    that evade the detector; of these there are none where model or detector has no gradient, or one of zeros. Nothing
    without a block.
    Raises UserError, before any image is attacked, for a detector that does not score a model's images.
    """
    asked, jobs = spec.detection, list[Job]()
    if asked is None:
        return Plan((), (), ())
    fit = asked.fit_data(spec.data)
    labels = planning.watched(spec) | {"none"}
    bare = [job for job in planned.jobs if job.defense == NONE and not job.members and job.cell.attack in labels]
    for model in spec.models:
        net = build.model(model, data.class_names).to(default_device())
        for detector in asked.detectors:
            _check(net, detector, data)
            budget = max(spec.eps), asked.norm()
            sloped = model.title() not in contents.opaque and _sloped(net, detector, data, model.title(), *budget)
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


def _check(model: Segmenter, detector: Tuned, data: Dataset) -> None:
    """Refuse a detector whose numbers of the first image are of a wrong shape."""
    first = data.batch(data.ids[:1]).to(default_device())
    with torch.no_grad():
        made = drawn(numbers_of(detector), model, first.images, first.ids, 0)
    wanted = 2 if fitted(detector) else 1
    if not isinstance(made, Tensor) or made.ndim != wanted or len(made) != 1:
        got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise UserError(
            f"detector {detector.label()!r} gives {got} for one image; let it be N scores, or N x F features and the "
            "function have a true `fitted`"
        )


def _sloped(model: Segmenter, detector: Tuned, data: Dataset, title: str, eps: float, norm: str) -> bool:
    """Whether a detector's numbers have a gradient in the image that is more than zeros, on one of the first images.

    Each is tried as it is and after one step of length eps up the model's loss: a score may be flat where it is not
    suspicious. One of zeros alone, which would lead an attack nowhere, is told in the log. title: of the model.
    """
    numbers, first = numbers_of(detector), data.ids[: planning.SHARD]
    for name in first:
        clean = data.batch((name,)).to(default_device())
        slope = _slope(numbers, model, clean)
        if slope is not None and not slope.any():
            rng = ImageStreams(0, clean.ids, "detection")
            with drawing(rng):
                stepped = fgsm(model, clean.images, clean.labels, rng=rng, eps=eps, norm=norm)
            slope = _slope(numbers, model, replace(clean, images=stepped))
        if slope is None or slope.any():
            return slope is not None
    logging.getLogger(__name__).warning(
        f"segaudit: detector {detector.label()!r} on model {title!r}: its gradient is zero on the first {len(first)} "
        "images, clean and attacked, which tells an attack nothing of it: none that evades it is made"
    )
    return False


def _slope(numbers: Score, model: Segmenter, one: Batch) -> Tensor | None:
    """The gradient of a detector's numbers in one image; None where there is nothing to go back through."""
    images = one.images.clone().requires_grad_()
    try:
        made = drawn(numbers, model, images, one.ids, 0).flatten()
        weights = torch.arange(1, len(made) + 1).to(made)  # the plain sum of features may be the same for every image
        return torch.autograd.grad((made * weights).sum(), images, allow_unused=True)[0]
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, UserError):  # in the detector, or in a model that is a function
        return None
