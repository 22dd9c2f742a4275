"""COCO in its official layout, its things brought to the 21 classes of VOC."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segaudit.data._json import element, elements
from segaudit.data._regions import region
from segaudit.data.base import Dataset, colours, files_by_stem, folder_of, pair, read_image
from segaudit.data.files import open_mask, to_rgb
from segaudit.data.voc import CLASS_NAMES
from segaudit.registry import suggest
from segaudit.types import VOID, UserError

RENAMED = {
    "airplane": "aeroplane", "dining table": "diningtable", "motorcycle": "motorbike", "potted plant": "pottedplant",
    "couch": "sofa", "tv": "tvmonitor",
}  # fmt: skip
"""COCO's names of VOC's classes, where they are not VOC's own."""
KINDS = ("panoptic", "instances")
LARGEST = (1 << 62) - 1
"""Of the ids, which are kept in 64 bits."""
SIDE = 65535
"""The longest side of an image: JPEG has no longer one."""
TREE = (
    "SPLIT/NAME.jpg, and annotations/instances_SPLIT.json or annotations/panoptic_SPLIT.json with "
    "annotations/panoptic_SPLIT/NAME.png (SPLIT: train2017, val2017)"
)


@dataclass(frozen=True)
class Index:
    """Where in a JSON file the annotations of each image are; what they hold is read when it is asked for.

    images: name -> (its number in the file, height, width). classes: category -> class number, 0 for none of VOC's.
    rows: image number, category, first byte and byte after, sorted by image; a row for each category of an annotation.
    """

    path: Path
    images: Mapping[str, tuple[int, int, int]]
    classes: Mapping[int, int]
    rows: NDArray[np.int64]

    def of(self, name: str) -> Iterator[dict[str, Any]]:
        """The annotations of an image, in the order of the file, each read when it is its turn."""
        number = self.images[name][0]
        first, last = np.searchsorted(self.rows[:, 0], [number, number + 1])
        places = dict.fromkeys((int(row[2]), int(row[3])) for row in self.rows[first:last])
        return (element(self.path, *place) for place in places)


def read_index(path: Path, panoptic: bool) -> Index:
    """The index of an instances or panoptic file. Raises UserError for one that is not."""
    images: dict[str, tuple[int, int, int]] = {}
    classes: dict[int, int] = {}
    found = array("q")
    numbers = {name: number for number, name in enumerate(CLASS_NAMES) if number}
    for key, entry, first, last in elements(path):
        try:
            if key == "images":
                sides = _whole(entry, "height", 1, SIDE), _whole(entry, "width", 1, SIDE)
                images[Path(entry["file_name"]).stem] = (_whole(entry, "id"), *sides)
            elif key == "categories":
                classes[_whole(entry, "id")] = numbers.get(RENAMED.get(entry["name"], entry["name"]), 0)
            elif key == "annotations":
                parts = entry["segments_info"] if panoptic else [entry]
                for part in parts if panoptic else ():
                    _whole(part, "id")
                for category in {_whole(part, "category_id") for part in parts} or {-1}:
                    found.extend((_whole(entry, "image_id"), category, first, last))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            told = f"{type(error).__name__}: {error}"
            raise UserError(f"{path}: an entry of {key!r} at byte {first} is not COCO's ({told})") from error
    rows = np.array(found, np.int64).reshape(-1, 4)
    unknown = np.setdiff1d(rows[:, 1], [-1, *classes])
    if unknown.size:
        raise UserError(f"{path}: an annotation has category {unknown[0]}, but its table of categories lacks it")
    if not any(classes.values()):
        raise UserError(f"{path}: none of its categories has the name of a VOC class, such as person or car")
    return Index(path, images, classes, rows[rows[:, 0].argsort(kind="stable")])


def _whole(entry: Any, key: str, least: int = 0, most: int = LARGEST) -> int:
    """A whole number of an entry. Raises ValueError for anything else, which may be too long to be shown."""
    value = entry[key]
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"its {key} is not a whole number from {least} to {most}")
    return value


