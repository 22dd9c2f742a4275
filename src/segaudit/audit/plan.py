"""A spec -> the cells to compute, each under a key made from all that decides its result, cut into fixed shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from segaudit import registry
from segaudit.audit.parts import ModelSpec, Part, Tuned
from segaudit.audit.spec import AttackSpec, RunSpec
from segaudit.types import Cell, UserError

VERSION = 1
"""Raised by hand when the code computes something else for the same spec."""
SHARD = 8
"""Images in a shard: fixed, so that the number of workers changes no result. A lone last image joins the shard before
it, where a target finds it a neighbour."""


@dataclass(frozen=True)
class Job:
    """One cell to compute. source: the key of the cell whose images it is scored on, None where it makes its own.

    keep: keep all of its images, not only the shown ones.
    """

    key: str
    cell: Cell
    model: ModelSpec
    defense: Part
    attack: AttackSpec | None
    eps: float | None
    source: str | None
    keep: bool
    show: bool
    target: Part | None = None


@dataclass(frozen=True)
class Contents:
    """Digests of what a spec only points at: the chosen images with their masks, and each model's tensors by title."""

    data: str = ""
    models: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """All cells of a run and the shards of its images."""

    jobs: tuple[Job, ...]
    shards: tuple[tuple[str, ...], ...]
    shown: tuple[str, ...]


def plan(spec: RunSpec, ids: Sequence[str], contents: Contents) -> Plan:
    """The cells of a spec on these images, in the order of the tables; a cell comes after the one it borrows from."""
    ends = [*range(SHARD, len(ids) - 1, SHARD), len(ids)]
    shards = tuple(tuple(ids[start:end]) for start, end in pairwise([0, *ends]))
    count = min(spec.pictures.images, len(ids))
    shown = tuple(ids[i * len(ids) // count] for i in range(count))
    jobs: dict[str, Job] = {}
    for job in _jobs(spec, ids, contents):
        same = jobs.setdefault(job.key, job)
        if same is not job:
            raise UserError(f"models {same.cell.model!r} and {job.cell.model!r} are the same; leave one of them out")
    return Plan(tuple(jobs.values()), shards, shown)


def _jobs(spec: RunSpec, ids: Sequence[str], contents: Contents) -> Iterator[Job]:
    none = Tuned(name="none")
    data = _part("data", spec.data) | {"content": contents.data}
    data["args"].pop("root", None)  # where the images lie decides nothing
    common = {"data": data, "ids": _digest(list(ids)), "seed": spec.seed}
    defended = [d for d in spec.defenses if d != none]
    borrow = "oblivious" in spec.threats
    lend = (spec.transfer and len(spec.models) > 1) or (borrow and bool(defended))

    def job(
        model: ModelSpec, defense: Part, threat: str, attack: AttackSpec | None, eps: float | None, source: Job | None
    ) -> Job:
        crafted = None if attack is None or source else _part("attack", attack) | {"precision": spec.precision}
        content = common | {
            "version": VERSION,
            "model": _model(model) | {"content": contents.models.get(model.title())},
            "defense": _part("defense", defense),
            "attack": crafted,
            "eps": eps,
            "source": source.key if source else None,
            "target": _part("target", attack.target) if attack and attack.target else None,
        }
        label = attack.label() if attack else "none"
        cell = Cell(model.title(), defense.label(), threat, label, attack.norm() if attack else "", eps)
        return Job(
            key=_digest(content)[:20],
            cell=cell,
            model=model,
            defense=defense,
            attack=None if source else attack,
            eps=eps,
            source=source.key if source else None,
            keep=source is None and attack is not None and (spec.keep or (lend and defense == none)),
            show=eps is None or eps in (0.0, spec.shown_eps()),
            target=attack.target if attack else None,
        )

    bare: dict[tuple[int, str, float | None], Job] = {}
    tries = [(attack, eps) for attack in spec.attacks for eps in _radii(attack, spec.eps)]
    numbered = list(enumerate(spec.models))
    for i, model in numbered:
        if none in spec.defenses or (borrow and defended):
            yield job(model, none, "none", None, 0.0, None)
            for attack, eps in tries:
                bare[i, attack.label(), eps] = job(model, none, "white-box", attack, eps, None)
                yield bare[i, attack.label(), eps]
        for defense in defended:
            yield job(model, defense, "none", None, 0.0, None)
            for attack, eps in tries:
                if borrow:
                    yield job(model, defense, "oblivious", attack, eps, bare[i, attack.label(), eps])
                if "adaptive" in spec.threats:
                    yield job(model, defense, "adaptive", attack, eps, None)
    if spec.transfer and none in spec.defenses:
        for i, source in numbered:
            for j, model in numbered:
                for attack, eps in tries if i != j else ():
                    yield job(model, none, f"transfer:{source.title()}", attack, eps, bare[i, attack.label(), eps])


def _radii(attack: AttackSpec, eps: Sequence[float]) -> Sequence[float | None]:
    """The budgets an attack is run at: one run without, for an attack that finds its own norm."""
    return eps if registry.accepts("attack", attack.name, "eps") else [None]


def _part(kind: str, part: Part) -> dict[str, Any]:
    """A part with the content of a user's own file, so that an edit makes a new cell."""
    path = registry.source_file(part.name)
    return part.model_dump(mode="json") | ({"file": _code_digest(path)} if path else {})


def _model(model: ModelSpec) -> dict[str, Any]:
    """A model without its label and where its weights lie, with the code of a user's own file."""
    code = [registry.source_file(name) for name in (model.source, model.name)]
    digests = [_code_digest(path) for path in code if path is not None]
    return model.model_dump(mode="json", exclude={"label", "weights"}) | {"files": digests}


@lru_cache(maxsize=64)
def _code_digest(path: Path) -> str:
    """Of a file of code, once a process: that is how often it is imported."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"  # said when it is loaded


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
