"""SegPGD, CosPGD, APGD and SEA against loops written out here, one image at a time."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nets import Net, Problem, problem
from segaudit import registry
from segaudit.attacks import _apgd, _iterate
from segaudit.attacks._losses import Seen, class_weights, loss_named
from segaudit.attacks.apgd import apgd, make_goal, slots
from segaudit.attacks.cospgd import cosine, cospgd
from segaudit.attacks.pgd import pgd
from segaudit.attacks.sea import sea
from segaudit.attacks.sea_relay import sea_relay
from segaudit.attacks.segpgd import segpgd
from segaudit.nn.passes import count_passes
from segaudit.rng import ImageStreams
from segaudit.types import VOID, Segmenter, UserError

pytestmark = pytest.mark.usefixtures("one_thread")
EPS = 4 / 255
RADII = {"linf": EPS, "l2": 0.6}

Weigh = Callable[[Tensor, Tensor, int], Tensor]
"""(logits K x P of the valid pixels, their labels P, step) -> P weights of their cross-entropy, without a gradient."""


def one_hot(labels: Tensor, logits: Tensor) -> Tensor:
    return torch.stack([(labels == k) for k in range(len(logits))]).to(logits)


def cross(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of each pixel, from its definition."""
    p = logits.exp() / logits.exp().sum(0)
    return -(one_hot(labels, logits) * p).sum(0).log()


