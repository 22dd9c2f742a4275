"""The losses of the attacks against loops over pixels, written out here from their definitions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor

from segaudit.attacks import _losses
from segaudit.attacks._losses import pixel_loss
from segaudit.types import NEVER, VOID, UserError

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ["ce", "masked_ce", "balanced_masked_ce", "js", "margin"]
SHAPES = {"map": (3, 5, 6, 7), "binary": (3, 2, 6, 7), "classifier": (4, 4, 1, 1), "binary classifier": (4, 2, 1, 1)}


def case(shape: Sequence[int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Logits with right and wrong pixels, and labels: a part void, and the last image all void."""
    rng = torch.Generator().manual_seed(0)
    n, k, h, w = shape
    labels = torch.randint(k, (n, h, w), generator=rng)
    logits = 2 * torch.randn(n, k, h, w, generator=rng, dtype=torch.float64)
    logits.scatter_add_(1, labels[:, None], torch.full((n, 1, h, w), 1.5, dtype=torch.float64))
    labels[:, 2:4, 1:3] = VOID
    labels[-1] = VOID
    return logits.to(dtype), labels


def softmax(u: Sequence[float]) -> list[float]:
    top = max(u)
    e = [math.exp(v - top) for v in u]
    return [v / sum(e) for v in e]


def pixel(name: str, u: Sequence[float], y: int, targeted: bool) -> float:
    """One valid pixel's loss, without its class weight."""
    p, rival = softmax(u), max(v for k, v in enumerate(u) if k != y)
    won = rival < u[y] if targeted else rival > u[y]
    sign = -1 if targeted else 1
    if name == "ce":
        return -sign * math.log(p[y])
    if name in ("masked_ce", "balanced_masked_ce"):
        return 0.0 if won else -sign * math.log(p[y])
    if name == "js":
        e = [float(k == y) for k in range(len(u))]
        return sign * jensenshannon(p, e) ** 2  # scipy gives the distance, the divergence's root
    return 0.0 if won else sign * (rival - u[y])


