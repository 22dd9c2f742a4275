"""A spec -> the cells to compute, each under a key made from all that decides its result, cut into fixed shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from segaudit import registry
from segaudit.audit.detection import Watch
from segaudit.audit.keys import Contents, data_content, digest, key_of, model_content, part_content, shortened
from segaudit.audit.parts import ModelSpec, Part, Tuned
from segaudit.audit.spec import AttackSpec, RunSpec
from segaudit.metrics.worst_case import RULES
from segaudit.types import Cell, Smoothed, UserError

VERSION = 5
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
    attack takes the mean of. watch: the detector that its attack evades, or without one that scores the images of its
    source (`audit.detect`).
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
    watch: Watch | None = None


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


def _jobs(spec: RunSpec, ids: Sequence[str], contents: Contents) -> Iterator[Job]:
    none = Tuned(name="none")
    defended = [d for d in spec.defenses if d != none]
    borrow = "oblivious" in spec.threats
    lend = (spec.transfer.each and len(spec.models) > 1) or (borrow and bool(defended))

    scored = watched(spec)

    def keep(attack: AttackSpec, together: tuple[ModelSpec, ...]) -> bool:
        """Whether the images of a bare model are needed again."""
        return attack.label() in scored or (lend and not together)

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
            crafted = part_content("attack", attack) | {"precision": spec.precision}
            del crafted["fit"]  # as it was written; what it comes to is this
            crafted |= {"fit": data_content(fit) | {"content": contents.fits.get(attack.label())}} if fit else {}
        own: dict[str, Any] = {
            "version": VERSION,
            "attack": crafted,
            "eps": eps,
            "source": source.key if source else None,
            "target": part_content("target", attack.target) if attack and attack.target else None,
        }
        if together:
            own["together"] = [model_content(other, contents) for other in together]
        if draws > 1:
            own["draws"] = draws
        label = attack.label() if attack else "none"
        cell = Cell(model.title(), defense.label(), threat, label, attack.norm() if attack else "", eps)
        return Job(
            key=key_of(spec, ids, contents, model, defense, own),
            cell=cell,
            model=model,
            defense=defense,
            attack=None if source else attack,
            eps=eps,
            source=source.key if source else None,
            keep=source is None and attack is not None and (spec.keep or (defense == none and keep(attack, together))),
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
                        key=shortened(content),
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


def watched(spec: RunSpec) -> set[str]:
    """The labels of the attacks, an ensemble's members too, whose images the detectors of a spec score."""
    if spec.detection is None:
        return set()
    asked = spec.detection.attacks
    chosen = [attack for attack in spec.attacks if asked is None or attack.label() in asked]
    return {own.label() for attack in chosen for own in (attack, *members(attack))}


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
    return digest(attack.model_dump(mode="json"))


def _radii(attack: AttackSpec, eps: Sequence[float]) -> Sequence[float | None]:
    """The budgets an attack is run at: one run without, for an attack that finds its own norm."""
    return eps if registry.accepts("attack", attack.name, "eps") else [None]
