"""The image scaling attacks of a run: planned, made and kept beside its cells, one file each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch

from segaudit.attacks._resize import Resizer
from segaudit.audit import build
from segaudit.audit.cells.hiding import guarded, large, paired, score
from segaudit.audit.keys import Contents, key_of, part_content
from segaudit.audit.parts import ModelSpec, Tuned
from segaudit.audit.resizing import BLENDED, NONE, adaptive
from segaudit.audit.scaling import chosen, hide
from segaudit.audit.spec import RunSpec
from segaudit.audit.store import Store
from segaudit.data.base import Dataset
from segaudit.metrics.scaling import SEEN, SIZES, WORDS
from segaudit.nn.precision import default_device, exact_on_cuda, prepare_process
from segaudit.types import EVADING, Counts, Hidden

VERSION = 1
"""Raised by hand when the code attacks or measures otherwise for the same spec."""


@dataclass(frozen=True)
class Job:
    """The attacks on one resizer and guard with what they know, scored on one model."""

    key: str
    model: ModelSpec
    resizer: Resizer
    guard: Tuned
    threat: str

    def of(self) -> dict[str, str]:
        """The words of `Hidden`."""
        own = self.resizer
        return dict(
            zip(WORDS, (self.model.title(), own.library, own.method, self.guard.label(), self.threat), strict=True)
        )


def plan(spec: RunSpec, data: Dataset, contents: Contents) -> list[Job]:
    """What is to be attacked for the `scaling` block of a spec: resizer by resizer, nothing without one.

    Raises UserError, before any picture is attacked, for a resizer that there is not, a single picture, several sizes,
    pictures not larger than what models see, and what guards and detectors refuse.
    """
    asked, jobs = spec.scaling, list[Job]()
    if asked is None:
        return jobs
    paired(data)
    height, width = data.batch(data.ids[: 1 if data.size else None]).images.shape[2:]
    for name in reversed(data.ids[: 1 if asked.factor else None]):
        first = large(data, name, (height, width), asked.factor)  # the last of them is the first picture
    for resizer in chosen(asked):
        for guard in asked.guards:
            guarded(guard, resizer, data.ids[0], spec.seed)
        for detector in asked.detectors:
            score(detector, first, resizer, (height, width))
        for guard, threat in asked.tries():
            maker = BLENDED if threat.startswith(EVADING) else "image_scaling"
            maker = adaptive(guard) if threat == "adaptive" else maker
            own = {
                "hidden": VERSION,
                "resizer": asdict(resizer),
                "factor": asked.factor,
                "eps": asked.eps,
                "guard": part_content("guard", guard),
                "threat": threat,
                "attack": part_content("scaling", Tuned(name=maker)),
                "detectors": [part_content("scaling_detector", detector) for detector in asked.detectors],
            }
            for model in spec.models:
                key = key_of(spec, data.ids, contents, model, NONE, own)
                jobs.append(Job(key, model, resizer, guard, threat))
    return jobs


def pending(jobs: Sequence[Job], store: Store) -> list[Job]:
    """The jobs that the store lacks."""
    return [job for job in jobs if not store.has(_file(job.key))]


def fill(spec: RunSpec, data: Dataset, jobs: Sequence[Job], store: Store) -> Iterator[Job]:
    """Attack and keep what the jobs ask for, in this process; each once it is kept."""
    asked = spec.scaling
    if asked is None or not jobs:
        return
    prepare_process()
    exact_on_cuda()
    needed = {job.model.title(): job.model for job in jobs}
    models = {name: build.model(m, data.class_names).to(default_device()) for name, m in needed.items()}
    try:
        for resizer in dict.fromkeys(job.resizer for job in jobs):
            own = [job for job in jobs if job.resizer == resizer]
            tries = [(g, t) for g, t in asked.tries() if any((g, t) == (job.guard, job.threat) for job in own)]
            made = hide(
                data, models, resizer, tries, asked.detectors, factor=asked.factor, eps=asked.eps, seed=spec.seed
            )
            found = {(hidden.model, hidden.guard, hidden.threat): hidden for hidden in made}
            for job in own:
                hidden = found[job.model.title(), job.guard.label(), job.threat]
                store.write_json(_file(job.key), _plain(hidden))
                yield job
    finally:
        torch.set_flush_denormal(False)  # it was turned on for this


def index(jobs: Sequence[Job]) -> dict[str, Any]:
    """What the report needs of the plan when models and data are gone; nothing where nothing is attacked."""
    return {"scaling": [{"key": job.key, "of": job.of()} for job in jobs]} if jobs else {}


def read(store: Store, kept: Mapping[str, Any]) -> tuple[list[Hidden], int]:
    """The attacks that are there, from the index of a run's plan, and how many are lacking."""
    asked = kept.get("scaling", [])
    there = [job for job in asked if store.has(_file(job["key"]))]
    return [_hidden(store.read_json(_file(job["key"])), job["of"]) for job in there], len(asked) - len(there)


def _plain(hidden: Hidden) -> dict[str, Any]:
    """The rows as JSON holds them, without the words: those may change, the key does not."""
    return {
        "ids": list(hidden.ids),
        "counts": {
            what: {part.name: getattr(getattr(hidden, what), part.name).tolist() for part in fields(Counts)}
            for what in SEEN
        },
        "sizes": {size: getattr(hidden, size).tolist() for size in SIZES},
        "scores": {name: [scores.tolist() for scores in pair] for name, pair in hidden.scores.items()},
    }


def _hidden(rows: Mapping[str, Any], of: Mapping[str, str]) -> Hidden:
    own: dict[str, Any] = dict(of) | {
        what: Counts(**{name: np.array(table, np.int64) for name, table in parts.items()})
        for what, parts in rows["counts"].items()
    }
    own |= {size: np.array(values) for size, values in rows["sizes"].items()}
    scores = {name: (np.array(before), np.array(after)) for name, (before, after) in rows["scores"].items()}
    return Hidden(ids=tuple(rows["ids"]), scores=scores, **own)


def _file(key: str) -> str:
    return f"scaling/{key}.json"