class Coco(Dataset):
    """Images with their annotations. pngs: the picture of the segments by image, of panoptic annotations."""

    class_names, palette = CLASS_NAMES, colours(len(CLASS_NAMES))

    def __init__(
        self,
        files: Mapping[str, Path],
        index: Index,
        pngs: Mapping[str, Path] | None,
        *,
        size: Sequence[int] | None,
        limit: int | None,
        only: Sequence[str] | None,
    ) -> None:
        super().__init__(files, size=size, limit=limit, only=only)
        self.files, self.index, self.pngs = files, index, pngs

    def where(self, image_id: str) -> str:
        """The picture of the segments, or the JSON file and the image."""
        return str(self.pngs[image_id]) if self.pngs else f"{self.index.path}: image {image_id}"

    def digest(self) -> str:
        """Of the JSON file and the chosen pictures."""
        pictures = [table[name] for name in self.ids for table in (self.files, self.pngs or {}) if name in table]
        return self.digest_of([self.index.path, *pictures], self.ids)

    def read(self, image_id: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The image H x W x 3 and its mask H x W."""
        mask = self._segments(image_id, self.pngs[image_id]) if self.pngs else self._instances(image_id)
        return read_image(self.files[image_id]), mask

    def _instances(self, name: str) -> NDArray[np.uint8]:
        _, height, width = self.index.images[name]
        mask, void = np.zeros((height, width), np.uint8), np.zeros((height, width), bool)
        for entry in self.index.of(name):
            number = self.index.classes[entry["category_id"]]
            try:
                area = region(entry.get("segmentation"), height, width)
            except (ValueError, TypeError, OverflowError) as error:
                raise UserError(f"{self.where(name)}: annotation {entry.get('id')}: {error}") from error
            if entry.get("iscrowd"):
                void |= area
            else:
                void |= area & (mask != 0) & (mask != number)
                mask[area] = number
        mask[void] = VOID
        return mask

    def _segments(self, name: str, png: Path) -> NDArray[np.uint8]:
        numbers = np.asarray(to_rgb(open_mask(png))).astype(np.int64) @ np.array([1, 1 << 8, 1 << 16])
        labels = {0: VOID}
        for part in (part for entry in self.index.of(name) for part in entry["segments_info"]):
            number = self.index.classes[part["category_id"]]
            labels[part["id"]] = VOID if part.get("iscrowd") and number else number
        found, places = np.unique(numbers, return_inverse=True)
        unknown = [number for number in found.tolist() if number not in labels]
        if unknown:
            rgb = [unknown[0] & 255, unknown[0] >> 8 & 255, unknown[0] >> 16]
            raise UserError(f"{png}: the colour {rgb} is segment {unknown[0]}, which {self.index.path} does not know")
        return np.array([labels[number] for number in found.tolist()], np.uint8)[places].reshape(numbers.shape)


def coco(
    root: str,
    split: str = "val2017",
    annotations: str | None = None,
    empty: str = "keep",
    size: Sequence[int] | None = None,
    limit: int | None = None,
    only: Sequence[str] | None = None,
) -> Coco:
    """COCO with the 21 classes of VOC (`val2017/NAME.jpg`, `annotations/panoptic_val2017.json` or `instances_...`).

    annotations: panoptic or instances, by default the first of them that there is. Categories are known by their
    names; what is none of VOC's is background. Void: crowds of VOC's classes, panoptic pixels of no segment, and
    pixels of instances of two classes. empty: skip leaves out the images in which none of VOC's classes is annotated.
    Source: Lin et al. 2014; Kirillov et al. 2019 (panoptic).
    """
    for key, value, known in (("annotations", annotations, KINDS), ("empty", empty, ("keep", "skip"))):
        if value is not None and value not in known:
            near = suggest(str(value), known)
            raise UserError(f"coco: {key} must be one of {', '.join(known)}, not {value!r}{near}")
    images = folder_of(root, split, expected=TREE)
    notes = folder_of(root, "annotations", expected=TREE)
    kind = annotations or next((kind for kind in KINDS if (notes / f"{kind}_{split}.json").is_file()), "instances")
    path = notes / f"{kind}_{split}.json"
    if not path.is_file():
        raise UserError(f"there is no file {path}; expected under {root}: {TREE}")
    files, index = files_by_stem(images), read_index(path, kind == "panoptic")
    pngs = files_by_stem(folder_of(notes, f"panoptic_{split}", expected=TREE)) if kind == "panoptic" else None
    lost = next((name for name in files if name not in index.images), None)
    if lost is not None:
        raise UserError(f"{files[lost]}: {path} has no image {lost!r}{suggest(lost, index.images)}")
    pair(files, files if pngs is None else pngs, images)
    named = np.isin(index.rows[:, 1], [category for category, number in index.classes.items() if number])
    if empty == "skip":
        full = set(index.rows[named, 0].tolist())
        files = {name: path for name, path in files.items() if index.images[name][0] in full}
    if pngs is None:
        index = replace(index, rows=index.rows[named])
    return Coco(files, index, pngs, size=size, limit=limit, only=only)
