"""The universal perturbation and the patch: known optima, naive oracles, and images that they were not fitted on."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets import Linear, Problem, problem
from segaudit import registry
from segaudit.attacks._fitted import Fitted, mini_batches
from segaudit.attacks._losses import Seen
from segaudit.attacks.patch import Spot, Spots, _loss, pasted, patch, uncovered
from segaudit.attacks.universal import universal
from segaudit.nn.passes import count_passes
from segaudit.rng import ImageStreams
from segaudit.types import VOID, Batch, Segmenter, UserError

pytestmark = pytest.mark.usefixtures("one_thread")
EPS = 12 / 255
WEIGHT = torch.tensor([1.7, -0.4, 0.9], dtype=torch.float64)
ABC = ("a", "b", "c")


def streams(ids: tuple[str, ...] = ABC, seed: int = 0) -> ImageStreams:
    return ImageStreams(seed, ids, "fit")


def learn(attack: Fitted, model: Segmenter, images: Tensor, labels: Tensor, seed: int = 0, **own: Any) -> Tensor:
    """Fitted on these images, given in two batches."""
    ids = tuple(f"#{i}" for i in range(len(images)))
    batch = Batch(images, labels, ids)
    return attack.fit(model, [batch[:1], batch[1:]], rng=streams(ids, seed), **own)


def split(kind: str) -> tuple[Problem, Problem]:
    """A trained network with images to fit on, and with others."""
    p = problem(kind, torch.float32, count=48)
    return tuple(Problem(p.model, p.images[s], p.labels[s], p.ids[s]) for s in (slice(24), slice(24, 48)))  # type: ignore[return-value]


class Summed(Segmenter):
    """Two classes: everywhere the same logits, 0 and the sum of the image weighted by a map C x H x W."""

    class_names = ("no", "yes")

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        yes = (images * self.weight).sum((1, 2, 3))[:, None, None, None].expand(-1, 1, *images.shape[2:])
        return torch.cat([torch.zeros_like(yes), yes], 1)


# The universal perturbation


@pytest.mark.parametrize("targeted", [False, True])
def test_on_a_linear_model_the_best_delta_is_the_sign_of_the_weight(targeted: bool) -> None:
    images = 0.2 + 0.6 * torch.rand(3, 3, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = (torch.arange(42).view(1, 6, 7) % 3 == 0).long().expand(3, -1, -1).clone()
    labels[:, 2] = VOID
    away = torch.where(labels[:1] == 1, -1.0, 1.0).double() * (labels[:1] != VOID) * (-1 if targeted else 1)
    found = learn(universal, Linear(WEIGHT), images, labels, eps=0.1, steps=30, targeted=targeted, batch_size=2)
    best = 0.1 * away[:, None] * WEIGHT.sign().view(1, 3, 1, 1)
    torch.testing.assert_close(found, best, rtol=0, atol=1e-12)
    made = universal(Linear(WEIGHT), images, labels, rng=streams(), fitted=found, eps=0.1)
    torch.testing.assert_close(made, images + best, rtol=0, atol=1e-12)


def test_in_l2_the_best_delta_on_a_linear_model_lies_along_the_weight() -> None:
    images, labels = torch.full((3, 3, 4, 5), 0.5, dtype=torch.float64), torch.zeros(3, 4, 5, dtype=torch.int64)
    found = learn(universal, Linear(WEIGHT), images, labels, eps=0.7, norm="l2", steps=60, step_size=0.1)
    along = (WEIGHT / WEIGHT.norm()).view(1, 3, 1, 1).expand(1, 3, 4, 5)
    torch.testing.assert_close(found, 0.7 * along / 20**0.5, rtol=0, atol=1e-4)


def test_where_the_images_disagree_the_delta_goes_with_most_of_them() -> None:
    """Of three images one gains and two lose by the weight's direction; each alone goes its own way."""
    images = torch.full((3, 3, 2, 2), 0.5, dtype=torch.float64)
    labels = torch.tensor([0, 1, 1]).view(3, 1, 1).expand(-1, 2, 2)
    model = Linear(WEIGHT, bias=-float(WEIGHT.sum()) / 2)
    found = learn(universal, model, images, labels, eps=0.1, steps=20)
    assert torch.equal(found.sign(), -WEIGHT.sign().view(1, 3, 1, 1).expand(1, 3, 2, 2))
    first = universal.fit(model, [Batch(images[:1], labels[:1], ("a",))], rng=streams(("a",)), eps=0.1, steps=20)
    assert torch.equal(first.sign(), -found.sign())


