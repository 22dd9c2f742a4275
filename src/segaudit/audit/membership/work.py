"""What workers are asked to do for a membership experiment, and how it is told and read back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from segaudit.audit.membership import networks, scoring
from segaudit.audit.membership.experiment import Plan, Trigger
from segaudit.audit.membership.kept import read_table, write_table
from segaudit.audit.membership.networks import Net, Study
from segaudit.audit.membership.scoring import Scoring
from segaudit.audit.membership.split import VICTIM
from segaudit.audit.store import COUNTS, Store
from segaudit.types import Counts, Inference, Privacy, Victim

SPLIT = "membership/split.parquet"
"""Where the split is in the store, with the membership matrix."""
STAGES = 3


@dataclass(frozen=True)
class Step:
    """A network to train, a trigger to try, or an attack to run, with all that a worker on any machine needs."""

    study: Study
    what: Net | Trigger | Scoring

    @property
    def stage(self) -> int:
        """When its turn is: plain networks (0), the others, which may build on them (1), and what asks networks (2)."""
        return (0 if self.what.plain else 1) if isinstance(self.what, Net) else 2


def work(step: Step) -> None:
    """Do a step and keep what comes of it."""
    study, what = step.study, step.what
    if isinstance(what, Net):
        networks.train(study, what)
    elif isinstance(what, Trigger):
        found = networks.triggered(study, what.net, what.poison)
        Store(study.store).write_json(_trigger(what.key), found)
    else:
        scoring.score(study, what)


def steps(planned: Plan | None) -> list[Step]:
    """All steps of a plan, each once: without shadows and references an attacker who knows has no more than another."""
    if planned is None:
        return []
    every: list[Net | Trigger | Scoring] = [*planned.nets, *planned.triggers, *planned.scorings]
    return [Step(planned.study, what) for what in {_place(what): what for what in every}.values()]


def pending(planned: Plan | None, store: Store) -> list[Step]:
    """The steps that are not done yet."""
    return [step for step in steps(planned) if not store.has(_place(step.what))]


def keep(planned: Plan | None, store: Store) -> None:
    """Write down who is in which training set."""
    if planned is not None:
        write_table(store, SPLIT, planned.study.split.columns())


def index(planned: Plan | None) -> dict[str, Any]:
    """What the report needs of the plan when models and data are gone."""
    if planned is None:
        return {}
    return {
        "membership": {
            "split": planned.study.split.told() | ({"left_out": "; ".join(left)} if (left := planned.left_out) else {}),
            "steps": [_place(step.what) for step in steps(planned)],
            "victims": [
                {
                    "key": net.key,
                    "model": net.model.title(),
                    "defense": net.defense.label(),
                    "poison": net.poison.label(),
                    "triggers": {own.word: own.key for own in planned.triggers if own.net.key == net.key},
                }
                for net in planned.victims
            ],
            "inferences": [{"key": own.key, "of": own.of()} for own in planned.scorings],
        }
    }


def read(store: Store, kept: Mapping[str, Any]) -> tuple[Privacy | None, int]:
    """What is there of an experiment, from the index of a run's plan, and how many steps are lacking."""
    asked = kept.get("membership")
    if asked is None:
        return None, 0
    if not store.has(SPLIT):
        return None, len(asked["steps"])
    there = {name for name in asked["steps"] if store.has(name)}
    table = read_table(store, SPLIT)
    members = [name for name, own in zip(table["id"], table[VICTIM], strict=True) if own]
    rows = zip(table["id"], table["role"], table["member"], strict=True)
    others = [name for name, role, member in rows if role == "candidate" and not member]
    victims = [_victim(store, own, members, others) for own in asked["victims"] if _signals(own["key"]) in there]
    found = [own for own in asked["inferences"] if scoring.place(own["key"]) in there]
    inferences = [_inference(read_table(store, scoring.place(own["key"])), own["of"]) for own in found]
    return Privacy(victims, inferences, asked["split"]), len(asked["steps"]) - len(there)


def _victim(store: Store, own: Mapping[str, Any], members: list[str], others: list[str]) -> Victim:
    table = read_table(store, _signals(own["key"]))
    place = {name: row for row, name in enumerate(table["id"])}

    def counts(ids: list[str]) -> Counts:
        return Counts(*(table[name][[place[image] for image in ids]] for name in COUNTS))

    facts = networks.noted(store, own["key"], "facts")
    triggered = {
        word + name: share
        for word, key in own["triggers"].items()
        if store.has(_trigger(key))
        for name, share in store.read_json(_trigger(key)).items()
    }
    words = {key: own[key] for key in ("model", "defense", "poison")}
    return Victim(**words, members=counts(members), others=counts(others), facts=facts, triggered=triggered)


def _inference(table: Mapping[str, Any], words: Mapping[str, str]) -> Inference:
    threshold = float(table["threshold"][0])
    return Inference(
        **words,
        ids=tuple(table["id"]),
        member=np.asarray(table["member"], bool),
        scores=table["score"],
        threshold=None if math.isnan(threshold) else threshold,
        units=tuple(table["unit"]),
        target=table["target"],
        seconds=float(table["seconds"][0]),
    )


def _place(what: Net | Trigger | Scoring) -> str:
    """The file by which a step is known to be done."""
    if isinstance(what, Net):
        return _signals(what.key)
    return _trigger(what.key) if isinstance(what, Trigger) else scoring.place(what.key)


def _signals(key: str) -> str:
    return f"signals/{key}.parquet"


def _trigger(key: str) -> str:
    return f"triggered/{key}.json"
