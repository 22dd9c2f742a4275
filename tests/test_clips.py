"""Groups of data sets cut into clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_kit import LAYOUTS, refused, save
from segaudit.audit.membership.clips import clips
from segaudit.data.base import Dataset
from segaudit.data.scenes import scenes


def camvid(root: Path, *names: str) -> Dataset:
    for name in names:
        for path in LAYOUTS[0].files(root, name):
            save(path, np.zeros((2, 2), np.uint8))
    return LAYOUTS[0].open(root)


def test_a_group_is_cut_into_runs_of_consecutive_images() -> None:
    ids = {"a": tuple("abcde"), "b": ("x",), "c": ("y", "z")}
    wanted = {"a": "a/0", "b": "a/0", "c": "a/1", "d": "a/1", "e": "a/2", "x": "b/0", "y": "c/0", "z": "c/0"}
    assert clips(ids, 2) == wanted
    assert set(clips(ids, 5).values()) == {"a/0", "b/0", "c/0"}
    assert len(set(clips(ids, 1).values())) == 8


def test_clips_of_camvid_follow_the_frames_and_stay_in_their_video(tmp_path: Path) -> None:
    frames = [f"0016E5_{number:05}" for number in (960, 30, 10020, 990, 90)]
    data = camvid(tmp_path, *frames, "0006R0_f00930", "0006R0_f00960", "Seq05VD_f00000")
    units = clips(data.groups(), 2)
    assert set(units) == set(data.ids)
    runs = {}
    for name in data.ids:
        runs.setdefault(units[name], []).append(name)
    assert runs == {
        "0006R0/0": ["0006R0_f00930", "0006R0_f00960"],
        "0016E5/0": ["0016E5_00030", "0016E5_00090"],
        "0016E5/1": ["0016E5_00960", "0016E5_00990"],
        "0016E5/2": ["0016E5_10020"],
        "Seq05VD/0": ["Seq05VD_f00000"],
    }


def test_images_that_stand_alone_are_clips_of_one() -> None:
    data = scenes(images=5)
    units = clips(data.groups(), 20)
    assert len(data.groups()) == len(set(units.values())) == 5


@pytest.mark.parametrize("length", [0, -1, 2.0, "2"])
def test_a_length_that_is_none_is_refused(length: object) -> None:
    refused(lambda: clips({"a": ("b",)}, length), "clip must be a whole number of images")  # type: ignore[arg-type]
