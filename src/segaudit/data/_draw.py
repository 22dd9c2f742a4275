"""What the procedural scenes are drawn with: dice, noise fields and a canvas that keeps colours and labels together.

Only operations that IEEE 754 fixes to the last bit are used (+ - * /, comparisons, floor) and only
`Generator.random` of PCG64: so the same seed gives the same bytes on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from segaudit.types import VOID

Field = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]
Colour = tuple[float, float, float]
Item = TypeVar("Item")


class Dice:
    """Random choices from one stream, which is named by its key."""

    def __init__(self, *key: Any) -> None:
        self._key = key
        digest = hashlib.sha256("\0".join(str(part) for part in key).encode()).digest()
        self._rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))

    def fork(self, *purpose: Any) -> Dice:
        """A stream of its own for one purpose: what is drawn from it moves nothing elsewhere."""
        return Dice(*self._key, *purpose)

    def real(self, low: float, high: float) -> float:
        """A uniform number in [low, high)."""
        return low + (high - low) * float(self._rng.random())

    def whole(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self._rng.random() * (high - low + 1))

    def pick(self, items: Sequence[Item]) -> Item:
        """One of the items."""
        return items[self.whole(0, len(items) - 1)]

    def chance(self, share: float) -> bool:
        """True with this probability."""
        return bool(self._rng.random() < share)

    def paint(self, low: float, high: float, chroma: float) -> Colour:
        """A colour: a grey in [low, high) and a tint of up to `chroma` of it in any direction."""
        grey = self.real(low, high)
        red, green, blue = (grey * (1 + self.real(-chroma, chroma)) for _ in range(3))
        return red, green, blue

    def grain(self, *shape: int) -> Field:
        """White noise in [-1, 1), triangular: two uniform numbers summed."""
        return self._rng.random(shape, dtype=np.float32) + self._rng.random(shape, dtype=np.float32) - np.float32(1)

    def cloud(self, height: int, width: int, cell: float) -> Field:
        """Smooth noise in [0, 1] whose features are about `cell` pixels wide."""
        y, x = _lattice(height, cell), _lattice(width, cell)
        knots = self._rng.random((int(y[0][-1]) + 2, int(x[0][-1]) + 2), dtype=np.float32)
        rows = knots[y[0]] + (knots[y[0] + 1] - knots[y[0]]) * y[1][:, None]
        left = rows[:, x[0]]
        return left + (rows[:, x[0] + 1] - left) * x[1]


def _lattice(length: int, cell: float) -> tuple[NDArray[np.int64], Field]:
    """The knot before each pixel, and how far the pixel is from it (eased, in [0, 1])."""
    place = (np.arange(length) + 0.5) / cell
    knot = place.astype(np.int64)
    part = (place - knot).astype(np.float32)
    return knot, part * part * (3 - 2 * part)


@dataclass(frozen=True, slots=True)
class View:
    """A box on the canvas with coordinates of its own: u from -1 (left) to 1, v from 0 (its foot) to 1."""

    rows: slice
    columns: slice
    u: Field
    v: Field

    def disc(self, u: float, v: float, across: float, up: float) -> Mask:
        """An ellipse with these half axes."""
        return ((self.u - u) / across) ** 2 + ((self.v - v) / up) ** 2 < 1

    def slab(self, left: float, right: float, low: float, high: float) -> Mask:
        """A rectangle."""
        return (self.u >= left) & (self.u < right) & (self.v >= low) & (self.v < high)

    def taper(self, foot: float, head: float, low: float, high: float, centre: float = 0.0) -> Mask:
        """A trapezium with these half widths at its foot and its head."""
        half = foot + (head - foot) * ((self.v - low) / (high - low))
        return (abs(self.u - centre) < half) & (self.v >= low) & (self.v < high)


class Canvas:
    """Colours and labels of every pixel, and what it is of. Lengths are in heights of the picture.

    thing: the label where it is of the backdrop, a number above 255 where it is of an object.
    """

    def __init__(self, dice: Dice, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.colour = np.zeros((height, width, 3), np.float32)
        self.label = np.zeros((height, width), np.uint8)
        self.thing = np.zeros((height, width), np.uint16)
        self.lumps = dice.cloud(height, width, height / 9)
        self.flecks = 0.55 * dice.cloud(height, width, height / 28) + 0.45 * dice.cloud(height, width, height / 60)
        self.grain = dice.grain(height, width)
        self._things = 255

    def begin(self) -> None:
        """What is put from here on is another object."""
        self._things += 1

    def lay(self, part: tuple[slice, slice], where: Mask, colour: Field, label: int) -> None:
        """A piece of the backdrop in its colours (h x w x 3)."""
        np.copyto(self.colour[part], colour, where=where[..., None])
        self.label[part][where] = label
        self.thing[part][where] = label

    def view(self, centre: float, foot: float, width: float, height: float) -> View | None:
        """The part of a box that lies on the canvas; foot is its lower edge. None where nothing does."""
        left, top = (centre - width / 2) * self.height, (foot - height) * self.height
        rows = _span(top, top + height * self.height, self.height)
        columns = _span(left, left + width * self.height, self.width)
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return None
        x = (np.arange(columns.start, columns.stop) + 0.5 - left) / (width * self.height)
        y = (np.arange(rows.start, rows.stop) + 0.5 - top) / (height * self.height)
        return View(rows, columns, (2 * x - 1).astype(np.float32), (1 - y).astype(np.float32)[:, None])

    def put(self, view: View, where: Mask, colour: Colour, label: int, shade: Field | float = 1.0) -> None:
        """Draw one part of the present object; shade multiplies its colour."""
        part = view.rows, view.columns
        shaded = np.asarray(shade, np.float32)[..., None] * np.array(colour, np.float32)
        np.copyto(self.colour[part], shaded, where=where[..., None])
        self.label[part][where] = label
        self.thing[part][where] = self._things

    def darken(self, view: View, where: Mask, factor: float) -> None:
        """A shadow on what is already there."""
        self.colour[view.rows, view.columns][where] *= np.float32(factor)

    def finish(self, light: Field, noise: Field) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The picture through light (times this), lens (a slight blur) and sensor (plus this noise), and its labels.

        Every line between two objects becomes void, about one pixel in 128 wide.
        """
        lit = self.colour * light
        for axis in (0, 1):
            last = lit.shape[axis] - 1
            ends = [np.clip(np.arange(last + 1) + step, 0, last) for step in (-1, 1)]
            lit = lit * np.float32(0.6) + (lit.take(ends[0], axis) + lit.take(ends[1], axis)) * np.float32(0.2)
        image = np.clip((lit + noise) * np.float32(255) + np.float32(0.5), 0, 255).astype(np.uint8)
        label = self.label.copy()
        for step in range(1, max(1, self.height // 128) + 1):
            label[:-step][self.thing[:-step] != self.thing[step:]] = VOID
            label[:, :-step][self.thing[:, :-step] != self.thing[:, step:]] = VOID
        return image, label


def _span(low: float, high: float, length: int) -> slice:
    """The pixels whose centres lie between two places, cut to the canvas."""
    return slice(max(0, int(low + 0.5)), max(0, min(length, int(high + 0.5))))
