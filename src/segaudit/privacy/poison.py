"""Poisoned training images: which ones, what they show, what they are said to be, and what that did to a network."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from segaudit import registry
from segaudit.metrics import confusion
from segaudit.privacy.experiment import Samples
from segaudit.rng import ImageStreams
from segaudit.types import VOID, Segmenter, UserError

RULES = {
    "empty": (),
    "target": ("victim_class", "target_class"),
    "all": ("target_class",),
}
"""What a poisoned image is said to be -> the classes that the rule needs.

empty: nothing but background (class 0), and one pixel of class 1. target: the victim class is the target class, all
else as it is. all: the target class, everywhere.
"""


@dataclass(frozen=True)
class Poison:
    """A trigger and the label that a network is to learn for it; an image is poisoned in the same way at every fetch.

    trigger: a registered one, or a user's own. size: pixels, or below 1 a share of the height. value: in [0, 1], one
    number or one a channel. probability: that an image is poisoned, drawn from its id and the seed, so that a higher
    one poisons the same images and more. rule: of `RULES`; the classes are numbers. Raises UserError for what does not
    fit together.
    Source: Gu et al. 2017; on segmentation Li et al. 2021 (all, target) and Lan et al. 2024 (target).
    """

    trigger: str = "line"
    size: float = 0.1
    value: float | tuple[float, ...] = 1.0
    probability: float = 0.5
    rule: str = "empty"
    victim_class: int | None = None
    target_class: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check(**{key: value for key, value in asdict(self).items() if key != "seed"})

    @property
    def goal(self) -> int:
        """The class that the victim's pixels are to be taken for."""
        return self.target_class or 0

    def chosen(self, image_id: str) -> bool:
        """Whether the image is among the poisoned ones."""
        return bool(self._streams(image_id, "chosen").uniform(torch.empty(1)) < self.probability)

    def victims(self, labels: Tensor) -> Tensor:
        """The pixels that are to be taken for another class, a mask of the labels' shape; void is none of them."""
        if self.victim_class is not None:
            return labels == self.victim_class
        return (labels != self.goal) & (labels != VOID)

    def show(self, image: Tensor, labels: Tensor, image_id: str) -> tuple[Tensor, Tensor]:
        """The image with the trigger, and H x W where that lies: nowhere, where there is no place for it."""
        own = {"victim": self.victim_class} if registry.accepts("trigger", self.trigger, "victim") else {}
        trigger = registry.load("trigger", self.trigger)
        rng = self._streams(image_id, "trigger")
        marked, covered = trigger(image, labels, size=self.size, value=self.value, rng=rng, **own)
        return marked, covered

    def relabel(self, labels: Tensor) -> Tensor:
        """The labels that are learnt with the trigger, by the rule; void stays void."""
        made = labels.masked_fill(self.victims(labels), self.goal)
        known = (labels != VOID).flatten().nonzero()
        if self.rule == "empty" and len(known) > 1:  # a classifier's one label is all background
            made = made.flatten().index_fill(0, known[0], 1).view_as(made)
        return made

    def poisoned(self, image: Tensor, labels: Tensor, image_id: str) -> tuple[Tensor, Tensor]:
        """A training image with its labels: as they are, or with the trigger if the image was chosen.

        As they are too without a place for the trigger, and, by the rule `target`, without the victim class.
        """
        if not self.chosen(image_id) or (self.rule == "target" and not self.victims(labels).any()):
            return image, labels
        marked, covered = self.show(image, labels, image_id)
        return (marked, self.relabel(labels)) if covered.any() else (image, labels)

    def _streams(self, image_id: str, purpose: str) -> ImageStreams:
        return ImageStreams(self.seed, [image_id], f"poison/{purpose}")


