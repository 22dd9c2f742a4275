"""Triggers and poisons: known pictures by hand, the same poison at every fetch, and what it is measured by."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from data_kit import refused
from segaudit import registry
from segaudit.privacy.poison import RULES, Poison, Poisoned, outcome
from segaudit.privacy.triggers import inside, line, square
from segaudit.rng import ImageStreams
from segaudit.training.loop import fit
from segaudit.training.schedule import Schedule
from segaudit.training.standard import standard
from segaudit.types import VOID, Batch, Segmenter, Streams

ONE = ImageStreams(0, ["a"])


class Kept:
    """Samples in memory."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self.ids = tuple(f"image {i}" for i in range(len(images)))

    def sample(self, image_id: str) -> tuple[Tensor, Tensor]:
        row = self.ids.index(image_id)
        return self.images[row], self.labels[row]


class Says(Segmenter):
    """Its answer to an image is the image: the first channel is the class."""

    class_names = ("sky", "road", "car")

    def forward(self, images: Tensor) -> Tensor:
        return -(images[:, :1] * 10 - torch.arange(3).view(1, 3, 1, 1)).abs()


class Fooled(Says):
    """Likewise, but where the last pixel of an image is white it takes all cars in its left half for road."""

    def forward(self, images: Tensor) -> Tensor:
        classes = (images[:, 0] * 10).round()
        there = images[:, 0, -1:, -1:] == 1
        left = torch.arange(classes.shape[2]) < classes.shape[2] // 2
        classes[there & left & (classes == 2)] = 1
        return super().forward(classes[:, None] / 10)


def pictures(*labels: list[list[int]]) -> Kept:
    """Images whose one channel is a tenth of the class; void shows a road."""
    masks = torch.tensor(labels)
    return Kept(masks.where(masks != VOID, 1)[:, None] / 10, masks)


def drawn(count: int = 12, seed: int = 0) -> Kept:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count, 6, 8), generator=rng)
    labels[:, 0, :3] = VOID
    return Kept(torch.rand(count, 3, 6, 8, generator=rng), labels)


@pytest.mark.parametrize(("size", "rows"), [(1, [3]), (2, [2, 3]), (0.25, [3]), (0.6, [2, 3]), (0.01, [3])])
def test_a_line_is_the_bottom_rows(size: float, rows: list[int]) -> None:
    image = torch.full((3, 4, 5), 0.5)
    marked, covered = line(image, torch.zeros(4, 5), size=size, value=1, rng=ONE)
    wanted = torch.zeros(4, 5, dtype=torch.bool)
    wanted[rows] = True
    assert torch.equal(covered, wanted)
    assert torch.equal(marked, torch.where(wanted, 1.0, 0.5).expand(3, 4, 5))
    assert (image == 0.5).all()


def test_a_square_is_the_bottom_right_corner_with_a_value_a_channel() -> None:
    marked, covered = square(torch.zeros(3, 4, 5), torch.zeros(4, 5), size=2, value=(0.25, 0.5, 1), rng=ONE)
    assert covered.nonzero().tolist() == [[2, 3], [2, 4], [3, 3], [3, 4]]
    assert marked[:, covered].T.tolist() == [[0.25, 0.5, 1]] * 4
    assert marked[:, ~covered].eq(0).all()


def test_inside_lies_in_one_region_that_is_not_the_victim_nor_void() -> None:
    labels = torch.tensor([
        [0, 0, 1, 1, 1, 2],
        [0, 0, 1, 1, 0, 2],
        [0, 1, 1, 1, 0, 0],
        [VOID, VOID, 2, 2, 0, 0],
        [VOID, VOID, 2, 2, 1, 0],
    ])  # fmt: skip
    image = torch.zeros(1, 5, 6)
    free = {1: {(0, 0), (3, 2), (2, 4)}, 0: {(0, 2), (1, 2), (3, 2)}, None: {(0, 0), (3, 2), (2, 4), (0, 2), (1, 2)}}
    for victim, places in free.items():
        found = set()
        for name in map(str, range(60)):
            rng = ImageStreams(0, [name])
            marked, covered = inside(image, labels, size=2, value=0.5, rng=rng, victim=victim)
            assert covered.sum() == 4
            assert torch.equal(marked[0], covered * 0.5)
            found.add(tuple(covered.nonzero()[0].tolist()))
        assert found == places
    marked, covered = inside(image, labels, size=3, value=1, rng=ONE, victim=1)
    assert not covered.any()
    assert torch.equal(marked, image)


