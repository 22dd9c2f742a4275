"""MNIST: handwritten digits, grey 28 x 28, for classifiers."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segaudit.data._class_folders import ClassFolders
from segaudit.data.base import Dataset, colours, folder_of
from segaudit.data.files import stamp
from segaudit.registry import suggest
from segaudit.types import UserError

CLASS_NAMES = tuple("0123456789")
PREFIXES = {"train": "train", "test": "t10k"}
TREE = (
    "MNIST/raw/{train,t10k}-images-idx3-ubyte.gz and {train,t10k}-labels-idx1-ubyte.gz (or unpacked) as torchvision "
    "leaves them, or SPLIT/DIGIT/NAME.png"
)


class Digits(Dataset):
    """The images of one idx file with the labels of another; an id is `SPLIT/NUMBER`."""

    class_names, palette, image_labels = CLASS_NAMES, colours(len(CLASS_NAMES)), True

    def __init__(
        self,
        split: str,
        images: Path,
        labels: Path,
        *,
        size: Sequence[int] | None,
        limit: int | None,
        only: Sequence[str] | None,
    ) -> None:
        self.images, self.labels = images, labels
        count, truths = read_idx(images, 3, stamp(images)).shape[0], read_idx(labels, 1, stamp(labels)).shape[0]
        if count != truths:
            raise UserError(
                f"{labels}: it holds {truths} labels, but {images.name} {count} images; download both again"
            )
        super().__init__((f"{split}/{number:05}" for number in range(count)), size=size, limit=limit, only=only)

    def where(self, image_id: str) -> str:
        """The file of the labels, and the image."""
        return f"{self.labels}: image {image_id}"

    def digest(self) -> str:
        """Of the two files."""
        return self.digest_of((self.images, self.labels), self.ids)

    def read(self, image_id: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The image H x W x 1 and its digit 1 x 1."""
        number = int(image_id.rpartition("/")[2])
        image = read_idx(self.images, 3, stamp(self.images))[number]
        return image[:, :, None], read_idx(self.labels, 1, stamp(self.labels))[number].reshape(1, 1)


def mnist(
    root: str,
    split: str = "test",
    size: Sequence[int] | None = None,
    limit: int | None = None,
    only: Sequence[str] | None = None,
) -> Dataset:
    """MNIST, grey images of 10 digits for a classifier (`MNIST/raw/*-ubyte.gz`, or `SPLIT/DIGIT/NAME.png`).

    split: train (60,000) or test (10,000). Images have one channel, 28 x 28; labels are 1 x 1. A split's idx file is
    kept in memory as it is, 47 MB at most.
    Source: LeCun et al. 1998.
    """
    top = folder_of(root, expected=TREE)
    for raw in (top / "MNIST" / "raw", top / "raw", top):
        found = {path.name.lower().removesuffix(".gz"): path for path in sorted(raw.glob("*")) if path.is_file()}
        if any(name.endswith("-ubyte") for name in found):
            if split not in PREFIXES:
                raise UserError(f"mnist has no split {split!r}{suggest(split, PREFIXES)}; there are: train, test")
            paths = []
            for end in ("images-idx3-ubyte", "labels-idx1-ubyte"):
                name = f"{PREFIXES[split]}-{end}"
                if name not in found:
                    raise UserError(f"there is no file {raw / name}.gz; expected under {root}: {TREE}")
                paths.append(found[name])
            return Digits(split, paths[0], paths[1], size=size, limit=limit, only=only)
    folder = folder_of(root, split, expected=TREE)
    return ClassFolders(folder, CLASS_NAMES, grey=True, size=size, limit=limit, only=only)


@lru_cache(maxsize=4)
def read_idx(path: Path, axes: int, written: int) -> NDArray[np.uint8]:
    """The numbers of an idx file of bytes with so many axes, packed or not; not to be changed.

    written: when the file was (`stamp`), so that a changed one is read again.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: this gzip file is damaged ({error}); download it again") from error
    start = 4 + 4 * axes
    head = np.frombuffer(content[:start].ljust(start, b"\0"), ">u4")
    if head[0] != 0x800 + axes:
        raise UserError(f"{path}: this is not an idx file of bytes with {axes} axes; download it again")
    shape = tuple(head[1:].tolist())
    if len(content) - start != math.prod(shape):
        wanted = " x ".join(map(str, shape))
        raise UserError(f"{path}: it holds {len(content) - start} numbers, not {wanted}; download it again")
    values = np.frombuffer(content, np.uint8, offset=start)
    return values.reshape(shape)
