"""What is measured, row by row, and what it is of: all that aggregates, tables and pages are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Seen = TypeVar("Seen")
Size = TypeVar("Size")


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
    scoring: Floats | None = None
    """Of a clean cell, the seconds that the model itself took for each image."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Cell:
    """What one set of records is of, in the words of the tables.

    threat: `none` (clean), `white-box` (no defense), `oblivious`, `adaptive`, `transfer:SOURCE`, or beside the cells of
    a run `EVADING`.
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


EVADING = "evading"
"""The threat of a cell whose attack knew of a detector of attacked images."""


TWICE = " with twice the "
"""Between the attack of a cell and its `steps` or `draws`: of the diagnostics, the same attack with more of them."""


RAISED = " raised to "
"""Likewise where twice the steps were too many: between the attack and how many it has (`200 steps`)."""


@dataclass(frozen=True, slots=True)
class Hiding(Generic[Seen, Size]):
    """Pictures with others hidden in them, for one resizer and what guards it, as one model sees them.

    threat: what the attack knew: `white-box` (there is no guard), `oblivious` (it was made for the resizer alone),
    `adaptive`, or `EVADING` and the detector that it knew of. Against their own labels, clean, source: the pictures
    before and after the attack, resized safely; before, after: the same as the network gets them, through the guard.
    Against the hidden pictures' labels, goal, target: those pictures, and what the network gets. linf, l2: how far that
    is from the hidden picture. change: L2 of the perturbation at full size. similarity: SSIM of before and after at
    full size. changed: the share of the places whose pixel is another.
    """

    model: str
    library: str
    method: str
    guard: str
    threat: str
    clean: Seen
    source: Seen
    before: Seen
    after: Seen
    goal: Seen
    target: Seen
    linf: Size
    l2: Size
    change: Size
    similarity: Size
    changed: Size


@dataclass(frozen=True, slots=True)
class Hidden(Hiding[Counts, Floats]):
    """Picture by picture, N rows. scores: of each detector, on the pictures before and after."""

    ids: tuple[str, ...]
    scores: Mapping[str, tuple[Floats, Floats]]


@dataclass(frozen=True, slots=True)
class Watched:
    """What a detector makes of the images of one cell: N scores, higher = more suspicious, beside their records.

    The threat of the cell is `EVADING` where its attack knew of the detector.
    """

    detector: str
    cell: Cell
    records: Records
    scores: Floats


@dataclass(frozen=True, slots=True)
class Victim:
    """A network whose training images an experiment asks after: what it is worth, and what its defense says of itself.

    defense: against membership inference, `none` without. poison: what its training images were poisoned with, `none`
    without. members, others: pixel counts of the images that it was trained on, and of as many like them. facts:
    numbers by name, such as epsilon, delta, seconds, parameters. triggered: shares by name, of a poisoned victim and of
    the clean one beside it, such as success, benign_accuracy, outside_accuracy.
    """

    model: str
    defense: str
    poison: str
    members: Counts
    others: Counts
    facts: Mapping[str, float]
    triggered: Mapping[str, float]


UNAWARE, AWARE, PLAIN = "oblivious", "adaptive", "none"
"""What the shadows of a membership attack know: nothing of the defense and poison; both, being trained with them; or
there is neither."""


@dataclass(frozen=True, slots=True)
class Inference:
    """What one membership attack says of the images of one victim, N rows.

    threat: `UNAWARE`, `AWARE` or `PLAIN`. member: whether the victim was trained on the image. scores: higher = more
    likely a member. threshold: the attack calls those above it members; None where it only ranks. units: what each
    image is one of, in or out together. target: pixels of each class in the image's mask, N x K. seconds: of the
    attack, without the training of networks. An attack that sees no network (the baseline) has an empty model.
    """

    model: str
    defense: str
    poison: str
    threat: str
    attack: str
    ids: tuple[str, ...]
    member: NDArray[np.bool_]
    scores: Floats
    threshold: float | None
    units: tuple[str, ...]
    target: Ints
    seconds: float


@dataclass(frozen=True, slots=True)
class Privacy:
    """A membership experiment, read back from its store.

    split: numbers and words about the images: `unit` (`image`, `group`, `order`), `members`, `others`,
    `shadow_members`, `population`, `shadows`, `references`.
    """

    victims: Sequence[Victim]
    inferences: Sequence[Inference]
    split: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Picture:
    """One image of one cell, kept to be shown and to be scored by another model.

    delta: C x H x W float16; the image that was judged is the clean one plus exactly this.
    prediction: H x W uint8, the model's classes on it. Of a defense that purifies images, purified: H x W x C uint8,
    what the model was given of it; bare: H x W uint8, the classes of the model without the defense.
    """

    id: str
    delta: NDArray[np.float16]
    prediction: NDArray[np.uint8]
    purified: NDArray[np.uint8] | None = None
    bare: NDArray[np.uint8] | None = None


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
    parameters: Mapping[str, int] = field(default_factory=dict)
    """Of the networks that each defense brings with it, by its name."""
    detection: Sequence[Watched] = ()
    """What detectors make of each model's clean and attacked images, in the order of the plan."""
    privacy: Privacy | None = None
    """What the networks of a membership experiment give away."""
