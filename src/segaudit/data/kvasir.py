"""Kvasir-SEG: polyps in colonoscopy, two classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segaudit.data.base import Files, files_by_stem, folder_of, held_out, pair
from segaudit.data.files import open_picture
from segaudit.registry import suggest
from segaudit.types import UserError

CLASS_NAMES = ("background", "polyp")
PALETTE = ((0, 0, 0), (255, 160, 122))
TREE = "images/NAME.jpg, masks/NAME.jpg (or .png)"
SPLITS = ("all", "train", "val")


class Polyps(Files):
    """Masks are grey pictures, often JPEG, so not only 0 and 255: a polyp is what is above 127."""

    def read_mask(self, path: Path) -> NDArray[np.uint8]:
        """The class numbers of a mask, H x W. Raises UserError for one that is neither black nor has a polyp."""
        grey = np.asarray(open_picture(path).convert("L"))
        if 0 < grey.max() <= 127:
            raise UserError(f"{path}: the mask's highest value is {grey.max()}; a polyp must be above 127 (0 to 255)")
        return (grey > 127).astype(np.uint8)


def kvasir(
    root: str,
    split: str = "val",
    size: Sequence[int] | None = None,
    limit: int | None = None,
    only: Sequence[str] | None = None,
) -> Files:
    """Kvasir-SEG, polyps in colonoscopy, 2 classes (`images/NAME.jpg`, `masks/NAME.jpg` or `.png`).

    It has no official split: `val` holds the images whose id has a SHA-256 that is a multiple of 8 (about 1 in 8),
    `train` the others, `all` both. So an image keeps its side when others are added or lost. For another split, list
    the ids in a text file and use the data set `folder`.
    Source: Jha et al. 2020.
    """
    if split not in SPLITS:
        raise UserError(f"kvasir has no split {split!r}{suggest(split, SPLITS)}; there are: {', '.join(SPLITS)}")
    images = folder_of(root, "images", expected=TREE)
    masks = folder_of(root, "masks", expected=TREE)
    pairs = pair(files_by_stem(images), files_by_stem(masks), images)
    chosen = {name: files for name, files in pairs.items() if split in ("all", "val" if held_out(name) else "train")}
    polyps = Polyps(chosen, size=size, limit=limit, only=only)
    polyps.class_names, polyps.palette = CLASS_NAMES, PALETTE
    return polyps
