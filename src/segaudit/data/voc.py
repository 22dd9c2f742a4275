"""PASCAL VOC 2012 in its official layout, and SBD's masks beside it: 21 classes, 255 is the void border."""

from __future__ import annotations

from collections.abc import Sequence

from segaudit.data.base import Files, colours, files_by_stem, folder_of, listed, pair
from segaudit.registry import suggest
from segaudit.types import UserError

CLASS_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
TREE = (
    "VOCdevkit/VOC2012/JPEGImages/NAME.jpg, SegmentationClass/NAME.png and ImageSets/Segmentation/{train,val}.txt "
    "(root may also be VOCdevkit or VOC2012); SBD's: SegmentationClassAug/NAME.png and train_aug.txt"
)
LISTS = ("ImageSets", "Segmentation")


def voc(
    root: str,
    split: str = "val",
    size: Sequence[int] | None = None,
    limit: int | None = None,
    only: Sequence[str] | None = None,
) -> Files:
    """PASCAL VOC 2012, 21 classes with background (`JPEGImages/`, `SegmentationClass/`, `ImageSets/Segmentation/`).

    split: train, val or trainval; any list of ids in `ImageSets/Segmentation` will do. A list whose name ends in `aug`
    (train_aug: the 10,582 images with SBD's masks) takes its masks from `SegmentationClassAug/`; its lines may also be
    `/JPEGImages/NAME.jpg /SegmentationClassAug/NAME.png`. The 255 border is void; SBD's masks have none.
    Source: Everingham et al. 2010; Hariharan et al. 2011 (SBD).
    """
    top = folder_of(root, expected=TREE)
    tops = [top / "VOCdevkit" / "VOC2012", top / "VOC2012", top]
    year = next((path for path in tops if path.joinpath(*LISTS).is_dir()), tops[0])
    lists = {path.stem: path for path in sorted(folder_of(year, *LISTS, expected=TREE).glob("*.txt"))}
    if split not in lists:
        raise UserError(f"voc has no split {split!r}{suggest(split, lists)}; there are: {', '.join(lists)}")
    images = folder_of(year, "JPEGImages", expected=TREE)
    masks = folder_of(year, "SegmentationClassAug" if split.endswith("aug") else "SegmentationClass", expected=TREE)
    chosen = listed(files_by_stem(images), lists[split], _image_of)
    pairs = pair(chosen, files_by_stem(masks), images)
    files = Files(pairs, size=size, limit=limit, only=only)
    files.class_names, files.palette = CLASS_NAMES, colours(len(CLASS_NAMES))
    return files


def _image_of(line: str) -> str:
    """The id or file name in a line: all of it, or the name in the first of two columns of paths."""
    first = line.split(maxsplit=1)[0] if line.strip() else ""
    return first.rpartition("/")[2] if first.startswith("/") else line.strip()
