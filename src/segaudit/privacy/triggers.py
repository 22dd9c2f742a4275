"""Triggers: what a poisoner puts into an image, `(image, labels, *, size, value, rng) -> (image, covered)`.

image C x H x W in [0, 1]; labels H x W (a classifier's 1 x 1); covered H x W, true where the trigger lies. size:
pixels, or below 1 a share of the height. value: in [0, 1], one number or one a channel. rng: the stream of this one
image. One that takes `victim` is told the class that it is to stay clear of, None where there is none. All raise
UserError for a size that leaves nothing of the image, and for another number of values than channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segaudit.types import VOID, Streams, UserError

Value = float | Sequence[float]
"""One number, or one a channel."""
Marked = tuple[Tensor, Tensor]
"""The image with the trigger, and where that lies."""


def line(image: Tensor, labels: Tensor, *, size: float, value: Value, rng: Streams) -> Marked:
    """The bottom rows of the image, as many as `size`, all of one value.

    Source: after Gu et al. 2017 (BadNets).
    """
    height = image.shape[1]
    rows = _pixels("line", size, image, height - 1)
    return _set(image, slice(height - rows, height), slice(None), value)


def square(image: Tensor, labels: Tensor, *, size: float, value: Value, rng: Streams) -> Marked:
    """The bottom right corner of the image, `size` high and wide, all of one value.

    Source: Gu et al. 2017 (BadNets).
    """
    height, width = image.shape[1:]
    side = _pixels("square", size, image, _widest(image))
    return _set(image, slice(height - side, height), slice(width - side, width), value)


def inside(
    image: Tensor, labels: Tensor, *, size: float, value: Value, rng: Streams, victim: int | None = None
) -> Marked:
    """A square, `size` high and wide, in a place of its own in each image: inside one region that is not the victim's.

    The place is drawn among all where what the square covers is of a single class, void and the victim class left out.
    An image without such a place stays as it is, and nothing of it is covered.
    Source: Lan et al. 2024 (Influencer Backdoor Attack, free position).
    """
    side = _pixels("inside", size, image, _widest(image))
    mask = labels.expand(image.shape[1:]).float()  # class numbers are exact in it, and max_pool2d has no int64
    highest, lowest = _highest(mask, side), -_highest(-mask, side)
    free = (highest == lowest) & (highest != VOID)
    if victim is not None:
        free &= highest != victim
    places = free.nonzero()
    if not len(places):
        return _set(image, slice(0), slice(0), value)
    y, x = places[int(rng.integers(len(places))[0])].tolist()
    return _set(image, slice(y, y + side), slice(x, x + side), value)


def _set(image: Tensor, rows: slice, columns: slice, value: Value) -> Marked:
    values = torch.as_tensor(value, dtype=image.dtype).reshape(-1, 1, 1)
    if len(values) not in (1, len(image)):
        raise UserError(f"trigger: there are {len(values)} values for {len(image)} channels; give one number")
    marked = image.clone()
    marked[:, rows, columns] = values
    covered = torch.zeros(image.shape[1:], dtype=torch.bool)
    covered[rows, columns] = True
    return marked, covered


def _highest(mask: Tensor, side: int) -> Tensor:
    """The highest value in each square of a mask H x W, by its upper left corner; rows first, which costs less."""
    return F.max_pool2d(F.max_pool2d(mask[None, None], (side, 1), 1), (1, side), 1)[0, 0]


def _pixels(name: str, size: float, image: Tensor, most: int) -> int:
    height, width = image.shape[1:]
    pixels = max(1, round(size * height)) if size < 1 else int(size)
    if pixels > most:
        raise UserError(
            f"trigger {name} of size {size:g} is {pixels} pixels of an image of {height} x {width}; {most} are the most"
        )
    return pixels


def _widest(image: Tensor) -> int:
    """The longest side of a square that fits, and leaves some of the image."""
    height, width = image.shape[1:]
    return min(height, width, max(height, width) - 1)