def valid_logits(model: Segmenter, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The logits K x P and labels P of one image's valid pixels."""
    mask = labels != VOID
    return model(x[None])[0][:, mask], labels[mask]


def pulled(z: Tensor, clean: Tensor, eps: float, norm: str) -> Tensor:
    delta = z - clean
    delta = delta.clamp(-eps, eps) if norm == "linf" else delta * min(1.0, eps / max(float(delta.norm()), 1e-30))
    return (clean + delta).clamp(0, 1)


def unit(slope: Tensor, norm: str) -> Tensor:
    return slope.sign() if norm == "linf" else slope / max(float(slope.norm()), 1e-30)


def starts(p: Problem, eps: float, norm: str, purpose: str = "restart0") -> Tensor:
    rng = p.streams().child(purpose)
    if norm == "linf":
        return (p.images + rng.uniform(p.images, -eps, eps)).clamp(0, 1)
    radius = rng.uniform(torch.empty(len(p.images), 1, 1, 1, dtype=p.images.dtype)) ** (1 / p.images[0].numel())
    return torch.stack(
        [
            (c + eps * r * z / z.norm()).clamp(0, 1)
            for c, r, z in zip(p.images, radius, rng.normal(p.images), strict=True)
        ]
    )


def goals(p: Problem, targeted: bool) -> Tensor:
    return p.labels.roll(1, 0) if targeted else p.labels


def left_to_win(model: Segmenter, images: Tensor, labels: Tensor, targeted: bool = False) -> list[int]:
    with torch.no_grad():
        hit = model(images).argmax(1) == labels
    return ((~hit if targeted else hit) & (labels != VOID)).flatten(1).sum(1).tolist()


def close(got: Tensor, expected: Tensor, clean: Tensor, atol: float) -> None:
    assert (expected - clean).abs().amax((1, 2, 3)).min() > 1e-3
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


def weighted_pgd(p: Problem, labels: Tensor, norm: str, steps: int, size: float, sign: int, weigh: Weigh) -> Tensor:
    made = []
    for i, x in enumerate(starts(p, RADII[norm], norm)):
        for step in range(steps):
            x = x.clone().requires_grad_()
            logits, y = valid_logits(p.model, x, labels[i])
            loss = (weigh(logits.detach(), y, step) * cross(logits, y)).sum()
            (slope,) = torch.autograd.grad(sign * loss, x)
            x = pulled(x.detach() + size * unit(slope, norm), p.images[i], RADII[norm], norm)
        made.append(x)
    return torch.stack(made)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("norm", RADII)
@pytest.mark.parametrize("kind", ["segmentation", "binary"])
def test_segpgd_is_its_loop(kind: str, norm: str, targeted: bool) -> None:
    p, steps = problem(kind), 6
    labels, sign = goals(p, targeted), -1 if targeted else 1

    def weigh(logits: Tensor, y: Tensor, step: int) -> Tensor:
        share = step / (2 * steps)  # of step + 1 = 1..T
        hit = (logits.argmax(0) == y).double()
        return share * hit + (1 - share) * (1 - hit) if targeted else (1 - share) * hit + share * (1 - hit)

    own: dict[str, Any] = {"eps": RADII[norm], "norm": norm, "steps": steps, "targeted": targeted}
    made = segpgd(p.model, p.images, labels, rng=p.streams(), step_size=RADII[norm] / 3, **own)
    close(made, weighted_pgd(p, labels, norm, steps, RADII[norm] / 3, sign, weigh), p.images, 1e-6)
    made = segpgd(p.model, p.images, labels, rng=p.streams(), **own)
    close(made, weighted_pgd(p, labels, norm, steps, 2.5 * RADII[norm] / steps, sign, weigh), p.images, 1e-6)
    plain = pgd(p.model, p.images, labels, rng=p.streams(), **own)
    assert (made - plain).abs().max() > 1e-3


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("squash", ["softmax", "sigmoid"])
@pytest.mark.parametrize("norm", RADII)
@pytest.mark.parametrize("kind", ["segmentation", "binary"])
def test_cospgd_is_its_loop(kind: str, norm: str, squash: str, targeted: bool) -> None:
    p, steps = problem(kind), 6
    labels, sign = goals(p, targeted), -1 if targeted else 1

    def weigh(logits: Tensor, y: Tensor, step: int) -> Tensor:
        p = logits.softmax(0) if squash == "softmax" else logits.sigmoid()
        agreement = F.cosine_similarity(p, one_hot(y, logits), dim=0)
        return 1 - agreement if targeted else agreement

    own: dict[str, Any] = {"eps": RADII[norm], "norm": norm, "steps": steps, "targeted": targeted, "squash": squash}
    made = cospgd(p.model, p.images, labels, rng=p.streams(), step_size=RADII[norm] / 3, **own)
    close(made, weighted_pgd(p, labels, norm, steps, RADII[norm] / 3, sign, weigh), p.images, 1e-6)
    other = cospgd(
        p.model, p.images, labels, rng=p.streams(), **own | {"squash": {"softmax": "sigmoid"}.get(squash, "softmax")}
    )
    assert (made - other).abs().max() > 1e-3


def test_the_cosine_needs_no_one_hot_labels_and_bears_any_logits() -> None:
    logits = torch.tensor([[300.0, -300.0, -1e4, 0.3], [-300.0, 0.0, 2.0, -0.2], [1.0, 1.0, 1.0, 0.1]])
    y = torch.tensor([0, 0, 0, 2])
    for squash, p in (("softmax", logits.softmax(0)), ("sigmoid", logits.sigmoid())):
        found = cosine(Seen(logits.view(1, 3, 1, 4), y.view(1, 1, 4)), squash).flatten()
        torch.testing.assert_close(found, F.cosine_similarity(p, one_hot(y, logits), dim=0), rtol=1e-5, atol=1e-7)


@dataclass
class Trail:
    """What one image's climb went through: its iterates, the cross-entropy to ascend and the pixels left at each."""

    points: list[Tensor]
    heights: list[float]
    left: list[int]
    halved_at: list[int]
    returned_to_best: int

    def best(self) -> Tensor:
        order = sorted(range(len(self.points)), key=lambda i: (self.left[i], -self.heights[i] if self.left[i] else i))
        return self.points[order[0]]


def apgd_by_hand(
    p: Problem, i: int, labels: Tensor, start: Tensor, *, eps: float, steps: int, norm: str, loss: str, targeted: bool
) -> Trail:
    """AutoPGD of one image, from the paper: every iterate is kept, and nothing is updated in place."""
    clean, y_map, sign = p.images[i], labels[i], -1 if targeted else 1
    trail, slopes = Trail([], [], [], [], 0), []
    counts = [int((y_map == k).sum()) for k in range(p.model.num_classes)]

    def evaluate(x: Tensor, slope: bool) -> None:
        x = x.clone().requires_grad_()
        logits, y = valid_logits(p.model, x, y_map)
        ce, hit = cross(logits, y), logits.argmax(0) == y
        open_ = ~hit if targeted else hit
        if loss == "ce":
            total = sign * ce.sum()
        elif loss == "js":
            q = logits.softmax(0)
            e = one_hot(y, logits)
            m = (q + e) / 2
            total = sign * ((q * (q / m).log()).sum() - (e * m).sum(0).log().sum()) / 2
        elif loss == "margin":
            rival = logits.masked_fill(one_hot(y, logits).bool(), -torch.inf).max(0).values
            total = ((rival - (one_hot(y, logits) * logits).sum(0)) * open_).sum() * sign
        else:
            weight = [1 / counts[k] if loss.startswith("balanced") else 1.0 for k in y.tolist()]
            total = sign * (ce * open_ * torch.tensor(weight, dtype=ce.dtype)).sum()
        if slope:
            slopes.append(torch.autograd.grad(total, x)[0])
        trail.points.append(x.detach())
        trail.heights.append(sign * float(ce.detach().sum()))
        trail.left.append(int(open_.sum()))

    evaluate(start, True)
    window = max(int(0.22 * steps), 1)
    check, size, halved_before, height_before = window, 2 * eps, True, None
    now, before, up = start, start, slopes[0]
    for k in range(steps):
        z = pulled(now + size * unit(up, norm), clean, eps, norm)
        new = z if k == 0 else pulled(now + 0.75 * (z - now) + 0.25 * (now - before), clean, eps, norm)
        evaluate(new, k < steps - 1)
        before, now = now, new
        if k == steps - 1:
            break
        up = slopes[-1]
        if k + 1 == check:
            rises = sum(trail.heights[j + 1] > trail.heights[j] for j in range(check - window, check))
            peak = max(range(k + 2), key=lambda j: trail.heights[j])
            stale = not halved_before and trail.heights[peak] <= height_before
            halved_before, height_before = rises <= 0.75 * window or stale, trail.heights[peak]
            if halved_before:
                size /= 2
                trail.halved_at.append(check)
                trail.returned_to_best += peak != k + 1
                now, up = trail.points[peak], slopes[peak]
            window = max(window - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
            check += window
    return trail


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("norm", RADII)
@pytest.mark.parametrize("loss", ["ce", "masked_ce", "balanced_masked_ce", "js", "margin"])
def test_apgd_is_its_loop(loss: str, norm: str, targeted: bool) -> None:
    p, steps = problem("segmentation"), 24
    own: dict[str, Any] = {"eps": RADII[norm], "steps": steps, "norm": norm, "loss": loss, "targeted": targeted}
    labels = goals(p, targeted)
    begin = starts(p, RADII[norm], norm)
    trails = [apgd_by_hand(p, i, labels, begin[i], **own) for i in range(len(p.images))]
    made = apgd(p.model, p.images, labels, rng=p.streams(), **own)
    close(made, torch.stack([trail.best() for trail in trails]), p.images, 1e-9)
    if loss in ("ce", "js"):
        assert len({tuple(trail.halved_at) for trail in trails}) > 1  # each image has its own steps
    assert any(trail.returned_to_best for trail in trails)
    assert any(trail.best() is not trail.points[-1] for trail in trails)


@pytest.mark.parametrize("kind", ["binary", "classifier"])
def test_apgd_is_its_loop_on_two_classes_and_on_single_labels(kind: str) -> None:
    p = problem(kind)
    for loss in ("masked_ce", "js", "margin"):
        own: dict[str, Any] = {"eps": EPS / 2, "steps": 13, "norm": "linf", "loss": loss, "targeted": False}
        with_truth = [i for i in range(len(p.images)) if (p.labels[i] != VOID).any()]
        trails = [apgd_by_hand(p, i, p.labels, p.images[i], **own) for i in with_truth]
        made = apgd(p.model, p.images, p.labels, rng=p.streams(), start=False, **own)
        expected = torch.stack([trail.best() for trail in trails])
        torch.testing.assert_close(made[with_truth], expected, rtol=0, atol=1e-9)
        assert (expected - p.images[with_truth]).abs().max() > 1e-3


def test_checkpoints_come_at_the_shares_of_the_paper() -> None:
    assert list(_apgd.checkpoints(100).items()) == [
        *[(0, 0), (22, 22), (41, 19), (57, 16), (70, 13), (80, 10), (87, 7), (93, 6), (99, 6)]
    ]
    assert _apgd.checkpoints(1) == {0: 0}
    assert _apgd.checkpoints(4) == {0: 0, 1: 1, 2: 1, 3: 1}


class Spy(Segmenter):
    """Keeps every batch that it sees."""

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.model, self.class_names = model, model.class_names
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach().clone())
        return self.model(images)


def test_what_is_returned_has_the_fewest_pixels_left_of_all_iterates_the_last_one_too() -> None:
    p, last = problem("segmentation"), 0
    for targeted in (False, True):
        labels = goals(p, targeted)
        for steps in (1, 3, 9):
            spy = Spy(p.model)
            made = apgd(spy, p.images, labels, rng=p.streams(), eps=EPS, steps=steps, targeted=targeted)
            assert len(spy.seen) == steps + 1
            left = torch.tensor([left_to_win(p.model, x, labels, targeted) for x in spy.seen])
            assert left_to_win(p.model, made, labels, targeted) == left.min(0).values.tolist()
            last += int((left[-1] < left[:-1].min(0).values).sum())
    assert last > 0


@pytest.mark.parametrize("norm", RADII)
def test_radius_reduction_is_three_climbs_and_ends_inside_the_ball(norm: str) -> None:
    p, eps = problem("segmentation"), RADII[norm]
    assert slots(300, 1.0, True) == [(2.0, 90), (1.5, 90), (1.0, 120)]
    assert slots(7, 1.0, True) == [(2.0, 2), (1.5, 2), (1.0, 3)]
    assert slots(3, 1.0, True) == slots(3, 1.0, False) == [(1.0, 3)]
    own: dict[str, Any] = {"norm": norm, "loss": "js", "targeted": False}
    spy = Spy(p.model)
    made = apgd(spy, p.images, p.labels, rng=p.streams(), eps=eps, steps=20, radius_reduction=True, **own)
    expected = []
    for i, x in enumerate(starts(p, 2 * eps, norm)):
        for share, steps in ((2, 6), (1.5, 6), (1, 8)):
            x = pulled(x, p.images[i], share * eps, norm)
            x = apgd_by_hand(p, i, p.labels, x, eps=share * eps, steps=steps, **own).best()
        expected.append(x)
    close(made, torch.stack(expected), p.images, 1e-9)

    def reach(x: Tensor) -> float:
        delta = (x - p.images).flatten(1)
        return float((delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)).max()) / eps

    reached = [reach(x) for x in spy.seen]
    assert reach(made) <= 1 + 1e-9
    assert max(reached[:7]) == pytest.approx(2, abs=0.25 if norm == "l2" else 1e-9)
    assert 1.2 < max(reached[7:14]) <= 1.5 + 1e-9
    assert max(reached[14:]) <= 1 + 1e-9
    short = apgd(p.model, p.images, p.labels, rng=p.streams(), eps=eps, steps=20, **own)
    assert not torch.equal(short, made)


