"""Reading pictures: every mode that people have, and every way in which a file is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segaudit.data import files
from segaudit.data.base import Dataset, colours
from segaudit.types import UserError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (6, 9), dtype=np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_exif_says(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16], upright[:8, 16:], upright[8:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    stored = {  # how a camera held that way stores the upright scene
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright, 1), 7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }  # fmt: skip
    picture = Image.fromarray(np.ascontiguousarray(stored[orientation]))
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "x.jpg", exif=exif, quality=100, subsampling=0)
    assert np.abs(files.read_image(tmp_path / "x.jpg").astype(int) - upright).max() < 8


def test_every_common_mode_becomes_rgb(tmp_path: Path) -> None:
    def read(picture: Image.Image, name: str = "x.png", **how: object) -> np.ndarray:
        picture.save(tmp_path / name, **how)
        return files.read_image(tmp_path / name)

    grey3 = np.repeat(GREY[:, :, None], 3, 2)
    assert np.array_equal(read(Image.fromarray(RGB)), RGB)
    assert np.array_equal(read(Image.fromarray(GREY)), grey3)
    assert np.array_equal(read(Image.fromarray(GREY).convert("LA")), grey3)
    assert np.array_equal(read(Image.fromarray(np.dstack([RGB, GREY]))), RGB)
    assert np.array_equal(read(Image.fromarray(RGB).quantize(54), transparency=b"\0\1"),
                          np.asarray(Image.fromarray(RGB).quantize(54).convert("RGB")))  # fmt: skip
    assert np.array_equal(read(Image.fromarray(GREY > 99)), np.repeat((GREY > 99)[:, :, None], 3, 2) * 255)
    assert np.array_equal(read(Image.fromarray(RGB), "x.TIFF"), RGB)


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_16_bit_grey_is_scaled_and_32_bits_are_refused(tmp_path: Path, name: str) -> None:
    wide = GREY.astype(np.uint16) * 257
    Image.fromarray(wide).save(tmp_path / name)
    assert np.array_equal(files.read_image(tmp_path / name)[:, :, 1], GREY)
    for values in (wide.astype(np.int32), wide.astype(np.float32)):
        Image.fromarray(values).save(tmp_path / "y.tif")
        with pytest.raises(UserError, match=r"y\.tif: .*8 or 16 bits"):
            files.read_image(tmp_path / "y.tif")


def test_masks_of_every_whole_form_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m.tif"
    for values in (GREY, GREY.astype(np.uint16), GREY.astype(np.int32), GREY.astype(np.float32)):
        Image.fromarray(values).save(path)
        assert np.array_equal(files.read_mask(path), GREY)
    for picture in (Image.fromarray(GREY).convert("RGB"), Image.fromarray(GREY).convert("LA")):
        picture.save(tmp_path / "m.png")
        assert np.array_equal(files.read_mask(tmp_path / "m.png"), GREY)
    Image.fromarray(GREY > 99).save(tmp_path / "m.png")
    assert np.array_equal(files.read_mask(tmp_path / "m.png"), (GREY > 99).astype(np.uint8))


@pytest.mark.parametrize(
    "values",
    [GREY.astype(np.uint16) + 256, GREY.astype(np.int32) - 1, GREY // 2 + np.float32(0.5),
     np.full((6, 9), np.nan, np.float32)],
)  # fmt: skip
def test_mask_values_that_are_no_class_numbers_are_refused(tmp_path: Path, values: np.ndarray) -> None:
    values.flat[0] = values.flat[0] if values.dtype != np.int32 else -1
    Image.fromarray(values).save(tmp_path / "m.tif")
    with pytest.raises(UserError, match=r"m\.tif: the mask holds values from .* whole numbers"):
        files.read_mask(tmp_path / "m.tif")


@pytest.mark.parametrize("content", [b"", b"hello", b"version lfs 1\noid sha256:ab\n", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_named_once(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(UserError) as caught:
        files.read_image(tmp_path / "x.png")
    assert str(caught.value).count("x.png") == 1
    assert "\n" not in str(caught.value)


def test_files_are_found_by_stem_in_order_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "deep/a.jpeg", "._b.png", ".cache/c.png", "notes.txt", "dir.png/d.bmp", "a.b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list(files.files_by_stem(tmp_path)) == ["a", "a.b", "b", "deep/a", "dir.png/d"]
    (tmp_path / "b.JPEG").touch()
    with pytest.raises(UserError, match="the same name"):
        files.files_by_stem(tmp_path)


def test_no_images_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no images .* in {tmp_path}"):
        files.pair({}, {}, tmp_path)


def test_the_limit_spreads_over_all_ids() -> None:
    data = _Two([f"{i:03}" for i in range(100)], limit=4)
    assert data.ids == ("000", "025", "050", "075")


def test_a_data_set_of_ones_own_may_be_grey_or_a_classifiers() -> None:
    image, labels = _Two(["x"], size=[4, 6]).sample("x")
    assert image.shape == (1, 4, 6)
    assert labels.tolist() == [[1]]
    with pytest.raises(UserError, match=r"^bad: the mask holds label 2, but there are 2 classes"):
        _Two(["bad"]).sample("bad")
    data = _Two(["x"])
    data.image_labels = False
    with pytest.raises(UserError, match=r"^x: the mask is 1 x 1 but the image \d+ x \d+; .* same size.*image_labels"):
        data.sample("x")
    data = _Two(["full"])
    with pytest.raises(UserError, match=r"^full: the mask is .* 1 x 1 where the data set has `image_labels`"):
        data.sample("full")


def test_colours_differ() -> None:
    assert len(set(colours(255))) == 255


class _Two(Dataset):
    class_names, image_labels = ("no", "yes"), True

    def read(self, image_id: str) -> tuple[np.ndarray, np.ndarray]:
        if image_id == "full":
            return GREY[:, :, None], np.zeros_like(GREY)
        return GREY[:, :, None], np.array([[2 if image_id == "bad" else 1]], np.uint8)
