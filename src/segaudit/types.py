"""The types that every room shares. This file imports nothing of ours."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
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

Membership = Callable[..., Sequence[float]]
"""`(experiment, **own)` -> one score an image, higher = more likely a member."""


Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Counts:
    """Pixels by image and class, N x K each; void pixels are in none of them."""

    intersection: Ints
    """Pixels of the class that are predicted as the class."""
    union: Ints
    """Pixels of the class, or predicted as it."""
    target: Ints
    """Pixels of the class."""


@dataclass(frozen=True, slots=True)
class Norms:
    """The size of each image's perturbation, N each, for images in [0, 1]."""

    linf: Floats
    l2: Floats
    l0: Ints
    """Pixels (places, not values) that differ."""


@dataclass(frozen=True, slots=True)
class Records:
    """One row an image of one cell: what all aggregates are made from.

    `rounded` and `norms_rounded` are of the same images after rounding to 8 bits. `goal` counts against the masks
    that a targeted attack was to reach (None: untargeted). `places`: pixels in the image, void or not. `loss`: mean
    cross-entropy over the valid pixels, nan without one. `forwards`, `backwards`: passes an image.
    """

    ids: tuple[str, ...]
    counts: Counts
    rounded: Counts
    norms: Norms
    norms_rounded: Norms
    goal: Counts | None
    places: Ints
    loss: Floats
    forwards: Floats
    backwards: Floats
    seconds: Floats
    choice: Ints | None = None
    """Of a worst case over several attacks: which of them each row is of."""
    redrawn: Counts | None = None
    """Of a random model scored several times: the counts of every draw, N x draws x K; `counts` is the first."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Cell:
    """What one set of records is of, in the words of the tables.

    threat: `none` (clean), `white-box` (no defense), `oblivious`, `adaptive`, or `transfer:SOURCE`.
    attack: `none` is clean. eps: in [0, 1]; 0 when clean; None for an attack that finds its own norm.
    """

    model: str
    defense: str
    threat: str
    attack: str
    norm: str
    eps: float | None


@dataclass(frozen=True, slots=True)
class Smoothed:
    """What one set of votes is of: a model that is asked about images in Gaussian noise.

    denoiser: the defense between noise and model. sigma: on images in [0, 1]. n0, n: draws an image, those that
    choose a class for each pixel and those that vote on it.
    """

    model: str
    denoiser: str
    sigma: float
    n0: int
    n: int


@dataclass(frozen=True, slots=True)
class Votes:
    """How noisy copies of images voted, all that certificates of any tau, alpha and correction are made from.

    pixels: of each image a table M x 4 of label, class that the first n0 draws chose, how many of the n others voted
    for it, and how many pixels that is so of. Void pixels are in none.
    """

    ids: tuple[str, ...]
    pixels: tuple[Ints, ...]
    seconds: Floats


TWICE = " with twice the "
"""Between the attack of a cell and its `steps` or `draws`: of the diagnostics, the same attack with more of them."""


@dataclass(frozen=True, slots=True)
class Hidden:
    """Pictures with others hidden in them, for one resizer and what guards it, as one model sees them: N rows.

    threat: what the attack knew: `white-box` (there is no guard), `oblivious` (it was made for the resizer alone) or
    `adaptive`. Against their own labels, clean, source: the pictures before and after the attack, resized safely;
    before, after: the same as the network gets them, through the guard. Against the hidden pictures' labels, goal,
    target: those pictures, and what the network gets. linf, l2: how far that is from the hidden picture. change: L2
    of the perturbation at full size. similarity: SSIM of before and after at full size. changed: the share of the
    places whose pixel is another. scores: of each detector, on the pictures before and after.
    """

    model: str
    library: str
    method: str
    guard: str
    threat: str
    ids: tuple[str, ...]
    clean: Counts
    source: Counts
    before: Counts
    after: Counts
    goal: Counts
    target: Counts
    linf: Floats
    l2: Floats
    change: Floats
    similarity: Floats
    changed: Floats
    scores: Mapping[str, tuple[Floats, Floats]]


@dataclass(frozen=True, slots=True)
class Picture:
    """One image of one cell, kept to be shown and to be scored by another model.

    delta: C x H x W float16; the image that was judged is the clean one plus exactly this.
    prediction: H x W uint8, the model's classes on it.
    """

    id: str
    delta: NDArray[np.float16]
    prediction: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Scene:
    """A clean image that the report shows: image H x W x C uint8, truth H x W uint8 with `VOID`."""

    id: str
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Results:
    """A whole run, read back from its store: all that the report sees."""

    name: str
    spec: Mapping[str, Any]
    log: Mapping[str, Any]
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    cells: Sequence[tuple[Cell, Records]]
    """In the order of the plan; a clean cell (attack `none`) of every model and defense among them."""
    scenes: Sequence[Scene]
    pictures: Mapping[Cell, Sequence[Picture]]
    """The kept pictures of some cells, of the images in `scenes`; clean cells have a zero delta."""
    lacking: int = 0
    """Parts of the plan that are not computed yet."""
    diagnostics: Sequence[tuple[Cell, Records]] = ()
    """Cells on a few of the images, which the masking diagnostics alone see, beside the others on the same images."""
    votes: Sequence[tuple[Smoothed, Votes]] = ()
    """What certificates are made from, in the order of the plan."""
    scaling: Sequence[Hidden] = ()
    """Image scaling attacks on each model, in the order of the plan."""
