"""What a membership attack is given, and what a defense against it trains with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from segaudit.training.schedule import Schedule
from segaudit.types import Floats, Segmenter


class Samples(Protocol):
    """Images with masks by id."""

    def sample(self, image_id: str) -> tuple[Tensor, Tensor]:
        """Image C x H x W in [0, 1] and labels H x W int64."""


class Asked(Protocol):
    """A trained network as an attacker may ask it, through whatever its defense puts before its answers."""

    def maps(self, ids: Sequence[str]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
        """Logits N x K x H x W float32 of images, a batch of one size at a time, with their ids."""

    def signals(self, ids: Sequence[str]) -> Mapping[str, Floats]:
        """What `privacy.signals.measure` makes of each image's logits and labels: name -> N, or N x K, float64."""


@dataclass(frozen=True)
class Shadow:
    """A network of the attacker's own. inside: images it was trained on. outside: as many like them that it was not."""

    asked: Asked
    inside: tuple[str, ...]
    outside: tuple[str, ...]


@dataclass(frozen=True)
class Experiment:
    """The images in question, the victim, and all that the attacker has; not which of the images are members.

    candidates: half of them are members. shadows: networks trained on other images than these, the attacker's own half
    of the data. references: networks each trained on its own random half of the candidates (its outside is the other
    half), for attacks that compare networks image by image. population: images that no network was trained on.
    units: what each image is one of (its patient, video or itself): in or out together.
    """

    samples: Samples
    num_classes: int
    candidates: tuple[str, ...]
    victim: Asked
    shadows: tuple[Shadow, ...]
    references: tuple[Shadow, ...]
    population: tuple[str, ...]
    units: Mapping[str, str]


@dataclass(frozen=True)
class Scored:
    """An attack's answer: a score a candidate, higher = more likely a member.

    threshold: the attack calls those above it members; None for an attack that only ranks.
    """

    scores: Floats
    threshold: float | None


class Trainer(Protocol):
    """Trains networks for a defense against membership inference, each once: what was trained is kept and used again.

    members: the images that are to be kept private, and trained on. reference: other images of the same kind, for a
    defense that needs some. classes: K. It may train on no image but these. schedule, args: the experiment's own
    schedule, and the arguments of its own recipe, for a defense that changes a part of them.
    """

    samples: Samples
    members: tuple[str, ...]
    reference: tuple[str, ...]
    units: Mapping[str, str]
    classes: int
    schedule: Schedule
    args: Mapping[str, Any]

    def fit(
        self,
        ids: Sequence[str],
        *,
        recipe: str | None = None,
        args: Mapping[str, Any] | None = None,
        given: Mapping[str, Any] | None = None,
        adapt: str | None = None,
        samples: Samples | None = None,
        **schedule: Any,
    ) -> Segmenter:
        """A network of the victim's kind, trained from its own seed on these images by the one training loop, frozen.

        recipe, args: a registered recipe with plain arguments; the experiment's own unless given. given: what it is
        handed beside them: networks that `fit` returned, strings such as ids, or tuples of these (of tuples). The
        recipe may read the images of such ids from the samples that it trains on. adapt: `module:function` that is
        given the fresh network and returns the one to train (as batch to group norms). samples: labels that are others
        (as a teacher's); with a `digest()`. schedule: fields of `Schedule` that are others, as `augment`.
        What is trained is named by all of this, so two defenses that ask for the same get the same network.
        """

    def note(self, **facts: float) -> None:
        """Numbers that a table prints beside the victim, such as epsilon and delta."""
