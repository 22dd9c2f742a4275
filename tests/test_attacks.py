"""FGSM and PGD against loops written out here, against known optima, and the choices of their arguments."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nets import KINDS, Linear, Problem, problem
from segaudit.attacks import _iterate
from segaudit.attacks.fgsm import arnab_steps, fgsm, fgsm_ll, ifgsm, ifgsm_ll
from segaudit.attacks.pgd import pgd
from segaudit.attacks.targets import following, image
from segaudit.nn.passes import count_passes
from segaudit.rng import ImageStreams
from segaudit.types import VOID, UserError

pytestmark = pytest.mark.usefixtures("one_thread")
EPS = 8 / 255


def loss_slope(p: Problem, x: Tensor, labels: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    loss = F.cross_entropy(p.model(x), labels, ignore_index=VOID, reduction="sum")
    return torch.autograd.grad(loss, x)[0]


def step(x: Tensor, slope: Tensor, clean: Tensor, eps: float, size: float, norm: str) -> Tensor:
    """One step up the slope and back into the ball and the box, an image at a time."""
    rows = []
    for own, up, centre in zip(x, slope, clean, strict=True):
        if norm == "linf":
            delta = (own + size * torch.sign(up) - centre).clamp(-eps, eps)
        else:
            delta = own + (size * up / up.norm() if up.norm() > 0 else 0 * up) - centre
            delta = delta * min(1.0, eps / max(float(delta.norm()), 1e-30))
        rows.append((centre + delta).clamp(0, 1))
    return torch.stack(rows)


def pgd_by_hand(
    p: Problem, labels: Tensor, norm: str, eps: float, steps: int, size: float, sign: int, purpose: str
) -> Tensor:
    rng = p.streams().child(purpose)
    if norm == "linf":
        x = (p.images + rng.uniform(p.images, -eps, eps)).clamp(0, 1)
    else:
        radius = rng.uniform(torch.empty(len(p.images), 1, 1, 1, dtype=p.images.dtype))
        z = rng.normal(p.images)
        length = torch.stack([row.norm() for row in z]).view(-1, 1, 1, 1)
        x = (p.images + z / length * eps * radius ** (1 / p.images[0].numel())).clamp(0, 1)
    for _ in range(steps):
        x = step(x, sign * loss_slope(p, x, labels), p.images, eps, size, norm)
    return x


def close(got: Tensor, expected: Tensor, clean: Tensor) -> None:
    assert (expected - clean).abs().max() > 1e-3
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fgsm_is_one_signed_step(kind: str, dtype: torch.dtype) -> None:
    p = problem(kind, dtype)
    made = fgsm(p.model, p.images, p.labels, rng=p.streams(), eps=EPS)
    close(made, (p.images + EPS * loss_slope(p, p.images, p.labels).sign()).clamp(0, 1), p.images)
    goal = p.labels.roll(1, 0)
    made = fgsm(p.model, p.images, goal, rng=p.streams(), eps=EPS, targeted=True)
    close(made, (p.images - EPS * loss_slope(p, p.images, goal).sign()).clamp(0, 1), p.images)
    made = fgsm(p.model, p.images, p.labels, rng=p.streams(), eps=0.7, norm="l2")
    close(made, step(p.images, loss_slope(p, p.images, p.labels), p.images, 0.7, 0.7, "l2"), p.images)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("targeted", [False, True])
def test_pgd_is_the_loop_written_out(kind: str, norm: str, targeted: bool) -> None:
    p = problem(kind)
    eps = EPS if norm == "linf" else 0.7
    labels = p.labels.roll(1, 0) if targeted else p.labels
    own: dict[str, Any] = {"rng": p.streams(), "eps": eps, "norm": norm, "targeted": targeted}
    made = pgd(p.model, p.images, labels, steps=7, step_size=eps / 3, **own)
    sign = -1 if targeted else 1
    close(made, pgd_by_hand(p, labels, norm, eps, 7, eps / 3, sign, "restart0"), p.images)
    usual = pgd(p.model, p.images, labels, steps=5, **own)
    close(usual, pgd_by_hand(p, labels, norm, eps, 5, eps / 2, sign, "restart0"), p.images)


def test_in_float32_pgd_is_the_same_loop_too() -> None:
    p = problem("segmentation", torch.float32)
    made = pgd(p.model, p.images, p.labels, rng=p.streams(), eps=EPS, steps=5)
    close(made, pgd_by_hand(p, p.labels, "linf", EPS, 5, EPS / 2, 1, "restart0"), p.images)


def test_without_a_random_start_pgd_of_one_step_is_fgsm() -> None:
    p = problem("segmentation")
    made = pgd(p.model, p.images, p.labels, rng=p.streams(), eps=EPS, steps=1, step_size=EPS, start=False)
    assert torch.equal(made, fgsm(p.model, p.images, p.labels, rng=p.streams(), eps=EPS))


def test_iterative_fgsm_takes_the_steps_of_arnab() -> None:
    table = {0.25: 1, 0.5: 1, 1: 2, 2: 3, 4: 5, 8: 10, 16: 20, 32: 36}
    for e, steps in table.items():
        assert arnab_steps(e / 255) == steps == max(1, math.ceil(min(e + 4, 1.25 * e)))
    p = problem("segmentation")
    for e in (0.25, 2, 8):
        for attack in (ifgsm, ifgsm_ll):
            with count_passes(p.model) as passes:
                attack(p.model, p.images, p.labels, rng=p.streams(), eps=e / 255)
            assert passes.backwards == table[e] * len(p.images)
    x = p.images
    for _ in range(3):
        x = step(x, loss_slope(p, x, p.labels), p.images, 2 / 255, 1 / 255, "linf")
    close(ifgsm(p.model, p.images, p.labels, rng=p.streams(), eps=2 / 255), x, p.images)


@pytest.mark.parametrize("kind", KINDS)
def test_fgsm_ii_goes_to_the_least_likely_class_of_each_moment(kind: str) -> None:
    p = problem(kind)

    def least_likely(x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.where(p.labels == VOID, VOID, (-p.model(x)).argmax(1))

    once = step(p.images, -loss_slope(p, p.images, least_likely(p.images)), p.images, EPS, EPS, "linf")
    close(fgsm_ll(p.model, p.images, p.labels, rng=p.streams(), eps=EPS), once, p.images)
    x = p.images
    for _ in range(6):
        x = step(x, -loss_slope(p, x, least_likely(x)), p.images, EPS, EPS / 3, "linf")
    made = ifgsm_ll(p.model, p.images, p.labels, rng=p.streams(), eps=EPS, steps=6, step_size=EPS / 3)
    close(made, x, p.images)
    if kind != "classifier":  # the targets move, or this was the same as going to the first ones
        assert not torch.equal(least_likely(x), least_likely(p.images))


def test_away_from_the_prediction_is_not_away_from_the_truth() -> None:
    p = problem("segmentation")
    guess = torch.where(p.labels == VOID, VOID, p.model(p.images).argmax(1))
    assert not torch.equal(guess, p.labels)
    for attack in (fgsm, ifgsm):
        own: dict[str, Any] = {"rng": p.streams(), "eps": 2 / 255}
        by_prediction = attack(p.model, p.images, p.labels, label="prediction", **own)
        assert torch.equal(by_prediction, attack(p.model, p.images, guess, **own))
        assert not torch.equal(by_prediction, attack(p.model, p.images, p.labels, **own))
    right = Problem(p.model, p.images, guess, p.ids)
    assert right.accuracy(fgsm(p.model, p.images, p.labels, rng=p.streams(), eps=EPS, label="prediction")) < 0.8
    with pytest.raises(UserError, match="label must be truth or prediction, not 'truht'"):
        fgsm(p.model, p.images, p.labels, rng=p.streams(), eps=EPS, label="truht")


@pytest.mark.parametrize("attack", [fgsm, ifgsm, pgd])
def test_on_a_linear_model_linf_attacks_reach_the_closed_form_optimum(attack: Any) -> None:
    """Each pixel is on its own: its loss is largest where each channel has moved by eps against the weight's sign."""
    weight, bias = torch.tensor([1.7, -0.4, 0.9], dtype=torch.float64), -1.1
    model, eps = Linear(weight, bias), 0.1
    images = torch.rand(3, 3, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = (torch.arange(3 * 6 * 7).view(3, 6, 7) % 3 == 0).long()
    push = torch.where(labels == 1, -1.0, 1.0)[:, None] * weight.sign().view(1, 3, 1, 1)
    best = torch.maximum(torch.minimum(images + eps * push, torch.ones(())), torch.zeros(()))
    made = attack(model, images, labels, rng=ImageStreams(0, "abc"), eps=eps)
    torch.testing.assert_close(made, best, rtol=0, atol=1e-12)
    assert ((best == 0) | (best == 1)).any()

    def loss(x: Tensor) -> float:
        margin = torch.einsum("nchw,c->nhw", x, weight) + bias
        return float(torch.log1p(torch.exp(torch.where(labels == 1, -margin, margin))).sum())

    highest = loss(made)
    for i in range(20):
        other = ImageStreams(i, "abc").uniform(images, -eps, eps)
        assert loss((images + other).clamp(0, 1)) < highest


def test_in_l2_pgd_finds_the_optimum_of_a_linear_classifier() -> None:
    """Inside the box the largest loss is at eps along the weights, whatever the start was."""
    weight = torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64)
    images, labels = torch.full((2, 3, 1, 1), 0.5, dtype=torch.float64), torch.tensor([0, 1]).view(2, 1, 1)
    made = pgd(Linear(weight), images, labels, rng=ImageStreams(0, "ab"), eps=0.2, steps=60, step_size=0.05, norm="l2")
    along = 0.2 * weight / weight.norm() * torch.tensor([[1.0], [-1.0]])
    torch.testing.assert_close((made - images).flatten(1), along, rtol=0, atol=1e-4)


