"""A region of the image with any values: the same patch on all images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segaudit.attacks._fitted import Fitted, gathered, mini_batches
from segaudit.attacks._iterate import direction, whole
from segaudit.attacks._losses import Seen
from segaudit.types import VOID, Batch, Segmenter, Streams, UserError

Pair = Sequence[float]
"""Two numbers."""


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a patch lies in one image, in pixels, and the factor of its values."""

    y: int
    x: int
    height: int
    width: int
    light: float

    @property
    def region(self) -> tuple[slice, slice]:
        """Its rows and columns."""
        return slice(self.y, self.y + self.height), slice(self.x, self.x + self.width)


class Spots:
    """Where a patch of some sides (height, width) may lie in a frame (height, width): all of it, always.

    shift: by how much its middle moves either way. scale, light: factors [low, high] of its sides and values.
    Raises UserError for a place that it does not fit into, and other wrong arguments.
    """

    def __init__(
        self,
        frame: tuple[int, int],
        sides: tuple[int, int],
        place: str | Pair,
        shift: float = 0.0,
        scale: Pair = (1.0, 1.0),
        light: Pair = (1.0, 1.0),
    ) -> None:
        if any(own > whole for own, whole in zip(sides, frame, strict=True)):
            raise UserError(f"size must be within the images' {frame}, not {sides}")
        self.frame, self.sides = frame, sides
        self.scale, self.light = _span("scale", scale), _span("light", light)
        self.reach = _sides("shift", (shift, shift), frame)
        self.anywhere = place == "random"
        self.corner = (frame[0] - sides[0]) // 2, (frame[1] - sides[1]) // 2
        if place not in ("center", "random"):
            self.corner = _sides("place", place, frame)
            if any(at + own > whole for at, own, whole in zip(self.corner, sides, frame, strict=True)):
                raise UserError(f"place must be where all of a patch of {sides} fits into {frame}, not {place!r}")

    def draw(self, rng: Streams, images: int) -> list[Spot]:
        """One spot an image, from its own stream."""
        draws = rng.uniform(torch.empty(images, 4)).tolist()  # on the CPU, as the streams are
        return [self._spot(*four) for four in draws]

    def _spot(self, down: float, right: float, scale: float, light: float) -> Spot:
        factor = _between(self.scale, scale)
        height, width = (
            min(whole, max(1, round(factor * own))) for whole, own in zip(self.frame, self.sides, strict=True)
        )
        y, x = self._start(0, height, down), self._start(1, width, right)
        return Spot(y, x, height, width, _between(self.light, light))

    def _start(self, axis: int, side: int, u: float) -> int:
        """The first row or column of a patch that is so long there, inside the frame."""
        room = self.frame[axis] - side
        middle = self.corner[axis] + (self.sides[axis] - side) // 2
        start = int(u * (room + 1)) if self.anywhere else middle + round((2 * u - 1) * self.reach[axis])
        return min(room, max(0, start))


def _fit(
    model: Segmenter,
    batches: Sequence[Batch],
    *,
    rng: Streams,
    size: Pair = (0.25, 0.25),
    place: str | Pair = "center",
    shift: float = 0.05,
    scale: Pair = (0.9, 1.1),
    light: Pair = (0.9, 1.1),
    steps: int = 200,
    step_size: float | None = None,
    batch_size: int = 8,
    targeted: bool = False,
) -> Tensor:
    """The patch 1 x C x height x width, in [0, 1]; it begins grey."""
    whole(steps=steps, batch_size=batch_size)
    step_size = 10 / steps if step_size is None else step_size
    images, labels = gathered(batches)
    frame = images.shape[2], images.shape[3]
    sides = _sides("size", size, frame, least=1)
    spots, draws = Spots(frame, sides, place, shift, scale, light), rng.child("draws")
    found = images.new_full((1, images.shape[1], *sides), 0.5)
    for rows in mini_batches(rng.child("order"), len(images), batch_size, steps):
        found.requires_grad_()
        drawn = spots.draw(draws[rows], len(rows))
        logits = model(pasted(images[rows], found, drawn))
        seen = Seen(logits, uncovered(labels[rows], frame, drawn), targeted)
        (gradient,) = torch.autograd.grad(_loss(seen), found)
        found = (found.detach() + step_size * direction(gradient, "linf")).clamp(0, 1)
    return found


