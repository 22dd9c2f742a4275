"""From the `membership` block of a spec to what is to be done: networks, triggers and attacks, each under its key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from segaudit import registry
from segaudit.audit import build
from segaudit.audit.keys import Contents, code_digest, digest, model_content, part_content, shortened
from segaudit.audit.membership import given, scoring, trainer, trial
from segaudit.audit.membership.networks import Net, Study
from segaudit.audit.membership.poison_spec import PoisonSpec
from segaudit.audit.membership.scoring import Scoring
from segaudit.audit.membership.spec import CLEAN, LEAST_SIZE, NONE, Membership, baseline
from segaudit.audit.membership.split import REFERENCE, SHADOW, VICTIM, split
from segaudit.audit.parts import ModelSpec, Tuned
from segaudit.audit.spec import RunSpec
from segaudit.data.base import Dataset
from segaudit.nn.precision import default_device, resolve
from segaudit.types import AWARE, PLAIN, UNAWARE, UserError

VERSION = 1
"""Raised by hand when the code makes, asks or attacks networks otherwise for the same spec."""


@dataclass(frozen=True)
class Trigger:
    """What a trigger does to a victim, whether that was poisoned with it or not. word: stands before its shares."""

    key: str
    net: Net
    poison: PoisonSpec
    word: str = ""


@dataclass(frozen=True)
class Plan:
    """All that an experiment is made of, in the order of the tables. left_out: what cannot be tried here, and why."""

    study: Study
    nets: tuple[Net, ...]
    victims: tuple[Net, ...]
    triggers: tuple[Trigger, ...]
    scorings: tuple[Scoring, ...]
    left_out: tuple[str, ...] = ()


def plan(spec: RunSpec, data: Dataset, store: str) -> Plan | None:
    """What a spec asks for on these images; None without the block.

    Raises UserError, before anything is trained, for a pool that is too small, models and poisons that fit the data
    not, and defenses, and attacks that were asked for, that lack what they need.
    """
    asked = spec.membership
    if asked is None:
        return None
    seed = spec.seed if asked.seed is None else asked.seed
    training = asked.training.model_copy(update={"precision": resolve(asked.training.precision, default_device())})
    known = None if asked.members is None else given.members(data, spec.data, asked.members)
    study = Study(store, spec.data, training, split(data, asked, seed, known), spec.batch, seed)
    making = _Making(study, asked, data)
    attacks, faults = _attacks(study, asked, data)
    left_out = list(faults)
    victims, triggers, scorings = list[Net](), list[Trigger](), list[Scoring]()
    for attack in attacks:
        if baseline(attack):
            scorings.append(making.scoring(attack, None, (), (), PLAIN))
    poisons = [poison for poison in asked.poison if poison]
    for victim in making.victims():
        victims.append(victim)
        own = [victim.poison] if victim.poison else poisons
        words = [f"{poison.label()} " if len(own) > 1 else "" for poison in own]
        triggers += [_trigger(victim, poison, word) for poison, word in zip(own, words, strict=True)]
        if not _enough(victim.poison.spared(study.split.candidates, seed), study.split.members):
            left_out.append(f"attacks on victims poisoned with {victim.poison.label()}, which spares too few images")
            continue
        for threat in _threats(victim, asked):
            shadows, references = making.attackers(victim, threat)
            for attack in (attack for attack in attacks if not baseline(attack)):
                made = making.scoring(attack, victim, shadows, references, threat)
                fault = scoring.fault(study, attack, data, made) if victim.poison else None
                if fault is None:
                    scorings.append(made)
                else:
                    left_out.append(f"{fault} (of the images that {victim.poison.label()} spares)")
    without = tuple(dict.fromkeys(left_out))
    trial.attempt(study, victims, data)
    return Plan(study, tuple(making.made.values()), tuple(victims), tuple(triggers), tuple(scorings), without)


class _Making:
    """Gives networks their keys, and knows which there are."""

    def __init__(self, study: Study, asked: Membership, data: Dataset) -> None:
        self.study, self.asked, self.made = study, asked, dict[str, Net]()
        models = [*asked.victim, *map(self._shadow, asked.victim)]
        self.models = {model.model_dump_json(): self._model(model, data) for model in models}  # titles may be shared
        for model in asked.victim if study.split.given else ():
            given.check(model, data.class_names)
        ids, split, members = study.split.ids, study.split, frozenset(study.split.members)
        self.candidates = digest([[name, split.units[name], name in members] for name in split.candidates])
        self.images = {"data": data.digest(), "ids": digest(list(ids)), "size": len(ids)}

    def _model(self, model: ModelSpec, data: Dataset) -> dict[str, Any]:
        made = build.digest(build.model(model, data.class_names))
        return model_content(model, Contents(models={model.title(): made}))

    def victims(self) -> Iterator[Net]:
        for model in self.asked.victim:
            for poison in self.asked.poison:
                for defense in self.asked.defenses:
                    yield self.net(VICTIM, model, defense, poison)

    def attackers(self, victim: Net, threat: str) -> tuple[tuple[Net, ...], tuple[Net, ...]]:
        """The shadows and the references of a threat to a victim."""
        model = self._shadow(victim.model)
        defense, poison = (victim.defense, victim.poison) if threat == AWARE else (NONE, CLEAN)
        names = [name for name in self.study.split.inside if name != VICTIM]
        nets = [self.net(name, model, defense, poison) for name in names]
        kinds = (SHADOW, REFERENCE)
        shadows, references = (tuple(net for net in nets if net.name.startswith(kind)) for kind in kinds)
        return shadows, references

    def _shadow(self, victim: ModelSpec) -> ModelSpec:
        """What an attacker trains: of a victim that was trained elsewhere, not the weights."""
        return self.asked.shadow or (given.untrained(victim) if self.study.split.given else victim)

    def net(self, name: str, model: ModelSpec, defense: Tuned, poison: PoisonSpec) -> Net:
        split, training = self.study.split, self.study.training
        inside = split.inside[name]
        content = {
            "version": VERSION + trainer.VERSION - 1,  # with either one
            "images": self.images,
            "name": name,
            "inside": digest([[image, split.units[image]] for image in inside]),
            "reference": digest(list(split.reference)),
            "model": self.models[model.model_dump_json()],
            "training": training.model_dump(mode="json") | {"recipe": trainer.recipe_content(training.recipe)},
            "defense": part_content("membership_defense", defense),
            "poison": _poison_content(poison),
            "seed": self.study.seed,
        }
        content |= {"given": True} if split.given and name == VICTIM else {}
        key = shortened(content)
        return self.made.setdefault(key, Net(key, name, model, defense, poison))

    def scoring(
        self, attack: Tuned, victim: Net | None, shadows: Sequence[Net], references: Sequence[Net], threat: str
    ) -> Scoring:
        content = {
            "version": VERSION,
            "attack": part_content("membership", attack),
            "victim": victim.key if victim else self.images,
            "shadows": [net.key for net in shadows],
            "references": [net.key for net in references],
            "candidates": self.candidates,
            "seed": self.study.seed,
        }
        content |= {"of": "images that are spared by the poison"} if victim and victim.poison else {}
        return Scoring(shortened(content), attack, victim, tuple(shadows), tuple(references), threat)


def _poison_content(poison: PoisonSpec) -> dict[str, Any]:
    """A poison with the code of a user's own trigger."""
    path = registry.source_file(poison.trigger)
    return poison.model_dump(mode="json") | ({"file": code_digest(path)} if path else {})


def _threats(victim: Net, asked: Membership) -> list[str]:
    return [PLAIN] if victim.plain else [threat for threat in (UNAWARE, AWARE) if threat in asked.threats]


def _enough(ids: Sequence[str], members: Sequence[str]) -> bool:
    """Whether there are some members and some others to be told apart."""
    inside = len(set(ids) & set(members))
    return min(inside, len(ids) - inside) >= LEAST_SIZE


def _trigger(victim: Net, poison: PoisonSpec, word: str) -> Trigger:
    return Trigger(shortened([VERSION, victim.key, _poison_content(poison)]), victim, poison, word)


def _attacks(study: Study, asked: Membership, data: Dataset) -> tuple[list[Tuned], tuple[str, ...]]:
    """The attacks that can be tried. One that was not asked for by name is left out where it lacks what it needs."""
    found, left_out = [], []
    for attack in asked.asked():
        fault = scoring.fault(study, attack, data)
        if fault is None:
            found.append(attack)
        elif attack not in (asked.attacks or ()):
            left_out.append(fault)
        else:
            raise UserError(fault)
    return found, tuple(left_out)