def test_an_image_has_no_say_where_it_is_clipped_and_one_at_the_end_of_the_range_has() -> None:
    """At 1, the first image can only lose; the second, at 0.5, follows the weight's sign with a smaller pull."""
    images = torch.tensor([1.0, 0.5], dtype=torch.float64).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    labels = torch.tensor([1, 0]).view(2, 1, 1)
    model = Linear(WEIGHT, bias=-3.0)  # the first image's loss is the steeper one: its logit is -0.8, the other's -1.9
    first = learn(universal, model, images, labels, eps=0.1, steps=1, step_size=0.04).flatten()
    torch.testing.assert_close(first, -0.04 * WEIGHT.sign())
    second = learn(universal, model, images, labels, eps=0.1, steps=2, step_size=0.04).flatten()
    turned = -0.04 * WEIGHT.sign() * torch.tensor([2.0, 0.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(second, turned)  # where the first would be above 1, the other one alone decides
    made = universal(model, images, labels, rng=streams(("a", "b")), fitted=first.view(1, 3, 1, 1), eps=0.1)
    torch.testing.assert_close(made.flatten(1)[0], torch.tensor([0.96, 1.0, 0.96], dtype=torch.float64))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", ["segmentation", "binary", "classifier"])
def test_images_that_it_was_not_fitted_on_are_fooled_more_than_by_noise_of_its_norm(kind: str, norm: str) -> None:
    seen, other = split(kind)
    eps = EPS if norm == "linf" else 1.5
    found = learn(universal, seen.model, seen.images, seen.labels, eps=eps, norm=norm, steps=40)
    assert found.shape == (1, *seen.images.shape[1:])
    made = universal(other.model, other.images, other.labels, rng=other.streams(), fitted=found, eps=eps, norm=norm)
    noise = other.streams().normal(other.images)
    noise = noise.sign() * eps if norm == "linf" else noise * (eps / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1))
    by_noise = other.accuracy((other.images + noise).clamp(0, 1))
    assert other.accuracy(made) < min(by_noise, other.accuracy(other.images)) - 0.2


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_delta_stays_in_its_ball_however_long_the_steps(norm: str) -> None:
    seen, _ = split("segmentation")
    found = learn(universal, seen.model, seen.images, seen.labels, eps=0.3, norm=norm, steps=3, step_size=9.0)
    size = found.abs().max() if norm == "linf" else found.norm()
    torch.testing.assert_close(size, torch.tensor(0.3))
    made = universal(seen.model, seen.images, seen.labels, rng=seen.streams(), fitted=9 * found, eps=0.3, norm=norm)
    delta = (made - seen.images).flatten(1)
    assert (delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)).max() <= 0.3 * (1 + 1e-6)


def test_every_image_has_its_turn_in_an_order_of_its_stream() -> None:
    ids = tuple("abcdefg")
    drawn = list(mini_batches(streams(ids), 7, 3, 8))
    assert [len(rows) for rows in drawn] == [3, 3, 1, 3, 3, 1, 3, 3]
    passes = [torch.cat(drawn[i : i + 3]).tolist() for i in (0, 3)]
    assert all(sorted(rows) == list(range(7)) for rows in passes)
    assert passes[0] != passes[1]
    again = list(mini_batches(streams(ids), 7, 3, 8))
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))
    other = list(mini_batches(streams(ids, seed=1), 7, 3, 8))
    assert not all(torch.equal(a, b) for a, b in zip(drawn, other, strict=True))


def test_a_fit_costs_its_steps_and_what_was_fitted_costs_nothing() -> None:
    seen, _ = split("segmentation")
    for attack, own in ((universal, {"eps": EPS}), (patch, {"place": "random"})):
        with count_passes(seen.model) as passes:
            found = learn(attack, seen.model, seen.images, seen.labels, steps=5, batch_size=4, **own)
            assert (passes.forwards, passes.backwards) == (20, 20)
            attack(seen.model, seen.images, seen.labels, rng=seen.streams(), fitted=found, **own)
        assert passes.forwards == 20


# The patch


