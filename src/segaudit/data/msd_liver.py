"""The liver task of the Medical Segmentation Decathlon: CT volumes as axial slices, with the patient known."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segaudit.data.base import Dataset, files_by_stem, folder_of, held_out, of_groups, pair
from segaudit.data.files import stamp
from segaudit.registry import suggest
from segaudit.types import UserError

CLASS_NAMES = ("background", "liver", "tumour")
PALETTE = ((0, 0, 0), (186, 85, 70), (255, 220, 90))
SPLITS = ("all", "train", "val")
TREE = "imagesTr/liver_N.nii.gz, labelsTr/liver_N.nii.gz (NAME.nii too)"


class Slices(Dataset):
    """The axial slices of pairs of volumes, patient -> (scan, labels); an id is `PATIENT/slice_NUMBER`.

    window, level: the Hounsfield units that are shown, level - window / 2 as black to level + window / 2 as white.
    skip_empty: leave out the slices without liver, for which all label volumes are read once.
    """

    class_names, palette = CLASS_NAMES, PALETTE

    def __init__(
        self,
        pairs: Mapping[str, tuple[Path, Path]],
        window: float,
        level: float,
        skip_empty: bool,
        *,
        size: Sequence[int] | None,
        limit: int | None,
        only: Sequence[str] | None,
    ) -> None:
        self.pairs, self.window, self.level = pairs, window, level
        super().__init__(self._names(skip_empty), size=size, limit=limit, only=only)

    def group(self, image_id: str) -> str:
        """The patient."""
        return image_id.partition("/")[0]

    def where(self, image_id: str) -> str:
        """The file of the labels, and the slice."""
        patient, number = _place(image_id)
        return f"{self.pairs[patient][1]}: slice {number}"

    def digest(self) -> str:
        """Of the chosen patients' files."""
        return self.digest_of((path for name in self.groups() for path in self.pairs[name]), self.ids, *self._shown())

    def read(self, image_id: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The slice H x W x 1 and its mask H x W, as a radiologist sees them: front up, the right side on the left."""
        patient, number = _place(image_id)
        low, high = self._shown()
        units = np.nan_to_num(self._slice(patient, 0, number).astype(np.float64), nan=low)
        grey = ((units - low) / (high - low)).clip(0, 1) * 255
        values = self._slice(patient, 1, number)
        wrong = np.setdiff1d(values, range(len(CLASS_NAMES)))
        if wrong.size:
            raise UserError(f"{self.where(image_id)} holds the label {wrong[0]:g}; labels are 0, 1 (liver), 2 (tumour)")
        return grey.round().astype(np.uint8)[:, :, None], values.astype(np.uint8)

    def _shown(self) -> tuple[float, float]:
        return self.level - self.window / 2, self.level + self.window / 2

    def _names(self, skip_empty: bool) -> Iterator[str]:
        for patient, (scan, _) in self.pairs.items():
            for number in range(_volume(scan).shape[2]):
                if not skip_empty or self._slice(patient, 1, number).any():
                    yield f"{patient}/slice_{number:03}"

    def _slice(self, patient: str, which: int, number: int) -> NDArray[Any]:
        """A slice of the scan (0) or the labels (1), upright; slices are counted as the scan has them."""
        scan, path = _volume(self.pairs[patient][0]), self.pairs[patient][which]
        volume = _volume(path)
        if volume.shape != scan.shape:
            shapes = [" x ".join(map(str, shape)) for shape in (volume.shape, scan.shape)]
            raise UserError(
                f"{path}: the labels are {shapes[0]} but the scan {shapes[1]}; they must be of the same size"
            )
        sides = ("L", "P", _nibabel().aff2axcodes(scan.affine)[2])
        (across, down, through), places = _turned(volume, sides)
        apart = _apart(places, _turned(scan, sides)[1], scan.shape)
        if not apart < 0.5:
            raise UserError(
                f"{path}: the labels lie elsewhere than the scan, by {apart:.3g} voxels (their affines differ); "
                "save them on the scan's grid"
            )
        at = volume.shape[2] - 1 - number if through else number
        try:
            plane = np.asarray(volume.dataobj[:, :, at]).T
        except Exception as error:  # gzip, zlib and nibabel each have their own
            raise UserError(f"{path}: slice {number} cannot be read ({error}); copy the file again") from error
        plane = plane[::-1] if down else plane
        return plane[:, ::-1] if across else plane


def msd_liver(
    root: str,
    split: str = "val",
    window: float = 150,
    level: float = 30,
    empty: str = "keep",
    patients: Sequence[str] | None = None,
    size: Sequence[int] | None = None,
    limit: int | None = None,
    only: Sequence[str] | None = None,
) -> Slices:
    """MSD liver, axial slices of CT scans, background, liver and tumour (`imagesTr/liver_N.nii.gz`, `labelsTr/`).

    Images have one channel: window 150 around level 30 Hounsfield units, radiology's usual one for the liver, or the
    one given. empty: skip leaves out the slices without liver, and reads all labels once to find them. There is no
    official split of the labelled scans: `val` holds the patients whose name has a SHA-256 that is a multiple of 8,
    `train` the others, `all` both. patients: these alone; a patient is the group of its slices. There is no void.
    Of a packed volume slices are read fast in their order; unpack the files to read them shuffled.
    Source: Antonelli et al. 2022; Bilic et al. 2023 (LiTS).
    """
    for key, value, known in (("split", split, SPLITS), ("empty", empty, ("keep", "skip"))):
        if value not in known:
            near = suggest(str(value), known)
            raise UserError(f"msd_liver: {key} must be one of {', '.join(known)}, not {value!r}{near}")
    for key, number in (("window", window), ("level", level)):
        if type(number) not in (int, float) or not np.isfinite(number) or (key == "window" and number <= 0):
            raise UserError(f"msd_liver: {key} must be a number of Hounsfield units (window: above 0), not {number!r}")
    scans, labels = (folder_of(root, name, expected=TREE) for name in ("imagesTr", "labelsTr"))
    pairs = pair(_volumes(scans), _volumes(labels), scans)
    names = [name for name in pairs if split in ("all", "val" if held_out(name) else "train")]
    chosen = {name: pairs[name] for name in of_groups(names, str, patients, "patients")}
    return Slices(chosen, window, level, empty == "skip", size=size, limit=limit, only=only)


def _place(image_id: str) -> tuple[str, int]:
    patient, _, number = image_id.partition("/slice_")
    return patient, int(number)


def _volumes(folder: Path) -> dict[str, Path]:
    """Patient -> volume, in whatever folder below."""
    found: dict[str, Path] = {}
    for stem, path in files_by_stem(folder, (".nii", ".gz")).items():
        if not path.name.lower().endswith((".nii", ".nii.gz")):
            continue
        name = stem.rpartition("/")[2]
        name = name[:-4] if name.lower().endswith(".nii") else name
        if name in found:
            raise UserError(f"{found[name]} and {path} are the same patient; keep one of them")
        found[name] = path
    if not found:
        raise UserError(f"there are no volumes (.nii.gz, .nii) in {folder}; expected: {TREE}")
    return found


def _turned(volume: Any, sides: Sequence[str]) -> tuple[list[bool], NDArray[np.float64]]:
    """Whether each axis must be turned round to go towards its side, and the affine of the volume so turned."""
    codes = _nibabel().aff2axcodes(volume.affine)
    turns = [code != side for code, side in zip(codes, sides, strict=True)]
    affine = np.array(volume.affine, np.float64)
    for axis in np.flatnonzero(turns):
        affine[:, 3] += affine[:, axis] * (volume.shape[axis] - 1)
        affine[:, axis] *= -1
    return turns, affine


def _apart(one: NDArray[np.float64], other: NDArray[np.float64], shape: Sequence[int]) -> float:
    """How far two affines put a voxel apart at most, in sides of a voxel: the farthest is in a corner of the volume."""
    corners = np.indices((2, 2, 2)).reshape(3, 8) * (np.array(shape)[:, None] - 1)
    moved = (one - other)[:3] @ np.vstack([corners, np.ones(8)])
    return float(np.linalg.norm(moved, axis=0).max() / np.linalg.norm(other[:3, :3], axis=0).min())


def _nibabel() -> Any:
    try:
        return importlib.import_module("nibabel")
    except ImportError as error:
        raise UserError("msd_liver needs nibabel: pip install 'segaudit[medical]'") from error


def _volume(path: Path) -> Any:
    """nibabel's image of a file, its header read and its voxels not."""
    return _opened(path, stamp(path), os.getpid())


@lru_cache(maxsize=4)
def _opened(path: Path, written: int, process: int) -> Any:
    """The file stays open, so that the next slice of a packed one goes on where the last one ended.

    process: a forked process must not move the place of its parent's file.
    """
    nibabel = _nibabel()
    try:
        volume = nibabel.load(path, keep_file_open=True)
        axes = ("LR", "AP", "IS")
        codes = nibabel.aff2axcodes(volume.affine)
    except Exception as error:  # what a damaged file drives it to
        raise UserError(f"{path}: this is not a NIfTI volume, or is damaged ({error}); copy it again") from error
    if len(volume.shape) != 3 or not all(
        code is not None and code in axis for code, axis in zip(codes, axes, strict=True)
    ):
        raise UserError(
            f"{path}: a volume of shape {volume.shape} and axes {codes} has no axial slices as its third axis"
        )
    return volume
