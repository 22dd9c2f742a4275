"""Metrics against scikit-learn, torchmetrics, PIL and loops over pixels."""

from __future__ import annotations

import io
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score, jaccard_score
from torch import Tensor
from torchmetrics.functional.classification import multiclass_jaccard_index

from segaudit.metrics import bootstrap, confusion
from segaudit.metrics.perturbation import norms, to_8bit
from segaudit.types import VOID, Counts


class Case(NamedTuple):
    images: int
    height: int
    width: int
    classes: int
    truth: tuple[int, ...]
    """The classes that occur in the truth."""
    void: float
    empty: int
    """How many images are void all over."""


CASES = {
    "plain": Case(4, 9, 13, 5, (0, 1, 2, 3, 4), 0.0, 0),
    "void": Case(5, 8, 8, 4, (0, 1, 2, 3), 0.3, 0),
    "absent classes": Case(4, 7, 11, 6, (1, 4), 0.1, 0),
    "a void image": Case(4, 6, 6, 3, (0, 1, 2), 0.2, 2),
    "binary": Case(6, 10, 10, 2, (0, 1), 0.05, 0),
    "one pixel": Case(30, 1, 1, 10, tuple(range(10)), 0.1, 0),
    "one image": Case(1, 12, 5, 3, (0, 2), 0.0, 0),
}


def maps(case: Case) -> tuple[Tensor, Tensor]:
    """A prediction that is right at about half of the pixels, and its truth."""
    rng = torch.Generator().manual_seed(7)
    shape = (case.images, case.height, case.width)
    truth = torch.tensor(case.truth)[torch.randint(len(case.truth), shape, generator=rng)]
    guess = torch.where(
        torch.rand(shape, generator=rng) < 0.5, truth, torch.randint(case.classes, shape, generator=rng)
    )
    truth[torch.rand(shape, generator=rng) < case.void] = VOID
    truth[: case.empty] = VOID
    return guess, truth


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def drawn(request: pytest.FixtureRequest) -> tuple[Case, Tensor, Tensor, Counts]:
    case = request.param
    guess, truth = maps(case)
    return case, guess, truth, confusion.count(guess, truth, case.classes)


Drawn = tuple[Case, Tensor, Tensor, Counts]


def test_counts_are_those_of_a_loop_over_pixels(drawn: Drawn) -> None:
    case, guess, truth, counts = drawn
    expected = np.zeros((3, case.images, case.classes), int)
    for n in range(case.images):
        for g, t in zip(guess[n].flatten().tolist(), truth[n].flatten().tolist(), strict=True):
            if t == VOID:
                continue
            for k in range(case.classes):
                expected[:, n, k] += (g == k and t == k, g == k or t == k, t == k)
    assert_array_equal([counts.intersection, counts.union, counts.target], expected)


def test_iou_by_class_and_miou_are_those_of_scikit_learn_and_torchmetrics(drawn: Drawn) -> None:
    case, guess, truth, counts = drawn
    valid = truth != VOID
    present = sorted(set(truth[valid].tolist()))
    sklearn = jaccard_score(truth[valid], guess[valid], labels=present, average=None)
    peer = multiclass_jaccard_index(guess, truth, case.classes, average="none", ignore_index=VOID)
    ours = confusion.iou_by_class(counts)
    assert_allclose(ours[present], sklearn, rtol=1e-12)
    assert_allclose(ours[present], peer[present], rtol=1e-6)
    assert np.isnan(np.delete(ours, present)).all()
    assert confusion.miou(counts) == pytest.approx(sklearn.mean(), rel=1e-12)


def test_accuracy_is_that_of_scikit_learn(drawn: Drawn) -> None:
    _, guess, truth, counts = drawn
    valid = truth != VOID
    assert confusion.accuracy(counts) == pytest.approx(accuracy_score(truth[valid], guess[valid]), rel=1e-12)


