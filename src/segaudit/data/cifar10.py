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

    class_names, palette, image_labels = CLASS_NAMES, colours(len(CLASS_NAMES)), True

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
    images = images.values if type(images) is _Array else np.empty(0, np.uint8)
    if images.shape[1:] != (3072,):
        raise UserError(f"{path}: its images are not bytes, 3072 an image; download it again")
    if not isinstance(labels, list) or len(labels) != len(images):
        raise UserError(f"{path}: it does not hold a label for each of its {len(images)} images; download it again")
    for number, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < len(CLASS_NAMES):
            told = label if type(label) is int and label.bit_length() < 64 else f"of type {type(label).__name__}"
            raise UserError(f"{path}: image {number} has the label {told}; classes are 0 to {len(CLASS_NAMES) - 1}")
    return images, np.array(labels, np.uint8)


class _Named:
    """In place of what a file may name: it cannot be called, and the file cannot give it a state."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it changes what arrays are made with")


class _Encode(_Named):
    """`_codecs.encode`: how Python 3 writes bytes in an old pickle."""

    __slots__ = ()

    def __call__(self, text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise pickle.UnpicklingError("it encodes its text as something else than latin1")
        return text.encode("latin-1")


class _Dtype(_Named):
    """`numpy.dtype`, and the one dtype there is: bytes, whatever more the file says of it."""

    __slots__ = ()

    def __call__(self, kind: str, *_: Any) -> _Dtype:
        if kind != "u1":
            raise pickle.UnpicklingError("its numbers are not bytes")
        return self

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """An array of bytes, whose numbers come with its state."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: NDArray[np.uint8] = np.empty(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_column, raw = state
        raw = raw.encode("latin-1") if type(raw) is str else raw  # Python 2's bytes
        sides = type(shape) is tuple and all(type(side) is int and side >= 0 for side in shape)
        if not sides or type(dtype) is not _Dtype or by_column or type(raw) is not bytes:
            raise pickle.UnpicklingError("its numbers are not bytes, row by row")
        self.values = np.frombuffer(raw, np.uint8).reshape(shape)


class _Reconstruct(_Named):
    """numpy's `_reconstruct`: an array still to be filled."""

    __slots__ = ()

    def __call__(self, *_: Any) -> _Array:
        return _Array()


ADMITTED: dict[tuple[str, str], _Named] = {
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct(),
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct(),
    ("numpy", "ndarray"): _Named(),
    ("numpy", "dtype"): _Dtype(),
    ("_codecs", "encode"): _Encode(),
}
"""All that a batch file may name. None of it is numpy's own, which trusts the states that a file gives it."""


class _Plain(pickle.Unpickler):
    """A pickle may name any function there is, to be called as it is read: here it may name stand-ins alone."""

    def find_class(self, module: str, name: str) -> _Named:
        """What stands in for this name. Raises UnpicklingError for one that is not admitted."""
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {f'{module}.{name}'!r}")
        return ADMITTED[module, name]