@pytest.mark.parametrize("targeted", [False, True])
def test_of_several_restarts_each_image_keeps_its_best(targeted: bool) -> None:
    p = problem("segmentation", count=6)
    labels = p.labels.roll(1, 0) if targeted else p.labels
    own: dict[str, Any] = {"eps": 3 / 255, "steps": 2, "targeted": targeted}
    made = pgd(p.model, p.images, labels, rng=p.streams(), restarts=4, **own)
    tries = [
        pgd_by_hand(p, labels, "linf", 3 / 255, 2, 2.5 * 3 / 255 / 2, -1 if targeted else 1, f"restart{i}")
        for i in range(4)
    ]

    def right(x: Tensor) -> Tensor:
        return ((p.model(x).argmax(1) == labels) & (labels != VOID)).sum((1, 2))

    scores = torch.stack([-right(x) if targeted else right(x) for x in tries])
    chosen = torch.stack([tries[int(best)][i] for i, best in enumerate(scores.argmin(0))])
    torch.testing.assert_close(made, chosen, rtol=0, atol=1e-12)
    assert len(set(scores.argmin(0).tolist())) > 1  # it is an image's choice and not the batch's
    single = pgd(p.model, p.images, labels, rng=p.streams(), **own)
    assert torch.equal(right(single) * (-1 if targeted else 1), scores[0])
    assert (scores.min(0).values <= scores[0]).all()
    assert (scores.min(0).values < scores[0]).any()