def each_image(guess: Tensor, truth: Tensor) -> list[dict[int, float]]:
    """The IoU of each class that an image's truth has, image by image."""
    found = []
    for g, t in zip(guess, truth, strict=True):
        present = sorted(set(t[t != VOID].tolist()))
        scores = jaccard_score(t[t != VOID], g[t != VOID], labels=present, average=None) if present else []
        found.append(dict(zip(present, scores, strict=True)))
    return found


def test_the_mean_of_image_mious_leaves_out_images_without_truth(drawn: Drawn) -> None:
    _, guess, truth, counts = drawn
    scores = [np.mean(list(image.values())) for image in each_image(guess, truth) if image]
    assert confusion.image_miou(counts) == pytest.approx(np.mean(scores), rel=1e-12)


def test_dice_is_the_f1_score_of_scikit_learn_an_image_at_a_time(drawn: Drawn) -> None:
    case, guess, truth, counts = drawn
    each = []
    for image in range(case.images):
        kept = truth[image] != VOID
        y, found = truth[image][kept].numpy(), guess[image][kept].numpy()
        known = [k for k in range(case.classes) if (y == k).any() and (case.classes > 2 or k == 1)]
        if known:
            each.append(np.mean(f1_score(y, found, labels=known, average=None, zero_division=0)))
    assert_allclose(confusion.dice(counts), np.mean(each))


def test_iou_by_size_is_the_mean_over_what_a_class_covers_in_an_image() -> None:
    truth = torch.zeros(2, 20, 20, dtype=torch.int64)
    truth[0, 0, :3] = 1  # 3 of 400: small
    truth[0, 2:4, :] = 2  # 40 of 400: exactly a tenth, so large
    truth[1, :10] = VOID
    truth[1, 10, :2] = 1  # 2 of the 200 valid pixels: exactly a hundredth, so medium
    guess = truth.clone()
    guess[0, 0, 0] = 0
    guess[1, 10, 0] = 2
    guess[0, 2, :10] = 1
    by_class = each_image(guess, truth)
    sizes = confusion.iou_by_size(confusion.count(guess, truth, 3))
    assert sizes["small"] == pytest.approx(by_class[0][1])
    assert sizes["medium"] == pytest.approx(by_class[1][1])
    assert sizes["large"] == pytest.approx(np.mean([by_class[0][0], by_class[0][2], by_class[1][0]]))
    assert len({round(value, 6) for value in sizes.values()}) == 3


def test_sizes_together_hold_every_object(drawn: Drawn) -> None:
    _, guess, truth, counts = drawn
    valid = (truth != VOID).flatten(1).sum(1).clamp(min=1)
    scores: dict[str, list[float]] = {name: [] for name in confusion.SIZES}
    for n, image in enumerate(each_image(guess, truth)):
        for k, score in image.items():
            share = float((truth[n] == k).sum() / valid[n])
            name = "small" if share < 0.01 else "medium" if share < 0.1 else "large"
            scores[name].append(score)
    for name, value in confusion.iou_by_size(counts).items():
        assert value == pytest.approx(np.mean(scores[name]) if scores[name] else math.nan, nan_ok=True)


def test_without_a_valid_pixel_there_is_no_number() -> None:
    counts = confusion.count(torch.zeros(3, 4, 4, dtype=torch.int64), torch.full((3, 4, 4), VOID), 3)
    assert counts.union.sum() == 0
    for metric in (confusion.miou, confusion.image_miou, confusion.accuracy):
        assert math.isnan(metric(counts))
    assert all(math.isnan(value) for value in confusion.iou_by_size(counts).values())
    assert all(math.isnan(value) for value in bootstrap.interval(counts))


def test_a_label_outside_of_the_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="outside of the 3 classes"):
        confusion.count(torch.zeros(1, 2, 2, dtype=torch.int64), torch.full((1, 2, 2), 3), 3)


def test_joined_counts_are_those_of_one_batch() -> None:
    guess, truth = maps(CASES["void"])
    whole = confusion.count(guess, truth, 4)
    parts = confusion.join([confusion.count(guess[:2], truth[:2], 4), confusion.count(guess[2:], truth[2:], 4)])
    for field in ("intersection", "union", "target"):
        assert_array_equal(getattr(parts, field), getattr(whole, field))


