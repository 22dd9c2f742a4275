"""Small handwritten digits, grey 8 x 8, which come with scikit-learn: a classifier's data without a download."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from segaudit.data.base import Dataset, colours
from segaudit.registry import suggest
from segaudit.types import UserError

CLASS_NAMES = tuple("0123456789")
SPLITS = ("train", "test")
EACH = 36
"""How many images of each digit the test split holds."""


class Digits(Dataset):
    """The images of scikit-learn's set that are of one split; an id is `digits-NUMBER`, of its number there."""

    class_names, palette, image_labels = CLASS_NAMES, colours(len(CLASS_NAMES)), True

    def __init__(self, split: str, size: Sequence[int] | None, limit: int | None, only: Sequence[str] | None) -> None:
        rows = [row for row, own in enumerate(_splits()) if own == split]
        super().__init__((f"digits-{row:04}" for row in rows), size=size, limit=limit, only=only)

    def read(self, image_id: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The image 8 x 8 x 1 and its digit 1 x 1."""
        images, labels = _digits()
        row = int(image_id.rpartition("-")[2])
        return images[row, :, :, None], labels[row].reshape(1, 1)


def digits(
    split: str = "test",
    size: Sequence[int] | None = None,
    limit: int | None = None,
    only: Sequence[str] | None = None,
) -> Dataset:
    """Digits, grey images of 10 handwritten digits for a classifier, which come with scikit-learn; no files needed.

    split: test (360, of each digit as many) or train (1,437), always the same. Images have one channel, 8 x 8, of 17
    grey levels; labels are 1 x 1. Needs scikit-learn. Raises UserError for another split.
    Source: Alpaydin & Kaynak 1998 (UCI, optical recognition of handwritten digits, the test set).
    """
    if split not in SPLITS:
        raise UserError(f"digits has no split {split!r}{suggest(str(split), SPLITS)}; there are: {', '.join(SPLITS)}")
    return Digits(split, size, limit, only)


@lru_cache(maxsize=1)
def _digits() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """All images N x 8 x 8 in 0 to 255, and their labels N; not to be changed."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("data digits needs scikit-learn: pip install 'segaudit[digits]'") from error
    found = load_digits()
    return np.rint(found.images * (255 / 16)).astype(np.uint8), found.target.astype(np.uint8)


@lru_cache(maxsize=1)
def _splits() -> tuple[str, ...]:
    """The split of each image: of each digit the first `EACH` by a digest of their number are the test set."""
    _, labels = _digits()
    order = sorted(range(len(labels)), key=lambda row: hashlib.sha256(f"digits-{row:04}".encode()).digest())
    made = ["train"] * len(labels)
    for digit in range(len(CLASS_NAMES)):
        for row in [row for row in order if labels[row] == digit][:EACH]:
            made[row] = "test"
    return tuple(made)
