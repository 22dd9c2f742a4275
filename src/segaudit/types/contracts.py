"""What the rooms hand each other: images with their truth, models, random streams, and the shapes of each part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

VOID = 255
"""The label of a pixel that has no truth: it is never scored and never attacked."""


NEVER = -1e4
"""The logit of a class that a network has no output for: it is never predicted, and nothing can be led to it."""


class UserError(Exception):
    """What a person can mend: one line that names the thing and says what to change. Exit status 2."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Images with their truth.

    images: N x C x H x W, float, in [0, 1]. labels: N x H x W int64, `VOID` where there is no truth; N x 1 x 1 for
    a classifier. ids: one stable string an image; plan, random streams, membership and store all key on it.
    """

    images: Tensor
    labels: Tensor
    ids: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or not self.images.is_floating_point():
            raise ValueError(f"images must be float N x C x H x W, not {self.images.dtype} {tuple(self.images.shape)}")
        if self.labels.ndim != 3 or self.labels.dtype != torch.int64:
            raise ValueError(f"labels must be int64 N x H x W, not {self.labels.dtype} {tuple(self.labels.shape)}")
        if not len(self.images) == len(self.labels) == len(self.ids):
            raise ValueError(f"{len(self.images)} images, {len(self.labels)} labels and {len(self.ids)} ids")
        if self.labels.shape[1:] not in (self.images.shape[2:], (1, 1)):
            raise ValueError(f"labels {tuple(self.labels.shape)} do not fit images {tuple(self.images.shape)}")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> Batch:
        return Batch(self.images[part], self.labels[part], self.ids[part])

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(self.images.to(device), self.labels.to(device), self.ids)


class Segmenter(nn.Module, ABC):
    """Images N x C x H x W in [0, 1] -> logits N x K x H x W at the label's resolution (N x K x 1 x 1: a classifier).

    Normalisation, colour order, padding, upsampling and class maps live inside, so every gradient goes through them.
    """

    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self.class_names)

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Logits N x K x H x W of images in [0, 1]."""


class Streams(Protocol):
    """One random stream an image; see `segaudit.rng`."""

    def __len__(self) -> int:
        """N, the number of images."""

    def uniform(self, like: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform numbers of the shape of `like` (N x ...), row i from the stream of image i."""

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers of the shape of `like` (N x ...), row i from the stream of image i."""

    def integers(self, high: int) -> Tensor:
        """N whole numbers in [0, high), one an image."""

    def child(self, purpose: str) -> Streams:
        """Fresh streams of the same images for another purpose."""

    def __getitem__(self, rows: Tensor) -> Streams:
        """The streams of the chosen images, which go on from where they are."""


class Attack(Protocol):
    """`(model, images, labels, *, rng, **own) -> adversarial images` of the same shape, in [0, 1].

    `own` uses the same names everywhere: eps, steps, step_size, restarts, norm, targeted. With `targeted`, labels
    are the masks to reach. Pixels labelled `VOID` carry no loss. The caller judges what comes back.
    """

    def __call__(self, model: Segmenter, images: Tensor, labels: Tensor, *, rng: Streams, **own: Any) -> Tensor:
        """Adversarial images."""


Target = Callable[..., Tensor]
"""`(model, images, labels, *, ids, look_up, **own) -> labels` N x H x W int64 that a targeted attack is to reach.

It sees a whole shard; `look_up(id)` gives the labels H x W of any image of the data set."""

Defense = Callable[..., Segmenter]
"""`(model, **own) -> Segmenter`: what is attacked and scored is the wrapped model.

One that draws anew in each pass has a true `random`, takes its numbers from `segaudit.rng.streams_of`, and may have an
`eot`: the number of draws that an attack takes the mean of."""

Membership = Callable[..., Any]
"""`(experiment, *, rng, **own) -> privacy.experiment.Scored`: one score an image, higher = more likely a member.

rng: a torch.Generator. One that sees no network but who is a member (`baseline` is true) is the check of the split."""

MembershipDefense = Callable[..., Segmenter]
"""`(trainer, **own) -> Segmenter`: the victim, trained on `trainer.members` (`privacy.experiment.Trainer`)."""
