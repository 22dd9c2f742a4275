"""What an attack is told of the classes of the whole run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from audit_kit import audit, small
from segaudit.audit import build
from segaudit.types import VOID, UserError

ATTACK = """
from pathlib import Path


def weighed(model, images, labels, *, rng, eps, class_pixels):
    with Path(__file__).with_suffix(".txt").open("a") as told:
        told.write(f"{class_pixels.tolist()}\\n")
    return (images + eps).clamp(0, 1)
"""


def test_an_attack_that_asks_gets_the_pixels_of_each_class_in_all_images(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(ATTACK)
    spec = small(tmp_path, 20, attacks=[f"{tmp_path}/own.py:weighed"], eps=["8/255"])
    audit(spec, tmp_path / "out")
    data = build.dataset(spec.data)
    wanted = [sum(int((data.sample(name)[1] == k).sum()) for name in data.ids) for k in range(3)]
    assert sum(wanted) + sum(int((data.sample(name)[1] == VOID).sum()) for name in data.ids) == 20 * 32 * 40
    told = (tmp_path / "own.txt").read_text().splitlines()
    assert len(told) == 3  # once a shard
    assert set(told) == {str(torch.tensor(wanted).tolist())}


def test_it_is_not_for_the_spec_to_give(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(ATTACK)
    with pytest.raises(UserError, match="has no argument 'class_pixels'"):
        small(tmp_path, attacks=[{"name": f"{tmp_path}/own.py:weighed", "class_pixels": 3}])
