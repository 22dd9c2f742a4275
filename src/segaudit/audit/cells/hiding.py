"""One picture hidden in another: the attack on it, what guards and detectors make of it, and how it is measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segaudit import registry
from segaudit.attacks._resize import Resize, Size
from segaudit.attacks.image_scaling import Resizer
from segaudit.audit.parts import Tuned
from segaudit.data.base import Dataset
from segaudit.metrics.perturbation import norms
from segaudit.metrics.similarity import ssim
from segaudit.nn.precision import default_device
from segaudit.rng import ImageStreams
from segaudit.types import Segmenter, UserError

Picture = NDArray[np.uint8]

SAFE = Resizer("pil", "area")
"""Weighs every pixel alike, so it shows a picture as it looks at full size."""


@dataclass(frozen=True, slots=True)
class Attacked:
    """One attacked picture. Norms are of images in [0, 1].

    picture: H x W x C. small: h x w x C in [0, 1], what the network gets of it. linf, l2: how far that is from the
    target. change: L2 of the perturbation at full size. similarity: SSIM with the source at full size. changed: the
    share of the places whose pixel is another.
    """

    picture: Picture
    small: NDArray[np.float64]
    linf: float
    l2: float
    change: float
    similarity: float
    changed: float


def attack_pair(
    source: Picture, target: Picture, resizer: Resize, *, attack: str = "image_scaling", eps: float = 2 / 255
) -> Attacked:
    """Hide `target` (h x w x C) in `source` (H x W x C), and measure it with the library's own resize of 8 bits."""
    return measured(source, target, craft(source, target, resizer, attack, eps), resizer)


def craft(source: Picture, target: Picture, resizer: Resize, attack: str, eps: float) -> Picture:
    """The picture of a scaling attack by name."""
    own = {"eps": eps} if registry.accepts("scaling", attack, "eps") else {}
    made: Picture = registry.load("scaling", attack)(source, target, resizer, **own)
    return made


def measured(source: Picture, target: Picture, picture: Picture, seen: Resize) -> Attacked:
    """How a picture with `target` hidden in `source` comes out; seen: all that stands before the network."""
    small = seen(picture, (target.shape[0], target.shape[1]))
    wanted, before, after = _tensor(target / 255), _tensor(source / 255), _tensor(picture / 255)
    near, change = norms(_tensor(small), wanted), norms(after, before)
    return Attacked(
        picture=picture,
        small=small,
        linf=float(near.linf[0]),
        l2=float(near.l2[0]),
        change=float(change.l2[0]),
        similarity=float(ssim(after, before)[0]),
        changed=float(change.l0[0]) / before[0, 0].numel(),
    )


def guarded(guard: Tuned, resizer: Resizer, image_id: str, seed: int, whose: str = "guard") -> Resize:
    """The resizer behind a guard, for one picture: what it draws, if it does, comes from the start of its stream.

    whose: streams of other names are others, so that an attack cannot know what will be drawn.
    """
    own = dict(guard.args)
    if registry.accepts("guard", guard.name, "rng"):
        purpose = f"scaling/{whose}/{resizer.library}/{resizer.method}/{guard.label()}"
        own["rng"] = ImageStreams(seed, [image_id], purpose)
    made: Resize = registry.load("guard", guard.name)(resizer, **own)
    return made


def paired(data: Dataset) -> None:
    """Refuse a data set of a single picture."""
    if len(data.ids) < 2:
        raise UserError(f"data: {data.ids[0]} is alone; each picture is to hide the next one, so use two or more")


def large(data: Dataset, image_id: str, small: Size, factor: float | None) -> Picture:
    """The picture that is attacked, at its own size or at `factor` times that of the small ones.

    Raises UserError for a factor that cannot be, and where the picture is not larger than the small ones.
    """
    picture = np.array(data.read(image_id)[0])  # a copy: what a library reads from a file may be sealed
    if factor is not None:
        if not 1 < factor <= 64:
            raise UserError(f"factor must be a number above 1 and at most 64, not {factor!r}")
        picture = Resizer("pil", "bicubic").raw(picture, (round(small[0] * factor), round(small[1] * factor)))
    if picture.shape[0] < small[0] or picture.shape[1] < small[1] or picture.shape[:2] == small:
        sizes = " x ".join(str(side) for side in picture.shape[:2]), " x ".join(str(side) for side in small)
        raise UserError(
            f"{data.where(image_id)}: the picture ({sizes[0]}) is not larger than what a model sees ({sizes[1]}): give "
            "data a smaller `size`, or the attack a factor of 4"
        )
    return picture


def picture_of(image: Tensor) -> Picture:
    """An image C x H x W in [0, 1] as a picture of 8 bits."""
    return (image * 255).round().byte().permute(1, 2, 0).numpy()


@torch.no_grad()
def guess(model: Segmenter, small: NDArray[np.float64]) -> Tensor:
    """The classes 1 x H x W that a model sees in a picture h x w x C in [0, 1]."""
    logits: Tensor = model(_tensor(small).to(default_device()))
    return logits.argmax(1).cpu()


def score(detector: Tuned, picture: Picture, resizer: Resizer, size: Size) -> float:
    """What a detector makes of a picture. Raises UserError where that is no number."""
    found = float(registry.load("scaling_detector", detector.name)([picture], resizer, size, **detector.args)[0])
    if math.isnan(found):
        raise UserError(f"scaling_detector {detector.label()!r} scores a picture nan; let it be a number")
    return found


def _tensor(picture: NDArray[np.float64]) -> Tensor:
    """H x W x C in [0, 1] -> 1 x C x H x W float32."""
    return torch.from_numpy(picture.transpose(2, 0, 1).copy())[None].float()
