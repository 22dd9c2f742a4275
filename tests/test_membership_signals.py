"""What an answer and a mask come to, against loops over the pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from segaudit.privacy.signals import CLIP, NAMES, measure
from segaudit.types import NEVER, VOID, UserError

pytestmark = pytest.mark.usefixtures("one_thread")


def pair(classes: int, height: int, width: int, count: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count, height, width), generator=rng)
    return torch.randn(count, classes, height, width, generator=rng, dtype=torch.float64) * 3, labels


@pytest.mark.parametrize(("classes", "height", "width"), [(2, 5, 6), (4, 7, 5), (3, 1, 1)])
def test_the_signals_are_those_of_a_loop_over_the_pixels(classes: int, height: int, width: int) -> None:
    logits, labels = pair(classes, height, width)
    if height > 1:
        labels[:, 0, :2] = VOID
        labels[0, 1:, 3:] = 1  # with room that is far from a boundary
    made = measure(logits, labels)
    assert tuple(made) == NAMES
    for n in range(len(labels)):
        seen: dict[str, list[float]] = {name: [] for name in ("loss", "phi", "entropy")}
        near: dict[str, list[float]] = {name: [] for name in (*seen, "error")}
        by_class: dict[int, list[float]] = {}
        soft = np.zeros((classes, 2))
        hard = np.zeros((classes, 2))
        for y in range(height):
            for x in range(width):
                k = int(labels[n, y, x])
                if k == VOID:
                    continue
                z = logits[n, :, y, x].numpy()
                p = np.exp(z) / np.exp(z).sum()
                own = {"loss": -math.log(p[k]), "phi": math.log(p[k] / (1 - p[k])), "entropy": -(p * np.log(p)).sum()}
                window = labels[n, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].flatten().tolist()
                for name, value in own.items():
                    seen[name].append(value)
                by_class.setdefault(k, []).append(own["phi"])
                guess = int(z.argmax())
                if len(set(window) - {VOID}) > 1 or height == 1:
                    for name, value in (own | {"error": float(guess != k)}).items():
                        near[name].append(value)
                for c in range(classes):
                    soft[c] += [2 * p[c] * (c == k), p[c] + (c == k)]
                    hard[c] += [c == k == guess, c in (k, guess)]
        assert height == 1 or 0 < len(near["loss"]) < len(seen["loss"]) or n
        present = [1] if classes == 2 and 1 in by_class else sorted(by_class)
        dice = np.mean([soft[c, 0] / soft[c, 1] for c in present])
        iou = {c: hard[c, 0] / hard[c, 1] for c in by_class}
        wanted = {name: np.mean(values) for name, values in seen.items()}
        wanted |= {f"band_{name}": np.mean(near[name]) for name in seen}
        wanted |= {"boundary_error": np.mean(near["error"]), "log_p": -wanted["loss"]}
        wanted |= {"dice_logit": math.log(dice / (1 - dice)), "miou": np.mean(list(iou.values()))}
        wanted |= {"dice": np.mean([2 * iou[c] / (1 + iou[c]) for c in present])}
        for name, value in wanted.items():
            assert made[name][n] == pytest.approx(value, abs=1e-9), name
        classwise = [np.mean(by_class[c]) if c in by_class else np.nan for c in range(classes)]
        np.testing.assert_allclose(made["class_phi"][n], classwise, atol=1e-9)


def test_log_odds_are_exact_where_float32_has_no_probability_left() -> None:
    logits = torch.tensor([14.0, 0.0, -1.0])[None, :, None, None]
    made = measure(logits, torch.zeros(1, 1, 1, dtype=torch.int64))
    assert made["phi"][0] == pytest.approx(14 - math.log(1 + math.exp(-1)), abs=1e-9)
    assert made["loss"][0] == pytest.approx(math.exp(-14) * (1 + math.exp(-1)), rel=1e-5)
    assert float(logits.softmax(1)[0, 0]) > 1 - 2e-6


@pytest.mark.parametrize("surest", [1.0, 1e4, -NEVER, 1e30])
def test_a_label_only_answer_has_finite_signals(surest: float) -> None:
    labels = torch.tensor([[[0, 1], [1, VOID]]])
    guess = torch.tensor([[[0, 1], [0, 0]]])
    one_hot = torch.nn.functional.one_hot(guess, 2).movedim(3, 1).float() * surest
    made = measure(one_hot, labels)
    for name, values in made.items():
        assert np.isfinite(values).all(), name
        assert np.abs(values).max() <= CLIP
    assert made["boundary_error"][0] == pytest.approx(1 / 3)
    if surest > CLIP:
        assert made["loss"][0] == pytest.approx(CLIP / 3)
        assert made["phi"][0] == pytest.approx(CLIP / 3)


def test_an_image_by_itself_has_the_numbers_that_it_has_in_a_batch() -> None:
    logits, labels = pair(3, 6, 7, count=4)
    labels[2] = VOID
    made = measure(logits.float(), labels)
    assert made["class_phi"].shape == (4, 3)
    for name, values in made.items():
        assert values.dtype == np.float64
        assert np.isnan(values[2]).all(), name
        for n in range(4):
            np.testing.assert_array_equal(measure(logits[n : n + 1].float(), labels[n : n + 1])[name][0], values[n])
    nobody = measure(logits[:0], labels[:0])
    assert {name: own.shape for name, own in nobody.items()} == {n: (0, 3) if n == "class_phi" else (0,) for n in NAMES}


def test_what_stands_at_void_pixels_changes_nothing() -> None:
    """Void is no class of its own, as it is where 255 is clamped to the last one."""
    logits, labels = pair(3, 8, 8)
    labels[:, 2:5, 2:5] = VOID
    other = logits.clone()
    other[:, :, 2:5, 2:5] = 50 * torch.randn(3, 3, 3, 3, dtype=torch.float64)
    for (name, one), two in zip(measure(logits, labels).items(), measure(other, labels).values(), strict=True):
        np.testing.assert_array_equal(one, two, err_msg=name)
    flat = torch.zeros(1, 9, 9, dtype=torch.int64)
    flat[:, 4:] = VOID  # nor has a mask a boundary with it
    made = measure(torch.randn(1, 3, 9, 9), flat)
    assert made["band_loss"] == made["loss"]


def test_the_prediction_is_the_largest_logit_and_not_a_rounded_one() -> None:
    labels = torch.tensor([[[0, 1], [1, 0]]])
    logits = torch.tensor([[[[0.4, -7.4], [0.1, 3.2]], [[0.3, -7.3], [0.2, 2.6]]]])
    assert not torch.equal(logits[:, 1].round().clamp(0, 1).long(), labels)
    made = measure(logits, labels)
    assert made["dice"][0] == made["miou"][0] == 1
    assert made["boundary_error"][0] == 0


def test_an_empty_mask_is_not_worth_a_perfect_score() -> None:
    empty, half = torch.zeros(2, 6, 6, dtype=torch.int64), torch.zeros(2, 2, 6, 6)
    half[0, 0] = 4.0
    half[1, 0, :3], half[1, 1, 3:] = 4.0, 4.0
    made = measure(half, empty)
    assert made["loss"][1] > 1.9 > 0.1 > made["loss"][0]
    assert made["dice"][0] == 1
    assert made["dice"][1] == pytest.approx(2 / 3)
    assert made["dice_logit"][1] < 1 < made["dice_logit"][0]


def test_what_does_not_fit_is_refused() -> None:
    logits, labels = pair(3, 4, 4)
    with pytest.raises(ValueError, match="not N x K x H x W"):
        measure(logits[:, :1], labels)
    with pytest.raises(ValueError, match="not N x K x H x W"):
        measure(logits, labels[:, :3])
    with pytest.raises(ValueError, match="outside of the 3 classes"):
        measure(logits, labels + 1)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_network_whose_training_ran_away_does_not_pass_for_one_that_gives_nothing_away(broken: float) -> None:
    logits, labels = pair(3, 4, 4)
    labels[1, 2, 2] = VOID
    logits[1, 0, 2, 2] = broken  # where nothing is counted
    logits[2, 2] = -math.inf  # a class that cannot be
    assert np.isfinite(measure(logits, labels)["phi"]).all()
    logits[1, 0, 1, 1] = broken
    with pytest.raises(UserError, match="answers nan or inf in place of logits"):
        measure(logits, labels)
