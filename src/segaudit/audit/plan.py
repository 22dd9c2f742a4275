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
from segaudit.paths import expand
from segaudit.types import Cell, Smoothed, UserError

VERSION = 4
"""Raised by hand when the code computes something else for the same spec."""
SHARD = 8
"""Images in a shard: fixed, so that the number of workers changes no result. A lone last image joins the shard before
it, where a target finds it a neighbour."""


Try = tuple[str, float | None]
"""An attack's digest and a budget."""


@dataclass(frozen=True)
class Job:
    """One cell to compute. source: the key of the cell whose images it is scored on, None where it makes its own.

    keep: keep all of its images, not only the shown ones. members, rule: the keys of the cells that a worst case
    chooses from, image by image, and what makes one worse (`metrics.worst_case.RULES`); it has a single part.
    fit: the images that its attack is fitted on first. outside: what the attack has changed is not scored.
    together: the models whose ensemble its images are made on, in place of the model's own. lender: the model that
    the images of its source were made on. draws: how often it is scored if its defense is random. smoothed: instead
    of all that, noisy copies vote (`audit.votes`). eot: how many times the draws that a random defense asks for its
    attack takes the mean of.
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
    fit: Part | None = None
    outside: bool = False
    together: tuple[ModelSpec, ...] = ()
    lender: ModelSpec | None = None
    draws: int = 1
    smoothed: Smoothed | None = None
    eot: int = 1


@dataclass(frozen=True)
class Contents:
    """Digests of what a spec only points at: the chosen images with their masks, each model's tensors by title, and
    the images that attacks are fitted on by the attack's label. opaque: the titles of models without a gradient.
    random: the labels of defenses that draw anew in every pass."""

    data: str = ""
    models: Mapping[str, str] = field(default_factory=dict)
    fits: Mapping[str, str] = field(default_factory=dict)
    opaque: frozenset[str] = frozenset()
    random: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Plan:
    """All cells of a run and the shards of its images."""

    jobs: tuple[Job, ...]
    shards: tuple[tuple[str, ...], ...]
    shown: tuple[str, ...]


def plan(spec: RunSpec, ids: Sequence[str], contents: Contents) -> Plan:
    """The cells of a spec on these images, in the order of the tables; a cell comes after the one it borrows from.

    A model without a gradient is spared the attacks that need one where images of other models are tried on it.
    Raises UserError where none are, and for models that are the same.
    """
    _check_opaque(spec, contents.opaque)
    shards = cut(ids)
    count = min(spec.pictures.images, len(ids))
    shown = tuple(ids[i * len(ids) // count] for i in range(count))
    jobs: dict[str, Job] = {}
    for job in _jobs(spec, ids, contents):
        same = jobs.setdefault(job.key, job)
        if same is not job:
            what = "models" if same.cell.model != job.cell.model else "attacks"
            one, other = (getattr(own.cell, what[:-1]) for own in (same, job))
            raise UserError(f"{what} {one!r} and {other!r} are the same; leave one of them out")
    return Plan(tuple(jobs.values()), shards, shown)


def cut(ids: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The shards of a list of images."""
    ends = [*range(SHARD, len(ids) - 1, SHARD), len(ids)]
    return tuple(tuple(ids[start:end]) for start, end in pairwise([0, *ends]))


def key_of(
    spec: RunSpec, ids: Sequence[str], contents: Contents, model: ModelSpec, defense: Part, own: Mapping[str, Any]
) -> str:
    """The key of what is computed of a model behind a defense beside the cells; own: all else that decides it."""
    content = {
        "data": _data(spec.data) | {"content": contents.data},
        "ids": _digest(list(ids)),
        "seed": spec.seed,
        "model": _model(model) | {"content": contents.models.get(model.title())},
        "defense": _part("defense", defense),
    }
    return _digest({**content, **own})[:20]


