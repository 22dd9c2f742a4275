"""Cityscapes: its three kinds of masks, its cities, and what people's trees lack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_kit import refused, save
from segaudit.data.cityscapes import CLASS_NAMES, KINDS, PALETTE, cityscapes
from segaudit.types import VOID

NAMES = ("aachen_000000_000019", "aachen_000001_000019", "bochum_000000_000313")
LABELS = [
    [7, 8, 11, 12, 13, 17, 19],
    [20, 21, 22, 23, 24, 25, 26],
    [27, 28, 31, 32, 33, 0, 1],
    [4, 6, 9, 16, 18, 29, 30],
]
TRUTH = [[*range(7)], [*range(7, 14)], [*range(14, 19), VOID, VOID], [VOID] * 7]


def write(root: Path, kind: str, values: object, split: str = "val") -> Path:
    for name in NAMES:
        city = name.partition("_")[0]
        save(root / f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png", np.zeros((4, 7, 3), np.uint8))
        save(root / f"gtFine/{split}/{city}/{name}_gtFine_{kind}.png", np.array(values, np.uint8))
        save(root / f"gtFine/{split}/{city}/{name}_gtFine_instanceIds.png", np.full((4, 7), 9, np.uint8))
    return root


def colours() -> np.ndarray:
    table = np.zeros((256, 4), np.uint8)
    table[: len(PALETTE), :3] = PALETTE
    table[:, 3] = 255
    return table[np.array(TRUTH)]


@pytest.mark.parametrize(
    ("kind", "values"), [("labelIds", LABELS), ("labelTrainIds", TRUTH), ("color", colours())], ids=list(KINDS)
)
def test_every_kind_of_mask_gives_the_same_19_classes(tmp_path: Path, kind: str, values: object) -> None:
    data = cityscapes(str(write(tmp_path, kind, values)))
    assert data.ids == NAMES
    assert len(data.class_names) == len(set(data.palette)) == 19
    assert data.sample(NAMES[1])[1].tolist() == TRUTH
    assert (CLASS_NAMES[TRUTH[1][6]], LABELS[1][6]) == ("car", 26)


def test_label_ids_come_first_and_another_kind_can_be_asked_for(tmp_path: Path) -> None:
    write(tmp_path, "labelTrainIds", TRUTH)
    write(tmp_path, "labelIds", np.full((4, 7), 26))
    assert cityscapes(str(tmp_path)).sample(NAMES[0])[1].unique().tolist() == [13]
    assert cityscapes(str(tmp_path), masks="labelTrainIds").sample(NAMES[0])[1].tolist() == TRUTH
    refused(lambda: cityscapes(str(tmp_path), masks="color"), NAMES[0], "no mask", "among 0 masks")
    refused(lambda: cityscapes(str(tmp_path), masks="labelids"), "did you mean 'labelIds'")


def test_the_city_is_known_and_can_be_chosen(tmp_path: Path) -> None:
    write(tmp_path, "labelIds", LABELS)
    data = cityscapes(str(tmp_path))
    assert data.groups() == {"aachen": NAMES[:2], "bochum": NAMES[2:]}
    assert cityscapes(str(tmp_path), cities=["bochum"]).ids == NAMES[2:]
    refused(lambda: cityscapes(str(tmp_path), cities=["bochun"]), "'bochun'", "did you mean 'bochum'", "aachen, bochum")
    refused(lambda: cityscapes(str(tmp_path), cities="bochum"), "list of names")


def test_faults_are_named(tmp_path: Path) -> None:
    write(tmp_path, "color", colours())
    mask = tmp_path / f"gtFine/val/aachen/{NAMES[0]}_gtFine_color.png"
    grey = np.full((4, 7), 100, np.uint8)
    save(mask, grey)
    refused(lambda: cityscapes(str(tmp_path)).sample(NAMES[0]), str(mask), "[100, 100, 100]")
    save(mask, colours()[:2])
    refused(lambda: cityscapes(str(tmp_path)).sample(NAMES[0]), str(mask), "2 x 7", "4 x 7")
    mask.unlink()
    refused(lambda: cityscapes(str(tmp_path)), f"{NAMES[0]}_leftImg8bit.png", f"no mask '{NAMES[0]}'")
    refused(lambda: cityscapes(str(tmp_path), "train"), "leftImg8bit holds the folders val", "CITY/NAME")


def test_folders_within_folders_and_upper_case_are_read_and_doubles_refused(tmp_path: Path) -> None:
    write(tmp_path, "labelIds", LABELS)
    path = tmp_path / f"leftImg8bit/val/aachen/{NAMES[0]}_leftImg8bit.png"
    nested = tmp_path / f"leftImg8bit/val/more/aachen/{NAMES[0]}_leftImg8bit.PNG"
    nested.parent.mkdir(parents=True)
    path.rename(nested)
    assert sorted(cityscapes(str(tmp_path)).ids) == list(NAMES)
    save(path, np.zeros((4, 7, 3), np.uint8))
    refused(lambda: cityscapes(str(tmp_path)), str(path), str(nested), "same image")
