"""Networks whose answers are made up, and images with masks: what membership attacks are tried on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from segaudit.metrics import roc
from segaudit.privacy.experiment import Experiment, Scored, Shadow
from segaudit.privacy.signals import measure
from segaudit.types import VOID, Floats


@dataclass
class Pictures:
    """Images C x H x W with labels H x W, by id."""

    images: dict[str, Tensor]
    labels: dict[str, Tensor]

    def sample(self, image_id: str) -> tuple[Tensor, Tensor]:
        return self.images[image_id], self.labels[image_id]


class Answers:
    """A network that is asked: its logits by id."""

    def __init__(self, logits: Mapping[str, Tensor], pictures: Pictures) -> None:
        self.logits, self.pictures = logits, pictures
        self.kept: dict[str, dict[str, Floats]] = {}

    def maps(self, ids: Sequence[str]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
        sizes: dict[tuple[int, ...], list[str]] = {}
        for name in ids:
            sizes.setdefault(tuple(self.logits[name].shape), []).append(name)
        for names in sizes.values():
            for row in range(0, len(names), 7):
                yield tuple(names[row : row + 7]), torch.stack([self.logits[name] for name in names[row : row + 7]])

    def signals(self, ids: Sequence[str]) -> Mapping[str, Floats]:
        for name in ids:
            if name not in self.kept:
                self.kept[name] = measure(self.logits[name][None], self.pictures.labels[name][None])
        rows = [self.kept[name] for name in ids]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def scaled(self, factor: float) -> Answers:
        return Answers({name: factor * own for name, own in self.logits.items()}, self.pictures)


class Given:
    """A network of which only signals are known: name -> number, or numbers by class, by id."""

    def __init__(self, **signals: Mapping[str, Any]) -> None:
        self.known = signals

    def maps(self, ids: Sequence[str]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
        raise AssertionError("this attack needs no maps")

    def signals(self, ids: Sequence[str]) -> Mapping[str, Floats]:
        return {name: np.array([own[i] for i in ids], np.float64) for name, own in self.known.items()}


@dataclass
class World:
    """An experiment with who is a member."""

    experiment: Experiment
    members: frozenset[str]

    def auc(self, scored: Scored) -> float:
        inside = np.array([name in self.members for name in self.experiment.candidates])
        return roc.auc(scored.scores[~inside], scored.scores[inside])


SIZES = {"segmentation": (3, 12, 14), "binary": (2, 10, 10), "classifier": (4, 1, 1)}


def world(
    gap: float,
    kind: str = "segmentation",
    *,
    each: int = 30,
    shadows: int = 1,
    references: int = 0,
    population: int = 0,
    seed: int = 0,
    ragged: bool = False,
) -> World:
    """`each` members and as many others; a network is surer of what it was trained on by `gap` in the label's logit.

    How sure it is of an image depends on the image too. The first candidate of each side has no valid pixel. ragged:
    every third image is of another size.
    """
    rng = Generator().manual_seed(seed)
    classes, height, width = SIZES[kind]
    names = {side: tuple(f"{side}{i:02d}" for i in range(each)) for side in ("in", "out", "own", "other")}
    extra = tuple(f"z{i:02d}" for i in range(population))
    everyone = [name for part in names.values() for name in part] + list(extra)
    images, labels, ease = {}, {}, {}
    for i, name in enumerate(everyone):
        size = (height, width) if not ragged or i % 3 or height == 1 else (height + 5, width - 3)
        coarse = torch.randint(classes, (3, 4) if height > 1 else (1, 1), generator=rng)
        labels[name] = F.interpolate(coarse[None, None].float(), size, mode="nearest")[0, 0].long()
        if height > 1:
            labels[name][:2, :3] = VOID
        images[name], ease[name] = torch.rand(3, *size, generator=rng), float(torch.randn((), generator=rng)) / 4
    for name in ("in00", "out00"):
        labels[name] = torch.full_like(labels[name], VOID)
    pictures = Pictures(images, labels)

    def network(trained: Sequence[str]) -> Answers:
        known, found = frozenset(trained), {}
        for name in everyone:
            own = F.one_hot(labels[name].where(labels[name] != VOID, 0), classes).movedim(2, 0).float()
            noise = torch.randn(own.shape, generator=rng) + torch.randn((), generator=rng) / 4 * own
            found[name] = (1.5 + ease[name] + gap * (name in known)) * own + noise
        return Answers(found, pictures)

    candidates = (*names["in"], *names["out"])
    halves: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
    while len(halves) < references:  # in pairs, each the other's complement
        order = [candidates[i] for i in torch.randperm(len(candidates), generator=rng).tolist()]
        halves += [(tuple(order[:each]), tuple(order[each:])), (tuple(order[each:]), tuple(order[:each]))]
    experiment = Experiment(
        samples=pictures,
        num_classes=classes,
        candidates=candidates,
        victim=network(names["in"]),
        shadows=tuple(Shadow(network(names["own"]), names["own"], names["other"]) for _ in range(shadows)),
        references=tuple(Shadow(network(half), half, rest) for half, rest in halves[:references]),
        population=extra,
        units={name: name for name in everyone},
    )
    return World(experiment, frozenset(names["in"]))
