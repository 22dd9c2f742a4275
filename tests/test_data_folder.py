"""The `folder` data set: class tables, splits and mask names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segaudit.data.folder import folder
from segaudit.types import VOID, UserError

COLOURS = {"sky": [0, 0, 255], "road": [128, 64, 128], "car": [255, 255, 255]}


def save(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


def tree(root: Path, mask: Any, names: tuple[str, ...] = ("x",), images: str = "images", masks: str = "masks") -> Path:
    for name in names:
        save(root / images / f"{name}.jpg", np.zeros((*np.shape(mask)[:2], 3)))
        save(root / masks / f"{name}.png", mask)
    return root


def test_values_map_to_names_in_the_tables_order(tmp_path: Path) -> None:
    tree(tmp_path, [[7, 24, 26, 0, 255]])
    data = folder(tmp_path, {26: "car", 7: "road", 24: "car"}, void=[0])
    assert data.class_names == ("car", "road")
    assert data.sample("x")[1].tolist() == [[1, 0, 0, VOID, VOID]]
    assert folder(tmp_path, {26: "car", 7: "road", 24: "car", 255: "sky"}, void=0).sample("x")[1].max() == VOID
    with pytest.raises(UserError, match=r"x\.png: the mask holds the value 0; the class table knows 7, 24, 26, 255"):
        folder(tmp_path, {26: "car", 7: "road", 24: "car"}).sample("x")


def test_a_mask_of_one_pixel_is_of_an_image_of_one_pixel(tmp_path: Path) -> None:
    data = folder(tree(tmp_path, [[1]]), ["a", "b"], size=[2, 3])
    assert data.sample("x")[1].tolist() == [[1, 1, 1], [1, 1, 1]]
    save(tmp_path / "images/y.jpg", np.zeros((4, 6, 3)))
    save(tmp_path / "masks/y.png", [[1]])
    for size in (None, [2, 3]):
        with pytest.raises(UserError, match=r"y\.png: the mask is 1 x 1 but the image 4 x 6"):
            folder(tmp_path, ["a", "b"], size=size).sample("y")


def test_255_may_be_a_class(tmp_path: Path) -> None:
    tree(tmp_path, [[0, 255]])
    assert folder(tmp_path, {"0": "background", "255": "polyp"}).sample("x")[1].tolist() == [[0, 1]]
    assert folder(tmp_path, {0: "background", 255: "polyp"}).sample("x")[1].tolist() == [[0, 1]]


def test_two_names_with_masks_of_0_and_255_are_not_taken_for_void(tmp_path: Path) -> None:
    tree(tmp_path, [[0, 255]])
    with pytest.raises(UserError, match=r"255: polyp"):
        folder(tmp_path, ["background", "polyp"])
    tree(tmp_path, [[0, 1, 255]], ("y",))
    assert folder(tmp_path, ["background", "polyp"]).sample("y")[1].tolist() == [[0, 1, VOID]]


def test_colours_map_to_names(tmp_path: Path) -> None:
    mask = [[COLOURS["car"], COLOURS["sky"], COLOURS["road"], [0, 0, 0]]]
    tree(tmp_path, mask)
    data = folder(tmp_path, COLOURS, void=[[0, 0, 0]])
    assert data.class_names == ("sky", "road", "car")
    assert data.palette == ((0, 0, 255), (128, 64, 128), (255, 255, 255))
    assert data.sample("x")[1].tolist() == [[2, 0, 1, VOID]]
    assert folder(tmp_path, COLOURS, void=[[0, 0, 0]], size=[3, 8]).sample("x")[1].unique().tolist() == [0, 1, 2, VOID]
    with pytest.raises(UserError, match=r"x\.png: the mask holds the colour \[0, 0, 0\]"):
        folder(tmp_path, COLOURS).sample("x")
    Image.fromarray(np.array(mask, np.uint8)).quantize(4).save(tmp_path / "masks/x.png")
    assert data.sample("x")[1].tolist() == [[2, 0, 1, VOID]]


@pytest.mark.parametrize(
    "args", [{"images": "images/val", "masks": "masks/val"}, {"images": "val/images", "masks": "val/masks"}]
)
def test_a_split_is_a_folder_inside_or_around(tmp_path: Path, args: dict[str, str]) -> None:
    tree(tmp_path, [[0, 1]], ("x", "deep/y"), **args)
    tree(tmp_path, [[0, 1]], ("z",), **{key: value.replace("val", "train") for key, value in args.items()})
    assert folder(tmp_path, ["a", "b"], split="val").ids == ("deep/y", "x")
    with pytest.raises(UserError, match=r"there is no folder .*test"):
        folder(tmp_path, ["a", "b"], split="test")


def test_a_split_is_a_text_file(tmp_path: Path) -> None:
    tree(tmp_path, [[0, 1]], ("x", "y", "z"))
    (tmp_path / "val.txt").write_text("\ufeffz\n x.jpg \n\n")
    assert folder(tmp_path, ["a", "b"], split="val.txt").ids == ("z", "x")
    (tmp_path / "val.txt").write_text("w\n")
    with pytest.raises(UserError, match=r"val\.txt: there is no image 'w'"):
        folder(tmp_path, ["a", "b"], split="val.txt")
    with pytest.raises(UserError, match=r"no file .*test\.txt"):
        folder(tmp_path, ["a", "b"], split="test.txt")


def test_masks_may_have_a_suffix_and_folders_other_names(tmp_path: Path) -> None:
    tree(tmp_path, [[0, 1]], ("x",), images="photos", masks="elsewhere")
    save(tmp_path / "truth/x_mask.png", [[1, 0]])
    save(tmp_path / "truth/x_edges.png", [[0, 0]])
    data = folder(tmp_path, ["a", "b"], images="photos", masks="truth", mask_suffix="_mask")
    assert data.sample("x")[1].tolist() == [[1, 0]]
    with pytest.raises(
        UserError, match=r"photos/x\.jpg: there is no mask 'x' among 2 masks \(the first is 'x_edges'\)"
    ):
        folder(tmp_path, ["a", "b"], images="photos", masks="truth")


@pytest.mark.parametrize(
    ("classes", "void", "fault"),
    [
        ([], [], "classes must be"),
        ("road", [], "classes must be"),
        (["off", False], [], "False in classes is not a name"),
        ({"road": 7}, [], "7 in classes is not a name"),
        ({"seven": "road"}, [], "'seven' in classes or void is not a mask value"),
        ({300: "road"}, [], "300 in classes or void"),
        ({True: "road"}, [], "True in classes or void"),
        ({"road": [1, 2]}, [], r"\(1, 2\)|\[1, 2\] in classes or void is not a colour"),
        ({"road": [1, 2, 300]}, [], "is not a colour"),
        ({"road": [1, 2, 3], "car": [1, 2, 3]}, [], "stands twice"),
        ({"road": [1, 2, 3]}, [0], "0 in classes or void is not a colour"),
        ({0: "road", 1: "car"}, [1], "1 stands twice"),
        ([f"class {i}" for i in range(256)], [], "at most 255"),
    ],
)
def test_a_wrong_class_table_is_refused(tmp_path: Path, classes: Any, void: Any, fault: str) -> None:
    tree(tmp_path, [[0, 1]])
    with pytest.raises(UserError, match=fault) as caught:
        folder(tmp_path, classes, void=void)
    assert "\n" not in str(caught.value)


def test_samples_stack(tmp_path: Path) -> None:
    tree(tmp_path, [[0, 1]], ("x", "y"))
    batch = folder(tmp_path, ["a", "b"]).batch(["y", "x"])
    assert batch.ids == ("y", "x")
    assert torch.equal(batch.labels, torch.tensor([[[0, 1]], [[0, 1]]]))
