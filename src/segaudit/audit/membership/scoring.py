"""One membership attack on one victim: what it is given, and what it says of each candidate."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segaudit import registry
from segaudit.audit.cells import kept as parts
from segaudit.audit.membership.kept import write_table
from segaudit.audit.membership.networks import Net, Study, asked, samples
from segaudit.audit.membership.queries import Nobody
from segaudit.audit.membership.spec import baseline
from segaudit.audit.membership.split import REFERENCE, SHADOW, seed_of
from segaudit.audit.parts import Tuned
from segaudit.audit.store import Store
from segaudit.data.base import Dataset
from segaudit.privacy.experiment import Asked, Experiment, Samples, Scored, Shadow
from segaudit.types import VOID, Floats, Ints, UserError


@dataclass(frozen=True)
class Scoring:
    """An attack, its victim (None for one that sees no network), and the networks that the attacker has."""

    key: str
    attack: Tuned
    victim: Net | None
    shadows: tuple[Net, ...]
    references: tuple[Net, ...]
    threat: str

    def of(self) -> dict[str, str]:
        """The words of `Inference`."""
        own = self.victim
        words = (own.model.title(), own.defense.label(), own.poison.label()) if own else ("", "none", "none")
        return dict(zip(("model", "defense", "poison"), words, strict=True)) | {
            "threat": self.threat,
            "attack": self.attack.label(),
        }


def score(study: Study, own: Scoring) -> None:
    """Run an attack and keep what it says. Raises UserError for scores that are none."""
    data, split = parts.dataset(study.data), study.split
    victim = asked(study, own.victim) if own.victim else None
    given = _spared(
        own,
        study.seed,
        _experiment(
            study,
            samples(study),
            victim or Nobody(),
            tuple((net.name, asked(study, net)) for net in own.shadows),
            tuple((net.name, asked(study, net)) for net in own.references),
            len(data.class_names),
        ),
    )
    ids = given.candidates
    began = time.perf_counter()
    scored = _ask(own.attack, given, frozenset(split.members), seed_of(study.seed, own.key))
    seconds = time.perf_counter() - began
    scores = np.asarray(scored.scores, np.float64)
    if scores.shape != (len(ids),) or not np.isfinite(scores).all():
        raise UserError(
            f"membership attack {own.attack.label()!r} gave scores of shape {scores.shape}"
            f"{'' if np.isfinite(scores).all() else ', not all of them finite'}; {len(ids)} were asked for"
        )
    rows = len(scores)
    table = {
        "id": list(ids),
        "unit": [split.units[name] for name in ids],
        "member": np.isin(ids, split.members),
        "score": scores,
        "target": victim.counts(ids).target if victim else _target(data, ids),
        "threshold": np.full(rows, math.nan if scored.threshold is None else scored.threshold),
        "seconds": np.full(rows, seconds),
    }
    write_table(Store(study.store), place(own.key), table)


def place(key: str) -> str:
    """Where what an attack says is in the store."""
    return f"inferences/{key}.parquet"


def fault(study: Study, attack: Tuned, data: Dataset, own: Scoring | None = None) -> str | None:
    """What an attack lacks, in its own words: it is called with networks that end it as soon as it asks one.

    own: what it is tried for, where that may leave it fewer images.
    """
    names = [name for name in study.split.inside if name.startswith((SHADOW, REFERENCE))]
    shadows, references = ([(n, _Silent()) for n in names if n.startswith(kind)] for kind in (SHADOW, REFERENCE))
    given = _experiment(study, _Silent(), _Silent(), tuple(shadows), tuple(references), len(data.class_names))
    given = _spared(own, study.seed, given) if own else given
    try:
        _ask(attack, given, frozenset(study.split.members), 0)
    except _Asked:
        return None
    except UserError as error:
        return str(error)
    return None


def _ask(attack: Tuned, given: Experiment, members: frozenset[str], seed: int) -> Scored:
    own: dict[str, Any] = dict(attack.args)
    if baseline(attack):
        own["members"] = members
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rng = torch.Generator().manual_seed(seed)
        found = registry.load("membership", attack.name)(given, rng=rng, **own)
    if not isinstance(found, Scored):
        raise UserError(f"membership attack {attack.name!r} gave a {type(found).__name__}, not a Scored")
    return found


def _experiment(
    study: Study,
    samples: Samples,
    victim: Asked,
    shadows: Sequence[tuple[str, Asked]],
    references: Sequence[tuple[str, Asked]],
    classes: int,
) -> Experiment:
    split = study.split

    def nets(own: Sequence[tuple[str, Asked]]) -> tuple[Shadow, ...]:
        return tuple(Shadow(net, split.inside[name], split.outside(name)) for name, net in own)

    return Experiment(
        samples=samples,
        num_classes=classes,
        candidates=split.candidates,
        victim=victim,
        shadows=nets(shadows),
        references=nets(references),
        population=split.population,
        units={name: split.units[name] for name in split.ids},
    )


def _spared(own: Scoring, seed: int, given: Experiment) -> Experiment:
    """The experiment on images that are as they are in every training: the others are the poisoner's, nobody's secret.

    Asked as they are, they would count as missed whatever the network gives away; asked as they were trained on, the
    trigger would tell more than the membership.
    """
    if own.victim is None or not own.victim.poison:
        return given

    def nets(shadows: Sequence[Shadow], made: Sequence[Net]) -> tuple[Shadow, ...]:
        told = zip(shadows, made, strict=True)
        return tuple(
            Shadow(one.asked, net.poison.spared(one.inside, seed), net.poison.spared(one.outside, seed))
            for one, net in told
        )

    return replace(
        given,
        candidates=own.victim.poison.spared(given.candidates, seed),
        shadows=nets(given.shadows, own.shadows),
        references=nets(given.references, own.references),
    )


def _target(data: Dataset, ids: Sequence[str]) -> Ints:
    """The pixels of each class in each image's mask, N x K."""
    masks, count = (data.sample(name)[1] for name in ids), len(data.class_names)
    return np.stack([torch.bincount(own[own != VOID], minlength=count).numpy() for own in masks]).astype(np.int64)


class _Asked(Exception):
    """An attack has come so far that it asks."""


class _Silent:
    """Samples and a network that answer nothing."""

    def sample(self, image_id: str) -> tuple[Tensor, Tensor]:
        raise _Asked

    def maps(self, ids: Sequence[str]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
        raise _Asked

    def signals(self, ids: Sequence[str]) -> dict[str, Floats]:
        raise _Asked
