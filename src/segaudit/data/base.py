"""What every data set is: ids, class names, and one checked image with its mask for each id."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from segaudit.data.files import IMAGE_SUFFIXES, files_by_stem, folder_of, listed, pair, read_image, read_mask, relabel
from segaudit.registry import suggest
from segaudit.types import VOID, Batch, UserError

__all__ = [
    "IMAGE_SUFFIXES", "Dataset", "Files", "colours", "files_by_stem", "folder_of", "held_out", "listed", "of_groups",
    "pair", "read_image", "read_mask", "relabel",
]  # fmt: skip


class Dataset(ABC):
    """Images with masks by id. Reading is lazy; what is wrong in a file is said with its name.

    size: H x W that images (bilinear, antialiased) and masks (nearest neighbour) are resized to; None keeps theirs.
    limit: keep that many images, evenly spread over the ids. only: keep these ids.
    """

    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    image_labels = False
    """Whether an image has one label, a mask of 1 x 1: a classifier's data."""

    def __init__(
        self,
        ids: Iterable[str],
        *,
        size: Sequence[int] | None = None,
        limit: int | None = None,
        only: Sequence[str] | None = None,
    ) -> None:
        self.ids = _choose(tuple(ids), limit, only)
        self.size = _size(size)

    @abstractmethod
    def read(self, image_id: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The image H x W x C and its mask H x W of class numbers and `VOID` (1 x 1 with `image_labels`)."""

    def where(self, image_id: str) -> str:
        """What to call the image in a message: its file, where it has one."""
        return image_id

    def group(self, image_id: str) -> str:
        """What the image is one of several of: its patient, city or video sequence; its own id where it stands alone.

        Images of a group are alike, so a fair split keeps them on one side.
        """
        return image_id

    def groups(self) -> dict[str, tuple[str, ...]]:
        """group -> the ids of its images, both in the order of the ids."""
        found: dict[str, list[str]] = {}
        for name in self.ids:
            found.setdefault(self.group(name), []).append(name)
        return {group: tuple(names) for group, names in found.items()}

    def sample(self, image_id: str) -> tuple[Tensor, Tensor]:
        """The image C x H x W float32 in [0, 1] and its labels H x W int64, checked and resized.

        Raises UserError for a mask of another size or a label outside of the classes.
        """
        image, mask = self.read(image_id)
        if mask.shape != ((1, 1) if self.image_labels else image.shape[:2]):
            raise UserError(
                f"{self.where(image_id)}: the mask is {_by(mask.shape)} but the image {_by(image.shape[:2])}; "
                "they must be of the same size, or the mask 1 x 1 where the data set has `image_labels`"
            )
        wrong = mask[(mask < 0) | (mask >= len(self.class_names)) & (mask != VOID)]
        if wrong.size:
            raise UserError(
                f"{self.where(image_id)}: the mask holds label {wrong.min()}, but there are {len(self.class_names)} "
                f"classes (0 to {len(self.class_names) - 1}) and {VOID} for void"
            )
        if self.size:
            image = np.stack([_resize(band, self.size, Image.Resampling.BILINEAR) for band in np.moveaxis(image, 2, 0)])
            if not self.image_labels:
                mask = _resize(mask, self.size, Image.Resampling.NEAREST)
        else:
            image = np.moveaxis(image, 2, 0)
        pixels = torch.from_numpy(np.array(image, order="C")).float() / 255
        return pixels, torch.from_numpy(mask.astype(np.int64))

    def digest(self) -> str:
        """Of the chosen images and masks: another one where any of them has changed."""
        made = hashlib.sha256()
        for name in self.ids:
            for tensor in self.sample(name):
                made.update(f"{name} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
        return made.hexdigest()

    def digest_of(self, paths: Iterable[Path], *facts: object) -> str:
        """Of the bytes of files, with what beside them says how they are read; for a `digest` that decodes nothing."""
        made = hashlib.sha256(repr((self.class_names, *facts, self.size)).encode())
        for path in paths:
            made.update(path.name.encode())
            try:
                with path.open("rb") as file:
                    made.update(hashlib.file_digest(file, "sha256").digest())
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        return made.hexdigest()

    def batch(self, ids: Sequence[str]) -> Batch:
        """The images of these ids as one batch. Raises UserError where they differ in size."""
        samples = [self.sample(name) for name in ids]
        shapes = [tuple(image.shape) for image, _ in samples]
        for name, shape in zip(ids, shapes, strict=True):
            if shape != shapes[0]:
                raise UserError(
                    f"data: the images differ in size ({ids[0]} is {_by(shapes[0][1:])}, {name} is {_by(shape[1:])}): "
                    "give data a `size: [H, W]`"
                )
        return Batch(torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples]), tuple(ids))

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self.sample(name) for name in self.ids)


class Files(Dataset):
    """A data set of an image file and a mask file an id.

    pairs: id -> (image, mask). labels: the class number of every mask value; None takes the values as they are.
    """

    def __init__(
        self,
        pairs: Mapping[str, tuple[Path, Path]],
        *,
        labels: Mapping[int, int] | None = None,
        size: Sequence[int] | None = None,
        limit: int | None = None,
        only: Sequence[str] | None = None,
    ) -> None:
        super().__init__(pairs, size=size, limit=limit, only=only)
        self.pairs = pairs
        self.labels = labels

    def where(self, image_id: str) -> str:
        """The mask's file: what is most often wrong."""
        return str(self.pairs[image_id][1])

    def digest(self) -> str:
        """Of the files, which costs less than to decode them."""
        return self.digest_of((path for name in self.ids for path in self.pairs[name]), self.labels)

    def read(self, image_id: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The two files of an id."""
        image, mask = self.pairs[image_id]
        return read_image(image), self.read_mask(mask)

    def read_mask(self, path: Path) -> NDArray[np.uint8]:
        """The class numbers of a mask file, H x W."""
        values = read_mask(path)
        return values if self.labels is None else relabel(values, self.labels, path)


def colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """The first colours of the VOC palette: the bits of a class number spread over red, green and blue."""

    def spread(number: int, channel: int) -> int:
        return sum((number >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8))

    return tuple((spread(number, 0), spread(number, 1), spread(number, 2)) for number in range(count))


def held_out(name: str) -> bool:
    """Whether an image or group of this name is on the `val` side of a set without an official split: about 1 in 8."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 8 == 0


def of_groups(ids: Iterable[str], group: Callable[[str], str], wanted: Sequence[str] | None, what: str) -> list[str]:
    """The ids whose group is among the wanted ones (None: all). Raises UserError for a group that has no image."""
    ids = list(ids)
    if wanted is None:
        return ids
    if not isinstance(wanted, (list, tuple)) or not all(isinstance(name, str) for name in wanted):
        raise UserError(f"data: {what} must be a list of names, not {wanted!r}")
    known = dict.fromkeys(group(name) for name in ids)
    for name in wanted:
        if name not in known:
            some = ", ".join(list(known)[:20])
            raise UserError(f"data: {what} has {name!r}, which no image is of{suggest(name, known)}; there are: {some}")
    return [name for name in ids if group(name) in wanted]


def _choose(ids: tuple[str, ...], limit: int | None, only: Sequence[str] | None) -> tuple[str, ...]:
    if only is not None:
        if isinstance(only, str) or not all(isinstance(name, str) for name in only):
            raise UserError(f"data: only must be a list of ids, each in quotes, not {only!r}")
        known = set(ids)
        missing = [name for name in only if name not in known]
        if missing:
            raise UserError(f"data: there is no image with the id {missing[0]!r}{suggest(missing[0], ids)}")
        ids = tuple(dict.fromkeys(only))
    if not ids:
        raise UserError("data: there is no image in this set")
    if limit is None:
        return ids
    if not isinstance(limit, int) or limit < 1:
        raise UserError(f"data: limit must be a whole number of at least 1, not {limit!r}")
    return ids if limit >= len(ids) else tuple(ids[i * len(ids) // limit] for i in range(limit))


def _size(size: Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    if not isinstance(size, Sequence) or len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
        raise UserError(f"data: size must be [height, width] in pixels, not {size!r}")
    return size[0], size[1]


def _resize(values: NDArray[np.uint8], size: tuple[int, int], how: Image.Resampling) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(values).resize((size[1], size[0]), how))


def _by(shape: Sequence[int]) -> str:
    return " x ".join(str(side) for side in shape)
