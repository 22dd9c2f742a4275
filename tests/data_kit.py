"""Small data sets in their official layouts, written to a folder, and how a refusal is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segaudit import registry
from segaudit.data.base import Files
from segaudit.types import VOID, UserError

NAMES = ("frame_b2", "frame_a1", "frame_c3")
SIZE = (24, 36)


@dataclass(frozen=True)
class Layout:
    """Where a data set keeps an image, its mask and its list of ids, and how one mask value is read."""

    name: str
    image: str
    mask: str
    args: dict[str, Any]
    values: dict[int, int]
    """Mask value -> label that must come out."""
    ids: str | None = None

    def files(self, root: Path, name: str) -> tuple[Path, Path]:
        return root / self.image.format(name), root / self.mask.format(name)

    def open(self, root: Path, **args: Any) -> Files:
        return registry.load("data", self.name)(root=str(root), **{**self.args, **args})

    def write(self, root: Path) -> Path:
        rng = np.random.default_rng(0)
        for name in NAMES:
            image, mask = self.files(root, name)
            save(image, rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
            save(mask, rng.choice(np.array(list(self.values), np.uint8), SIZE))
        if self.ids:
            save_text(root / self.ids, "\n".join(NAMES) + "\n")
        return root


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def load(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def save_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


VOC = "VOCdevkit/VOC2012"
LAYOUTS = [
    Layout("camvid", "val/{}.png", "valannot/{}.png", {}, {0: 0, 3: 3, 10: 10, 11: VOID, 255: VOID}),
    Layout("kvasir", "images/{}.png", "masks/{}.png", {"split": "all"}, {0: 0, 127: 0, 128: 1, 255: 1}),
    Layout(
        "voc",
        VOC + "/JPEGImages/{}.png",
        VOC + "/SegmentationClass/{}.png",
        {},
        {0: 0, 15: 15, 20: 20, 255: VOID},
        VOC + "/ImageSets/Segmentation/val.txt",
    ),
    Layout("folder", "images/{}.png", "masks/{}.png", {"classes": ["a", "b", "c"]}, {0: 0, 1: 1, 2: 2, 255: VOID}),
    Layout(
        "voc",
        VOC + "/JPEGImages/{}.png",
        VOC + "/SegmentationClassAug/{}.png",
        {"split": "train_aug"},
        {0: 0, 15: 15, 20: 20, 255: VOID},
        VOC + "/ImageSets/Segmentation/train_aug.txt",
    ),
    Layout(
        "cityscapes",
        "leftImg8bit/val/frame/{}_leftImg8bit.png",
        "gtFine/val/frame/{}_gtFine_labelIds.png",
        {},
        {0: VOID, 6: VOID, 7: 0, 11: 2, 26: 13, 29: VOID, 33: 18, 255: VOID},
    ),
    Layout(
        "cityscapes",
        "leftImg8bit/val/frame/{}_leftImg8bit.png",
        "gtFine/val/frame/{}_gtFine_labelTrainIds.png",
        {},
        {0: 0, 13: 13, 18: 18, 255: VOID},
    ),
]


def refused(call: Callable[[], object], *parts: str) -> None:
    """The call ends in one line that holds every part."""
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text
