"""COCO's regions of an image as masks: run lengths, plain or compressed, and polygons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def region(segmentation: Any, height: int, width: int) -> Mask:
    """The pixels H x W of a COCO `segmentation`: a list of polygons, or run lengths `{size, counts}`.

    Raises ValueError for one that is neither, or of another size.
    Source: Lin et al. 2014, and the format of its annotations.
    """
    if isinstance(segmentation, Mapping):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if size != [height, width]:
            raise ValueError(f"its run lengths are for {size}, but the image is [{height}, {width}]")
        return runs(unpack(counts) if isinstance(counts, str) else counts, height, width)
    if not isinstance(segmentation, list):
        raise ValueError("its segmentation is neither polygons nor run lengths")
    made = np.zeros((height, width), bool)
    for points in segmentation:
        made |= polygon(points, height, width)
    return made


def unpack(text: str) -> list[int]:
    """The run lengths in a compressed string: base 32 from the low digits up, from the third on less the last but one.

    A character less 48 holds 5 bits, and 32 where the number goes on; 16 in its last one is the sign.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"its run lengths hold the character {character!r}")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


def runs(counts: Any, height: int, width: int) -> Mask:
    """The mask of run lengths, first outside, then inside, and so on, down the columns."""
    whole = isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)
    if not whole or sum(counts) != height * width:
        found = f"add up to {sum(counts)}" if whole else "are not whole numbers"
        raise ValueError(f"its run lengths {found}, but the image has {height} x {width} pixels")
    values: Mask = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return values.reshape(width, height).T


def polygon(points: Sequence[float], height: int, width: int) -> Mask:
    """The pixels whose centre is inside a polygon [x, y, x, y, ...]; pixel (0, 0) reaches from (0, 0) to (1, 1).

    A row's pixels are turned inside out from each edge that it crosses on, so lines that cross leave a hole.
    """
    if not isinstance(points, list) or len(points) % 2 or not all(isinstance(n, (int, float)) for n in points):
        raise ValueError("its polygon is not a list [x, y, x, y, ...]")
    corners = np.array(points, np.float64).reshape(-1, 2)
    if not np.isfinite(corners).all():
        raise ValueError("its polygon holds a number that is not finite")
    turns = np.zeros((height, width + 1), bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        first, last = (min(max(math.ceil(y - 0.5), 0), height) for y in sorted((y0, y1)))
        if first < last:
            rows = np.arange(first, last)
            crossing = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
            turns[rows, np.ceil(crossing - 0.5).clip(0, width).astype(int)] ^= True
    inside: Mask = np.logical_xor.accumulate(turns, axis=1)[:, :width]
    return inside
