"""Data and networks at the edge of what there is, from the spec to the page."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from audit_kit import CLASSES, audit, by_name, content, write_net, write_pictures
from segaudit.audit.spec import RunSpec
from segaudit.report.doubts import doubts
from segaudit.report.page import page
from segaudit.report.summary import summarise
from segaudit.types import VOID, Results

pytestmark = pytest.mark.usefixtures("one_thread")

ATTACKS = [
    "fgsm",
    {"name": "pgd", "steps": 3},
    {"name": "sea", "steps": 4},
    {"name": "alma_prox", "steps": 5},
    {"name": "square", "steps": 5},
]
FLAT = '''
import torch
from torch import nn


class Flat(nn.Module):
    """One answer whatever is shown, with a gradient of zero."""

    def forward(self, x):
        return torch.tensor([2.0, 1.0, 0.0]).view(1, 3, 1, 1) + 0 * x[:, :3]


class Stepped(nn.Module):
    """The brightest channel of a picture in a few shades: steps have no slope."""

    def forward(self, x):
        return (4 * x).round() + 0 * x


def flat():
    return Flat()


def stepped():
    return Stepped()
'''


def run(folder: Path, net: str = "user_net.py:build", classes: list[str] = CLASSES, **over: Any) -> Results:
    models = [{"source": "python", "name": f"{folder}/{net}", "label": "net"}]
    data = {"name": "folder", "root": str(folder), "classes": classes}
    spec = content(folder, models=models, data=data, **({"attacks": ATTACKS} | over))
    return audit(RunSpec.model_validate(spec), folder / "run")


def masks(folder: Path) -> list[Path]:
    return sorted((folder / "masks").iterdir())


def change(path: Path, old: int, new: int) -> None:
    mask = np.asarray(Image.open(path))
    Image.fromarray(np.where(mask == old, new, mask).astype(np.uint8)).save(path)


def test_an_image_without_a_valid_pixel_counts_for_nothing(tmp_path: Path) -> None:
    write_net(write_pictures(tmp_path, 3))
    with_all = summarise(run(tmp_path))
    Image.fromarray(np.full((32, 40), VOID, np.uint8)).save(masks(tmp_path)[1])
    found = run(tmp_path)
    for records in by_name(found).values():
        assert not records.counts.target[1].any()
        assert math.isnan(records.loss[1])
        assert records.counts.target[[0, 2]].any(1).all()
    rows = summarise(found)
    assert len(rows) == len(with_all)
    assert all(0 <= row.miou <= 1 for row in rows)
    assert any(row.miou < rows[0].miou - 0.1 for row in rows)
    assert page(found).count("nan") == page(run(tmp_path, attacks=["fgsm"])).count("nan")


def test_a_set_without_any_valid_pixel_has_no_score_and_breaks_nothing(tmp_path: Path) -> None:
    write_net(write_pictures(tmp_path, 2))
    for path in masks(tmp_path):
        Image.fromarray(np.full((32, 40), VOID, np.uint8)).save(path)
    found = run(tmp_path)
    assert all(math.isnan(row.miou) for row in summarise(found))
    assert not [text for text in doubts(found, summarise(found)) if "the gradient is zero" in text]
    assert "<html" in page(found)


def test_a_class_that_never_occurs_takes_no_part_in_the_mean(tmp_path: Path) -> None:
    write_net(write_pictures(tmp_path, 3))
    for path in masks(tmp_path):
        change(path, 2, VOID)
    found = run(tmp_path)
    for records in by_name(found).values():
        assert not records.counts.target[:, 2].any()
    clean = next(row for row in summarise(found) if row.clean)
    counts = by_name(found)["net", "none", "none", "none", 0].counts
    parts = counts.intersection.sum(0)[:2] / counts.union.sum(0)[:2]
    assert clean.miou == pytest.approx(parts.mean())
    assert "<html" in page(found)


@pytest.mark.parametrize("size", [(33, 47), (1, 1), (1, 9)])
def test_odd_sizes_keep_their_size(tmp_path: Path, size: tuple[int, int]) -> None:
    write_net(tmp_path)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(2):
        rng = np.random.default_rng(i)
        mask = rng.integers(0, 3, size, dtype=np.uint8)
        image = (90 + 60 * (mask[..., None] == np.arange(3))).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / "images" / f"p{i}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"p{i}.png")
    found = run(tmp_path, eps=["16/255", "64/255"])
    for records in by_name(found).values():
        assert (records.places == size[0] * size[1]).all()
        assert (records.counts.target.sum(1) == size[0] * size[1]).all()
    rows = summarise(found)
    assert min(row.accuracy for row in rows) < rows[0].accuracy
    assert "<html" in page(found)


@pytest.mark.parametrize("name", ["flat", "stepped"])
def test_a_gradient_of_zero_is_said(tmp_path: Path, name: str) -> None:
    write_pictures(tmp_path, 3)
    (tmp_path / "odd.py").write_text(FLAT)
    attacks = [{"name": "pgd", "steps": 3}, "fgsm", {"name": "square", "steps": 20}]
    found = run(tmp_path, f"odd.py:{name}", attacks=attacks)
    told = [text for text in doubts(found, summarise(found)) if "the gradient is zero" in text.replace("\n", " ")]
    assert len(told) == 1
    assert "follows the gradient of net and changes nothing on any image" in told[0]
    assert "the gradient is zero" in page(found)
    if name == "stepped":
        rows = {row.attack.partition("(")[0]: row for row in summarise(found)}
        assert rows["square"].miou < rows["none"].miou - 0.1


def test_a_gradient_that_is_there_is_not_called_zero(tmp_path: Path) -> None:
    write_net(write_pictures(tmp_path, 3))
    found = run(tmp_path)
    assert not [text for text in doubts(found, summarise(found)) if "the gradient is zero" in text]
