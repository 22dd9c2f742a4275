"""COCO: regions against hand-made masks and naive loops, both kinds of annotations, and their faults."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data_kit import refused, save
from segaudit.data import _json
from segaudit.data._regions import polygon, region, runs, unpack
from segaudit.data.coco import coco
from segaudit.types import VOID, UserError

CATEGORIES = [
    {"id": 1, "name": "person"}, {"id": 3, "name": "car"}, {"id": 5, "name": "airplane"},
    {"id": 13, "name": "stop sign"}, {"id": 72, "name": "tv"}, {"id": 199, "name": "wall-other-merged"},
]  # fmt: skip
H, W = 4, 5
BOX = [1, 0, 3, 0, 3, 2, 1, 2]
"""Columns 1 and 2 of rows 0 and 1."""


def pack(mask: np.ndarray) -> str:
    """A mask's run lengths as COCO compresses them, a bit at a time."""
    flat = [0, *mask.T.flatten().astype(int).tolist()]
    edges = [i for i in range(1, len(flat)) if flat[i] != flat[i - 1]]
    counts = np.diff([0, *(i - 1 for i in edges), mask.size]).tolist()
    text = ""
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        while True:
            bits, value = value & 31, value >> 5
            last = value == (-1 if bits & 16 else 0)
            text += chr(48 + bits + (0 if last else 32))
            if last:
                break
    return text


