"""MSD liver: slices of volumes, with nibabel where it is installed and with a stand-in of the calls that are made."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data_kit import refused
from segaudit.data import msd_liver as room
from segaudit.data.base import held_out
from segaudit.data.msd_liver import msd_liver

Save = Callable[[Path, np.ndarray, Any], None]
RAS = np.diag([1.0, 1, 1, 1])
LPS = np.diag([-1.0, -1, 1, 1])
PATIENTS = ("liver_0", "liver_1", "liver_10")
SHAPE = (5, 4, 3)
"""Across, down, slices."""


class Voxels:
    """An array on disk, of which a part is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __getitem__(self, key: Any) -> np.ndarray:
        with np.load(self.path) as found:
            return found["voxels"][key]


def stand_in_save(path: Path, voxels: np.ndarray, affine: np.ndarray = RAS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez(file, voxels=voxels, affine=affine)


def stand_in_load(path: Path, keep_file_open: bool) -> Any:
    assert keep_file_open
    with np.load(path) as found:
        return SimpleNamespace(shape=found["voxels"].shape, affine=found["affine"], dataobj=Voxels(path))


def stand_in_axes(affine: np.ndarray) -> tuple[str, ...]:
    rows = [int(np.abs(affine[:3, column]).argmax()) for column in range(3)]
    return tuple(("LR", "PA", "IS")[row][int(affine[row, column] > 0)] for column, row in enumerate(rows))


@pytest.fixture(params=["stand-in", "nibabel"])
def save(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Save:
    """How a volume is written for the library that reads it."""
    room._opened.cache_clear()
    if request.param == "stand-in":
        fake = SimpleNamespace(load=stand_in_load, aff2axcodes=stand_in_axes)
        monkeypatch.setitem(sys.modules, "nibabel", fake)
        return stand_in_save
    nibabel = pytest.importorskip("nibabel")

    def write(path: Path, voxels: np.ndarray, affine: np.ndarray = RAS) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(voxels, affine), path)

    return write


def scan(patient: int) -> np.ndarray:
    return (np.arange(np.prod(SHAPE)).reshape(SHAPE) * 5 - 100 + patient).astype(np.int16)


def truth() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:3, 0, 1], labels[1, 3, 1], labels[4, 2, 2] = 1, 2, 1
    return labels


@pytest.fixture
def root(save: Save, tmp_path: Path) -> Path:
    for patient in PATIENTS:
        save(tmp_path / f"imagesTr/{patient}.nii.gz", scan(int(patient[6:])), RAS)
        save(tmp_path / f"labelsTr/{patient}.nii.gz", truth(), RAS)
    (tmp_path / "imagesTr/._liver_0.nii.gz").write_bytes(b"what a system leaves behind")
    return tmp_path


def test_volumes_become_slices_of_known_patients(root: Path) -> None:
    data = msd_liver(str(root), "all")
    assert data.ids == tuple(f"{patient}/slice_{i:03}" for patient in PATIENTS for i in range(3))
    assert list(data.groups()) == list(PATIENTS)
    assert data.group("liver_10/slice_002") == "liver_10"
    image, labels = data.sample("liver_10/slice_001")
    assert image.shape == (1, 4, 5)
    units = scan(10)[::-1, ::-1, 1].T.astype(float)  # front up, the right side on the left
    wanted = ((units + 45) / 150).clip(0, 1)  # -45 to 105
    assert np.abs(image[0].numpy() - wanted).max() <= 0.5 / 255 + 1e-6
    assert len(np.unique(wanted)) > 5
    assert labels.tolist() == truth()[::-1, ::-1, 1].T.tolist()
    assert msd_liver(str(root), "all", size=[8, 10]).sample("liver_1/slice_000")[0].shape == (1, 8, 10)


def test_the_window_says_what_is_black_and_white(root: Path) -> None:
    units = scan(0)[::-1, ::-1, 2].T
    image = msd_liver(str(root), "all", window=1, level=50).sample("liver_0/slice_002")[0][0]
    assert image.tolist() == pytest.approx((units > 50).astype(float) + (units == 50) * 128 / 255)
    for args in ({"window": 0}, {"window": "wide"}, {"level": float("nan")}):
        refused(lambda args=args: msd_liver(str(root), "all", **args), "msd_liver", next(iter(args)))


def test_slices_stand_upright_however_they_are_stored(save: Save, root: Path) -> None:
    before = msd_liver(str(root), "all").sample("liver_1/slice_001")
    save(root / "imagesTr/liver_1.nii.gz", scan(1)[::-1, ::-1], LPS)
    save(root / "labelsTr/liver_1.nii.gz", truth()[::-1, ::-1], LPS)
    room._opened.cache_clear()
    after = msd_liver(str(root), "all").sample("liver_1/slice_001")
    assert all((one == other).all() for one, other in zip(before, after, strict=True))
    save(root / "imagesTr/liver_1.nii.gz", scan(1), RAS[[2, 1, 0, 3]])
    room._opened.cache_clear()
    refused(lambda: msd_liver(str(root), "all"), "imagesTr/liver_1.nii.gz", "no axial slices")


