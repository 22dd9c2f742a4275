"""Images of a data set by their ids: as they are, or some of them poisoned; and what decides them, as a digest."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from segaudit.audit.keys import digest
from segaudit.audit.membership.poison_spec import PoisonSpec
from segaudit.data.base import Dataset
from segaudit.privacy.experiment import Samples
from segaudit.privacy.poison import Poison, Poisoned


def subset(data: Dataset, ids: Sequence[str]) -> Dataset:
    """The same data set with these images alone, in this order."""
    view = copy.copy(data)
    view.ids = tuple(ids)
    return view


class Chosen:
    """Samples with ids, as the training loop takes them."""

    def __init__(self, samples: Samples, ids: Sequence[str]) -> None:
        self.samples, self.ids = samples, tuple(ids)

    def sample(self, image_id: str) -> tuple[Tensor, Tensor]:
        """Image C x H x W in [0, 1] and labels H x W."""
        return self.samples.sample(image_id)

    def digest(self) -> str:
        """Of all that is in these images and labels."""
        if isinstance(self.samples, Tainted):
            return self.samples.digest_of(self.ids)
        if isinstance(self.samples, Dataset):
            return subset(self.samples, self.ids).digest()
        own = getattr(self.samples, "digest", None)
        if own is not None:
            return digest([own(), list(self.ids)])
        made = hashlib.sha256()
        for name in self.ids:
            for tensor in self.sample(name):
                made.update(f"{name} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
        return made.hexdigest()


class Remembered:
    """The same images, each read once as long as there is room: every network of an experiment is asked about all."""

    def __init__(self, samples: Samples, room: int = 2**29) -> None:
        self._samples, self._room = samples, room
        self._kept: dict[str, tuple[Tensor, Tensor]] = {}

    def sample(self, image_id: str) -> tuple[Tensor, Tensor]:
        """Image C x H x W float32 in [0, 1] and labels H x W int64."""
        if image_id not in self._kept:
            image, labels = self._samples.sample(image_id)
            whole = (image * 255).round().byte()
            small = (whole if torch.equal(whole.float() / 255, image) else image), labels.byte()
            self._room -= sum(part.nbytes for part in small)
            if self._room < 0:
                return image, labels
            self._kept[image_id] = small
        image, labels = self._kept[image_id]
        return image if image.is_floating_point() else image.float() / 255, labels.long()


class Tainted:
    """A data set of which a network's own training images, and no others, are poisoned."""

    def __init__(self, data: Dataset, poison: Poison, members: Sequence[str]) -> None:
        self.data, self.poison, self.members = data, Poisoned(data, poison), frozenset(members)

    def sample(self, image_id: str) -> tuple[Tensor, Tensor]:
        """Image C x H x W in [0, 1] and labels H x W int64, the same ones every time."""
        return (self.poison if image_id in self.members else self.data).sample(image_id)

    def digest_of(self, ids: Sequence[str]) -> str:
        """Of these images, with how those of them are poisoned that may be."""
        poisoned = [name for name in ids if name in self.members]
        clean = [name for name in ids if name not in self.members]
        parts = [Poisoned(subset(self.data, poisoned), self.poison.poison).digest() if poisoned else ""]
        return digest([*parts, subset(self.data, clean).digest() if clean else "", list(ids)])


def training_images(data: Dataset, asked: PoisonSpec, members: Sequence[str], seed: int) -> Dataset | Tainted:
    """The data set as a network gets it that is trained on these members."""
    poison = asked.build(data.class_names, seed)
    return data if poison is None else Tainted(data, poison, members)