def _jobs(spec: RunSpec, ids: Sequence[str], contents: Contents) -> Iterator[Job]:
    none = Tuned(name="none")
    common = {"data": _data(spec.data) | {"content": contents.data}, "ids": _digest(list(ids)), "seed": spec.seed}
    defended = [d for d in spec.defenses if d != none]
    borrow = "oblivious" in spec.threats
    lend = (spec.transfer.each and len(spec.models) > 1) or (borrow and bool(defended))

    def of(model: ModelSpec) -> dict[str, Any]:
        return _model(model) | {"content": contents.models.get(model.title())}

    def job(
        model: ModelSpec,
        defense: Part,
        threat: str,
        attack: AttackSpec | None,
        eps: float | None,
        source: Job | None,
        together: tuple[ModelSpec, ...] = (),
    ) -> Job:
        crafted, fit, draws = None, None, spec.draws if defense.label() in contents.random else 1
        if attack is not None and source is None:
            fit = attack.fit_data(spec.data)
            crafted = _part("attack", attack) | {"precision": spec.precision}
            del crafted["fit"]  # as it was written; what it comes to is this
            crafted |= {"fit": _data(fit) | {"content": contents.fits.get(attack.label())}} if fit else {}
        content = (
            common
            | {
                "version": VERSION,
                "model": of(model),
                "defense": _part("defense", defense),
                "attack": crafted,
                "eps": eps,
                "source": source.key if source else None,
                "target": _part("target", attack.target) if attack and attack.target else None,
            }
            | ({"together": [of(other) for other in together]} if together else {})
            | ({"draws": draws} if draws > 1 else {})
        )
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
            keep=source is None and attack is not None and (spec.keep or (lend and defense == none and not together)),
            show=eps is None or eps in (0.0, spec.shown_eps()),
            target=attack.target if attack else None,
            fit=fit,
            outside=attack is not None and getattr(registry.load("attack", attack.name), "outside", False),
            together=together,
            lender=source.model if source else None,
            draws=draws,
        )

    def worst(made: Mapping[Try, Job]) -> Iterator[Job]:
        """The worst cases of the ensembles, from the jobs of one model, defense and threat."""
        for attack in spec.attacks:
            parts = members(attack)
            for eps in _radii(attack, spec.eps) if parts else ():
                own = [made[_ident(part), eps] for part in parts if (_ident(part), eps) in made]
                for rule in RULES if own else ():
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
    attacks: dict[str, AttackSpec] = {}
    for part in (part for attack in spec.attacks for part in members(attack) or [attack]):
        attacks.setdefault(_ident(part), part)
    tries = [(attack, eps) for attack in attacks.values() for eps in _radii(attack, spec.eps)]
    blind = [(attack, eps) for attack, eps in tries if registry.gradient_free(attack.name)]
    for model in spec.models:
        direct = blind if model.title() in contents.opaque else tries
        bare.append({(_ident(attack), eps): job(model, none, "white-box", attack, eps, None) for attack, eps in direct})
        if none in spec.defenses or (borrow and defended):
            yield job(model, none, "none", None, 0.0, None)
            yield from bare[-1].values()
            yield from worst(bare[-1])
        for defense in defended:
            yield job(model, defense, "none", None, 0.0, None)
            threats: dict[str, dict[Try, Job]] = {"oblivious": {}, "adaptive": {}}
            for attack, eps in direct:
                own = _ident(attack), eps
                if borrow:
                    threats["oblivious"][own] = job(model, defense, "oblivious", attack, eps, bare[-1][own])
                    yield threats["oblivious"][own]
                if "adaptive" in spec.threats:
                    threats["adaptive"][own] = job(model, defense, "adaptive", attack, eps, None)
                    yield threats["adaptive"][own]
            for made in threats.values():
                yield from worst(made) if made else ()
    if spec.transfer.each and none in spec.defenses:
        for source, lent in zip(spec.models, bare, strict=True):
            for model in spec.models:
                for attack, eps in tries if model != source else ():
                    if (_ident(attack), eps) in lent:
                        yield job(model, none, f"transfer:{source.title()}", attack, eps, lent[_ident(attack), eps])
    if spec.transfer.ensemble:
        for model in spec.models:
            others = tuple(m for m in spec.models if m != model and m.title() not in contents.opaque)
            for attack, eps in tries if len(others) > 1 else ():
                yield job(model, none, "transfer:ensemble", attack, eps, None, others)


def _check_opaque(spec: RunSpec, opaque: frozenset[str]) -> None:
    needy = [attack.label() for attack in spec.attacks if not registry.gradient_free(attack.name)]
    makers = len(spec.models) - len(opaque)
    lent = (spec.transfer.each and makers) or (spec.transfer.ensemble and makers > 1)
    for title in sorted(opaque) if needy and not lent else ():
        raise UserError(
            f"model {title!r} has no gradient, which attack {needy[0]!r} needs: attack it with square, or transfer "
            "images from another model (`transfer: true`)"
        )


def members(attack: AttackSpec) -> list[AttackSpec]:
    """The attacks that an ensemble is the worst case of; none for a plain attack."""
    parts = getattr(registry.load("attack", attack.name), "members", None)
    return (
        [AttackSpec(name=name, args=args, target=attack.target) for name, args in parts(attack.args)] if parts else []
    )


def _ident(attack: AttackSpec) -> str:
    """The same for attacks that do the same, in whatever order their arguments are written."""
    return _digest(attack.model_dump(mode="json"))


def _radii(attack: AttackSpec, eps: Sequence[float]) -> Sequence[float | None]:
    """The budgets an attack is run at: one run without, for an attack that finds its own norm."""
    return eps if registry.accepts("attack", attack.name, "eps") else [None]


def _part(kind: str, part: Part) -> dict[str, Any]:
    """A part with the content of a user's own file and of those that its arguments name, so that an edit makes a new
    cell."""
    path = registry.source_file(part.name)
    inside = [_part(kind, Part.model_validate(own)) for own in part.args["parts"]] if part.name == "chain" else []
    named = _contents(part.args) if kind != "data" else []
    return (
        part.model_dump(mode="json")
        | ({"file": _code_digest(path)} if path else {})
        | ({"parts": inside} if inside else {})
        | ({"files": named} if named else {})
    )


def _data(part: Part) -> dict[str, Any]:
    """A data set without its root: where the images lie decides nothing."""
    made = _part("data", part)
    made["args"].pop("root", None)
    return made


def _model(model: ModelSpec) -> dict[str, Any]:
    """A model without its label and where its weights lie, with the code of a user's own file and the content of the
    files that its arguments name."""
    code = [registry.source_file(name) for name in (model.source, model.name)]
    digests = [_code_digest(path) for path in code if path is not None]
    digests += _contents(model.args)
    return model.model_dump(mode="json", exclude={"label", "weights"}) | {"files": digests}


def _contents(args: Mapping[str, Any]) -> list[str]:
    """The digests of the files that arguments name."""
    named = [expand(value) for value in args.values() if isinstance(value, str) and value]
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in named if path.is_file()]


@lru_cache(maxsize=64)
def _code_digest(path: Path) -> str:
    """Of a file of code, once a process: that is how often it is imported."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"  # said when it is loaded


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