def test_labels_are_turned_by_their_own_axes(save: Save, root: Path) -> None:
    names = msd_liver(str(root), "all", empty="skip").ids
    before = [msd_liver(str(root), "all").sample(name)[1] for name in names]
    far = np.diag([-1.0, -1, -1, 1])
    far[:3, 3] = np.array(SHAPE) - 1
    for patient in PATIENTS:
        save(root / f"labelsTr/{patient}.nii.gz", truth()[::-1, ::-1, ::-1], far)
    room._opened.cache_clear()
    after = msd_liver(str(root), "all", empty="skip")
    assert after.ids == names
    assert all((after.sample(name)[1] == labels).all() for name, labels in zip(names, before, strict=True))


def test_labels_that_lie_elsewhere_are_refused(save: Save, root: Path) -> None:
    path, near, high, wide = root / "labelsTr/liver_1.nii.gz", RAS.copy(), RAS.copy(), RAS.copy()
    near[0, 3], high[2, 3], wide[1, 1] = 0.01, 1, 1.5

    def sample() -> Any:
        room._opened.cache_clear()
        return msd_liver(str(root), "all").sample("liver_1/slice_001")[1]

    before = sample()
    for affine, apart in ((high, "by 1 voxels"), (wide, "by 1.5 voxels"), (LPS, "by 5 voxels")):
        save(path, truth(), affine)
        refused(sample, str(path), "elsewhere than the scan", apart)
    save(path, truth(), near)
    assert (sample() == before).all()


def test_empty_slices_can_be_left_out(root: Path) -> None:
    data = msd_liver(str(root), "all", empty="skip", patients=["liver_1"])
    assert data.ids == ("liver_1/slice_001", "liver_1/slice_002")
    refused(lambda: msd_liver(str(root), "all", empty="skipp"), "did you mean 'skip'")
    refused(lambda: msd_liver(str(root), "all", patients=["liver_2"]), "patients", "'liver_2'", "liver_0")


def test_a_patient_is_on_one_side(save: Save, tmp_path: Path) -> None:
    names = [f"liver_{i}" for i in range(24)]
    assert 0 < sum(map(held_out, names)) < 12
    for name in names:
        for folder in ("imagesTr", "labelsTr"):
            save(tmp_path / folder / f"{name}.nii", np.zeros((2, 2, 1), np.uint8), RAS)
    sides = [set(msd_liver(str(tmp_path), split).groups()) for split in ("train", "val")]
    assert sides[1] == {name for name in names if held_out(name)}
    assert sides[0] | sides[1] == set(names)
    assert not sides[0] & sides[1]


def test_faults_are_named(save: Save, root: Path) -> None:
    path = root / "labelsTr/liver_1.nii.gz"
    name = "liver_1/slice_001"

    def sample() -> object:
        room._opened.cache_clear()
        return msd_liver(str(root), "all").sample(name)

    save(path, truth() * 3, RAS)
    refused(sample, str(path), "slice 1", "label 3")
    save(path, truth() + np.float32(0.5), RAS)
    refused(sample, str(path), "slice 1", "label 0.5")
    save(path, truth()[:, :3], RAS)
    refused(sample, str(path), "5 x 3 x 3", "5 x 4 x 3")
    path.write_bytes(b"\x1f\x8b no volume")
    refused(sample, str(path), "copy it again")
    path.unlink()
    refused(sample, "imagesTr/liver_1.nii.gz", "no mask 'liver_1'")
    save(root / "labelsTr/more/liver_1.nii.gz", truth(), RAS)
    (root / "labelsTr/more/liver_1.nii.gz").rename(root / "labelsTr/more/liver_1.NII.GZ")
    assert sample()
    save(path, truth(), RAS)
    refused(sample, str(path), "same patient")


def test_a_volume_without_a_third_axis_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room._opened.cache_clear()
    monkeypatch.setattr(room._nibabel(), "aff2axcodes", lambda affine: ("R", "A", None))
    refused(lambda: msd_liver(str(root), split="all"), "liver_0", "no axial slices")


def test_a_missing_tree_and_missing_volumes_are_told(tmp_path: Path) -> None:
    refused(lambda: msd_liver(str(tmp_path)), str(tmp_path / "imagesTr"), "liver_N.nii.gz")
    for name in ("imagesTr", "labelsTr"):
        (tmp_path / name).mkdir()
    refused(lambda: msd_liver(str(tmp_path)), "no volumes", str(tmp_path / "imagesTr"))


def test_without_nibabel_the_extra_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", None)
    room._opened.cache_clear()
    refused(lambda: msd_liver(str(root), "all"), "nibabel", "segaudit[medical]")


def test_no_more_than_four_volumes_are_open(root: Path) -> None:
    data = msd_liver(str(root), "all")
    for name in data.ids:
        data.sample(name)
    assert room._opened.cache_info().currsize <= 4
    again = pickle.loads(pickle.dumps(data))  # as a worker process gets it
    assert all((one == other).all() for one, other in zip(data.sample(name), again.sample(name), strict=True))
    assert data.digest() == msd_liver(str(root), "all").digest() != msd_liver(str(root), "all", level=40).digest()
