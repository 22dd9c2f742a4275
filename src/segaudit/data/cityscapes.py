"""Cityscapes in its official layout: the 19 classes that are scored, from any of its three kinds of masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from segaudit.data.base import Files, files_by_stem, folder_of, of_groups, pair
from segaudit.data.folder import Coloured
from segaudit.registry import suggest
from segaudit.types import VOID, UserError

CLASS_NAMES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
PALETTE = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
    (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70),
    (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""The ids of the 19 classes among the 34 (0 to 33) of `labelIds`."""
UNSCORED = (
    (0, 0, 0), (111, 74, 0), (81, 0, 81), (250, 170, 160), (230, 150, 140), (180, 165, 180), (150, 100, 100),
    (150, 120, 90), (0, 0, 90), (0, 0, 110),
)  # fmt: skip
"""The colours of the other classes: unlabelled, dynamic, ground, parking, rail track, guard rail, bridge, tunnel,
caravan, trailer. The pole group has the pole's colour, and is read as a pole in colour masks."""
TREE = "leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png, gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png (or _color, ...)"


def _code(colour: tuple[int, int, int]) -> int:
    return int.from_bytes(bytes(colour))


KINDS: dict[str, dict[int, int]] = {
    "labelIds": {
        **dict.fromkeys((*range(34), VOID), VOID),
        **{label: number for number, label in enumerate(LABEL_IDS)},
    },
    "labelTrainIds": {**{number: number for number in range(len(CLASS_NAMES))}, VOID: VOID},
    "color": {
        **{_code(colour): VOID for colour in UNSCORED},
        **{_code(colour): number for number, colour in enumerate(PALETTE)},
    },
}
"""The kinds of masks, by the end of their names: mask value or colour (0xRRGGBB) -> class number or `VOID`."""


class Streets(Files):
    """Images of `CITY_SEQUENCE_FRAME`."""

    def group(self, image_id: str) -> str:
        """The city."""
        return _city(image_id)


class ColouredStreets(Coloured, Streets):
    """The same with colour masks."""


def cityscapes(
    root: str,
    split: str = "val",
    masks: str | None = None,
    cities: Sequence[str] | None = None,
    size: Sequence[int] | None = None,
    limit: int | None = None,
    only: Sequence[str] | None = None,
) -> Files:
    """Cityscapes, road scenes of 50 cities, 19 classes (`leftImg8bit/SPLIT/CITY/`, `gtFine/SPLIT/CITY/`).

    split: train or val (the masks of test are not public). masks: labelIds, labelTrainIds or color, by default the
    first of them that there is. cities: these alone; an image's city is its group. All other classes are void.
    Source: Cordts et al. 2016.
    """
    images = folder_of(root, "leftImg8bit", split, expected=TREE)
    truth = files_by_stem(folder_of(root, "gtFine", split, expected=TREE))
    kinds = {kind: _by_id(truth, f"_gtFine_{kind}") for kind in KINDS}
    kind = masks if masks is not None else next((kind for kind in KINDS if kinds[kind]), "labelIds")
    if kind not in KINDS:
        raise UserError(f"cityscapes: masks must be one of {', '.join(KINDS)}, not {kind!r}{suggest(str(kind), KINDS)}")
    pairs = pair(_by_id(files_by_stem(images), "_leftImg8bit"), kinds[kind], images)
    chosen = {name: pairs[name] for name in of_groups(pairs, _city, cities, "cities")}
    streets = ColouredStreets if kind == "color" else Streets
    files = streets(chosen, labels=KINDS[kind], size=size, limit=limit, only=only)
    files.class_names, files.palette = CLASS_NAMES, PALETTE
    return files


def _city(name: str) -> str:
    return name.partition("_")[0]


def _by_id(found: Mapping[str, Path], ending: str) -> dict[str, Path]:
    """id -> file for the files whose names end so, in whatever folder: an id holds its city."""
    chosen: dict[str, Path] = {}
    for stem, path in found.items():
        if stem.endswith(ending):
            name = path.stem.removesuffix(ending)
            if name in chosen:
                raise UserError(f"{chosen[name]} and {path} are the same image; keep one of them")
            chosen[name] = path
    return chosen
