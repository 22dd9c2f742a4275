"""Picture files: found in folders, paired, read, and refused with their name where they are wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from segaudit.paths import expand
from segaudit.registry import suggest
from segaudit.types import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def read_image(path: Path) -> NDArray[np.uint8]:
    """An image file as H x W x 3 RGB, turned as its EXIF orientation says, without its alpha channel.

    16-bit grey is scaled so that 65535 is white. Raises UserError for a picture whose range is not known (32 bits).
    """
    picture = open_picture(path)
    if picture.mode.startswith("I;16"):
        grey = (np.asarray(picture) / 257).round().astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if picture.mode in ("I", "F", "LAB"):
        raise UserError(f"{path}: a picture of mode {picture.mode} has no known range; save it with 8 or 16 bits")
    return np.asarray(to_rgb(picture))


def read_mask(path: Path) -> NDArray[np.uint8]:
    """The values of a mask file, H x W: palette indices, grey levels, or 0 and 1 of a 1-bit one.

    Raises UserError for a colour picture, for values that are not whole numbers of 0 to 255, and for a JPEG.
    """
    picture = open_mask(path)
    values = np.asarray(picture)
    if values.ndim == 3:
        bands = values[:, :, : 3 if values.shape[2] > 2 else 1]
        if (bands != bands[:, :, :1]).any():
            raise UserError(
                f"{path}: the mask is a colour picture ({picture.mode}); save class numbers as a grey or palette PNG"
            )
        values = bands[:, :, 0]
    if values.dtype == np.uint8:
        return values
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 255 and (values == np.floor(values)).all()):
        raise UserError(f"{path}: the mask holds values from {low} to {high}; they must be whole numbers of 0 to 255")
    return values.astype(np.uint8)


def relabel(values: NDArray[np.uint8], labels: Mapping[int, int], path: Path) -> NDArray[np.uint8]:
    """Mask values -> class numbers; a value that `labels` lacks is refused with the file's name."""
    table = np.full(256, -1, dtype=np.int16)
    table[list(labels)] = list(labels.values())
    mapped = table[values]
    if (mapped < 0).any():
        known = ", ".join(str(key) for key in sorted(labels)[:30])
        raise UserError(f"{path}: the mask holds the value {values[mapped < 0][0]}; the class table knows {known}")
    return mapped.astype(np.uint8)


def folder_of(root: str | Path, *parts: str, expected: str) -> Path:
    """A folder of a data set, or one line that shows the tree that was expected."""
    if not isinstance(root, (str, Path)) or not str(root):
        raise UserError(f"data: root must be a folder, not {root!r}")
    path = expand(root).joinpath(*parts)
    if not path.is_dir():
        above = next((parent for parent in path.parents if parent.is_dir()), path)
        inside = sorted(p.name for p in above.iterdir() if p.is_dir()) if above != path else []
        holds = f" ({above} holds the folders {', '.join(inside[:8])})" if inside else ""
        raise UserError(f"there is no folder {path}{holds}; expected under {root}: {expected}")
    return path


def files_by_stem(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """stem -> file for the picture files of a folder and its subfolders (`sub/stem`), sorted; any case of suffix.

    Hidden files and folders are left out: some systems put a `._NAME.png` beside every picture.
    """
    found: dict[str, Path] = {}
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        if path.suffix.lower() in suffixes and path.is_file() and not any(p.startswith(".") for p in inside.parts):
            name = inside.with_suffix("").as_posix()
            if name in found:
                raise UserError(f"{found[name]} and {path} have the same name; keep one of them")
            found[name] = path
    return dict(sorted(found.items()))


def pair(images: Mapping[str, Path], masks: Mapping[str, Path], where: Path) -> dict[str, tuple[Path, Path]]:
    """id -> (image, mask); an image without its mask is refused by name, a mask without its image is left out."""
    if not images:
        raise UserError(f"there are no images ({', '.join(IMAGE_SUFFIXES)}) in {where}")
    lost = [name for name in images if name not in masks]
    if lost:
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        near = suggest(lost[0], masks) or (f" (the first is {next(iter(masks))!r})" if masks else "")
        raise UserError(f"{images[lost[0]]}{more}: there is no mask {lost[0]!r} among {len(masks)} masks{near}")
    return {name: (path, masks[name]) for name, path in images.items()}


def listed(images: Mapping[str, Path], path: Path, name_of: Callable[[str], str] = str.strip) -> dict[str, Path]:
    """The images that a text file lists, an id (or file name) a line, in its order. An id without one is refused.

    name_of: where in a line the id or file name stands.
    """
    chosen: dict[str, Path] = {}
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        name = name_of(line)
        suffix = Path(name).suffix
        if suffix.lower() in IMAGE_SUFFIXES:
            name = name.removesuffix(suffix)
        if name and name not in images:
            raise UserError(f"{path}: there is no image {name!r}{suggest(name, images)}")
        if name:
            chosen[name] = images[name]
    return chosen


def stamp(path: Path) -> int:
    """When a file was last written, in nanoseconds: what a memory of its content is kept under.

    Raises UserError for a file that is not there.
    """
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def open_picture(path: Path) -> Image.Image:
    """A picture file, wholly read, turned as its EXIF orientation says. Raises UserError where it is damaged."""
    try:
        with Image.open(path) as picture:
            picture.load()
            ImageOps.exif_transpose(picture, in_place=True)
            return picture
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: this is not a picture, or its start is damaged; copy it again") from error
    except Exception as error:  # decoders raise whatever a damaged file drives them to
        raise UserError(f"{path}: this picture cannot be read ({error}); copy it again or leave it out") from error


def open_mask(path: Path) -> Image.Image:
    """A mask file, wholly read. Raises UserError for a JPEG, which does not keep class numbers."""
    picture = open_picture(path)
    if picture.format in ("JPEG", "MPO"):
        raise UserError(f"{path}: a JPEG blurs the class numbers of a mask; save the mask as PNG")
    return picture


def to_rgb(picture: Image.Image) -> Image.Image:
    """A picture in 8-bit RGB, without its transparency."""
    return (picture.convert("RGBA") if "transparency" in picture.info else picture).convert("RGB")