def by_pixel(name: str, logits: Tensor, labels: Tensor, targeted: bool, class_pixels: Any = None) -> Tensor:
    found = torch.zeros(labels.shape, dtype=torch.float64)
    for i, own in enumerate(labels.tolist()):
        counts = [sum(row.count(k) for row in own) for k in range(logits.shape[1])]
        counts = counts if class_pixels is None else class_pixels
        for r, row in enumerate(own):
            for c, y in enumerate(row):
                if y != VOID:
                    value = pixel(name, logits[i, :, r, c].tolist(), y, targeted)
                    found[i, r, c] = value / max(counts[y], 1) if name == "balanced_masked_ce" else value
    return found


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_loss_is_that_of_a_loop_over_pixels(name: str, shape: Sequence[int], targeted: bool) -> None:
    logits, labels = case(shape)
    expected = by_pixel(name, logits, labels, targeted)
    assert expected.abs().max() > 0.01
    found = pixel_loss(name)(logits, labels, targeted)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found[labels == VOID].eq(0).all()
    single = pixel_loss(name)(logits.float(), labels, targeted)
    assert single.dtype == torch.float32
    assert single[labels == VOID].eq(0).all()
    torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-5)
    spread = logits.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(pixel_loss(name)(spread, labels, targeted), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_gradient_is_the_slope_of_the_loop(name: str, targeted: bool) -> None:
    logits, labels = case((2, 3, 2, 2))
    labels[1] = torch.tensor([[0, VOID], [2, 1]])
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(pixel_loss(name)(logits, labels, targeted).sum(), logits)
    assert gradient.abs().max() > 1e-3
    small, flat = 1e-6, logits.detach().flatten()
    for place in range(flat.numel()):
        up, down = flat.clone(), flat.clone()
        up[place] += small
        down[place] -= small
        rise, fall = (by_pixel(name, u.view_as(logits), labels, targeted).sum() for u in (up, down))
        assert float(gradient.flatten()[place]) == pytest.approx(float(rise - fall) / (2 * small), abs=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_without_truth_has_no_loss_and_no_gradient(name: str) -> None:
    logits, labels = case(SHAPES["map"])
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(pixel_loss(name)(logits, labels, False).sum(), logits)
    assert gradient[-1].eq(0).all()
    assert gradient[labels.eq(VOID)[:, None].expand_as(gradient)].eq(0).all()
    assert gradient[0].abs().max() > 0


def test_the_margin_works_from_two_classes_on() -> None:
    """Losses divided by the gap to a third or fourth class have no value here."""
    logits = torch.tensor([[2.0, 0.5, -1.0, NEVER], [0.5, 2.0, 0.5, 0.0]], dtype=torch.float64).view(1, 2, 1, 4)
    labels = torch.tensor([0, 0, 1, VOID]).view(1, 1, 4)
    assert pixel_loss("margin")(logits, labels, False).flatten().tolist() == [-1.5, 0, -1.5, 0]
    assert pixel_loss("margin")(logits, labels, True).flatten().tolist() == [0, -1.5, 0, 0]


def test_losses_stay_finite_at_logits_that_decide_everything() -> None:
    logits = torch.tensor([[200.0, -200.0, NEVER], [-200.0, 200.0, 50.0]]).view(1, 2, 1, 3).requires_grad_()
    labels = torch.zeros(1, 1, 3, dtype=torch.int64)
    for name in NAMES:
        for targeted in (False, True):
            loss = pixel_loss(name)(logits, labels, targeted)
            assert loss.isfinite().all()
            assert torch.autograd.grad(loss.sum(), logits)[0].isfinite().all()
    divergence = pixel_loss("js")(logits, labels, False).flatten().tolist()
    assert divergence == pytest.approx([0, math.log(2), math.log(2)], abs=1e-6)


def test_class_weights_come_from_the_data_where_it_says_so() -> None:
    logits, labels = case(SHAPES["map"])
    counts = [7.0, 100.0, 0.0, 33.0, 2.0]
    expected = by_pixel("balanced_masked_ce", logits, labels, False, counts)
    for given in (counts, torch.tensor(counts), torch.tensor(counts).long()):
        found = pixel_loss("balanced_masked_ce", given)(logits, labels, False)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(found, pixel_loss("balanced_masked_ce")(logits, labels, False))
    with pytest.raises(UserError, match=r"^class_pixels must be 5 numbers, one a class, not \[1, 2\]$"):
        pixel_loss("balanced_masked_ce", [1, 2])(logits, labels, False)


def test_right_is_the_largest_logit_and_a_tie_counts_for_the_label() -> None:
    logits, labels = case(SHAPES["map"])
    assert torch.equal(_losses.right(logits, labels), logits.argmax(1) == labels)
    assert not _losses.right(logits, labels).all()
    level, zero = torch.zeros(1, 3, 1, 2), torch.tensor([[[2, VOID]]])
    assert _losses.right(level, zero).tolist() == [[[True, False]]]
    assert not _losses.right(level * torch.nan, zero).any()


def test_a_gradient_is_given_once_and_never_a_wrong_one() -> None:
    """The softmax is overwritten by the first one."""
    logits, labels = case(SHAPES["map"])
    loss = pixel_loss("ce")(logits.requires_grad_(), labels, False).sum()
    torch.autograd.grad(loss, logits, retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace operation"):
        torch.autograd.grad(loss, logits)


def test_a_wrong_name_is_said_in_one_line() -> None:
    with pytest.raises(
        UserError, match=r"^loss must be one of ce, .*, margin, not 'masked_cd' \(did you mean 'masked_ce'"
    ):
        pixel_loss("masked_cd")


def test_the_divergence_of_a_label_without_any_probability_is_log_2_and_has_no_slope() -> None:
    logits = torch.tensor([[[[1e4]], [[-1e4]]], [[[0.0]], [[-torch.inf]]]], requires_grad=True)
    found = pixel_loss("js")(logits, torch.ones(2, 1, 1, dtype=torch.int64), False)
    (slope,) = torch.autograd.grad(found.sum(), logits)
    torch.testing.assert_close(found.flatten(), torch.full((2,), math.log(2)))
    assert slope.abs().max() < 1e-30
