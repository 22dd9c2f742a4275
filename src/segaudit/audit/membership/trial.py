"""What is wrong with a poison or a defense before anything is trained: each is tried as far as that goes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from torch import Tensor

from segaudit import registry
from segaudit.audit.membership.given import Taken
from segaudit.audit.membership.networks import Net, Study
from segaudit.audit.membership.spec import NONE
from segaudit.audit.membership.split import VICTIM, seed_of
from segaudit.audit.membership.trainer import NetTrainer
from segaudit.audit.store import Store
from segaudit.data.base import Dataset
from segaudit.types import Segmenter

MOST = 2
"""Images that are read for it."""


def attempt(study: Study, victims: Iterable[Net], data: Dataset) -> None:
    """Put each victim's trigger into an image, and ask its defense for it until that has a network trained.

    One that the store has is not tried: it was made once. Raises UserError for a class, a size or a number of values
    that does not fit the images, and what a defense says that lacks something, or that would have a network trained in
    a way that there is not.
    """
    split, few, store = study.split, _Few(data), Store(study.store)
    members, seed = split.inside[VICTIM], seed_of(study.seed, VICTIM)
    kind: type[NetTrainer] = _Taken if split.given else _Trainer
    for net in victims:
        if store.has(f"networks/{net.key}.json"):
            continue
        told = net.poison.build(data.class_names, study.seed)
        if told is not None:
            told.show(*few.sample(members[0]), members[0])
        if net.defense != NONE:
            trainer = kind(
                store, net.model, data.class_names, study.training, seed, few, members, split.reference, split.units
            )
            with contextlib.suppress(_Tried):
                registry.load("membership_defense", net.defense.name)(trainer, **net.defense.args)


class _Tried(Exception):
    """A defense has come so far that it costs something."""


class _Few:
    """The images, of which any beyond the first few end the trial."""

    def __init__(self, data: Dataset) -> None:
        self.data, self.read = data, dict[str, tuple[Tensor, Tensor]]()

    def sample(self, image_id: str) -> tuple[Tensor, Tensor]:
        if image_id not in self.read:
            if len(self.read) == MOST:
                raise _Tried
            self.read[image_id] = self.data.sample(image_id)
        return self.read[image_id]


class _Untrained:
    """What is asked for is checked, and ends where there would be a network."""

    def _fresh(self, adapt: str | None, seed: int) -> Segmenter:
        if adapt is not None:
            registry.load("membership_defense", adapt)
        raise _Tried


class _Trainer(_Untrained, NetTrainer):
    pass


class _Taken(_Untrained, Taken):
    pass
