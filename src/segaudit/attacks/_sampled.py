"""What a resizer reads of a picture, what lies around it, and a resizer that reads what lies around it instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segaudit.attacks._resize import Resizer, Size, matrix
from segaudit.types import Ints

Pick = Callable[[NDArray[np.uint8], NDArray[np.bool_]], NDArray[Any]]
"""The pixels around m places, m x K x C, and which of them count, m x K -> one pixel for each place, m x C."""


class Windows:
    """The places of a picture that a resizer reads, and the window of pixels around each.

    rows, columns: the places are all their pairs. up, side: how many pixels a window goes each way, `reach` times the
    ratio of the sizes, at least one and no farther than the picture. What counts in a window is what lies in the
    picture and is not read itself; where that leaves a window with nothing, all that lies in the picture counts in
    every one.
    """

    def __init__(self, resizer: Resizer, large: Size, small: Size, reach: float) -> None:
        ends = list(zip(large, small, strict=True))
        self.rows, self.columns = (np.flatnonzero(matrix(resizer, *pair).numpy().any(0)) for pair in ends)
        self.up, self.side = (int(max(1, min(a - 1, reach * a / b))) for a, b in ends)
        inside = self.pad(np.ones((*large, 1), bool))[:, :, 0]
        self.free = inside.copy()
        self.free[np.ix_(self.rows + self.up, self.columns + self.side)] = False
        if not self.each(self.free).all():
            self.free = inside

    def pad(self, picture: NDArray[Any]) -> NDArray[Any]:
        """The picture H x W x C with as many zeros around it as windows go beyond it."""
        return np.pad(picture, ((self.up, self.up), (self.side, self.side), (0, 0)))

    def crop(self, padded: NDArray[Any]) -> NDArray[Any]:
        """What `pad` was given."""
        return padded[self.up : -self.up, self.side : -self.side]

    def take(self, padded: NDArray[Any], i: Ints, j: Ints) -> NDArray[Any]:
        """The windows of the places (rows[i], columns[j]), n x m x K x C, of a padded picture."""
        values = padded[self._at(i, j)]
        return values.reshape(len(i), len(j), -1, padded.shape[2])

    def put(self, padded: NDArray[Any], i: Ints, j: Ints, values: NDArray[Any]) -> None:
        """Write windows back; none may share a pixel with another."""
        at = self._at(i, j)
        padded[at] = values.reshape(*np.broadcast_shapes(*(axis.shape for axis in at)), -1)

    def counted(self, i: Ints, j: Ints) -> NDArray[np.bool_]:
        """What counts in the windows of the places (rows[i], columns[j]), n x m x K."""
        return self.free[self._at(i, j)].reshape(len(i), len(j), -1)

    def each(self, padded: NDArray[Any]) -> NDArray[np.float64]:
        """The sum over the window of every place, rows x columns, of a padded picture without channels."""
        total = np.pad(padded.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        top, left = np.ix_(self.rows, self.columns)
        below, right = top + 2 * self.up + 1, left + 2 * self.side + 1
        sums: NDArray[np.float64] = total[below, right] - total[top, right] - total[below, left] + total[top, left]
        return sums

    def _at(self, i: Ints, j: Ints) -> tuple[Ints, Ints]:
        down = self.rows[i][:, None] + np.arange(2 * self.up + 1)
        along = self.columns[j][:, None] + np.arange(2 * self.side + 1)
        return down[:, None, :, None], along[None, :, None, :]


@dataclass(frozen=True, slots=True)
class Sampled:
    """A resizer that is given, in place of each pixel that it reads, one picked from the window around it.

    A picture H x W x C uint8 -> h x w x C float64 in [0, 1], as a `Resizer`. reach: how far windows go, in ratios of
    the sizes.
    """

    resizer: Resizer
    pick: Pick
    reach: float = 1.0

    def __call__(self, picture: NDArray[np.uint8], size: Size) -> NDArray[np.float64]:
        """The picture as the library resizes it once it is filtered."""
        return self.resizer(self.filtered(picture, size), size)

    def filtered(self, picture: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
        """The picture with every pixel replaced that the resizer reads, and no other."""
        height, width = picture.shape[:2]
        around = Windows(self.resizer, (height, width), size, self.reach)
        padded, made = around.pad(picture), picture.copy()
        every = np.arange(len(around.columns))
        for i, row in enumerate(around.rows):
            one = np.array([i])
            made[row, around.columns] = self.pick(around.take(padded, one, every)[0], around.counted(one, every)[0])
        return made
