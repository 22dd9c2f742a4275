"""Mean-field steps against loops over pixels, and what a picture's edges do to them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from segaudit.nn import mean_field
from segaudit.nn.mean_field import LEAST, MeanField
from segaudit.types import UserError

HEIGHT, WIDTH, CLASSES = 4, 5, 3
OWN: dict[str, Any] = {"spatial_width": 1.5, "position_width": 2.0, "colour_width": 60.0, "steps": 3}


def given(height: int = HEIGHT, width: int = WIDTH) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, CLASSES, height, width, generator=rng, dtype=torch.float64)
    return logits, torch.rand(2, 3, height, width, generator=rng, dtype=torch.float64)


def field(**own: Any) -> MeanField:
    """With weights and a compatibility of no symmetry."""
    made = MeanField(CLASSES, **{**OWN, **own}).double().eval()
    rng = torch.Generator().manual_seed(1)
    made.weights.data = torch.rand(2, CLASSES, generator=rng, dtype=torch.float64) + 1
    made.compatibility.data = torch.rand(CLASSES, CLASSES, generator=rng, dtype=torch.float64)
    return made


def oracle(made: MeanField, logits: Tensor, image: Tensor, steps: int, radius: int | None = None) -> Tensor:
    """Two loops over the pixels; radius: of the square that the bilateral kernel is cut off at."""
    out = torch.empty_like(logits)
    height, width = logits.shape[2:]
    places = [(y, x) for y in range(height) for x in range(width)]
    for n in range(len(logits)):
        now = logits[n]
        for _ in range(steps):
            belief, after = now.softmax(0), torch.empty_like(now)
            for y, x in places:
                sums = torch.zeros(2, CLASSES + 1, dtype=torch.float64)
                for v, u in places:
                    if (v, u) == (y, x):
                        continue
                    apart = (y - v) ** 2 + (x - u) ** 2
                    colour = float(((image[n, :, y, x] - image[n, :, v, u]) * 255).square().sum())
                    near = radius is None or max(abs(y - v), abs(x - u)) <= radius
                    kernels = (
                        math.exp(-apart / (2 * made.spatial_width**2)),
                        near * math.exp(-apart / (2 * made.position_width**2) - colour / (2 * made.colour_width**2)),
                    )
                    for m in range(2):
                        sums[m] += kernels[m] * torch.cat([belief[:, v, u], torch.ones(1, dtype=torch.float64)])
                message = sums[:, :-1] / sums[:, -1:].clamp_min(LEAST)
                penalty = made.compatibility.detach() @ (made.weights.detach() * message).sum(0)
                after[:, y, x] = logits[n, :, y, x] - penalty
            now = after
        out[n] = now
    return out


@pytest.mark.parametrize("pairs", [2**24, 47], ids=["at once", "in parts"])
def test_all_pairs_are_those_of_two_loops(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mean_field, "PAIRS", pairs)
    logits, image = given()
    torch.testing.assert_close(field()(logits, image), oracle(field(), logits, image, 3), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("window", [3, 5, 11])
def test_pairs_within_a_window_are_those_of_two_loops(window: int) -> None:
    logits, image = given()
    made = field(exact=1, window=window)
    expected = oracle(made, logits, image, 3, window // 2)
    torch.testing.assert_close(made(logits, image), expected, rtol=1e-10, atol=1e-10)


def test_a_window_of_the_whole_picture_is_exact() -> None:
    logits, image = given(6, 4)
    torch.testing.assert_close(field(exact=1, window=11)(logits, image), field()(logits, image), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("exact", "pairs"), [(100, 2**24), (100, 47), (1, 2**24), (1, 47)])
def test_the_gradient_to_scores_picture_and_weights(exact: int, pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mean_field, "PAIRS", pairs)
    logits, image = (x[:1, :, :3, :3].clone().requires_grad_() for x in given())
    made = field(exact=exact, window=3, steps=2)

    def run(logits: Tensor, image: Tensor, weights: Tensor, compatibility: Tensor) -> Tensor:
        values = {"weights": weights, "compatibility": compatibility}
        return torch.func.functional_call(made, values, (logits, image))

    assert torch.autograd.gradcheck(run, (logits, image, made.weights, made.compatibility))
    (slope,) = torch.autograd.grad(made(logits, image).square().sum(), image)
    assert slope.abs().min() > 0


def test_steps_are_fewer_in_training() -> None:
    logits, image = given()
    made = MeanField(CLASSES, **{**OWN, "steps": 4, "train_steps": 1}).double()
    for training, steps in ((True, 1), (False, 4)):
        found, expected = made.train(training)(logits, image), oracle(made, logits, image, steps)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    usual = MeanField(CLASSES)
    assert (usual.train_steps, usual.steps) == (5, 10)
    assert (usual.position_width, usual.colour_width, usual.spatial_width) == (160, 3, 3)


def test_potts_smooths_and_stops_at_an_edge() -> None:
    """A wrong pixel is put right by its own side of an edge; without the picture the thin side is lost."""
    image = torch.zeros(1, 3, 9, 9)
    image[..., 7:] = 0.8
    truth = (image[:, 0] > 0).long()
    logits = torch.nn.functional.one_hot(truth, 2).movedim(3, 1) * 1.0
    logits[0, :, 4, 2], logits[0, :, 4, 7] = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    made = MeanField(2, spatial_width=1.0)
    assert (logits.argmax(1) != truth).sum() == 2
    assert torch.equal(made.eval()(logits, image).argmax(1), truth)
    assert (made(logits, torch.zeros_like(image)).argmax(1) == 0).all()


def test_what_is_learned_is_a_parameter_and_what_is_not_is_still_saved() -> None:
    assert {name for name, _ in MeanField(2).named_parameters()} == {"weights", "compatibility"}
    assert not list(MeanField(2, learned=False).parameters())
    assert set(MeanField(2, learned=False).state_dict()) == {"weights", "compatibility"}
    assert torch.equal(MeanField(2).compatibility, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))


def test_pixels_like_no_other_and_single_pixels_stay_finite() -> None:
    rng = torch.Generator().manual_seed(0)
    for size in ((1, 1), (1, 4), (8, 8)):
        logits, image = torch.randn(1, 2, *size, generator=rng), torch.rand(1, 3, *size, generator=rng).requires_grad_()
        made = MeanField(2, colour_width=0.5).eval()(logits, image)
        assert made.isfinite().all()
        assert torch.autograd.grad(made.sum(), image)[0].isfinite().all()


@pytest.mark.parametrize("exact", [100, 1])
def test_the_order_of_memory_changes_nothing(exact: int) -> None:
    made, found = field(exact=exact), []
    for order in (torch.contiguous_format, torch.channels_last):
        logits, image = (x.contiguous(memory_format=order).requires_grad_() for x in given())
        out = made(logits, image)
        found.append([out, *torch.autograd.grad(out.square().sum(), [logits, image])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_half_precision_outside_does_not_reach_the_kernels() -> None:
    logits, image = (x.float() for x in given(8, 8))
    made = MeanField(CLASSES).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        inside = made(logits, image)
    with torch.no_grad():
        assert torch.equal(inside, made(logits, image))
    with pytest.raises(ValueError, match="different sizes"):
        made(logits[..., 1:], image)


def test_a_window_without_a_middle_is_refused() -> None:
    with pytest.raises(UserError, match=r"^window must be an odd number of pixels, not 4$"):
        MeanField(3, window=4)