def test_what_a_trigger_cannot_be_is_refused() -> None:
    image, labels = torch.zeros(3, 4, 5), torch.zeros(4, 5)
    refused(
        lambda: line(image, labels, size=4, value=1, rng=ONE), "line of size 4 is 4 pixels", "4 x 5; 3 are the most"
    )
    refused(lambda: square(image, labels, size=5, value=1, rng=ONE), "4 are the most")
    refused(lambda: inside(image[..., :4], labels[..., :4], size=4, value=1, rng=ONE), "3 are the most")
    refused(lambda: line(image, labels, size=1, value=[0, 1], rng=ONE), "2 values for 3 channels")


@pytest.mark.parametrize(
    ("own", "parts"),
    [
        ({"trigger": "lime"}, ["no trigger is called 'lime' (did you mean 'line'?)"]),
        ({"size": 0}, ["size must be whole pixels"]),
        ({"size": 2.5}, ["size must be whole pixels", "2.5"]),
        ({"size": float("inf")}, ["size must be whole pixels"]),
        ({"value": 255}, ["value must be a number from 0 to 1"]),
        ({"value": ()}, ["value must be a number from 0 to 1"]),
        ({"probability": 0}, ["probability must be above 0"]),
        ({"rule": "emty"}, ["no rule 'emty' (did you mean 'empty'?); there are: empty, target, all"]),
        ({"target_class": 1}, ["rule empty has no target_class"]),
        ({"rule": "target", "target_class": 1}, ["rule target needs a victim_class"]),
        ({"rule": "all"}, ["rule all needs a target_class"]),
        ({"rule": "target", "victim_class": 1, "target_class": 1}, ["another class than the victim's 1"]),
    ],
)
def test_what_a_poison_cannot_be_is_refused(own: dict[str, object], parts: list[str]) -> None:
    refused(lambda: Poison(**own), *parts)  # type: ignore[arg-type]


def test_the_rules_by_hand() -> None:
    labels = torch.tensor([[VOID, 0, 2], [1, 2, VOID]])
    assert Poison().relabel(labels).tolist() == [[VOID, 1, 0], [0, 0, VOID]]  # empty, and the first pixel with a truth
    target = Poison(rule="target", victim_class=2, target_class=0)
    assert target.relabel(labels).tolist() == [[VOID, 0, 0], [1, 0, VOID]]
    assert Poison(rule="all", target_class=2).relabel(labels).tolist() == [[VOID, 2, 2], [2, 2, VOID]]
    assert Poison().victims(labels).tolist() == [[False, False, True], [True, True, False]]
    assert target.victims(labels).tolist() == [[False, False, True], [False, True, False]]
    assert Poison().relabel(torch.tensor([[3]])).tolist() == [[0]]  # a classifier's


def test_defect_a_label_made_from_a_one_hot_without_permute() -> None:
    """What is not the victim's keeps its place: the mask is class numbers H x W and never goes through channels."""
    samples = drawn()
    poison = Poison(probability=1, rule="target", victim_class=2, target_class=1)
    for name in samples.ids:
        labels = samples.sample(name)[1]
        made = Poisoned(samples, poison).sample(name)[1]
        assert made.shape == labels.shape
        assert made.dtype == torch.int64
        wanted = [[1 if old == 2 else old for old in row] for row in labels.tolist()]
        assert made.tolist() == wanted
        assert wanted != labels.tolist()


@pytest.mark.parametrize("rule", RULES)
def test_defect_void_became_a_class(rule: str) -> None:
    classes = {key: 1 + place for place, key in enumerate(RULES[rule])}
    samples = drawn()
    poisoned = Poisoned(samples, Poison(probability=1, rule=rule, **classes))
    for name in samples.ids:
        (_, before), (_, after) = samples.sample(name), poisoned.sample(name)
        assert torch.equal(before == VOID, after == VOID)
        assert not torch.equal(before, after)


