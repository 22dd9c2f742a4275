"""The networks of an experiment: which there are, how one is made or found again, and what is kept of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from segaudit import registry
from segaudit.audit.cells import kept as parts
from segaudit.audit.membership.given import Taken
from segaudit.audit.membership.images import Remembered, training_images
from segaudit.audit.membership.kept import MEND
from segaudit.audit.membership.poison_spec import PoisonSpec
from segaudit.audit.membership.queries import Network
from segaudit.audit.membership.spec import NONE, Training
from segaudit.audit.membership.split import VICTIM, Split, seed_of
from segaudit.audit.membership.trainer import NetTrainer
from segaudit.audit.parts import ModelSpec, Part, Tuned
from segaudit.audit.store import Store
from segaudit.nn.precision import default_device
from segaudit.privacy.poison import outcome
from segaudit.types import Segmenter, UserError


@dataclass(frozen=True)
class Study:
    """What all networks of an experiment share. batch: images asked about at once; no result hangs on it."""

    store: str
    data: Part
    training: Training
    split: Split
    batch: int
    seed: int


@dataclass(frozen=True)
class Net:
    """A network: what it is called in the split, its architecture, its defense and its poison.

    key: of its signals in the store, and of its note.
    """

    key: str
    name: str
    model: ModelSpec
    defense: Tuned
    poison: PoisonSpec

    @property
    def plain(self) -> bool:
        """Whether there is neither defense nor poison."""
        return self.defense == NONE and not self.poison


def make(study: Study, net: Net) -> tuple[Segmenter, NetTrainer]:
    """The network as it is served, and what it took: trained now, or found in the store.

    Raises UserError for a defense that gives none, or that needs other images where there are none.
    """
    data, split, store = parts.dataset(study.data), study.split, Store(study.store)
    inside, note = split.inside[net.name], f"networks/{net.key}.json"
    trainer = (Taken if split.given and net.name == VICTIM else NetTrainer)(
        store,
        net.model,
        data.class_names,
        study.training,
        seed_of(study.seed, net.name),
        training_images(data, net.poison, inside, study.seed),
        inside,
        split.reference,
        split.units,
        noted(store, net.key, "trained") if store.has(note) else (),
    )
    if net.defense == NONE:
        return trainer.fit(inside), trainer
    made = registry.load("membership_defense", net.defense.name)(trainer, **net.defense.args)
    if not isinstance(made, Segmenter):
        raise UserError(f"membership defense {net.defense.name!r} gave a {type(made).__name__}, not a Segmenter")
    return made.to(default_device()).eval(), trainer


def noted(store: Store, key: str, what: str) -> Any:
    """What is noted of a network, its `facts` or what was `trained`. Raises UserError for a note without it."""
    found = store.read_json(f"networks/{key}.json").get(what)
    if not isinstance(found, dict if what == "facts" else list):
        raise UserError(f"{store.path}/networks/{key}.json: has no {what}; {MEND}")
    return found


def asked(study: Study, net: Net) -> Network:
    """The network as an attacker may ask it."""
    return Network(Store(study.store), net.key, lambda: _served(study, net), samples(study), study.batch)


def samples(study: Study) -> Remembered:
    """The images of an experiment as its networks are asked about them, in memory as far as they fit."""
    return _samples(study.data.model_dump_json())


def forget() -> None:
    """Drop the networks and images of an earlier run in this process: their files may have changed since."""
    _held.clear()
    _samples.cache_clear()


def train(study: Study, net: Net) -> None:
    """Make a network and keep its signals, and a note of what it took."""
    store = Store(study.store)
    model, trainer = make(study, net)
    _hold(net.key, model)
    facts = trainer.facts | {"seconds": round(sum(trainer.seconds.values()), 1)}
    facts["parameters"] = float(sum(weight.numel() for weight in model.parameters()))
    store.write_json(f"networks/{net.key}.json", {"facts": facts, "trained": trainer.keys})
    asked(study, net).answer(study.split.ids)  # last: by it the network is known as done


def triggered(study: Study, net: Net, poison: PoisonSpec) -> dict[str, float]:
    """What a trigger does to a victim, poisoned with it or not, on images that it was not trained on."""
    told = poison.build(parts.dataset(study.data).class_names, study.seed)
    if told is None:
        return {}
    return outcome(_served(study, net), samples(study), study.split.outside(VICTIM), told, study.batch)


def _served(study: Study, net: Net) -> Segmenter:
    if net.key not in _held:
        _hold(net.key, make(study, net)[0])
    return _held[net.key]


def _hold(key: str, model: Segmenter) -> None:
    if len(_held) >= HELD:
        _held.pop(next(iter(_held)))
    _held[key] = model


@lru_cache(maxsize=1)
def _samples(part: str) -> Remembered:
    return Remembered(parts.dataset(Part.model_validate_json(part)))


HELD = 4
"""Networks that a worker keeps in memory."""
_held: dict[str, Segmenter] = {}
