"""The random views of a training image with its mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from segaudit.training.augment import augment
from segaudit.types import VOID


def coded(height: int = 40, width: int = 56) -> tuple[Tensor, Tensor]:
    """An image that holds its own mask: the channels are a tenth of the class, the column, and the row."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    labels = (rows // 10 + columns // 14) % 5
    return torch.stack([labels / 10, columns / width, rows / height]), labels


def views(count: int, **own: Any) -> list[tuple[Tensor, Tensor]]:
    return [augment(*coded(), torch.Generator().manual_seed(seed), **own) for seed in range(count)]


@pytest.mark.parametrize("scale", [(1, 1), (0.5, 0.7), (1.5, 2.5), (0.5, 2.0)])
@pytest.mark.parametrize("crop", [None, (24, 32), (70, 90)])
def test_image_and_mask_stay_on_each_other(scale: tuple[float, float], crop: tuple[int, int] | None) -> None:
    mirrored = set[bool]()
    for view, mask in views(20, scale=scale, crop=crop):
        assert view.shape == (3, *mask.shape) == (3, *(crop or (40, 56)))
        assert mask.dtype == torch.int64
        outside = mask == VOID
        assert (view[:, outside] == 0.5).all()
        agree = ((view[0] * 10).round() == mask)[~outside].double().mean()
        assert agree == 1 if scale == (1, 1) else agree > 0.85  # borders between classes are blurred
        column = view[1, 0][~outside[0]]
        mirrored.add(bool(column[0] > column[-1]))
    assert mirrored == {True, False}


def test_without_options_a_view_is_the_image_or_its_mirror() -> None:
    image, labels = coded()
    found = views(30)
    plain = [torch.equal(view, image) and torch.equal(mask, labels) for view, mask in found]
    mirror = [torch.equal(view, image.flip(2)) and torch.equal(mask, labels.flip(1)) for view, mask in found]
    assert all(a != b for a, b in zip(plain, mirror, strict=True))
    assert 8 < sum(plain) < 22
    assert all(torch.equal(view, image) for view, _ in views(10, flip=False))


@pytest.mark.parametrize(("width", "turns"), [(24, {0, 1, 2, 3}), (16, {0, 2})])
def test_turned_views_are_the_image_by_right_angles(width: int, turns: set[int]) -> None:
    image, labels = torch.rand(3, 24, width), torch.randint(5, (24, width))
    seen = set()
    for seed in range(30):
        view, mask = augment(image, labels, torch.Generator().manual_seed(seed), flip=False, turn=True)
        (quarters,) = [k for k in turns if torch.equal(view, image.rot90(k, (1, 2)))]
        assert torch.equal(mask, labels.rot90(quarters))
        seen.add(quarters)
    assert seen == turns


def test_views_are_of_the_scales_and_places_asked_for() -> None:
    steps, tops = list[float](), set[float]()
    for view, mask in views(60, flip=False, scale=(0.5, 2), crop=(16, 16)):
        assert not (mask == VOID).any()
        steps.append(float(1 / 56 / ((view[1, 8, 12] - view[1, 8, 4]) / 8)))
        tops.add(round(float(view[2, 0, 0]), 2))
    assert 0.45 < min(steps) < 0.65
    assert 1.6 < max(steps) < 2.2
    assert 0.35 < sum(step < 1 for step in steps) / 60 < 0.65  # log-uniform: as often smaller as larger
    assert len(tops) > 15


def test_the_same_generator_gives_the_same_view() -> None:
    own: dict[str, Any] = {"scale": (0.5, 2), "crop": (20, 20), "light": 0.3}
    first, second = views(5, **own), views(5, **own)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(first[0][0], view) for view, _ in first[1:])


def test_light_changes_the_image_within_its_range_and_not_the_mask() -> None:
    image, labels = coded()
    brighter = []
    for view, mask in views(20, flip=False, light=0.4):
        assert torch.equal(mask, labels)
        assert view.min() >= 0
        assert view.max() <= 1
        assert not torch.equal(view, image)
        brighter.append(bool(view.mean() > image.mean()))
    assert 3 < sum(brighter) < 17


def test_the_label_of_a_classifier_stays_as_it_is() -> None:
    image, label = coded()[0], torch.tensor([[3]])
    for seed in range(5):
        rng = torch.Generator().manual_seed(seed)
        view, found = augment(image, label, rng, scale=(0.5, 2), crop=(50, 20))
        assert view.shape == (3, 50, 20)
        assert torch.equal(found, label)