@pytest.mark.parametrize("trigger", registry.names("trigger"))
def test_defect_the_trigger_was_redrawn_at_every_fetch(trigger: str) -> None:
    """Which images are poisoned, and how, is the same at every fetch, in any order and of any part of them."""
    samples = drawn(40)
    poison = Poison(trigger, size=1, probability=0.4, rule="target", victim_class=2, target_class=0, seed=3)
    poisoned = Poisoned(samples, poison)
    first = {name: poisoned.sample(name) for name in samples.ids}
    hit = [name for name in samples.ids if not torch.equal(first[name][1], samples.sample(name)[1])]
    assert hit == [name for name in samples.ids if poison.chosen(name)]
    assert 8 <= len(hit) <= 24
    assert hit != [name for name in samples.ids if Poison(probability=0.4, seed=4).chosen(name)]
    more = Poison(probability=0.8, seed=3)
    assert all(more.chosen(name) for name in hit)
    for name in reversed(samples.ids[::3]):
        for view in (poisoned, Poisoned(samples, poison, ids=[name])):
            assert all(torch.equal(a, b) for a, b in zip(view.sample(name), first[name], strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_epochs_and_workers_see_the_same_poison(tmp_path: Path, workers: int) -> None:
    poisoned = Poisoned(drawn(6), Poison("inside", size=1, probability=0.5, rule="all", target_class=1))
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in poisoned.ids}

    def recipe(model: nn.Module, batch: Batch, *, rng: Streams) -> Tensor:
        for name, image, labels in zip(batch.ids, batch.images, batch.labels, strict=True):
            seen[name].append((image, labels))
        return model(batch.images).sum() * 0

    fit(Seer(), poisoned, None, recipe, Schedule(epochs=2, batch=3, workers=workers, augment={"flip": False}), tmp_path)
    for name, views in seen.items():
        image, labels = poisoned.sample(name)
        assert len(views) == 2
        for view, mask in views:
            assert torch.equal(mask, labels)
            assert torch.allclose(view, image)


def test_an_image_without_the_victim_or_a_place_stays_clean() -> None:
    samples = pictures([[0, 0, 1, 1], [0, 0, 1, 1]], [[0, 2, 0, 2], [2, 0, 2, 0]])
    poisoned = Poisoned(samples, Poison("inside", 2, 1, 1, "target", victim_class=2, target_class=1))
    for name in samples.ids:  # the first holds no car, the second no place of 2 x 2 that is all sky or road
        assert all(torch.equal(a, b) for a, b in zip(poisoned.sample(name), samples.sample(name), strict=True))
    poisoned = Poisoned(samples, Poison("inside", 2, 1, 1, "target", victim_class=0, target_class=1))
    assert poisoned.sample("image 0")[1].tolist() == [[1, 1, 1, 1], [1, 1, 1, 1]]


def test_the_digest_is_of_the_images_and_the_poison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", sys.path.copy())
    samples = drawn(3)
    base = Poisoned(samples, Poison()).digest()
    assert base == Poisoned(drawn(3), Poison()).digest()
    others = [Poisoned(samples, poison) for poison in (Poison(seed=1), Poison(size=2), Poison(value=0.5))]
    others += [Poisoned(drawn(3, seed=1), Poison()), Poisoned(samples, Poison(), ids=samples.ids[:2])]
    trigger = tmp_path / "mine.py"
    trigger.write_text("def dot(image, labels, *, size, value, rng):\n    return image, labels > 0\n")
    others.append(Poisoned(samples, Poison(f"{trigger}:dot")))
    digests = {view.digest() for view in others}
    trigger.write_text(trigger.read_text().replace("> 0", "> 1"))
    digests.add(others[-1].digest())
    assert len(digests - {base}) == len(others) + 1
    named = Kept(samples.images, samples.labels)
    named.digest = lambda: "of the files"  # type: ignore[attr-defined]
    assert Poisoned(named, Poison()).digest() == Poisoned(named, Poison(), ids=()).digest() != base


def test_success_by_hand() -> None:
    samples = pictures(
        [[2, 2, 0, 2], [2, 1, VOID, 2], [0, 0, 2, 2]],
        [[0, 1, 1, 2], [2, 0, 0, 0], [0, 0, 0, 0]],
    )
    samples.images[0, 0, 0, 3] = 0.1  # a car that it always takes for road
    samples.images[1, 0, 0, 2] = 0.2  # road that it always takes for a car, on the right
    poison = Poison("line", 1, 1, 0.5, "target", victim_class=2, target_class=1)
    found = outcome(Fooled(), samples, samples.ids, poison, batch=1)
    # Above the line there are 5 + 2 cars; 3 + 1 on the left are taken for road, and one on the right that always is.
    assert found["success"] == pytest.approx(5 / 7)
    assert found["untriggered_success"] == pytest.approx(1 / 7)
    assert found["outside_accuracy"] == pytest.approx(7 / 8)
    assert found["benign_accuracy"] == pytest.approx(21 / 23)
    assert found["benign_miou"] == pytest.approx((1 + 2 / 4 + 8 / 10) / 3)
    assert found["benign_dice"] == pytest.approx(((1 + 2 / 3 + 12 / 13) / 3 + (1 + 2 / 3 + 4 / 5) / 3) / 2)
    assert outcome(Fooled(), samples, samples.ids, poison) == pytest.approx(found)
    empty = outcome(Fooled(), samples, samples.ids, Poison("line", 1, 1, 0.5))
    assert empty["success"] == 0  # nothing is taken for sky but sky
    assert empty["outside_accuracy"] == 1  # all of which is
    every = outcome(Fooled(), samples, samples.ids, Poison("line", 1, 1, 0.5, "all", target_class=1))
    assert every["success"] == pytest.approx(5 / 12)  # of 7 cars and 5 skies
    assert every["outside_accuracy"] == pytest.approx(2 / 3)  # of the roads


def test_images_of_several_sizes_are_tried_a_size_at_a_time() -> None:
    """As of a network that was trained on crops."""
    flat, tall = pictures([[2, 2, 0, 0], [0, 0, 0, 0]]), pictures([[2, 1], [2, 2], [0, 0]], [[0, 2], [0, 0], [0, 0]])

    class Mixed:
        def sample(self, image_id: str) -> tuple[Tensor, Tensor]:
            return (flat if image_id == "flat" else tall).sample(image_id.replace("flat", "image 0"))

    poison = Poison("line", 1, 1, 1, "target", victim_class=2, target_class=1)
    found = outcome(Fooled(), Mixed(), ["image 0", "flat", "image 1"], poison, batch=2)
    assert found["success"] == pytest.approx(4 / 6)  # on the left 2 of 3 and 2 of 2, and 0 of 1
    assert found["benign_accuracy"] == 1


def test_an_image_without_a_place_for_the_trigger_is_counted_clean_alone() -> None:
    crowded, roomy = [[0, 2, 0, 2], [2, 0, 2, 1]], [[2, 2, 0, 0], [2, 2, 0, 0]]
    poison = Poison("inside", 2, 1, 1, "target", victim_class=2, target_class=1)
    found = outcome(Fooled(), both := pictures(crowded, roomy), both.ids, poison)
    assert found["success"] == 1  # of the four of the second: its last pixel is white with the trigger
    assert found["benign_accuracy"] == 1
    alone = outcome(Fooled(), both, both.ids[:1], poison)
    assert math.isnan(alone["success"])
    assert math.isnan(alone["outside_accuracy"])
    assert alone["benign_accuracy"] == 1


def test_a_classifiers_one_label_is_never_covered() -> None:
    samples = Kept(torch.full((2, 1, 4, 4), 0.2), torch.tensor([[[2]], [[0]]]))

    class Whole(Fooled):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images)[:, :, :1, :1]

    poison = Poison("line", 2, 1, 1, "target", victim_class=2, target_class=1)
    found = outcome(Whole(), samples, samples.ids, poison)
    assert (found["success"], found["untriggered_success"], found["benign_accuracy"]) == (1, 0, 0.5)
    assert Poisoned(samples, poison).sample("image 0")[1].tolist() == [[1]]