@partial(Fitted, _fit, outside=True)
def patch(
    model: Segmenter, images: Tensor, labels: Tensor, *, rng: Streams, fitted: Tensor, place: str | Pair = "center"
) -> Tensor:
    """Adversarial patch: any values in one region, fitted on other images; only the pixels outside of it are scored.

    size: [height, width]. place: `center`, `random` (drawn for each image), or [y, x] of the upper left corner. Whole
    numbers are pixels, fractions are shares of the image. While it is fitted, in steps signed gradient steps of
    step_size (10 / steps unless given) over batch_size images each, its place moves by up to shift either way
    (`random`: over the whole image), and its sides and values are multiplied by factors within scale and light. The
    loss weighs the pixels still to be won by their share, and the others by the rest.
    Covered pixels are void in its counts, but not in the clean ones: its IoU ratio compares what is outside of the
    patch with the whole image, and a class that is covered everywhere has no IoU. A classifier's label always counts.
    Source: Brown et al. 2017; on segmentation Nesti et al. 2022.
    """
    frame = images.shape[2], images.shape[3]
    sides = fitted.shape[2], fitted.shape[3]
    return pasted(images, fitted, Spots(frame, sides, place).draw(rng, len(images)))


def pasted(images: Tensor, patch: Tensor, spots: Sequence[Spot]) -> Tensor:
    """The images N x C x H x W with the patch at each one's spot."""
    rows = []
    for image, spot in zip(images, spots, strict=True):
        drawn = F.interpolate(patch, (spot.height, spot.width), mode="bilinear")[0] * spot.light
        row = image.clone()
        row[:, spot.region[0], spot.region[1]] = drawn.where(~(drawn > 1), 1)  # clamp may give no gradient at 0 and 1
        rows.append(row)
    return torch.stack(rows)


def uncovered(labels: Tensor, frame: tuple[int, int], spots: Sequence[Spot]) -> Tensor:
    """The labels N x H x W with VOID under the patch; those of a classifier (N x 1 x 1) as they are."""
    if labels.shape[1:] != frame:
        return labels
    labels = labels.clone()
    for row, spot in zip(labels, spots, strict=True):
        row[spot.region] = VOID
    return labels


def _loss(seen: Seen) -> Tensor:
    """g times the cross-entropy of the pixels still to be won, 1 - g times the others'; g: the share of the former."""
    valid = (seen.labels != VOID).sum((1, 2), keepdim=True).clamp_min(1)
    share = seen.open.to(seen.ce).sum((1, 2), keepdim=True) / valid
    return seen.toward(seen.ce * torch.where(seen.open, share, 1 - share)).sum()


def _sides(key: str, pair: Any, frame: tuple[int, int], least: int = 0) -> tuple[int, int]:
    """Two numbers in pixels: whole ones as they are, fractions as shares of the frame."""
    if not _is_pair(pair) or not all(least <= n if type(n) is int else 0 <= n <= 1 for n in pair):
        raise UserError(f"{key} must be whole pixels from {least} on, or shares of the image in [0, 1], not {pair!r}")
    first, second = (
        max(least, n if type(n) is int else round(n * whole)) for n, whole in zip(pair, frame, strict=True)
    )
    return first, second


def _span(key: str, pair: Any) -> tuple[float, float]:
    if not _is_pair(pair) or not 0 < pair[0] <= pair[1]:
        raise UserError(f"{key} must be [low, high], factors above 0, not {pair!r}")
    return pair[0], pair[1]


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, Sequence) and len(pair) == 2 and all(type(n) in (int, float) for n in pair)


def _between(span: tuple[float, float], u: float) -> float:
    return span[0] + u * (span[1] - span[0])