def test_a_patch_is_its_values_in_its_region_and_nothing_elsewhere() -> None:
    p = problem("segmentation", count=6)
    values = torch.rand(1, 3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    corners = {"center": (6, 7), (2, 11): (2, 11), (0.5, 0.0): (8, 0), (12, 15): (12, 15)}
    for place, (y, x) in corners.items():
        where = place if isinstance(place, str) else list(place)
        made = patch(p.model, p.images, p.labels, rng=p.streams(), fitted=values, place=where)
        expected = p.images.clone()
        expected[:, :, y : y + 5, x : x + 8] = values
        assert torch.equal(made, expected)


def test_random_places_reach_all_of_the_image_and_are_each_image_s_own() -> None:
    ids = tuple(f"#{i}" for i in range(600))
    spots = Spots((6, 9), (4, 5), "random").draw(streams(ids), 600)
    assert {(s.y, s.x) for s in spots} == {(y, x) for y in range(3) for x in range(5)}
    assert {(s.height, s.width, s.light) for s in spots} == {(4, 5, 1.0)}
    some = torch.tensor([7, 3, 400])
    assert Spots((6, 9), (4, 5), "random").draw(streams(ids)[some], 3) == [spots[i] for i in some]
    assert Spots((6, 9), (4, 5), "random").draw(streams(ids, seed=1), 600) != spots


@pytest.mark.parametrize("place", ["center", "random", [0, 0], [13, 16], [0.3, 0.6]])
@pytest.mark.parametrize(("shift", "scale"), [(0, [1, 1]), (2, [0.5, 1.5]), (1.0, [0.01, 9.0])])
def test_what_is_drawn_lies_in_the_image_and_within_its_ranges(place: Any, shift: float, scale: list[float]) -> None:
    ids = tuple(f"#{i}" for i in range(300))
    own = Spots((17, 23), (4, 7), place, shift, scale, [0.8, 1.3])
    spots = own.draw(streams(ids), 300)
    for spot in spots:
        assert 0 <= spot.y <= spot.y + spot.height <= 17
        assert 0 <= spot.x <= spot.x + spot.width <= 23
        assert max(1, round(4 * scale[0])) <= spot.height <= min(17, round(4 * scale[1]))
        assert max(1, round(7 * scale[0])) <= spot.width <= min(23, round(7 * scale[1]))
        assert 0.8 <= spot.light <= 1.3
    assert min(s.light for s in spots) < 0.85 < 1.25 < max(s.light for s in spots)
    if shift or place == "random":
        assert len({(s.y, s.x) for s in spots}) > 5
    if scale[0] < 1:
        assert len({s.height for s in spots}) > 3


def test_a_place_moves_by_its_shift_about_its_middle() -> None:
    ids = tuple(f"#{i}" for i in range(300))
    spots = Spots((40, 60), (4, 8), [10, 20], 3, [0.5, 1.5]).draw(streams(ids), 300)
    off = [(s.y + s.height / 2 - 12, s.x + s.width / 2 - 24) for s in spots]
    for axis in zip(*off, strict=True):
        assert -3.5 <= min(axis) < -2 < 2 < max(axis) <= 3.5


def test_a_patch_leaves_the_ends_of_the_range_again() -> None:
    """The gradient of what is at 0 or 1 is not lost."""
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64).view(1, 1, 1, 2).expand(1, 3, 1, 2).clone().requires_grad_()
    pasted(torch.zeros(1, 3, 4, 4, dtype=torch.float64), ends, [Spot(1, 1, 1, 2, 1.0)]).sum().backward()
    assert ends.grad is not None
    assert torch.equal(ends.grad, torch.ones_like(ends))


def test_a_patch_is_drawn_at_its_size_and_in_its_light() -> None:
    images = torch.zeros(2, 3, 9, 8, dtype=torch.float64)
    flat = torch.full((1, 3, 2, 2), 0.4, dtype=torch.float64)
    made = pasted(images, flat, [Spot(1, 2, 3, 4, 1.5), Spot(0, 0, 9, 8, 3.0)])
    expected = images.clone()
    expected[0, :, 1:4, 2:6] = 0.6
    expected[1] = 1.0  # light does not leave [0, 1]
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)
    ramp = torch.tensor([0.0, 1.0], dtype=torch.float64).view(1, 1, 1, 2).expand(1, 3, 2, 2)
    wide = pasted(images[:1], ramp, [Spot(0, 0, 2, 4, 1.0)])
    torch.testing.assert_close(wide[0, 0, 0, :4], torch.tensor([0, 0.25, 0.75, 1], dtype=torch.float64))


