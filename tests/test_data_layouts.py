"""What holds for every data set of files: one contract, run over each layout on a small tree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_kit import LAYOUTS, NAMES, SIZE, VOC, Layout, load, refused, save, save_text
from segaudit import registry

STRICT = [layout for layout in LAYOUTS if layout.name != "kvasir"]
"""Those whose masks hold class numbers."""


@pytest.fixture(params=LAYOUTS, ids=lambda layout: layout.name)
def layout(request: pytest.FixtureRequest) -> Layout:
    return request.param


@pytest.fixture
def root(layout: Layout, tmp_path: Path) -> Path:
    return layout.write(tmp_path / "data")


def test_pixels_and_labels_are_those_of_the_files(layout: Layout, root: Path) -> None:
    data = layout.open(root)
    assert sorted(data.ids) == sorted(NAMES)
    assert len(data.class_names) == len(data.palette) == len(set(data.palette)) == len(set(data.class_names))
    for name in NAMES:
        image, labels = data.sample(name)
        picture, mask = (load(path) for path in layout.files(root, name))
        torch.testing.assert_close(image, torch.tensor(picture).permute(2, 0, 1) / 255, rtol=0, atol=0)
        assert labels.tolist() == [[layout.values[value] for value in row] for row in mask.tolist()]


def test_limit_and_only_choose_ids(layout: Layout, root: Path) -> None:
    everything = layout.open(root).ids
    assert layout.open(root, limit=2).ids == everything[:2]
    assert layout.open(root, limit=9).ids == everything
    assert layout.open(root, only=["frame_c3", "frame_a1", "frame_c3"]).ids == ("frame_c3", "frame_a1")
    refused(lambda: layout.open(root, only=["frame_a2"]), "'frame_a2'", "did you mean")
    refused(lambda: layout.open(root, only=[2007]), "quotes")
    refused(lambda: layout.open(root, limit=0), "limit")


def test_resized_masks_hold_no_new_labels_and_lie_on_the_image(layout: Layout, root: Path) -> None:
    before = layout.open(root).sample("frame_a1")[1]
    image, labels = layout.open(root, size=[48, 72]).sample("frame_a1")
    assert image.shape == (3, 48, 72)
    assert torch.equal(labels, before.repeat_interleave(2, 0).repeat_interleave(2, 1))
    refused(lambda: layout.open(root, size=[48]), "[height, width]")
    refused(lambda: layout.open(root, size=48), "[height, width]")


def test_a_batch_holds_the_samples_and_refuses_two_sizes(layout: Layout, root: Path) -> None:
    data = layout.open(root)
    batch = data.batch(["frame_a1", "frame_c3"])
    assert batch.ids == ("frame_a1", "frame_c3")
    assert torch.equal(batch.images[1], data.sample("frame_c3")[0])
    for path in layout.files(root, "frame_c3"):
        save(path, load(path)[:10])
    refused(lambda: data.batch(["frame_a1", "frame_c3"]), "frame_a1 is 24 x 36", "frame_c3 is 10 x 36", "size: [H, W]")
    assert layout.open(root, size=[8, 8]).batch(NAMES).images.shape == (3, 3, 8, 8)


def test_suffixes_in_upper_case_are_found(layout: Layout, root: Path) -> None:
    for path in layout.files(root, "frame_a1"):
        path.rename(path.with_suffix(".PNG"))
    assert sorted(layout.open(root).ids) == sorted(NAMES)


def test_a_missing_mask_is_named(layout: Layout, root: Path) -> None:
    image, mask = layout.files(root, "frame_a1")
    mask.unlink()
    refused(lambda: layout.open(root), str(image), "no mask 'frame_a1'")


def test_a_mask_of_another_size_is_named(layout: Layout, root: Path) -> None:
    mask = layout.files(root, "frame_a1")[1]
    save(mask, np.zeros((36, 24), np.uint8))
    refused(lambda: layout.open(root, size=[8, 8]).sample("frame_a1"), str(mask), "36 x 24", "24 x 36")


@pytest.mark.parametrize("layout", STRICT, indirect=True)
def test_a_label_out_of_range_is_named(layout: Layout, root: Path) -> None:
    mask = layout.files(root, "frame_a1")[1]
    save(mask, np.full(SIZE, 99, np.uint8))
    refused(lambda: layout.open(root).sample("frame_a1"), str(mask), "99")


@pytest.mark.parametrize("layout", STRICT, indirect=True)
def test_a_colour_mask_is_named(layout: Layout, root: Path) -> None:
    mask = layout.files(root, "frame_a1")[1]
    save(mask, np.full((*SIZE, 3), (128, 64, 128), np.uint8))
    refused(lambda: layout.open(root).sample("frame_a1"), str(mask), "colour picture")


@pytest.mark.parametrize("layout", STRICT, indirect=True)
def test_a_jpeg_mask_is_named(layout: Layout, root: Path) -> None:
    mask = layout.files(root, "frame_a1")[1]
    mask.unlink()
    save(mask.with_suffix(".jpg"), np.zeros(SIZE, np.uint8))
    refused(lambda: layout.open(root).sample("frame_a1"), str(mask.with_suffix(".jpg")), "save the mask as PNG")


@pytest.mark.parametrize("which", [0, 1])
def test_a_truncated_picture_is_named(layout: Layout, root: Path, which: int) -> None:
    path = layout.files(root, "frame_a1")[which]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(lambda: layout.open(root).sample("frame_a1"), str(path), "copy it again")


@pytest.mark.parametrize("layout", [own for own in LAYOUTS if own.name != "cityscapes"], indirect=True)
def test_an_image_in_a_nested_folder_without_its_mask_there_is_named(layout: Layout, root: Path) -> None:
    image = layout.files(root, "frame_a1")[0]
    nested = image.parent / "more" / image.name
    nested.parent.mkdir()
    image.rename(nested)
    named = str(root / layout.ids) if layout.ids else str(nested)
    refused(lambda: layout.open(root), named, "frame_a1", "did you mean")


def test_a_missing_root_shows_the_tree(layout: Layout, root: Path) -> None:
    refused(lambda: layout.open(root / "nowhere"), str(root / "nowhere"), "expected", "NAME")
    refused(lambda: layout.open(root.parent), str(root.parent), f"holds the folders {root.name}", "NAME")


def test_an_unset_variable_and_no_root_at_all_are_refused(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEGAUDIT_NOT_SET", raising=False)
    refused(lambda: layout.open(Path("$SEGAUDIT_NOT_SET/x")), "environment variable")
    refused(lambda: registry.load("data", layout.name)(root=None, **layout.args), "root")


def test_kvasir_splits_by_id_alone(tmp_path: Path) -> None:
    names = [f"polyp{i:03}" for i in range(160)]
    for name in names:
        save(tmp_path / f"images/{name}.jpg", np.zeros((2, 2, 3), np.uint8))
        save(tmp_path / f"masks/{name}.png", np.zeros((2, 2), np.uint8))
    kvasir = registry.load("data", "kvasir")
    train, val = kvasir(tmp_path, "train").ids, kvasir(tmp_path, "val").ids
    assert not set(train) & set(val)
    assert tuple(sorted(train + val)) == kvasir(tmp_path, "all").ids == tuple(names)
    assert 10 <= len(val) <= 32  # 20 are expected
    for name in train[:80]:
        (tmp_path / f"images/{name}.jpg").unlink()
    assert kvasir(tmp_path, "val").ids == val
    refused(lambda: kvasir(tmp_path, "vall"), "'vall'", "did you mean 'val'", "all, train, val")


def test_kvasir_reads_jpeg_and_1_bit_masks_and_refuses_a_dark_one(tmp_path: Path) -> None:
    truth = np.zeros((32, 32), np.uint8)
    truth[5:19, 5:21] = 255  # not on the 8 x 8 blocks of a JPEG
    for name in ("jpeg", "bit", "dark"):
        save(tmp_path / f"images/{name}.jpg", np.zeros((32, 32, 3), np.uint8))
    (tmp_path / "masks").mkdir()
    Image.fromarray(truth).convert("RGB").save(tmp_path / "masks/jpeg.jpg", quality=60)
    assert len(np.unique(load(tmp_path / "masks/jpeg.jpg"))) > 2
    Image.fromarray(truth).convert("1").save(tmp_path / "masks/bit.png")
    save(tmp_path / "masks/dark.png", truth // 255)
    data = registry.load("data", "kvasir")(tmp_path, "all")
    for name in ("jpeg", "bit"):
        assert torch.equal(data.sample(name)[1], torch.tensor(truth // 255).long())
    refused(lambda: data.sample("dark"), "dark.png", "above 127")


def test_voc_keeps_palette_indices_takes_any_root_and_reads_its_lists(tmp_path: Path) -> None:
    layout = LAYOUTS[2]
    layout.write(tmp_path)
    values = np.arange(SIZE[0] * SIZE[1], dtype=np.int64).reshape(SIZE) % 21
    values[0] = 255
    data = layout.open(tmp_path)
    picture = Image.fromarray(values.astype(np.uint8)).convert("P")
    picture.putpalette([channel for colour in data.palette for channel in colour])
    picture.putdata(values.flatten().tolist())
    picture.save(layout.files(tmp_path, "frame_a1")[1])
    with Image.open(layout.files(tmp_path, "frame_a1")[1]) as saved:
        assert saved.mode == "P"
    assert torch.equal(data.sample("frame_a1")[1], torch.tensor(values))
    assert data.palette[1] == (128, 0, 0)
    assert data.palette[15] == (192, 128, 128)  # person
    assert data.palette[20] == (0, 64, 128)
    for root in (tmp_path / "VOCdevkit", tmp_path / VOC):
        assert layout.open(root).ids == data.ids == NAMES
    save_text(tmp_path / VOC / "ImageSets/Segmentation/train.txt", "frame_c3\r\n\r\nframe_a1.jpg\r\n")
    assert layout.open(tmp_path, split="train").ids == ("frame_c3", "frame_a1")
    refused(lambda: layout.open(tmp_path, split="tain"), "did you mean 'train'", "train, val")
    save_text(tmp_path / VOC / "ImageSets/Segmentation/train.txt", "frame_c4\n")
    refused(lambda: layout.open(tmp_path, split="train"), "train.txt", "'frame_c4'")
    save_text(tmp_path / VOC / "ImageSets/Segmentation/train.txt", "\n")
    refused(lambda: layout.open(tmp_path, split="train"), "no images")


def test_voc_reads_the_two_columns_of_an_augmented_list_and_keeps_both_kinds_of_masks_apart(tmp_path: Path) -> None:
    LAYOUTS[2].write(tmp_path)
    save(tmp_path / VOC / "SegmentationClassAug/frame_a1.png", np.full(SIZE, 7, np.uint8))
    lines = "/JPEGImages/frame_a1.jpg /SegmentationClassAug/frame_a1.png\n\n"
    save_text(tmp_path / VOC / "ImageSets/Segmentation/trainaug.txt", lines)
    data = LAYOUTS[2].open(tmp_path, split="trainaug")
    assert data.ids == ("frame_a1",)
    assert data.sample("frame_a1")[1].unique().tolist() == [7]
    assert 7 not in LAYOUTS[2].open(tmp_path).sample("frame_a1")[1]


def test_voc_masks_made_grey_from_their_colours_are_named(tmp_path: Path) -> None:
    LAYOUTS[2].write(tmp_path)
    mask = LAYOUTS[2].files(tmp_path, "frame_a1")[1]
    Image.fromarray(np.full((*SIZE, 3), (192, 128, 128), np.uint8)).convert("L").save(mask)  # a person's colour
    refused(lambda: LAYOUTS[2].open(tmp_path).sample("frame_a1"), str(mask), "label 147", "21 classes")


def test_the_frames_of_a_camvid_video_are_one_group(tmp_path: Path) -> None:
    for name in ("0016E5_08159", "0006R0_f00930", "0016E5_07959", "alone"):
        for path in LAYOUTS[0].files(tmp_path, name):
            save(path, np.zeros((2, 2), np.uint8))
    data = LAYOUTS[0].open(tmp_path)
    assert data.groups() == {
        "0006R0": ("0006R0_f00930",), "0016E5": ("0016E5_07959", "0016E5_08159"), "alone": ("alone",)
    }  # fmt: skip
    assert LAYOUTS[0].open(tmp_path, only=["alone"]).groups() == {"alone": ("alone",)}


def test_camvid_takes_jpg_images_and_names_the_folders_of_a_wrong_split(tmp_path: Path) -> None:
    LAYOUTS[0].write(tmp_path)
    for name in NAMES:
        (tmp_path / f"val/{name}.png").unlink()
        save(tmp_path / f"val/{name}.JPG", np.zeros((*SIZE, 3), np.uint8))
    assert LAYOUTS[0].open(tmp_path).ids == ("frame_a1", "frame_b2", "frame_c3")
    refused(lambda: LAYOUTS[0].open(tmp_path, split="vall"), "val, valannot", "trainannot/NAME.png")
