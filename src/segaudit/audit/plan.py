"""A spec -> the cells to compute, each under a key made from all that decides its result, cut into fixed shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from segaudit import registry
from segaudit.audit.parts import ModelSpec, Part, Tuned
from segaudit.audit.spec import AttackSpec, RunSpec
from segaudit.metrics.worst_case import RULES
from segaudit.types import Cell, UserError

VERSION = 1
"""Raised by hand when the code computes something else for the same spec."""
SHARD = 8
"""Images in a shard: fixed, so that the number of workers changes no result. A lone last image joins the shard before
it, where a target finds it a neighbour."""


Try = tuple[str, float | None]
"""An attack's label and a budget."""


@dataclass(frozen=True)
class Job:
    """One cell to compute. source: the key of the cell whose images it is scored on, None where it makes its own.

    keep: keep all of its images, not only the shown ones. members, rule: the keys of the cells that a worst case
    chooses from, image by image, and what makes one worse (`metrics.worst_case.RULES`); it has a single part.
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
    members: tuple[str, ...] = ()
    rule: str = ""


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

    def worst(made: Mapping[Try, Job]) -> Iterator[Job]:
        """The worst cases of the ensembles, from the jobs of one model, defense and threat."""
        for attack in spec.attacks:
            parts = members(attack)
            for eps in _radii(attack, spec.eps) if parts else ():
                own = [made[part.label(), eps] for part in parts]
                for rule in RULES:
                    content = {"version": VERSION, "members": [job.key for job in own], "rule": rule}
                    yield replace(
                        own[0],
                        key=_digest(content)[:20],
                        cell=replace(own[0].cell, attack=f"{attack.label()} by {rule}"),
                        keep=False,
                        show=False,
                        members=tuple(job.key for job in own),
                        rule=rule,
                    )

    bare: list[dict[Try, Job]] = []
    attacks = {part.label(): part for attack in spec.attacks for part in members(attack) or [attack]}
    tries = [(attack, eps) for attack in attacks.values() for eps in _radii(attack, spec.eps)]
    for model in spec.models:
        bare.append({(attack.label(), eps): job(model, none, "white-box", attack, eps, None) for attack, eps in tries})
        if none in spec.defenses or (borrow and defended):
            yield job(model, none, "none", None, 0.0, None)
            yield from bare[-1].values()
            yield from worst(bare[-1])
        for defense in defended:
            yield job(model, defense, "none", None, 0.0, None)
            threats: dict[str, dict[Try, Job]] = {"oblivious": {}, "adaptive": {}}
            for attack, eps in tries:
                own = attack.label(), eps
                if borrow:
                    threats["oblivious"][own] = job(model, defense, "oblivious", attack, eps, bare[-1][own])
                    yield threats["oblivious"][own]
                if "adaptive" in spec.threats:
                    threats["adaptive"][own] = job(model, defense, "adaptive", attack, eps, None)
                    yield threats["adaptive"][own]
            for made in threats.values():
                yield from worst(made) if made else ()
    if spec.transfer and none in spec.defenses:
        for source, lent in zip(spec.models, bare, strict=True):
            for model in spec.models:
                for attack, eps in tries if model != source else ():
                    yield job(model, none, f"transfer:{source.title()}", attack, eps, lent[attack.label(), eps])


def members(attack: AttackSpec) -> list[AttackSpec]:
    """The attacks that an ensemble is the worst case of; none for a plain attack."""
    parts = getattr(registry.load("attack", attack.name), "members", None)
    return (
        [AttackSpec(name=name, args=args, target=attack.target) for name, args in parts(attack.args)] if parts else []
    )


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
