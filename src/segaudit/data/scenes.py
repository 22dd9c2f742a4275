"""The embedded default: procedural scenes, drawn at any size, the same on every machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from segaudit import registry
from segaudit.data import _lesion, _street
from segaudit.data._draw import Dice
from segaudit.data.base import Dataset
from segaudit.types import UserError

SPLITS = {"train": 1000, "val": 64, "test": 64}
"""How many images a split holds by default."""
KINDS = {
    "street": (_street.street, _street.CLASS_NAMES, _street.PALETTE),
    "lesion": (_lesion.lesion, _lesion.CLASS_NAMES, _lesion.PALETTE),
}
LEAST = 128


class Scenes(Dataset):
    """Scenes that are drawn when they are read; an image depends on (kind, seed, split, index, size) alone."""

    def __init__(
        self,
        kind: str,
        split: str,
        images: int,
        size: tuple[int, int],
        seed: int,
        limit: int | None,
        only: Sequence[str] | None,
    ) -> None:
        super().__init__((f"{kind}-{split}-{i:04d}" for i in range(images)), limit=limit, only=only)
        self._draw, self.class_names, self.palette = KINDS[kind]
        self._seed, self._shape = seed, size

    def read(self, image_id: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The image H x W x 3 and its mask H x W, drawn at the size that was asked for."""
        return self._draw(Dice(self._seed, image_id), *self._shape)


def scenes(
    split: str = "val",
    images: int | None = None,
    size: Sequence[int] = (LEAST, LEAST),
    seed: int = 0,
    kind: str = "street",
    limit: int | None = None,
    only: Sequence[str] | None = None,
) -> Scenes:
    """Procedural scenes, no files needed: a toy `street` of 8 classes, or a `lesion` on tissue (2 classes).

    split: train, val or test, which share no image. images: how many there are (1000, 64, 64). size: [H, W], each at
    least 128; drawn at that size, not resized. Raises UserError for a split, kind or size that does not exist.
    Source: ours; the embedded default.
    """
    for key, value, known in (("split", split, list(SPLITS)), ("kind", kind, list(KINDS))):
        if value not in known:
            near = registry.suggest(str(value), known)
            raise UserError(f"data scenes: there is no {key} {value!r}{near}; there are: {', '.join(known)}")
    count = SPLITS[split] if images is None else images
    if not isinstance(count, int) or not 1 <= count <= 10000:
        raise UserError(f"data scenes: images must be from 1 to 10000, not {images!r}")
    sides = list(size) if isinstance(size, Sequence) else []
    if len(sides) != 2 or not all(isinstance(side, int) and side >= LEAST for side in sides):
        raise UserError(f"data scenes: size must be [height, width], each at least {LEAST} pixels, not {size!r}")
    if not isinstance(seed, int):
        raise UserError(f"data scenes: seed must be a whole number, not {seed!r}")
    return Scenes(kind, split, count, (sides[0], sides[1]), seed, limit, only)
