"""The real CamVid and Kvasir-SEG, where they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from segaudit.data.camvid import camvid
from segaudit.data.kvasir import kvasir
from segaudit.types import VOID

ROOT = Path(os.environ.get("SEGAUDIT_DATA", Path(__file__).parents[2] / "shared" / "data"))

pytestmark = pytest.mark.real


def share(labels: list[torch.Tensor]) -> torch.Tensor:
    """The part of all pixels of each label."""
    counts = torch.bincount(torch.cat([y.flatten() for y in labels]), minlength=256)
    return counts / counts.sum()


def test_camvid_has_its_images_classes_and_void() -> None:
    train, val = camvid(str(ROOT / "camvid"), "train"), camvid(str(ROOT / "camvid"), "val")
    assert (len(train), len(val)) == (367, 101)
    assert not set(train.ids) & set(val.ids)
    part = share([y for _, y in val])
    assert set(part.nonzero().flatten().tolist()) == {*range(11), VOID}
    assert 0.01 < part[VOID] < 0.06
    assert part[:11].argmax() in (1, 3)  # building or road


def test_every_kvasir_image_has_a_polyp_and_a_side() -> None:
    sides = [kvasir(str(ROOT / "kvasir-seg"), split) for split in ("train", "val")]
    assert sum(len(side) for side in sides) == 998
    assert 100 <= len(sides[1]) <= 150
    for image, labels in sides[1]:
        assert image.shape == (3, 256, 256)
        assert 0 < labels.float().mean() < 1
        assert set(labels.unique().tolist()) == {0, 1}
