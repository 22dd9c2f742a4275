"""Transformations that are drawn anew for every image and in every pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segaudit.defenses._check import choice, real, whole
from segaudit.defenses.multiscale import resized
from segaudit.nn.jpeg import jpeg
from segaudit.nn.straight import GRADIENTS, through
from segaudit.nn.windows import gaussian_blur
from segaudit.rng import streams_of
from segaudit.types import Segmenter, UserError

Range = Sequence[float] | None
"""From and to, both included; None: not at all."""


def random_transforms(
    model: Segmenter,
    *,
    scales: Range = (0.8, 1.0),
    blur: Range = (0.0, 1.0),
    noise: Range = (0.0, 0.02),
    quality: Range = (60, 95),
    bits: Range = (5, 8),
    gradient: str = "straight_through",
    eot: int = 10,
) -> Segmenter:
    """Random transforms: resize and pad, blur, noise, JPEG and bit depth, drawn for each image in each pass.

    scales: factor on height and width; the rest is black, at a random place. blur: standard deviation in pixels.
    noise: of Gaussian noise on values in [0, 1]. quality: of JPEG. bits: a channel. null leaves one out. gradient: of
    rounding and clipping, straight_through or exact. A map's logits are cut out and resized back.
    eot: draws that an attack takes the mean gradient of; with 1 it does not know what it is up against.
    Source: Xie et al. 2018 (resize and pad); Guo et al. 2018, Xu et al. 2018; on maps Arnab et al. 2018.
    """
    own = "random_transforms"
    ranges = {
        "scales": _range("scales", scales, above=0.0),
        "blur": _range("blur", blur, least=0.0),
        "noise": _range("noise", noise, least=0.0),
        "quality": _wholes("quality", quality, 1, 100),
        "bits": _wholes("bits", bits, 1, 16),
    }
    if not any(ranges.values()):
        raise UserError(f"defense {own!r}: all transforms are null; use none")
    exact = choice(own, "gradient", gradient, GRADIENTS) == "exact"
    return RandomTransforms(model, ranges, exact, whole(own, "eot", eot, 1))


class RandomTransforms(Segmenter):
    """A model that sees each image through transforms of its own; what they are is drawn from `segaudit.rng`."""

    random = True

    def __init__(self, model: Segmenter, ranges: dict[str, tuple[float, float] | None], exact: bool, eot: int) -> None:
        super().__init__()
        self.model, self.ranges, self.exact, self.eot = model, ranges, exact, eot
        self.class_names = model.class_names

    def forward(self, images: Tensor) -> Tensor:
        """Logits N x K x H x W at the images' own size."""
        streams = streams_of(images)
        # As many numbers whatever is left out: in the first pass one transform decides nothing about another.
        drawn = streams.uniform(torch.empty(len(images), 7)).double().unbind(1)
        with torch.autocast(images.device.type, enabled=False):
            seen, places = self._moved(images, *drawn[:3])
            if self.ranges["blur"]:
                largest = self.ranges["blur"][1]
                seen = gaussian_blur(seen, self._between("blur", drawn[3]).clamp_max(largest), largest)
            if self.ranges["noise"]:
                size = self._between("noise", drawn[4]).to(seen).view(-1, 1, 1, 1)
                seen = seen + size * streams.normal(seen.detach())
                seen = self._stepped(seen, seen.clamp(0, 1))
            if self.ranges["quality"]:
                seen = jpeg(seen, self._between("quality", drawn[5]), exact=self.exact)
            if self.ranges["bits"]:
                levels = (2 ** self._between("bits", drawn[6]) - 1).to(seen).view(-1, 1, 1, 1)
                seen = self._stepped(seen, (seen * levels).round() / levels)
        logits: Tensor = self.model(seen)
        return logits if logits.shape[2:] == (1, 1) else self._back(logits, places, list(images.shape[2:]))

    def _stepped(self, seen: Tensor, made: Tensor) -> Tensor:
        return made if self.exact else through(seen, made)

    def _between(self, key: str, drawn: Tensor) -> Tensor:
        """Where a number in [0, 1) is in a range: of real numbers, or of whole ones with both ends in it."""
        low, high = self.ranges[key] or (0.0, 0.0)
        if key in ("quality", "bits"):
            return low + (drawn * (high - low + 1)).floor()
        return low + drawn * (high - low)

    def _moved(self, images: Tensor, scale: Tensor, down: Tensor, across: Tensor) -> tuple[Tensor, list[list[int]]]:
        """Each image at a size and place of its own on a black canvas, and where that is: top, left, height, width."""
        height, width = images.shape[2:]
        if not self.ranges["scales"]:
            return images, [[0, 0, height, width]] * len(images)
        canvas = [max(side, round(side * self.ranges["scales"][1])) for side in (height, width)]
        seen, places = [], []
        factors = self._between("scales", scale).tolist()
        for i, (image, factor) in enumerate(zip(torch.split(images, 1), factors, strict=True)):
            size = [min(max(1, round(side * factor)), most) for side, most in zip((height, width), canvas, strict=True)]
            top, left = (
                int(place[i] * (most - own + 1)) for place, most, own in zip((down, across), canvas, size, strict=True)
            )
            edges = (left, canvas[1] - left - size[1], top, canvas[0] - top - size[0])
            seen.append(F.pad(resized(image, size), edges))
            places.append([top, left, *size])
        return torch.cat(seen), places

    def _back(self, logits: Tensor, places: list[list[int]], size: list[int]) -> Tensor:
        if not self.ranges["scales"]:
            return logits
        pairs = zip(torch.split(logits, 1), places, strict=True)
        return torch.cat([resized(own[:, :, y : y + h, x : x + w], size) for own, (y, x, h, w) in pairs])


def _range(key: str, value: Range, **least: float) -> tuple[float, float] | None:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise UserError(f"defense 'random_transforms': {key} must be null or [from, to], not {value!r}")
    low, high = (real("random_transforms", key, number, **least) for number in value)
    if low > high:
        raise UserError(f"defense 'random_transforms': {key} must go from a smaller to a larger number, not {value!r}")
    return low, high


def _wholes(key: str, value: Range, low: int, high: int) -> tuple[float, float] | None:
    found = _range(key, value, least=low)
    for number in value or ():
        whole("random_transforms", key, number, low, high)
    return found