def inside(points: list[float], x: float, y: float) -> bool:
    """Whether a ray to the left crosses the polygon an odd number of times."""
    corners, odd = list(zip(points[::2], points[1::2], strict=True)), False
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        if (y0 <= y) != (y1 <= y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x:
            odd = not odd
    return odd


def test_the_run_lengths_of_the_formats_own_example_are_unpacked() -> None:
    assert unpack("61X13mN000`0") == [6, 1, 40, 4, 5, 4, 5, 4, 21]


def test_run_lengths_go_down_the_columns_from_outside() -> None:
    mask = [[0, 0, 1], [1, 0, 1]]
    assert runs([1, 1, 2, 2], 2, 3).tolist() == mask
    assert runs([0, 6], 2, 3).all()
    assert region({"size": [2, 3], "counts": [1, 1, 2, 2]}, 2, 3).tolist() == mask


@pytest.mark.parametrize("seed", range(5))
def test_compressed_run_lengths_give_the_mask_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = (rng.random((37, 53)) < rng.random((1, 53)) ** 3) | (np.arange(53) > 40)
    assert np.array_equal(region({"size": [37, 53], "counts": pack(mask)}, 37, 53), mask)


def test_a_polygon_holds_the_pixels_whose_centre_it_holds() -> None:
    square = np.zeros((H, W), bool)
    square[0:2, 1:3] = True
    assert np.array_equal(polygon(BOX, H, W), square)
    assert np.array_equal(region([BOX, [4, 3, 5, 3, 5, 4, 4, 4]], H, W).nonzero(), [[0, 0, 1, 1, 3], [1, 2, 1, 2, 4]])
    assert polygon([0, 0, W, H], H, W).sum() == 0
    rng = np.random.default_rng(0)
    for corners in (3, 4, 9):
        for _ in range(5):
            points = rng.uniform(-4, 20, 2 * corners).tolist()
            wanted = [[inside(points, x + 0.5, y + 0.5) for x in range(14)] for y in range(16)]
            assert polygon(points, 16, 14).tolist() == wanted


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ({"size": [H, W + 1], "counts": [H * W + H]}, "are for"),
        ({"size": [H, W], "counts": [3, 4]}, "add up to 7"),
        ({"size": [H, W], "counts": [30, -10]}, "not whole numbers"),
        ({"size": [H, W], "counts": "6 1"}, "character ' '"),
        ({"size": [H, W]}, "not whole numbers"),
        ([[0, 0, 1, 1, 2]], "polygon"),
        ([[0, 0, 1, 1, 2, float("nan")]], "not finite"),
        ([1, 2, 3, 4, 5, 6], "polygon"),
        (None, "neither"),
    ],
)
def test_a_wrong_region_is_refused(wrong: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        region(wrong, H, W)


def test_elements_are_found_where_they_are_whatever_the_size_of_a_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {"info": {"é": [1, "]"]}, "b": [], "ü": [{"n": "é}{"}, {"n": [1, {}]}, "日本.jpg"], "y": 7, "c": [12, 345]}
    for i, text in enumerate((json.dumps(whole), json.dumps(whole, indent=2, ensure_ascii=False))):
        path = tmp_path / f"{i}.json"
        path.write_text(text, encoding="utf-8")
        for chunk in (1, 7, 1 << 20):
            monkeypatch.setattr(_json, "CHUNK", chunk)
            found = list(_json.elements(path))
            assert [key for key, *_ in found] == ["ü", "ü", "ü", "c", "c"]
            assert [made for _, made, *_ in found] == whole["ü"] + whole["c"]
            assert [_json.element(path, first, last) for _, _, first, last in found] == whole["ü"] + whole["c"]
        path.write_text(text[:-4])
        with pytest.raises(UserError, match=rf"{i}\.json: .*copy it again"):
            list(_json.elements(path))


def test_a_long_value_is_decoded_few_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, decoded = tmp_path / "x.json", []

    def decode(text: str, at: int) -> tuple[Any, int]:
        decoded.append(len(text) - at)
        return json.JSONDecoder().raw_decode(text, at)

    monkeypatch.setattr(_json, "CHUNK", 64)
    monkeypatch.setattr(_json, "DECODER", SimpleNamespace(raw_decode=decode))
    path.write_text(json.dumps({"info": {"text": "a" * 20000}, "images": ["b" * 20000, 1]}))
    assert [len(str(made)) for _, made, *_ in _json.elements(path)] == [20000, 1]
    assert sum(decoded) < 5 * path.stat().st_size


def test_text_that_is_not_utf_8_and_endless_lists_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for content in (b'{"x": ["caf\xe9.jpg"]}', b'{"x": ' + b"[" * 10**5, b'{"x": [' + b"9" * 10**4 + b"]}"):
        path.write_bytes(content)
        refused(lambda: list(_json.elements(path)), str(path), "not whole JSON")


def annotation(image: int, category: int, segmentation: Any, **more: Any) -> dict[str, Any]:
    return {"id": image * 10, "image_id": image, "category_id": category, "segmentation": segmentation, **more}


def write(root: Path, kind: str, annotations: list[dict[str, Any]], count: int = 3, **more: Any) -> Path:
    images = [{"id": i, "file_name": f"{i:012}.jpg", "height": H, "width": W} for i in range(1, count + 1)]
    for image in images:
        save(root / "val2017" / image["file_name"], np.zeros((H, W, 3), np.uint8))
    path = root / f"annotations/{kind}_val2017.json"
    path.parent.mkdir(exist_ok=True)
    whole = {"info": {"year": 2017}, "images": images, "annotations": annotations, "categories": CATEGORIES}
    path.write_text(json.dumps(whole | more))
    return path


ONE, TWO, THREE = (f"{i:012}" for i in (1, 2, 3))


def test_instances_become_voc_classes_and_crowds_void(tmp_path: Path) -> None:
    column = np.zeros((H, W), bool)
    column[:, 4] = True
    write(
        tmp_path,
        "instances",
        [
            annotation(2, 72, [BOX]),
            annotation(1, 1, [BOX]),
            annotation(1, 3, {"size": [H, W], "counts": pack(column)}),
            annotation(1, 13, [[0, 2, 4, 2, 4, 3, 0, 3]]),  # not one of VOC's
            annotation(1, 1, {"size": [H, W], "counts": [3, 1, 16]}, iscrowd=1),
            annotation(1, 13, {"size": [H, W], "counts": [7, 1, 12]}, iscrowd=1),
        ],
    )
    data = coco(str(tmp_path))
    assert data.ids == (ONE, TWO, THREE)
    assert data.class_names[15] == "person"
    labels = [[0, 15, 15, 0, 7], [0, 15, 15, 0, 7], [0, 0, 0, 0, 7], [VOID, 0, 0, 0, 7]]
    assert data.sample(ONE)[1].tolist() == labels
    assert data.sample(TWO)[1].unique().tolist() == [0, 20]
    assert data.sample(THREE)[1].unique().tolist() == [0]
    assert coco(str(tmp_path), empty="skip").ids == (ONE, TWO)


def test_two_classes_on_a_pixel_make_it_void_and_two_of_one_class_do_not(tmp_path: Path) -> None:
    low = [0, 1, 5, 1, 5, 2, 0, 2]
    write(tmp_path, "instances", [annotation(1, 1, [BOX]), annotation(1, 1, [BOX]), annotation(1, 3, [low])])
    labels = coco(str(tmp_path)).sample(ONE)[1].tolist()
    assert labels == [[0, 15, 15, 0, 0], [7, VOID, VOID, 7, 7], [0] * 5, [0] * 5]


def panoptic(root: Path) -> tuple[Path, Path]:
    """Segments 70000 (car), 300 (wall), 5 (a crowd of people), 6 (a crowd of signs) and none."""
    ids = np.array([[70000] * 5, [300] * 5, [5, 5, 6, 6, 6], [0] * 5])
    png = root / f"annotations/panoptic_val2017/{ONE}.png"
    save(png, np.stack([ids & 255, ids >> 8 & 255, ids >> 16], 2).astype(np.uint8))
    parts = [
        {"id": 70000, "category_id": 3, "iscrowd": 0}, {"id": 300, "category_id": 199, "iscrowd": 0},
        {"id": 5, "category_id": 1, "iscrowd": 1}, {"id": 6, "category_id": 13, "iscrowd": 1},
    ]  # fmt: skip
    notes = [{"image_id": 1, "file_name": f"{ONE}.png", "segments_info": parts}]
    return write(root, "panoptic", notes, count=1), png


def test_panoptic_segments_become_voc_classes(tmp_path: Path) -> None:
    panoptic(tmp_path)
    wanted = [[7] * 5, [0] * 5, [VOID, VOID, 0, 0, 0], [VOID] * 5]
    assert coco(str(tmp_path)).sample(ONE)[1].tolist() == wanted
    write(tmp_path, "instances", [annotation(1, 5, [BOX])], count=1)
    assert coco(str(tmp_path)).sample(ONE)[1].tolist() == wanted
    assert coco(str(tmp_path), annotations="instances").sample(ONE)[1].unique().tolist() == [0, 1]


def test_panoptic_faults_are_named(tmp_path: Path) -> None:
    path, png = panoptic(tmp_path)
    save(png, np.full((H, W), 5, np.uint8))
    refused(lambda: coco(str(tmp_path)).sample(ONE), str(png), "[5, 5, 5]", str(path))
    save(png, np.zeros((2, 2, 3), np.uint8))
    refused(lambda: coco(str(tmp_path)).sample(ONE), str(png), "2 x 2", "4 x 5")
    upper = png.with_suffix(".PNG")
    png.rename(upper)
    assert coco(str(tmp_path)).where(ONE) == str(upper)
    upper.unlink()
    refused(lambda: coco(str(tmp_path)), f"{ONE}.jpg", f"no mask '{ONE}'")


def test_faults_of_the_file_and_its_images_are_named(tmp_path: Path) -> None:
    refused(lambda: coco(str(tmp_path)), str(tmp_path / "val2017"), "annotations/instances_SPLIT.json", "NAME")
    path = write(tmp_path, "instances", [annotation(1, 1, {"size": [H, W], "counts": [1]}), annotation(2, 1, [BOX])])
    refused(lambda: coco(str(tmp_path)).sample(ONE), str(path), ONE, "annotation 10", "add up to 1")
    save(tmp_path / f"val2017/{TWO}.jpg", np.zeros((W, H, 3), np.uint8))
    refused(lambda: coco(str(tmp_path)).sample(TWO), str(path), TWO, "4 x 5", "5 x 4")
    (tmp_path / f"val2017/{ONE}.jpg").rename(tmp_path / f"val2017/{ONE}.JPG")
    (tmp_path / f"val2017/{THREE}.jpg").unlink()  # only a part of the images is here
    assert coco(str(tmp_path)).ids == (ONE, TWO)
    nested = tmp_path / f"val2017/more/{THREE}.jpg"
    save(nested, np.zeros((H, W, 3), np.uint8))
    refused(lambda: coco(str(tmp_path)), str(nested), str(path), f"did you mean '{THREE}'")
    nested.unlink()
    (tmp_path / f"val2017/{ONE}.JPG").unlink()
    write(tmp_path, "instances", [annotation(1, 91, [BOX])])
    refused(lambda: coco(str(tmp_path)), str(path), "category 91")
    write(tmp_path, "instances", [{"id": 1, "category_id": 1}])
    refused(lambda: coco(str(tmp_path)), str(path), "'annotations'", "'image_id'")
    write(tmp_path, "instances", [], categories=[{"id": 1, "name": "tree"}])
    refused(lambda: coco(str(tmp_path)), str(path), "VOC class")
    path.write_text(path.read_text()[:99])
    refused(lambda: coco(str(tmp_path)), str(path), "copy it again")
    refused(lambda: coco(str(tmp_path), annotations="panoptic"), "no file", "panoptic_val2017.json")
    refused(lambda: coco(str(tmp_path), annotations="instance"), "did you mean 'instances'")


@pytest.mark.parametrize(
    ("key", "wrong"),
    [("id", "x"), ("id", 2**70), ("height", "8"), ("height", 0), ("width", 2**40), ("width", 5.0), ("width", True)],
)
def test_an_image_that_is_no_image_is_named(tmp_path: Path, key: str, wrong: Any) -> None:
    image = {"id": 1, "file_name": f"{ONE}.jpg", "height": H, "width": W, key: wrong}
    path = write(tmp_path, "instances", [annotation(1, 1, [BOX])], count=1, images=[image])
    refused(lambda: coco(str(tmp_path)).sample(ONE), str(path), "'images'", f"its {key} is not a whole number")


def test_an_annotation_out_of_range_is_named(tmp_path: Path) -> None:
    for wrong in ({"image_id": 2**70}, {"image_id": "x"}, {"category_id": -1}, {"category_id": "car"}):
        path = write(tmp_path, "instances", [annotation(1, 1, [BOX]) | wrong])
        refused(lambda: coco(str(tmp_path)), str(path), "'annotations'", f"its {next(iter(wrong))} is not")
    write(tmp_path, "instances", [annotation(1, 1, [[10**400, *BOX[1:]]])])
    refused(lambda: coco(str(tmp_path)).sample(ONE), str(path), "annotation 10", "too large")
    write(tmp_path, "instances", [], categories=[*CATEGORIES, {"id": "x", "name": "cat"}])
    refused(lambda: coco(str(tmp_path)), str(path), "'categories'", "its id is not")
    path, _ = panoptic(tmp_path)
    for wrong, told in (
        ({}, "KeyError: 'id'"),
        ({"id": []}, "its id is not"),
        ({"id": 1, "category_id": -1}, "its cat"),
    ):
        write(tmp_path, "panoptic", [{"image_id": 1, "segments_info": [{"category_id": 1, **wrong}]}], count=1)
        refused(lambda: coco(str(tmp_path)).sample(ONE), str(path), "'annotations'", told)


def test_a_name_need_not_be_ascii(tmp_path: Path) -> None:
    path = write(tmp_path, "instances", [annotation(1, 1, [BOX])], count=1)
    path.write_text(path.read_text().replace(ONE, "café"), encoding="utf-8")
    (tmp_path / f"val2017/{ONE}.jpg").rename(tmp_path / "val2017/café.jpg")
    assert coco(str(tmp_path)).sample("café")[1].unique().tolist() == [0, 15]


def test_the_digest_changes_with_the_annotations(tmp_path: Path) -> None:
    write(tmp_path, "instances", [annotation(1, 1, [BOX])])
    before = coco(str(tmp_path)).digest()
    again = pickle.loads(pickle.dumps(coco(str(tmp_path))))  # as a worker process gets it
    assert again.digest() == before
    assert again.sample(ONE)[1].unique().tolist() == [0, 15]
    write(tmp_path, "instances", [annotation(1, 3, [BOX])])
    assert coco(str(tmp_path)).digest() != before


def test_what_annotations_hold_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_json, "CHUNK", 1 << 16)
    points = np.random.default_rng(0).uniform(0, 5, 2000).round(2).tolist()
    path = write(tmp_path, "instances", [annotation(1 + i % 3, 1, [points]) for i in range(200)])
    tracemalloc.start()
    data = coco(str(tmp_path))
    data.sample(TWO)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 3
    assert len(list(data.index.of(TWO))) == 67