@pytest.mark.parametrize("channels", [1, 3])
def test_norms_are_those_of_a_loop_over_places(channels: int) -> None:
    rng = torch.Generator().manual_seed(0)
    clean = torch.rand(3, channels, 4, 5, generator=rng)
    adversarial = (clean + 0.1 * torch.randn(clean.shape, generator=rng)).clamp(0, 1)
    adversarial[0] = clean[0]
    adversarial[1, :, :2] = clean[1, :, :2]
    found = norms(adversarial, clean)
    for n in range(3):
        largest, squares, places = 0.0, 0.0, 0
        for y in range(4):
            for x in range(5):
                here = [float(adversarial[n, c, y, x]) - float(clean[n, c, y, x]) for c in range(channels)]
                largest = max(largest, *map(abs, here))
                squares += sum(value**2 for value in here)
                places += any(here)
        assert found.linf[n] == pytest.approx(largest, rel=1e-12)
        assert found.l2[n] == pytest.approx(math.sqrt(squares), rel=1e-12)
        assert found.l0[n] == places


def test_8_bit_images_are_what_a_file_gives_back() -> None:
    images = torch.rand(1, 3, 6, 7, generator=torch.Generator().manual_seed(1)) * 1.2 - 0.1
    levels = (images[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    read = np.asarray(Image.open(io.BytesIO(file.getvalue())))
    assert_array_equal(to_8bit(images)[0].permute(1, 2, 0).numpy(), (torch.from_numpy(read.copy()) / 255).numpy())
    assert_array_equal(to_8bit(to_8bit(images)), to_8bit(images))


def test_a_perturbation_below_half_a_level_does_not_outlive_8_bits() -> None:
    clean = torch.randint(256, (1, 3, 4, 4), generator=torch.Generator().manual_seed(2)) / 255
    assert norms(to_8bit(clean + 0.4 / 255), clean).l0[0] == 0
    assert norms(to_8bit(clean * 0.5 + 0.6 / 255), to_8bit(clean * 0.5)).l0[0] > 0


def test_the_interval_is_that_of_resampling_images_one_draw_at_a_time() -> None:
    guess, truth = maps(CASES["void"])
    low, high = bootstrap.interval(confusion.count(guess, truth, 4), draws=200, seed=5)
    rng = np.random.default_rng(5)
    scores = []
    for _ in range(200):
        rows = rng.integers(len(truth), size=len(truth))
        g, t = guess[rows].flatten(), truth[rows].flatten()
        scores.append(jaccard_score(t[t != VOID], g[t != VOID], average="macro"))
    assert (low, high) == pytest.approx(tuple(np.quantile(scores, [0.025, 0.975])), rel=1e-9)


def test_a_rare_class_is_left_out_of_the_draws_that_miss_it() -> None:
    target = np.array([[100, 0], [100, 0], [100, 10]])
    hit = np.array([[50, 0], [50, 0], [50, 10]])
    low, high = bootstrap.interval(Counts(hit, target, target), draws=400)
    assert low == pytest.approx(0.5)
    assert high == pytest.approx(0.75)


def test_the_interval_narrows_with_images_and_holds_the_estimate() -> None:
    rng = np.random.default_rng(0)

    def width(images: int) -> float:
        target = np.full((images, 1), 1000)
        hit = rng.integers(200, 800, (images, 1))
        counts = Counts(hit, target, target)
        low, high = bootstrap.interval(counts)
        assert low < confusion.miou(counts) < high
        return high - low

    assert 2.5 < width(25) / width(400) < 6.5


def test_equal_images_have_no_spread_and_one_image_no_interval() -> None:
    target = np.full((8, 2), 50)
    same = Counts(target // 2, target, target)
    assert bootstrap.interval(same) == pytest.approx((0.5, 0.5))
    assert all(math.isnan(end) for end in bootstrap.interval(Counts(*(part[:1] for part in (target, target, target)))))