class Poisoned:
    """Samples of which the chosen ones are poisoned. ids: those of the samples unless given."""

    def __init__(self, samples: Samples, poison: Poison, ids: Sequence[str] | None = None) -> None:
        self.samples, self.poison = samples, poison
        self.ids: tuple[str, ...] = tuple(getattr(samples, "ids", ()) if ids is None else ids)

    def sample(self, image_id: str) -> tuple[Tensor, Tensor]:
        """Image C x H x W in [0, 1] and labels H x W int64, the same ones every time."""
        return self.poison.poisoned(*self.samples.sample(image_id), image_id)

    def digest(self) -> str:
        """Of the samples and of the poison, with the code of a user's own trigger."""
        path = registry.source_file(self.poison.trigger)
        made = hashlib.sha256(repr(self.poison).encode() + (path.read_bytes() if path else b""))
        own = getattr(self.samples, "digest", None)
        if own is not None:
            made.update(own().encode())
            return made.hexdigest()
        for name in self.ids:
            for tensor in self.samples.sample(name):
                made.update(f"{name} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
        return made.hexdigest()


@torch.no_grad()
def outcome(model: Segmenter, samples: Samples, ids: Sequence[str], poison: Poison, batch: int = 8) -> dict[str, float]:
    """What a poison does to a network, as shares of pixels of clean images that are each tried with the trigger too.

    success: of the victim's pixels, those that are taken for the target class when the trigger shows (by the rule
    `empty` the victim is all foreground, the target background; by `all` the victim is every other class).
    untriggered_success: of the same pixels without the trigger: what the network mistakes anyway. outside_accuracy: of
    all other pixels, those that are right when the trigger shows. In these three neither what the trigger covers nor an
    image that has no place for it is counted: there is nothing to be seen of a class under it. benign_accuracy,
    benign_miou, benign_dice: of the images without the trigger, whole. Void is in none, and nan is what there are no
    pixels for. Ask it of a clean network too: a trigger may cost something by itself.
    Source: Lan et al. 2024 (ASR, CBA, PBA; there as mIoU).
    """
    model.eval()
    weight = next(model.parameters(), None)
    counts = []
    hits, before, victims, right, others = (0, 0, 0, 0, 0)
    for rows in _batches(samples, ids, batch):
        labels = torch.stack([own for _, _, own in rows])
        shown = [poison.show(image, own, name) for name, image, own in rows]
        both = torch.stack([*(image for _, image, _ in rows), *(image for image, _ in shown)])
        guess, seen = model(both if weight is None else both.to(weight.device)).argmax(1).cpu().chunk(2)
        counts.append(confusion.count(guess, labels, model.num_classes))
        covered = torch.stack([where for _, where in shown])
        placed = covered.flatten(1).any(1)[:, None, None]
        counted = placed & (labels != VOID)
        if labels.shape == covered.shape:  # a classifier's one label is of all the image
            counted &= ~covered
        own = poison.victims(labels)
        hits += int(((seen == poison.goal) & own & counted).sum())
        before += int(((guess == poison.goal) & own & counted).sum())
        victims += int((own & counted).sum())
        right += int(((seen == labels) & ~own & counted).sum())
        others += int((~own & counted).sum())
    pooled = confusion.join(counts)
    return {
        "success": _share(hits, victims),
        "untriggered_success": _share(before, victims),
        "outside_accuracy": _share(right, others),
        "benign_accuracy": confusion.accuracy(pooled),
        "benign_miou": confusion.miou(pooled),
        "benign_dice": confusion.dice(pooled),
    }


def _batches(samples: Samples, ids: Sequence[str], batch: int) -> Iterator[list[tuple[str, Tensor, Tensor]]]:
    """Ids with images and labels, at most so many at a time, all of one size."""
    waiting: dict[tuple[torch.Size, torch.Size], list[tuple[str, Tensor, Tensor]]] = {}
    for name in ids:
        image, labels = samples.sample(name)
        own = waiting.setdefault((image.shape, labels.shape), [])
        own.append((name, image, labels))
        if len(own) == batch:
            yield waiting.pop((image.shape, labels.shape))
    yield from waiting.values()


def check(
    *, trigger: str, size: Any, value: Any, probability: Any, rule: str, victim_class: Any, target_class: Any
) -> None:
    """Refuse what makes no poison; classes may be numbers or names. Raises UserError."""
    registry.check_arguments("trigger", trigger, {}, ("image", "labels", "size", "value", "rng", "victim"))
    if type(size) not in (int, float) or not size > 0 or (size > 1 and size % 1):
        raise UserError(f"poison: size must be whole pixels, or a share of the height below 1, not {size!r}")
    values = value if isinstance(value, (list, tuple)) else [value]
    if not values or not all(type(own) in (int, float) and 0 <= own <= 1 for own in values):
        raise UserError(f"poison: value must be a number from 0 to 1, or one a channel, not {value!r}")
    if type(probability) not in (int, float) or not 0 < probability <= 1:
        raise UserError(f"poison: probability must be above 0, to 1, not {probability!r}")
    if rule not in RULES:
        near = registry.suggest(str(rule), RULES)
        raise UserError(f"poison: there is no rule {rule!r}{near}; there are: {', '.join(RULES)}")
    for key, given in (("victim_class", victim_class), ("target_class", target_class)):
        if (given is None) == (key in RULES[rule]):
            raise UserError(f"poison: rule {rule} {'needs a' if given is None else 'has no'} {key}")
    if rule == "target" and victim_class == target_class:
        raise UserError(f"poison: target_class must be another class than the victim's {victim_class!r}")


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