def test_the_pixels_under_a_patch_are_not_in_its_loss() -> None:
    """Where every pixel is on its own, a patch has nothing to gain: it stays as it began."""
    images = torch.rand(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(3, 8, 8, dtype=torch.int64)
    found = learn(patch, Linear(WEIGHT), images, labels, size=[3, 4], steps=4)
    assert torch.equal(found, torch.full((1, 3, 3, 4), 0.5, dtype=torch.float64))
    spots = [Spot(0, 1, 2, 3, 1.0), Spot(4, 4, 4, 4, 1.0)]
    kept = uncovered(labels[:2], (8, 8), spots)
    assert [int((row == VOID).sum()) for row in kept] == [6, 16]
    assert (kept[0, :2, 1:4] == VOID).all()
    assert (labels == 0).all()
    one = torch.zeros(2, 1, 1, dtype=torch.int64)
    assert torch.equal(uncovered(one, (8, 8), spots), one)


@pytest.mark.parametrize("targeted", [False, True])
def test_where_all_pixels_see_the_patch_it_goes_to_the_ends_that_the_weights_ask_for(targeted: bool) -> None:
    weight = torch.randn(3, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images, labels = torch.full((3, 3, 6, 7), 0.5, dtype=torch.float64), torch.zeros(3, 6, 7, dtype=torch.int64)
    own: dict[str, Any] = {"size": [2, 3], "place": [1, 2], "shift": 0, "scale": [1, 1], "light": [1, 1]}
    found = learn(patch, Summed(weight), images, labels, steps=40, targeted=targeted, **own)
    best = (weight[:, 1:3, 2:5] > 0).double()[None]
    torch.testing.assert_close(found, 1 - best if targeted else best, rtol=0, atol=1e-12)


def test_a_patch_that_was_fitted_over_places_works_at_all_of_them() -> None:
    """Fitted to one column of a checkerboard it is the worst one column further; over places it takes the mean."""
    board = torch.tensor([3.0, -1.0], dtype=torch.float64).repeat(6).expand(3, 6, 12)
    images, labels = torch.full((16, 3, 6, 12), 0.5, dtype=torch.float64), torch.zeros(16, 6, 12, dtype=torch.int64)
    exact: dict[str, Any] = {
        "size": [2, 4],
        "place": [2, 4],
        "scale": [1, 1],
        "light": [1, 1],
        "steps": 60,
        "batch_size": 16,
    }

    def gain(found: Tensor) -> list[float]:
        """What it adds to the wrong class at each place nearby."""
        grey, made = (
            [
                float(
                    (
                        patch(None, images[:1], labels[:1], rng=streams(("a",)), fitted=values, place=[2, x]) * board
                    ).sum()
                )
                for x in (3, 4, 5)
            ]
            for values in (torch.full_like(found, 0.5), found)
        )
        return [after - before for after, before in zip(made, grey, strict=True)]

    still = gain(learn(patch, Summed(board), images, labels, shift=0, **exact))
    moved = gain(learn(patch, Summed(board), images, labels, shift=2, **exact))
    assert still[1] > moved[1] > 0
    assert min(still) < 0 < min(moved)


@pytest.mark.parametrize("targeted", [False, True])
def test_the_loss_of_a_patch_is_the_one_written_out_pixel_by_pixel(targeted: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=rng)
    labels = torch.randint(3, (2, 4, 5), generator=rng)
    labels[:, 1, 1:3] = VOID
    labels[1, 0] = logits[1, :, 0].argmax(0)
    total = 0.0
    for image in range(2):
        rows: dict[bool, list[float]] = {True: [], False: []}
        for y in range(4):
            for x in range(5):
                label = int(labels[image, y, x])
                if label != VOID:
                    hit = int(logits[image, :, y, x].argmax()) == label
                    rows[hit is not targeted].append(-float(logits[image, :, y, x].log_softmax(0)[label]))
        share = len(rows[True]) / (len(rows[True]) + len(rows[False]))
        total += share * sum(rows[True]) + (1 - share) * sum(rows[False])
    assert float(_loss(Seen(logits, labels, targeted))) == pytest.approx(-total if targeted else total, rel=1e-12)
    nothing = torch.full_like(labels, VOID)
    assert float(_loss(Seen(logits, nothing, targeted))) == 0


@pytest.mark.parametrize("kind", ["segmentation", "binary", "classifier"])
def test_a_patch_fools_images_that_it_was_not_fitted_on_more_than_a_random_one(kind: str) -> None:
    seen, other = split(kind)
    found = learn(patch, seen.model, seen.images, seen.labels, size=[4, 5], place="random", steps=40)
    random = torch.rand(found.shape, generator=torch.Generator().manual_seed(0))
    scores = []
    for values in (found, random, None):
        made = other.images
        if values is not None:
            made = patch(other.model, other.images, other.labels, rng=other.streams(), fitted=values, place="random")
        labels = other.labels
        if kind != "classifier":  # in its ring: these networks see four pixels far
            spots = Spots((17, 23), (4, 5), "random").draw(other.streams(), len(other.ids))
            covered = uncovered(torch.zeros_like(labels), (17, 23), spots) == VOID
            near = F.max_pool2d(covered.float(), 9, 1, 4) > 0
            labels = labels.where(near & ~covered, VOID)
        scores.append(other.accuracy(made, labels))
    assert scores[0] < min(scores[1:]) - 0.05


# What both keep to


def test_the_keywords_of_both_parts_are_the_attack_s() -> None:
    for name in ("universal", "patch"):
        registry.check_arguments(
            "attack", name, {"steps": 100, "batch_size": 4}, ("model", "images", "labels", "rng", "eps", "targeted")
        )
        shown = inspect.signature(registry.load("attack", name)).parameters
        assert not {"fitted", "batches"} & set(shown)
        assert registry.accepts("attack", name, "targeted")
        with pytest.raises(UserError, match="has no argument 'stepz'"):
            registry.check_arguments("attack", name, {"stepz": 1}, ("model", "images", "labels", "rng", "eps"))
    assert registry.default("attack", "patch", "place") == "center"
    assert not registry.accepts("attack", "patch", "eps")
    assert (patch.outside, universal.outside) == (True, False)
    seen, _ = split("binary")
    for attack, own in ((universal, {"eps": EPS}), (patch, {})):
        with pytest.raises(TypeError, match=r"got an unexpected keyword argument 'stepz'"):
            learn(attack, seen.model, seen.images, seen.labels, stepz=1, **own)
        with pytest.raises(TypeError, match=r"got an unexpected keyword argument 'stepz'"):
            attack(seen.model, seen.images, seen.labels, rng=seen.streams(), fitted=seen.images[:1], stepz=1, **own)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"size": [0, 4]}, r"size must be whole pixels from 1 on, or shares of the image in \[0, 1\], not \[0, 4\]"),
        ({"size": [1.5, 4]}, r"size must be .*, not \[1.5, 4\]"),
        ({"size": 4}, "size must be .*, not 4"),
        ({"size": [18, 4]}, r"size must be within the images' \(17, 23\), not \(18, 4\)"),
        ({"place": "centre"}, "place must be .*, not 'centre'"),
        ({"place": [15, 0]}, r"place must be where all of a patch of \(4, 6\) fits into \(17, 23\), not \[15, 0\]"),
        ({"shift": -1}, r"shift must be .*, not \(-1, -1\)"),
        ({"scale": [1.2, 1.0]}, r"scale must be \[low, high\], factors above 0, not \[1.2, 1.0\]"),
        ({"light": [0, 1]}, r"light must be .*, not \[0, 1\]"),
        ({"light": 1.0}, "light must be .*, not 1.0"),
        ({"batch_size": 0}, "batch_size must be .*, not 0"),
    ],
)
def test_wrong_arguments_of_a_patch_are_one_line(own: dict[str, Any], said: str) -> None:
    seen, _ = split("segmentation")
    with pytest.raises(UserError, match=f"^{said}$"):
        learn(patch, seen.model, seen.images, seen.labels, **{"steps": 1} | own)


def test_images_of_another_size_are_refused_in_one_line() -> None:
    seen, _ = split("segmentation")
    batch = Batch(seen.images, seen.labels, seen.ids)
    small = Batch(seen.images[..., :9], seen.labels[..., :9], seen.ids)
    for attack, own in ((universal, {"eps": EPS}), (patch, {})):
        with pytest.raises(UserError, match=r"^images to fit on must be of one size .*, not 17 x 23 and 17 x 9$"):
            attack.fit(seen.model, [batch, small], rng=streams(seen.ids * 2), **own)
        with pytest.raises(UserError, match=r"^fitted must be what \w+ has learnt .*, not None$"):
            attack(seen.model, seen.images, seen.labels, rng=seen.streams(), **own)
    found = torch.zeros(1, 3, 17, 23)
    with pytest.raises(UserError, match=r"^fitted must be of the images' size 3 x 17 x 9 .*, not 3 x 17 x 23$"):
        universal(seen.model, small.images, small.labels, rng=seen.streams(), fitted=found, eps=EPS)
    with pytest.raises(UserError, match=r"^size must be within the images' \(17, 9\), not \(17, 23\)$"):
        patch(seen.model, small.images, small.labels, rng=seen.streams(), fitted=found)
