"""CIFAR-10: small colour photographs, 32 x 32, for classifiers."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segaudit.data._class_folders import ClassFolders
from segaudit.data.base import Dataset, colours, folder_of
from segaudit.data.files import stamp
from segaudit.registry import suggest
from segaudit.types import UserError

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
TREE = (
    "cifar-10-batches-py/data_batch_1 to data_batch_5 and test_batch as torchvision leaves them, or "
    "SPLIT/CLASS/NAME.png (or .jpg)"
)


class Batches(Dataset):
    """The images of torchvision's batch files, by file name; an id is `FILE/NUMBER`."""

    class_names, palette = CLASS_NAMES, colours(len(CLASS_NAMES))

    def __init__(
        self,
        files: Mapping[str, Path],
        *,
        size: Sequence[int] | None,
        limit: int | None,
        only: Sequence[str] | None,
    ) -> None:
        self.files = files
        counts = {name: len(read_batch(path, stamp(path))[1]) for name, path in files.items()}
        ids = (f"{name}/{number:05}" for name, count in counts.items() for number in range(count))
        super().__init__(ids, size=size, limit=limit, only=only)

    def where(self, image_id: str) -> str:
        """The file and the image in it."""
        name, _, number = image_id.partition("/")
        return f"{self.files[name]}: image {int(number)}"

    def digest(self) -> str:
        """Of the files."""
        return self.digest_of(self.files.values(), self.ids)

    def read(self, image_id: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The image 32 x 32 x 3 and its class 1 x 1."""
        name, _, number = image_id.partition("/")
        path = self.files[name]
        images, labels = read_batch(path, stamp(path))
        return images[int(number)].reshape(3, 32, 32).transpose(1, 2, 0), labels[int(number)].reshape(1, 1)


def cifar10(
    root: str,
    split: str = "test",
    size: Sequence[int] | None = None,
    limit: int | None = None,
    only: Sequence[str] | None = None,
) -> Dataset:
    """CIFAR-10, colour images of 10 classes for a classifier (`cifar-10-batches-py/`, or `SPLIT/CLASS/NAME.png`).

    split: train (50,000) or test (10,000). Images are 32 x 32; labels are 1 x 1. Of the batch files, which are
    pickles, nothing but arrays, text, numbers, lists and dicts is made; they are kept in memory, 184 MB at most.
    Source: Krizhevsky 2009.
    """
    top = folder_of(root, expected=TREE)
    for place in (top / "cifar-10-batches-py", top):
        if any((place / name).is_file() for names in BATCHES.values() for name in names):
            if split not in BATCHES:
                raise UserError(f"cifar10 has no split {split!r}{suggest(split, BATCHES)}; there are: train, test")
            files = {name: place / name for name in BATCHES[split]}
            for path in files.values():
                if not path.is_file():
                    raise UserError(f"there is no file {path}; expected under {root}: {TREE}")
            return Batches(files, size=size, limit=limit, only=only)
    return ClassFolders(folder_of(root, split, expected=TREE), CLASS_NAMES, size=size, limit=limit, only=only)


@lru_cache(maxsize=6)
def read_batch(path: Path, written: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The images N x 3072 and labels N of a batch file; not to be changed.

    written: when the file was (`stamp`), so that a changed one is read again.
    """
    try:
        with path.open("rb") as file:
            batch = _Plain(file, encoding="latin1").load()
        images, labels = batch["data"], batch["labels"]
    except Exception as error:  # a damaged pickle may end in any of them
        raise UserError(f"{path}: this is not a batch of CIFAR-10 ({error}); download it again") from error
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (3072,):
        raise UserError(f"{path}: its images are not bytes, 3072 an image; download it again")
    if not isinstance(labels, list) or len(labels) != len(images):
        raise UserError(f"{path}: it does not hold a label for each of its {len(images)} images; download it again")
    for number, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < len(CLASS_NAMES):
            raise UserError(f"{path}: image {number} has the label {label!r}; classes are 0 to {len(CLASS_NAMES) - 1}")
    return images, np.array(labels, np.uint8)


def _bytes(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in an old pickle."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes as {encoding}")
    return text.encode(encoding)


def _dtype(kind: str, align: int, copy: int) -> Any:
    """How a dtype is written in a pickle, with numbers for what numpy now wants as booleans."""
    return np.dtype(kind, align=bool(align), copy=bool(copy))


ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _bytes,
}
"""All that a batch file may call: what arrays and bytes are made with."""


class _Plain(pickle.Unpickler):
    """A pickle may name any function there is, to be called as it is read: here it may name those of arrays alone."""

    def find_class(self, module: str, name: str) -> Any:
        """The admitted function of this name. Raises UnpicklingError for any other."""
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return ADMITTED[module, name]
