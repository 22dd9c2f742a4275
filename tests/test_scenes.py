"""The embedded data set: the same everywhere, exact labels, and nothing that colour alone gives away."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from segaudit.audit import build
from segaudit.audit.parts import Part
from segaudit.data.base import Dataset
from segaudit.data.scenes import scenes
from segaudit.types import VOID, UserError

KINDS = ("street", "lesion")


def pixels(data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """All images and labels, N x H x W x 3 and N x H x W."""
    read = [data.read(name) for name in data.ids]
    return np.stack([image for image, _ in read]), np.stack([label for _, label in read])


@pytest.fixture(scope="module")
def street() -> tuple[np.ndarray, np.ndarray]:
    return pixels(scenes(images=32))


@pytest.fixture(scope="module")
def fitted() -> tuple[np.ndarray, np.ndarray]:
    return pixels(scenes(split="train", images=96))


@pytest.mark.parametrize(
    ("kind", "digest"),
    [("street", "7bba84444cb9e645"), ("lesion", "e3d995a50c2f46c2")],
)
def test_an_image_is_the_same_on_every_machine(kind: str, digest: str) -> None:
    image, label = scenes(kind=kind).read(f"{kind}-val-0007")
    assert hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_depends_on_seed_split_and_index_alone(kind: str) -> None:
    name = f"{kind}-val-0008"
    image, label = scenes(kind=kind).read(name)
    for data in (scenes(kind=kind, images=20, limit=5), scenes(kind=kind, only=[name])):
        assert name in data.ids
        again, mask = data.read(name)
        assert (again == image).all()
        assert (mask == label).all()
    others = [scenes(kind=kind).read(f"{kind}-val-0009"), scenes(kind=kind, seed=1).read(name)]
    others += [scenes(kind=kind, split=split).read(name.replace("val", split)) for split in ("train", "test")]
    for other, mask in others:
        assert (mask != label).mean() > 0.05
        assert abs(other.astype(float) - image).mean() > 5


def test_ids_and_counts() -> None:
    assert scenes().ids[7] == "street-val-0007"
    assert [len(scenes(split=split)) for split in ("train", "val", "test")] == [1000, 64, 64]
    assert len(scenes(images=10, limit=3)) == 3
    batch = scenes(kind="lesion", limit=2).batch(["lesion-val-0000", "lesion-val-0032"])
    assert batch.images.shape == (2, 3, 128, 128)
    assert set(batch.labels.unique().tolist()) <= {0, 1, VOID}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(128, 128), (128, 300), (201, 150)])
def test_scenes_are_drawn_at_any_size(kind: str, size: tuple[int, int]) -> None:
    data = build.dataset(Part(name="scenes", args={"kind": kind, "size": size, "images": 4}))
    for image, labels in data:
        assert image.shape == (3, *size)
        assert len(labels.unique()) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_larger_picture_shows_the_same_scene_in_more_detail(kind: str) -> None:
    small, large = (scenes(kind=kind, size=(side, side)).read(f"{kind}-val-0003") for side in (128, 256))
    near = large[1][::2, ::2]
    sure = (small[1] != VOID) & (near != VOID)
    assert sure.mean() > 0.7
    assert (small[1] == near)[sure].mean() > 0.98
    blocks = large[0].astype(float).reshape(128, 2, 128, 2, 3)
    assert blocks.std(axis=(1, 3)).mean() > 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_class_occurs_and_void_is_a_small_share(kind: str) -> None:
    data = scenes(kind=kind, images=32)
    _, labels = pixels(data)
    values, counts = np.unique(labels, return_counts=True)
    assert values.tolist() == [*range(len(data.class_names)), VOID]
    assert len(data.palette) == len(data.class_names) == {"street": 8, "lesion": 2}[kind]
    assert (counts / labels.size > 0.01).all()
    assert 0.01 < counts[-1] / labels.size < 0.15
    assert ((labels == VOID).mean(axis=(1, 2)) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_void_line_lies_between_any_two_classes(kind: str) -> None:
    _, labels = pixels(scenes(kind=kind, images=16, size=(160, 160)))
    for one, other in ((labels[:, 1:], labels[:, :-1]), (labels[:, :, 1:], labels[:, :, :-1])):
        assert ((one == other) | (one == VOID) | (other == VOID)).all()


def test_things_stand_in_front_of_others(street: tuple[np.ndarray, np.ndarray]) -> None:
    """Trees, persons and signs hide parts of cars: there are rows with car on both sides of them."""
    _, labels = street
    rows = labels.reshape(-1, labels.shape[2])
    car = rows == 5
    between = np.logical_or.accumulate(car, axis=1) & np.logical_or.accumulate(car[:, ::-1], axis=1)[:, ::-1]
    assert (between & np.isin(rows, (4, 6, 7))).any(axis=1).sum() > 50


def test_light_varies(street: tuple[np.ndarray, np.ndarray]) -> None:
    images, _ = street
    means = images.reshape(len(images), -1, 3).mean(1)
    assert means.mean(1).std() > 15
    assert (means[:, 0] / means[:, 2]).std() > 0.1


def test_colour_alone_does_not_tell_the_classes(
    fitted: tuple[np.ndarray, np.ndarray], street: tuple[np.ndarray, np.ndarray]
) -> None:
    """The best guess from a pixel's colour (a histogram of 16 x 16 x 16 bins, fitted on 96 images) fails."""
    tables = _histograms(*fitted, bits=4)
    image, label = (part[street[1] != VOID] for part in street)
    for prior in (1, tables.sum(1, keepdims=True)):  # by frequency, and all classes alike
        guess = ((tables + 0.1) / prior).argmax(0)[_bins(image, bits=4)]
        iou = [((guess == k) & (label == k)).sum() / ((guess == k) | (label == k)).sum() for k in range(8)]
        assert np.mean(iou) < 0.3
        assert max(iou) < 0.5


def test_no_two_classes_are_told_apart_by_colour(fitted: tuple[np.ndarray, np.ndarray]) -> None:
    """Of any two classes alike in number, the best guess from colour is wrong for at least one pixel in ten."""
    tables = _histograms(*fitted, bits=3)
    tables = tables / tables.sum(1, keepdims=True)
    overlap = np.minimum(tables[:, None], tables[None]).sum(2)
    assert overlap.min() / 2 > 0.1


def _bins(image: np.ndarray, bits: int) -> np.ndarray:
    red, green, blue = (image >> (8 - bits)).astype(int).T
    return (red << 2 * bits) + (green << bits) + blue


def _histograms(images: np.ndarray, labels: np.ndarray, bits: int) -> np.ndarray:
    return np.stack([np.bincount(_bins(images[labels == k], bits), minlength=8**bits) for k in range(8)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "vall"}, r"no split 'vall' \(did you mean 'val'\?\); there are: train, val, test"),
        ({"kind": "streets"}, r"no kind 'streets' \(did you mean 'street'\?\)"),
        ({"size": [128, 127]}, "size must be .* at least 128 pixels, not"),
        ({"size": 128}, "size must be"),
        ({"size": [128.0, 128]}, "size must be"),
        ({"seed": "x"}, "seed must be a whole number, not 'x'"),
        ({"split": ["val"]}, "there is no split"),
        ({"images": 0}, "images must be from 1 to 10000, not 0"),
        ({"images": "many"}, "images must be"),
        ({"limit": 0}, "limit must be"),
        ({"only": ["street-val-0064"]}, "no image with the id 'street-val-0064'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        scenes(**arguments)
