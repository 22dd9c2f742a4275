"""`segaudit attack`: one image, one attack, the pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from audit_kit import content, save_spec, write_net, write_pictures
from segaudit.audit.one import attack_one
from segaudit.types import UserError

NAMES = ["adversarial.png", "after.png", "before.png", "perturbation.png"]


@pytest.fixture(autouse=True)
def _plain_arithmetic() -> Iterator[None]:
    """The command flushes denormals, as a process of its own may."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A spec with its net, and pictures whose masks hold 10, 20 and 30: they are read as the data set reads them."""
    write_pictures(tmp_path)
    write_net(tmp_path)
    for path in (tmp_path / "masks").iterdir():
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.where(mask == 255, 255, 10 * mask + 10).astype(np.uint8)).save(path)
    data = {"name": "folder", "root": str(tmp_path), "classes": {10: "red", 20: "green", 30: "blue"}}
    return save_spec(tmp_path / "spec.yaml", content(tmp_path, data=data))


def attacked(spec: Path, image: str = "images/p01.png", **over: Any) -> list[str]:
    """What is said of an attack on an image of the spec's folder; the pictures go to `made`."""
    folder = spec.parent
    asked: dict[str, Any] = {"name": "pgd", "eps": "16/255", "model": None, "mask": None} | over
    mask = folder / asked.pop("mask") if asked["mask"] else asked.pop("mask")
    return list(attack_one(folder / image, spec, mask=mask, out=folder / "made", **asked))


def accuracy(lines: list[str], word: str) -> float:
    (line,) = [line for line in lines if line.startswith(f"{word}: ")]
    return float(line.rpartition(" ")[2])


@pytest.mark.parametrize("mask", [None, "masks/p01.png"])
@pytest.mark.parametrize("size", [None, [24, 24]])
def test_the_pictures_show_what_happened(spec: Path, mask: str | None, size: list[int] | None) -> None:
    folder = spec.parent
    data = {"name": "folder", "root": str(folder), "classes": {10: "red", 20: "green", 30: "blue"}, "size": size}
    lines = attacked(save_spec(spec, content(folder, data=data)), mask=mask)
    assert accuracy(lines, "before") > accuracy(lines, "after") + 0.2
    assert (accuracy(lines, "before") == 1) == (mask is None)
    assert sorted(path.name for path in (folder / "made").iterdir()) == sorted([*NAMES, "curve.csv"])
    curve = np.genfromtxt(folder / "made" / "curve.csv", delimiter=",", names=True)
    assert curve["pass"].tolist() == list(range(20))
    assert curve["cross_entropy"][-1] > curve["cross_entropy"][0]
    assert curve["accuracy"][-1] == pytest.approx(accuracy(lines, "after"), abs=0.05)
    clean = Image.open(folder / "images" / "p01.png")
    clean = clean.resize((24, 24), Image.Resampling.BILINEAR) if size else clean
    made = {name: np.asarray(Image.open(folder / "made" / name)).astype(int) for name in NAMES}
    assert {picture.shape for picture in made.values()} == {(*(size or (32, 40)), 3)}
    delta = made["adversarial.png"] - np.asarray(clean).astype(int)
    assert np.abs(delta).max() == 16
    assert "Linf 16.00/255" in lines[3]
    assert (np.sign(made["perturbation.png"] - 127.5) == np.sign(delta))[delta != 0].all()
    assert (made["before.png"] != made["after.png"]).any()


def test_the_same_seed_makes_the_same_picture(spec: Path) -> None:
    path = spec.parent / "made" / "adversarial.png"
    attacked(spec)
    first = path.read_bytes()
    attacked(spec)
    assert path.read_bytes() == first
    attacked(save_spec(spec, content(spec.parent, seed=1)))
    assert path.read_bytes() != first


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"image": "images/none.png"}, r"images/none\.png: there is no such file"),
        ({"image": "spec.yaml"}, r"spec\.yaml: this is not a picture"),
        ({"name": "pgdd"}, r"no attack is called 'pgdd' \(did you mean 'pgd'\?\)"),
        ({"eps": "8/0"}, "'8/0' divides by zero"),
        ({"eps": "abc"}, "'abc' is not a number"),
        ({"eps": "8"}, r"did you mean unit: 1/255\?"),
        ({"eps": "-0.1"}, "must be above 0"),
        ({"eps": "nan"}, "must be above 0"),
        ({"model": "nett"}, "has no model 'nett'; it has: net"),
        ({"mask": "masks/p09.png"}, r"masks/p09\.png: there is no such file"),
        ({"mask": "small.png"}, r"small\.png: the mask is \(8, 8\), the picture \(32, 40\)"),
        ({"mask": "high.png"}, r"high\.png: the mask holds the value 7"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(spec: Path, over: dict[str, Any], said: str) -> None:
    Image.fromarray(np.full((8, 8), 10, np.uint8)).save(spec.parent / "small.png")
    Image.fromarray(np.full((32, 40), 7, np.uint8)).save(spec.parent / "high.png")
    with pytest.raises(UserError, match=said) as caught:
        attacked(spec, **over)
    assert "\n" not in str(caught.value)
    assert not (spec.parent / "made").exists()


def test_a_grey_picture_is_attacked_as_the_grey_data_are_read(tmp_path: Path) -> None:
    for i, name in enumerate(("3", "7")):
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.fromarray(np.full((28, 28), 60 + 120 * i, np.uint8)).save(tmp_path / "test" / name / f"{i}.png")
    data = {"name": "mnist", "root": str(tmp_path)}
    models = [{"source": "classic", "name": "lenet", "args": {"channels": 1, "width": 0.5}, "label": "net"}]
    path = save_spec(tmp_path / "spec.yaml", content(tmp_path, data=data, models=models))
    lines = list(attack_one(tmp_path / "test/3/0.png", path, "pgd", "16/255", None, None, tmp_path / "made"))
    assert "Linf 16.00/255" in lines[3]
    with Image.open(tmp_path / "made" / "adversarial.png") as picture:
        assert picture.mode == "L"