def test_passes_are_one_each_a_step_and_one_forward_to_score_the_last() -> None:
    p = problem("segmentation")
    for targeted in (False, True):
        for reduction, extra in ((False, 1), (True, 3)):
            with count_passes(p.model) as passes:
                apgd(
                    *(p.model, p.images, goals(p, targeted)),
                    **{"rng": p.streams(), "eps": 0.5 / 255, "steps": 17, "targeted": targeted},
                    radius_reduction=reduction,
                )
            assert passes.backwards == 17 * len(p.images)
            assert passes.forwards == (17 + extra) * len(p.images)


def easy_pixel(model: Segmenter, image: Tensor, labels: Tensor, targeted: bool) -> Tensor:
    """Labels of which one pixel is left: one that a small change wins, though no noise does."""
    with torch.no_grad():
        logits = model(image[None])[0]
    gap = (logits[1] - logits[0]) * (2 * labels - 1) * (-1 if targeted else 1)  # what is to be overcome
    gap[(labels == VOID) | (gap < 0.3)] = torch.inf
    return torch.where(gap == gap.min(), labels, VOID)


@pytest.mark.parametrize("reduction", [False, True])
@pytest.mark.parametrize("targeted", [False, True])
def test_an_image_that_is_won_leaves_the_batch_and_no_result_changes(
    targeted: bool, reduction: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    p, steps = problem("binary"), 30
    labels = goals(p, targeted).clone()
    labels[1] = VOID
    labels[2] = easy_pixel(p.model, p.images[2], labels[2], targeted)
    own: dict[str, Any] = {
        "eps": EPS,
        "steps": steps,
        "targeted": targeted,
        "radius_reduction": reduction,
        "start": False,
    }
    spy = Spy(p.model)
    made = apgd(spy, p.images, labels, rng=p.streams(), **own)
    left = left_to_win(p.model, made, labels, targeted)
    assert left[1:3] == [0, 0]
    assert min(left[0], left[3]) > 0
    sizes = [len(x) for x in spy.seen]
    for begin, end in ((0, 9), (10, 19), (20, 32)) if reduction else ((0, 30),):
        assert (sizes[begin], sizes[end]) == (4, 2)
    assert sizes[1] == 3  # the image without truth goes at once, the pixel when it is won
    for i in range(4):
        one = Problem(p.model, p.images[i : i + 1], labels[i : i + 1], p.ids[i : i + 1])
        alone = apgd(p.model, one.images, one.labels, rng=one.streams(), **own)
        torch.testing.assert_close(made[i : i + 1], alone, rtol=0, atol=1e-12)
    monkeypatch.setattr(_apgd.State, "done", lambda self: self.broken)
    with count_passes(p.model) as passes:
        stayed = apgd(p.model, p.images, labels, rng=p.streams(), **own)
    assert passes.backwards == 4 * steps
    torch.testing.assert_close(made, stayed, rtol=0, atol=1e-12)


def test_each_image_keeps_the_best_of_its_restarts_and_won_ones_are_not_restarted() -> None:
    p = problem("segmentation", count=6)
    labels = p.labels.clone()
    labels[0, :, 1:] = VOID
    own: dict[str, Any] = {"eps": 1.5 / 255, "steps": 3, "loss": "ce", "norm": "linf", "targeted": False}
    spy = Spy(p.model)
    made = apgd(spy, p.images, labels, rng=p.streams(), restarts=4, **own)
    begin = [starts(p, 1.5 / 255, "linf", f"restart{r}") for r in range(4)]
    tries = torch.stack(
        [torch.stack([apgd_by_hand(p, i, labels, x[i], **own).best() for i in range(6)]) for x in begin]
    )
    left = torch.tensor([left_to_win(p.model, x, labels) for x in tries])
    chosen = torch.stack([tries[int(best), i] for i, best in enumerate(left.min(0).indices)])
    assert left_to_win(p.model, made, labels) == left.min(0).values.tolist()
    torch.testing.assert_close(made, chosen, rtol=0, atol=1e-9)
    assert len(set(left.argmin(0).tolist())) > 1
    assert left[0, 0] > 0 or [len(x) for x in spy.seen[4:]] == [5] * 12


def test_more_steps_are_not_worse_and_apgd_beats_pgd() -> None:
    for kind in ("segmentation", "binary"):
        p = problem(kind, count=6)
        own: dict[str, Any] = {"rng": p.streams(), "eps": 2 / 255}
        few, many = (apgd(p.model, p.images, p.labels, steps=n, **own) for n in (5, 60))
        by_pgd = pgd(p.model, p.images, p.labels, steps=60, **own)
        left = [sum(left_to_win(p.model, x, p.labels)) for x in (p.images, few, by_pgd, many)]
        assert left[3] < left[1] < left[0]
        assert left[3] < left[2]


def test_the_margin_attacks_two_classes() -> None:
    p = problem("binary")
    made = apgd(p.model, p.images, p.labels, rng=p.streams(), eps=12 / 255, steps=20, loss="margin")
    assert p.accuracy(made) < 0.3 < 0.9 < p.accuracy(p.images)


class Broken(Segmenter):
    """The gradient of the image nearest to `clean` turns NaN in a few passes."""

    def __init__(self, model: Segmenter, clean: Tensor, passes: int) -> None:
        super().__init__()
        self.model, self.class_names, self.clean, self.passes = model, model.class_names, clean, passes

    def forward(self, images: Tensor) -> Tensor:
        copy, self.passes = images + 0, self.passes - 1
        if copy.requires_grad and self.passes < 0:
            sick = ((images.detach() - self.clean).abs().amax((1, 2, 3)) < 0.2).view(-1, 1, 1, 1)
            copy.register_hook(lambda gradient: gradient.masked_fill(sick, torch.nan))
        return self.model(copy)


@pytest.mark.parametrize("norm", RADII)
@pytest.mark.parametrize("attack", [apgd, sea])
def test_a_gradient_that_turns_nan_on_the_way_is_seen_and_stays_with_its_image(attack: Any, norm: str) -> None:
    p = problem("segmentation")
    own: dict[str, Any] = {"eps": RADII[norm], "steps": 12, "norm": norm}
    net = Broken(p.model, p.images[2], 4)
    made = attack(net, p.images, p.labels, rng=p.streams(), **own)
    healthy = attack(p.model, p.images, p.labels, rng=p.streams(), **own)
    assert made[2].isnan().all()
    others = torch.tensor([0, 1, 3])
    torch.testing.assert_close(made[others], healthy[others], rtol=0, atol=1e-12)
    assert healthy.isfinite().all()


class Sum(Segmenter):
    """Its gradient is one number, expanded to the size of the image."""

    class_names = ("a", "b", "c")

    def forward(self, images: Tensor) -> Tensor:
        return images.sum((2, 3), keepdim=True) * torch.tensor([1.0, -1.0, 0.5]).view(1, 3, 1, 1)


def test_a_gradient_that_is_one_number_is_followed() -> None:
    images, labels = 0.25 + torch.rand(2, 3, 4, 4) / 2, torch.zeros(2, 1, 1, dtype=torch.int64)
    made = apgd(Sum(), images, labels, rng=ImageStreams(0, "ab"), eps=1e-3, steps=12, loss="ce")
    torch.testing.assert_close(made - images, torch.tensor([-1e-3, -1e-3, 1e-3]).view(1, 3, 1, 1).expand(2, 3, 4, 4))


def test_logits_that_are_nan_are_not_taken_for_a_won_image() -> None:
    p = problem("segmentation", torch.float32)
    net = Net(5)
    net.load_state_dict(p.model.state_dict())
    net.head.bias.data[1] = torch.nan
    net.eval().requires_grad_(False)
    made = apgd(net, p.images, p.labels, rng=p.streams(), eps=EPS, steps=5, restarts=3)
    assert made.isnan().all()


def test_wrong_arguments_of_their_own_are_said_in_one_line() -> None:
    p = problem("segmentation")
    given: dict[str, Any] = {"rng": p.streams(), "eps": EPS}
    with pytest.raises(UserError, match=r"^loss must be one of .*, not 'mce'"):
        apgd(p.model, p.images, p.labels, loss="mce", **given)
    with pytest.raises(UserError, match=r"^class_pixels must be 5 numbers, one a class, not \[3\]$"):
        sea(p.model, p.images, p.labels, class_pixels=[3], **given)
    with count_passes(p.model) as passes, pytest.raises(UserError, match=r"^class_pixels must be 5 numbers"):
        sea_relay(p.model, p.images, p.labels, class_pixels=[3], **given)
    assert passes.forwards == 0
    with pytest.raises(UserError, match=r"^squash must be softmax or sigmoid, not 'tanh'$"):
        cospgd(p.model, p.images, p.labels, squash="tanh", **given)


@pytest.mark.parametrize("norm", RADII)
def test_sea_is_for_each_image_the_best_of_its_members(norm: str) -> None:
    p = problem("segmentation", count=6)
    labels = p.labels.clone()
    labels[4, :, 1:] = VOID
    counts = [900.0, 5.0, 300.0, 40.0, 2000.0]
    own: dict[str, Any] = {"steps": 14, "norm": norm, "class_pixels": counts}
    given: dict[str, Any] = {"rng": p.streams(), "eps": RADII[norm] / 2}
    made = sea(p.model, p.images, labels, **given, **own)
    tries = [
        registry.load("attack", name)(p.model, p.images, labels, **given, **arguments)
        for name, arguments in sea.members(own)
    ]
    left = torch.tensor([left_to_win(p.model, x, labels) for x in tries])
    assert left_to_win(p.model, made, labels) == left.min(0).values.tolist()
    assert all(any(torch.allclose(made[i], x[i], rtol=0, atol=1e-12) for x in tries) for i in range(6))
    open_ = left.min(0).values > 0
    assert len(set(left[:, open_].argmin(0).tolist())) > 1  # no member is the best of all


def test_the_members_of_sea_are_apgd_with_its_three_losses() -> None:
    assert sea.members({}) == [
        ("apgd", {"loss": loss, "steps": 300, "radius_reduction": True})
        for loss in ("masked_ce", "balanced_masked_ce", "js")
    ]
    asked = sea.members({"steps": 60, "norm": "l2", "class_pixels": [1, 2]})
    assert [arguments.get("class_pixels") for _, arguments in asked] == [None, [1, 2], None]
    assert all(arguments["steps"] == 60 and arguments["norm"] == "l2" for _, arguments in asked)
    for name, arguments in asked:
        registry.check_arguments("attack", name, arguments, handed=("model", "images", "labels", "rng", "eps"))
    assert registry.default("attack", "sea", "steps") == 300
    assert list(inspect.signature(sea).parameters)[:4] == ["model", "images", "labels", "rng"]
    assert registry.default("attack", "apgd", "norm") == registry.default("attack", "sea", "norm")


def test_the_same_point_starts_a_member_of_sea_and_the_member_alone() -> None:
    p = problem("binary")
    own: dict[str, Any] = {"eps": EPS / 2, "steps": 8}
    made = sea(p.model, p.images, p.labels, rng=ImageStreams(5, p.ids, "sea"), **own)
    again = sea(p.model, p.images, p.labels, rng=ImageStreams(5, p.ids, "sea"), **own)
    other = sea(p.model, p.images, p.labels, rng=ImageStreams(6, p.ids, "sea"), **own)
    assert torch.equal(made, again)
    assert not torch.equal(made, other)


@pytest.mark.parametrize("norm", RADII)
@pytest.mark.parametrize("targeted", [False, True])
def test_the_relay_goes_on_with_the_balanced_loss_and_counts_by_class(norm: str, targeted: bool) -> None:
    p = problem("segmentation", count=6)
    labels, pixels = goals(p, targeted), [900.0, 5.0, 300.0, 40.0, 2000.0]
    eps = RADII[norm] / 3
    given: dict[str, Any] = {"norm": norm, "targeted": targeted, "class_pixels": pixels}
    with count_passes(p.model) as passes:
        made = sea_relay(p.model, p.images, labels, rng=p.streams(), eps=eps, steps=42, **given)
    assert passes.backwards <= 42 * len(labels)

    def left(images: Tensor) -> list[float]:
        hit = p.model(images).argmax(1) == labels
        wanted = (~hit if targeted else hit) & (labels != VOID)
        return [sum(1 / pixels[label] for label in own[to_win]) for own, to_win in zip(labels, wanted, strict=True)]

    weights = class_weights(labels, 5, pixels)
    js = _apgd.Goal(p.model, labels, targeted, loss_named("js"), None, weights)
    balanced = _apgd.Goal(p.model, labels, targeted, loss_named("masked_ce"), weights, weights)
    at, ends = _iterate.random_start(p.images, 2 * eps, norm, p.streams().child("restart0")), []
    for goal, counts in ((js, (5, 5, 8)), (balanced, (7, 7, 10))):
        for radius, count in zip((2 * eps, 1.5 * eps, eps), counts, strict=True):
            start = _iterate.project(at, p.images, radius, norm)
            at = _apgd.climb(goal, _apgd.Ball.around(p.images, radius, norm), start, count).images
        ends.append(at)
    best = [one if a <= b else other for one, other, a, b in zip(*ends, *map(left, ends), strict=True)]
    torch.testing.assert_close(made, torch.stack(best), rtol=0, atol=1e-12)
    assert targeted or sum(left(made)) < sum(left(ends[0]))


def test_the_balanced_loss_takes_logits_of_another_precision_than_the_images() -> None:
    p = problem("segmentation")
    goal = make_goal(p.model, p.images, p.labels, loss="balanced_masked_ce", class_pixels=[900, 5, 300, 40, 2000])
    half = replace(goal, model=lambda x: p.model(x).float())
    for got, expected in zip(half.look(p.images), goal.look(p.images), strict=True):
        torch.testing.assert_close(got.double(), expected.double(), rtol=1e-5, atol=1e-5)


def test_of_a_random_model_the_relay_runs_to_its_end() -> None:
    p = problem("segmentation")
    model, nothing = deepcopy(p.model), torch.full_like(p.labels, VOID)
    model.random = True  # type: ignore[assignment]
    with count_passes(model) as passes:
        sea_relay(model, p.images, nothing, rng=p.streams(), eps=EPS, steps=14, class_pixels=[1] * 5)
    assert passes.backwards == 14 * len(nothing)  # that nothing is left is the count of one draw


def test_a_relay_of_one_step_is_its_first_leg_and_a_won_image_takes_no_other() -> None:
    p = problem("segmentation")
    given: dict[str, Any] = {"rng": p.streams(), "eps": EPS}
    own = {"loss": "js", "steps": 1, "radius_reduction": True}
    made = sea_relay(p.model, p.images, p.labels, steps=1, class_pixels=[1] * 5, **given)
    assert torch.equal(made, apgd(p.model, p.images, p.labels, **given, **own))
    with count_passes(p.model) as passes:
        sea_relay(p.model, p.images, torch.full_like(p.labels, VOID), steps=40, **given)
    assert passes.backwards == 3 * len(p.labels)  # one in each ball of the first leg
