"""The masks to reach, against loops over pixels; and a class hidden from a network by an attack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nets import KINDS, problem
from segaudit import registry
from segaudit.attacks.pgd import pgd
from segaudit.attacks.targets import hide, least_likely, swap, uniform
from segaudit.models.wrap import Wrapped
from segaudit.types import VOID, Segmenter, UserError

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("road", "car", "tree", "sky")


class Shown(Segmenter):
    """The images are the logits, which nobody needs a gradient of."""

    class_names = NAMES

    def forward(self, images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return images


def scores(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def make(target: Callable[..., Tensor], logits: Tensor, model: Segmenter | None = None, **own: Any) -> Tensor:
    """A target on logits; the labels that it is handed are of no use to it, as they are all void."""
    labels = torch.full((len(logits), *logits.shape[2:]), VOID)
    ids = [str(i) for i in range(len(logits))]
    made = target(model or Shown(), logits, labels, ids=ids, look_up=lambda _: 1 / 0, **own)
    assert made.shape == labels.shape
    assert made.dtype == torch.int64
    assert (labels == VOID).all()
    return made


def order(logits: Tensor, i: int, y: int, x: int) -> list[int]:
    """The classes of one pixel, likeliest first."""
    return sorted(range(logits.shape[1]), key=lambda k: -float(logits[i, k, y, x]))


def pixels(logits: Tensor) -> list[tuple[int, int, int]]:
    n, _, height, width = logits.shape
    return [(i, y, x) for i in range(n) for y in range(height) for x in range(width)]


def test_uniform_is_one_class_everywhere() -> None:
    logits = scores(2, 4, 3, 5)
    assert torch.equal(make(uniform, logits, label="tree"), torch.full((2, 3, 5), 2))
    assert torch.equal(make(uniform, logits, label=0), torch.zeros(2, 3, 5, dtype=torch.int64))
    assert torch.equal(make(uniform, scores(3, 4, 1, 1), label=3), torch.full((3, 1, 1), 3))


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (6, 4, 1, 1)])
def test_least_likely_is_the_last_class_of_each_pixel(shape: tuple[int, ...]) -> None:
    logits = scores(*shape)
    made = make(least_likely, logits)
    assert [int(made[p]) for p in pixels(logits)] == [order(logits, *p)[-1] for p in pixels(logits)]


def test_a_class_without_an_output_is_not_the_least_likely() -> None:
    net = nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[50.0, 0, 0], [0, 50, 0], [0, 0, 50]])[:, :, None, None])
        net.bias.zero_()
    gapped = Wrapped(net, ("a", "never", "b", "c"), outputs=3, class_map={0: 0, 1: 2, 2: 3})
    images = scores(2, 3, 4, 5)
    expected = torch.tensor([0, 2, 3])[images.argmin(1)]
    assert torch.equal(make(least_likely, images, gapped), expected)


def nearest_classes(prediction: Tensor, hidden: int, y: int, x: int) -> set[int]:
    """The classes of the pixels of other classes that are nearest to a place of one image."""
    others = torch.nonzero(prediction != hidden).tolist()
    distance = {(v, u): (v - y) ** 2 + (u - x) ** 2 for v, u in others}
    return {int(prediction[p]) for p, d in distance.items() if d == min(distance.values())}


def test_a_hidden_class_is_filled_by_its_nearest_neighbours() -> None:
    coarse = scores(5, 4, 3, 4)
    logits = nn.functional.interpolate(coarse, size=(13, 17), mode="bilinear") + 0.05 * scores(5, 4, 13, 17, seed=1)
    prediction = logits.argmax(1)
    made = make(hide, logits, label="car")
    assert (made != 1).all()
    single = 0
    for i, y, x in pixels(logits):
        near = nearest_classes(prediction[i], 1, y, x)
        if int(prediction[i, y, x]) == 1:
            assert int(made[i, y, x]) in near
            single += len(near) == 1
        else:
            assert int(made[i, y, x]) == int(prediction[i, y, x])
    assert single > 50
    assert torch.equal(make(hide, logits, label=1), made)
    assert torch.equal(torch.cat([make(hide, logits[i : i + 1], label=1) for i in range(5)]), made)


def test_hiding_in_an_image_without_the_class_and_in_one_that_is_nothing_else() -> None:
    logits = scores(3, 4, 4, 5)
    logits[0, 1] -= 2
    logits[1, 1] += 2
    made = make(hide, logits, label="car")
    assert torch.equal(made[0], logits[0].argmax(0))
    places = [(1, y, x) for _, y, x in pixels(logits[1:2])]
    assert [int(made[p]) for p in places] == [order(logits, *p)[1] for p in places]
    whole = scores(16, 4, 1, 1)
    expected = [next(k for k in order(whole, *p) if k != 2) for p in pixels(whole)]
    assert make(hide, whole, label="tree").flatten().tolist() == expected
    assert (whole.argmax(1) == 2).any()
    assert (whole.argmax(1) != 2).any()


@pytest.mark.parametrize("shape", [(2, 4, 6, 5), (16, 4, 1, 1)])
def test_swapped_classes_change_places(shape: tuple[int, ...]) -> None:
    logits = scores(*shape)
    made = make(swap, logits, one="car", other="sky")
    expected = [{1: 3, 3: 1}.get(order(logits, *p)[0], order(logits, *p)[0]) for p in pixels(logits)]
    assert [int(made[p]) for p in pixels(logits)] == expected
    assert len(set(expected)) == 4
    assert torch.equal(make(swap, logits, one=3, other=1), made)


@pytest.mark.parametrize("value", ["cra", 4, -1, 1.0, True, None])
def test_a_class_that_is_none_is_answered_with_those_that_are(value: Any) -> None:
    logits = scores(1, 4, 2, 2)
    known = r"a class \(0 road, 1 car, 2 tree, 3 sky\)"
    guess = r" \(did you mean 'car'\?\)" if value == "cra" else ""
    for target, key, rest in ((uniform, "label", {}), (hide, "label", {}), (swap, "one", {"other": 2})):
        with pytest.raises(UserError, match=f"^{key} must be {known}, not {value!r}{guess}$"):
            make(target, logits, **{key: value}, **rest)
    with pytest.raises(UserError, match=f"^other must be {known}, not {value!r}{guess}$"):
        make(swap, logits, one=2, other=value)


def test_a_class_is_not_swapped_with_itself_and_arguments_are_asked_for() -> None:
    with pytest.raises(UserError, match=r"^other must be another class than 'car', not 1$"):
        make(swap, scores(1, 4, 2, 2), one="car", other=1)
    handed = ("model", "images", "labels", "ids", "look_up")
    for name in ("uniform", "hide"):
        with pytest.raises(UserError, match=f"target '{name}' needs the argument 'label'"):
            registry.check_arguments("target", name, {}, handed)
    registry.check_arguments("target", "least_likely", {}, handed)


@pytest.mark.parametrize("name", ["uniform", "least_likely", "hide", "swap"])
@pytest.mark.parametrize("kind", KINDS)
def test_they_are_made_from_the_network_that_is_handed_in_and_leave_it_alone(kind: str, name: str) -> None:
    p = problem(kind, torch.float32, count=8)
    p.model.requires_grad_(True)
    own: dict[str, Any] = {"uniform": {"label": 1}, "hide": {"label": 0}, "swap": {"one": 0, "other": 1}}
    target, given = registry.load("target", name), {"ids": p.ids, "look_up": None, **own.get(name, {})}
    made = target(p.model, p.images, p.labels, **given)
    assert not made.requires_grad
    assert all(w.grad is None for w in p.model.parameters())
    for i in range(8):
        part = slice(i, i + 1)
        alone = target(p.model, p.images[part], p.labels[part], **given)
        assert torch.equal(alone, made[part])
    moved = Wrapped(nn.Sequential(p.model, Reversed()), p.model.class_names)
    same = name == "uniform" or (kind, name) == ("binary", "hide")  # of two classes one is left
    assert torch.equal(target(moved, p.images, p.labels, **given), made) == same


class Reversed(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits.flip(1)


def test_an_attack_hides_a_class_and_leaves_the_rest() -> None:
    p = problem("segmentation", torch.float32, count=6)
    goal = hide(p.model, p.images, p.labels, ids=p.ids, look_up=lambda _: p.labels[0], label="class 1")
    goal = goal.where(p.labels != VOID, VOID)
    made = pgd(p.model, p.images, goal, rng=p.streams(), eps=16 / 255, steps=25, targeted=True)
    noise = (p.images + 16 / 255 * p.streams().normal(p.images).sign()).clamp(0, 1)
    before, after, by_noise = (p.model(images).argmax(1) for images in (p.images, made, noise))
    valid = p.labels != VOID
    there = valid & (before == 1)
    assert int(there.sum()) > 200
    assert int((valid & (after == 1)).sum()) < 0.05 * int(there.sum())
    assert int((there & (by_noise == 1)).sum()) > 0.7 * int(there.sum())
    assert float((after == goal)[there].double().mean()) > 0.9
    assert float((after == before)[valid & ~there].double().mean()) > 0.97
