"""What `benchmarks/reading.py` says that reading takes of memory."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from data_kit import save

pytest.importorskip("torchvision")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux keeps the peak")
def test_the_peak_holds_what_is_taken_and_given_back_within_an_image(tmp_path: Path) -> None:
    path = Path(__file__).parents[1] / "benchmarks/reading.py"
    spec = importlib.util.spec_from_file_location("reading", path)
    assert spec
    assert spec.loader
    reading = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reading)
    save(tmp_path / "train/cat/a.png", np.zeros((2500, 2500, 3), np.uint8))
    taken = 5 * 2500 * 2500 * 3 / 2**20  # as bytes and as float32
    ours = b"a" * 2**28  # what the starting process holds is not counted
    assert taken < reading._peak("cifar10", tmp_path, 1) < 4 * taken
    del ours