def test_random_starts_fill_the_ball_evenly() -> None:
    flat = torch.full((2000, 1, 1, 2), 0.5)
    rng = ImageStreams(0, [str(i) for i in range(2000)])
    square = (_iterate.random_start(flat, 0.2, "linf", rng) - 0.5).flatten(1) / 0.2
    disc = (_iterate.random_start(flat, 0.2, "l2", rng) - 0.5).flatten(1) / 0.2
    for points, inside in ((square, lambda z: z.abs().amax(1)), (disc, lambda z: z.norm(dim=1))):
        assert inside(points).max() <= 1 + 1e-6
        assert abs(float((inside(points) < math.sqrt(0.5)).double().mean()) - 0.5) < 0.04  # half of its area
        assert points.mean(0).abs().max() < 0.04
    assert (square.norm(dim=1) > 1.1).any()


def test_an_l2_direction_has_length_1_however_small_the_gradient() -> None:
    z = torch.randn(5, 3, 8, 9, generator=torch.Generator().manual_seed(0))
    z[2] = 0
    for scale in (1e-30, 1e-20, 1e-10, 1.0, 1e20, 1e30):
        found = _iterate.direction(z * scale, "l2")
        expected = z / z.flatten(1).norm(dim=1).clamp_min(1e-9).view(-1, 1, 1, 1)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_projection_is_the_nearest_point_and_leaves_what_is_inside() -> None:
    def near(*delta: float) -> Tensor:
        return 0.5 + torch.tensor(delta, dtype=torch.float64).view(1, 1, 2, 2)

    clean, inside, outside = near(0, 0, 0, 0), near(0.05, -0.01, 0.0, 0.02), near(0.3, -0.4, 0, 0)
    for norm, nearest in (("linf", near(0.1, -0.1, 0, 0)), ("l2", near(0.06, -0.08, 0, 0))):
        torch.testing.assert_close(_iterate.project(inside, clean, 0.1, norm), inside, rtol=0, atol=1e-15)
        torch.testing.assert_close(_iterate.project(outside, clean, 0.1, norm), nearest, rtol=0, atol=1e-15)


def test_the_next_image_of_the_shard_is_the_target() -> None:
    labels = torch.arange(3)[:, None, None].expand(3, 4, 5)
    given: dict[str, Any] = {"model": None, "images": None, "look_up": None}
    found = following(labels=labels, ids=("a", "b", "c"), **given)
    assert found[:, 0, 0].tolist() == [1, 2, 0]
    with pytest.raises(UserError, match="'next': a is alone in its shard"):
        following(labels=labels[:1], ids=("a",), **given)


def test_a_named_image_is_the_target_of_all() -> None:
    masks = {"far": torch.full((4, 5), 3), "small": torch.full((4, 4), 3)}
    given: dict[str, Any] = {"model": None, "images": None, "ids": "ab", "look_up": masks.__getitem__}
    found = image(labels=torch.zeros(2, 4, 5, dtype=torch.int64), id="far", **given)
    assert torch.equal(found, torch.full((2, 4, 5), 3))
    with pytest.raises(UserError, match=r"target 'small': its mask is \(4, 4\), the images \(4, 5\); give data a size"):
        image(labels=torch.zeros(2, 4, 5, dtype=torch.int64), id="small", **given)
