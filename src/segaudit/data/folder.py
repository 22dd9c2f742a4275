"""Any folder of images and masks, with the classes that the user names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segaudit.data.base import Files, colours, files_by_stem, folder_of, listed, pair
from segaudit.data.files import open_mask, to_rgb
from segaudit.types import VOID, UserError

FORMS = "a list of names (mask values 0, 1, ...), {value: name, ...}, or {name: [r, g, b], ...} for colour masks"


class Coloured(Files):
    """Masks that are colour pictures; `labels` maps a colour, as the number 0xRRGGBB."""

    labels: Mapping[int, int]

    def read_mask(self, path: Path) -> NDArray[np.uint8]:
        """The class numbers of a colour mask, H x W. Raises UserError for a colour that is not in the table."""
        pixels = np.asarray(to_rgb(open_mask(path))).astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
        found, places = np.unique(pixels, return_inverse=True)
        for colour in found.tolist():
            if colour not in self.labels:
                rgb = [colour >> 16, colour >> 8 & 255, colour & 255]
                raise UserError(f"{path}: the mask holds the colour {rgb}; the class table does not")
        return np.array([self.labels[colour] for colour in found.tolist()], np.uint8)[places].reshape(pixels.shape)


def folder(
    root: str,
    classes: Sequence[str] | Mapping[Any, Any],
    split: str | None = None,
    images: str = "images",
    masks: str = "masks",
    mask_suffix: str = "",
    void: Any = (),
    size: Sequence[int] | None = None,
    limit: int | None = None,
    only: Sequence[str] | None = None,
) -> Files:
    """Any folder of images and masks of the same names (`images/NAME.*`, `masks/NAME.*`) with a class table.

    classes: a list of names (mask values 0, 1, ...), `value: name`, or `name: [r, g, b]` for colour masks. Classes
    are numbered in the order of the table; values of one name are one class. void: values or colours without truth;
    255 always is, unless it is a class. split: a sub-folder (`images/SPLIT` or `SPLIT/images`), or a text file of ids
    under root, `NAME.txt`. mask_suffix: what follows the image's name in the mask's (`_mask`).
    Source: the user's own data.
    """
    table = _table(classes, void)
    tree = f"{images}/NAME.jpg (or .png, ...), {masks}/NAME{mask_suffix}.png; a split folder inside or around both"
    top = folder_of(root, expected=tree)
    is_list = split is not None and split.endswith(".txt")
    image_folder, mask_folder = (_place(top, name, None if is_list else split, tree) for name in (images, masks))
    found = files_by_stem(image_folder)
    if split is not None and is_list:
        if not (top / split).is_file():
            raise UserError(f"folder: there is no file {top / split} with the ids of the split")
        found = listed(found, top / split)
    stems = files_by_stem(mask_folder).items()
    ends = {stem.removesuffix(mask_suffix): path for stem, path in stems if stem.endswith(mask_suffix)}
    kind = Coloured if table.coloured else Files
    files = kind(pair(found, ends, image_folder), labels=table.labels, size=size, limit=limit, only=only)
    files.class_names, files.palette = table.names, table.palette
    if not isinstance(classes, Mapping) and len(table.names) == 2:
        _refuse_0_255(files)
    return files


@dataclass(frozen=True)
class Table:
    """A class table: names, palette, and the class number or `VOID` of every mask value or colour (0xRRGGBB)."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    labels: Mapping[int, int]
    coloured: bool


def _table(classes: Any, void: Any) -> Table:
    if not classes or not isinstance(classes, (list, tuple, Mapping)):
        raise UserError(f"folder: classes must be {FORMS}, not {classes!r}")
    entries: list[tuple[Any, Any]]
    coloured = isinstance(classes, Mapping) and all(isinstance(value, (list, tuple)) for value in classes.values())
    if isinstance(classes, Mapping):
        entries = [(colour, name) for name, colour in classes.items()] if coloured else list(classes.items())
    else:
        entries = list(enumerate(classes))
    for _, name in entries:
        if not isinstance(name, str):
            raise UserError(f"folder: {name!r} in classes is not a name (quote names such as 'no'); write {FORMS}")
    names = tuple(dict.fromkeys(name for _, name in entries))
    if len(names) > VOID:
        raise UserError(f"folder: there are {len(names)} classes; at most {VOID} are possible")
    labels: dict[int, int] = {}
    without = void if isinstance(void, (list, tuple)) else [void]
    for key, number in [(key, names.index(name)) for key, name in entries] + [(key, VOID) for key in without]:
        code = _code(key, coloured)
        if code in labels:
            raise UserError(f"folder: {key} stands twice in classes and void; keep one of them")
        labels[code] = number
    if coloured:
        return Table(names, tuple((r, g, b) for (r, g, b), _ in entries), labels, coloured)
    return Table(names, colours(len(names)), {VOID: VOID, **labels}, coloured)


def _code(key: Any, coloured: bool) -> int:
    """A mask value as it is, a colour as 0xRRGGBB."""
    if isinstance(key, str) and key.isdecimal():  # a spec that was JSON has lost its whole-number keys
        key = int(key)
    parts = list(key) if coloured and isinstance(key, (list, tuple)) else [key]
    if len(parts) != (3 if coloured else 1) or not all(type(n) is int and 0 <= n <= 255 for n in parts):
        what = "a colour [r, g, b] with numbers" if coloured else "a mask value"
        raise UserError(f"folder: {key!r} in classes or void is not {what} of 0 to 255; classes may be {FORMS}")
    return int.from_bytes(bytes(parts))


def _place(top: Path, name: str, split: str | None, tree: str) -> Path:
    """`top/name`, with a split `top/split/name` where that exists, or else `top/name/split`."""
    if split is None:
        return folder_of(top, name, expected=tree)
    around = top / split / name
    return around if around.is_dir() else folder_of(top, name, split, expected=tree)


def _refuse_0_255(files: Files) -> None:
    """Two names stand for the values 0 and 1: in masks of 0 and 255 the second class would silently be void."""
    seen = {int(value) for name in files.ids[:8] for value in np.unique(files.read_mask(files.pairs[name][1]))}
    if seen == {0, 255}:
        first, second = files.class_names
        raise UserError(
            f"folder: {files.where(files.ids[0])} and others hold 0 and 255, and 255 is void: write "
            f"`classes: {{0: {first}, 255: {second}}}`, or {{0: {first}, 1: {second}}} where void is meant"
        )