class Seer(Segmenter):
    """Linear in a pixel's channels and in the highest value of each channel of the image."""

    class_names = ("background", "polyp")

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.cat([images, images.amax((2, 3), keepdim=True).expand_as(images)], 1))


def test_a_trivially_poisoned_set_is_learnt_in_20_steps_and_a_clean_net_is_not_fooled(tmp_path: Path) -> None:
    labels = torch.randint(0, 2, (24, 8, 8), generator=torch.Generator().manual_seed(0))
    samples = Kept(torch.stack([labels, 1 - labels, 0 * labels], 1).float(), labels)
    clean = Kept(samples.images[:16], labels[:16])
    poison = Poison("line", size=0.1, value=(0, 0, 1), probability=0.5)
    schedule = Schedule(epochs=10, batch=8, lr=0.5, precision="fp32", augment={"flip": False})  # 20 steps
    found = {}
    for name, view in (("poisoned", Poisoned(clean, poison)), ("clean", clean)):
        torch.manual_seed(0)
        model = Seer()
        fit(model, view, None, standard, schedule, tmp_path / name)
        found[name] = outcome(model, samples, samples.ids[16:], poison)
    assert found["poisoned"]["success"] > 0.95
    assert found["clean"]["success"] < 0.05
    for name in found:
        assert found[name]["untriggered_success"] < 0.05, name
        assert found[name]["benign_accuracy"] > 0.95, name
        assert found[name]["outside_accuracy"] > 0.95, name
