"""ASMA against a loop over images and pixels, on models where its path is known, and what it does at both ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nets import KINDS, Linear, Problem, problem
from segaudit.attacks.asma import _mean_iou, asma
from segaudit.nn.passes import count_passes
from segaudit.rng import ImageStreams
from segaudit.types import VOID, Segmenter, UserError

pytestmark = pytest.mark.usefixtures("one_thread")
PACE = {
    "segmentation": {"tau": 3e-4, "beta": 3e-3},
    "binary": {"tau": 3e-4, "beta": 1e-3},
    "classifier": {"tau": 2e-2, "beta": 1e-2},
}
"""Step sizes with which the nets of the tests are fooled within some steps, but not at once."""


def iou_by_hand(prediction: Tensor, goal: Tensor) -> float:
    """From sets of places: one image, H x W."""
    seen, wanted = prediction.flatten().tolist(), goal.flatten().tolist()
    places = [place for place, k in enumerate(wanted) if k != VOID]
    shares = []
    for k in {wanted[place] for place in places}:
        a, b = ({place for place in places if mask[place] == k} for mask in (seen, wanted))
        shares.append(len(a & b) / len(a | b))
    return sum(shares) / len(shares) if shares else 0.0


def goal_by_hand(logits: Tensor, labels: Tensor, targeted: bool) -> Tensor:
    """The target of each pixel of one image: its label, or its likeliest other class."""
    if targeted:
        return labels
    first, second = logits.topk(2, dim=0).indices
    goal = torch.where(first == labels, second, first)
    goal[labels == VOID] = VOID
    return goal


def path(
    model: Segmenter, clean: Tensor, labels: Tensor, steps: int, tau: float, beta: float, targeted: bool
) -> list[tuple[int, Tensor, float]]:
    """All iterates of one image, with their pixels off target and IoU, to the first with none."""
    found, x = [], clean.clone()
    for _ in range(steps + 1):
        x = x.detach().requires_grad_()
        logits = model(x[None])[0]
        prediction, goal = logits.argmax(0), goal_by_hand(logits.detach(), labels, targeted)
        i, j = torch.nonzero((prediction != goal) & (goal != VOID)).T
        iou = iou_by_hand(prediction, goal)
        found.append((len(i), x.detach(), iou))
        if not len(i):
            return found
        objective = logits[goal[i, j], i, j].sum() - ((x - clean) ** 2).sum()
        (slope,) = torch.autograd.grad(objective, x)
        x = torch.clamp(x + (beta * iou + tau) * slope, 0, 1)
    return found


def chosen(found: list[tuple[int, Tensor, float]]) -> int:
    """The last of the iterates with the fewest pixels off target; the clean one only where it has none off."""
    counts = [count for count, _, _ in found]
    return 0 if counts[0] == 0 else max(i for i, count in enumerate(counts) if i and count == min(counts[1:]))


def goals(p: Problem, targeted: bool) -> Tensor:
    return p.labels.roll(1, 0) if targeted else p.labels


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_loop_written_out(kind: str, targeted: bool) -> None:
    p = problem(kind)
    own: dict[str, Any] = {"steps": 13, "targeted": targeted, **PACE[kind]}
    made = asma(p.model, p.images, goals(p, targeted), rng=p.streams(), **own)
    for i, labels in enumerate(goals(p, targeted)):
        found = path(p.model, p.images[i], labels, **own)
        torch.testing.assert_close(made[i], found[chosen(found)][1], rtol=0, atol=1e-9)
    assert (made - p.images).abs().max() > 1e-2


def test_the_loop_is_told_from_one_that_errs() -> None:
    """Some image keeps an iterate that is not the last, and the IoU, the penalty and the box have their say."""
    p = problem("segmentation")
    own: dict[str, Any] = {"steps": 13, "tau": 2e-3, "beta": 2e-2, "targeted": True}
    labels = goals(p, True)
    walks = [path(p.model, p.images[i], labels[i], **own) for i in range(4)]
    assert any(chosen(walk) < len(walk) - 1 for walk in walks)
    assert all(max(iou for _, _, iou in walk) > walk[0][2] + 0.2 for walk in walks)
    made = asma(p.model, p.images, labels, rng=p.streams(), **own)
    torch.testing.assert_close(made, torch.stack([w[chosen(w)][1] for w in walks]), rtol=0, atol=1e-9)
    assert ((made != p.images) & ((made == 0) | (made == 1))).any()
    steady = asma(p.model, p.images, labels, rng=p.streams(), **{**own, "beta": 0.0})
    assert (steady - made).abs().amax((1, 2, 3)).min() > 1e-2


def test_the_iou_is_the_mean_over_the_targets_classes_of_each_image() -> None:
    rng = torch.Generator().manual_seed(0)
    for classes in (2, 5):
        goal, prediction = (torch.randint(classes, (6, 7, 9), generator=rng) for _ in range(2))
        prediction[1] = goal[1]
        prediction[2] = (goal[2] + 1) % classes
        goal[3] = 1  # the prediction has classes that the target has not
        goal[0, :4], goal[4] = VOID, VOID
        by_hand = [iou_by_hand(*masks) for masks in zip(prediction, goal, strict=True)]
        found = _mean_iou(prediction, goal, classes)
        torch.testing.assert_close(found, torch.tensor(by_hand).double(), rtol=0, atol=1e-7)
        assert found[[1, 2, 4]].tolist() == [1, 0, 0]
    binary = torch.tensor([[[1, 1, 1, 0]]]), torch.tensor([[[1, 1, 0, 0]]])
    assert float(_mean_iou(*binary, classes=2)) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_on_a_linear_pixel_it_walks_the_weights_until_the_target_is_reached() -> None:
    """delta -> delta + tau (w - 2 delta) is w/2 (1 - (1 - 2 tau)^n): the first n past the boundary is kept."""
    weight, bias, tau = torch.tensor([0.5, -0.3, 0.2], dtype=torch.float64), -0.1, 0.01
    images, wanted = torch.full((1, 3, 1, 1), 0.4, dtype=torch.float64), torch.ones(1, 1, 1, dtype=torch.int64)
    own: dict[str, Any] = {"rng": ImageStreams(0, "a"), "tau": tau, "beta": 0.7, "targeted": True}
    margin = float((images.flatten() * weight).sum()) + bias
    bias -= margin + 0.05  # so that the clean margin is -0.05
    walk = [weight / 2 * (1 - (1 - 2 * tau) ** n) for n in range(40)]
    first = next(n for n, delta in enumerate(walk) if float(delta @ weight) > 0.05)
    assert 10 < first < 30
    made = asma(Linear(weight, bias), images, wanted, steps=60, **own)
    torch.testing.assert_close((made - images).flatten(), walk[first], rtol=0, atol=1e-12)
    short = asma(Linear(weight, bias), images, wanted, steps=4, **own)  # not reached: as far as it came
    torch.testing.assert_close((short - images).flatten(), walk[4], rtol=0, atol=1e-12)


def test_a_target_out_of_reach_leaves_it_where_the_penalty_holds_it() -> None:
    """Of two pixels one is there already; the delta of the other comes to w/2."""
    weight = torch.tensor([0.4, -0.2, 0.1], dtype=torch.float64)
    images = torch.full((1, 3, 1, 2), 0.5, dtype=torch.float64)
    own: dict[str, Any] = {"steps": 200, "tau": 0.02, "beta": 0.05, "targeted": True}
    made = asma(Linear(weight, -9.0), images, torch.tensor([[[1, 0]]]), rng=ImageStreams(0, "a"), **own)
    expected = images + torch.stack([weight / 2, 0 * weight], 1).view(1, 3, 1, 2)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("targeted", [False, True])
def test_what_is_won_already_costs_one_pass_and_stays(targeted: bool) -> None:
    p = problem("segmentation")
    seen = p.model(p.images).argmax(1).where(p.labels != VOID, VOID)
    labels = seen if targeted else (seen + 1).where(seen != VOID, VOID) % 5
    labels = labels.where(p.labels != VOID, VOID)
    own: dict[str, Any] = {"rng": p.streams(), "steps": 25, "targeted": targeted, **PACE["segmentation"]}
    with count_passes(p.model) as passes:
        made = asma(p.model, p.images, labels, **own)
    assert torch.equal(made, p.images)
    assert made.data_ptr() != p.images.data_ptr()
    assert passes.forwards == passes.backwards == 4
    mixed = labels.clone()
    mixed[2] = p.labels[0] if targeted else p.labels[2]
    with count_passes(p.model) as passes:
        made = asma(p.model, p.images, mixed, **own)
    others = torch.tensor([0, 1, 3])
    assert torch.equal(made[others], p.images[others])
    assert (made[2] - p.images[2]).abs().max() > 1e-3
    assert passes.forwards <= 3 + 26  # the others left after the first


def test_those_that_finish_on_the_way_leave_the_others_as_they_are_alone() -> None:
    p = problem("classifier", count=24)
    own: dict[str, Any] = {"steps": 35, "targeted": True, "tau": 5e-3, "beta": 0.0}
    labels = goals(p, True)
    with count_passes(p.model) as passes:
        made = asma(p.model, p.images, labels, rng=p.streams(), **own)
    assert 24 + 10 * 5 < passes.backwards < 24 * 35
    reached = (p.model(made).argmax(1) == labels).flatten()
    assert 8 < int(reached.sum()) < 23
    for i in range(0, 24, 3):
        found = path(p.model, p.images[i], labels[i], **own)
        torch.testing.assert_close(made[i], found[chosen(found)][1], rtol=0, atol=1e-9)


def test_no_neighbour_sets_the_step_of_an_image() -> None:
    p = problem("binary")
    own: dict[str, Any] = {"steps": 6, "targeted": True, **PACE["binary"]}
    labels = goals(p, True)
    pair = asma(p.model, p.images[:2], labels[:2], rng=ImageStreams(0, "ab"), **own)
    flat = torch.stack([p.images[0], torch.zeros_like(p.images[0])])
    with_another = asma(p.model, flat, torch.stack([labels[0], 1 - labels[1].clamp_max(1)]), rng=p.streams(), **own)
    torch.testing.assert_close(pair[0], with_another[0], rtol=0, atol=1e-12)


def test_where_every_step_leads_away_the_best_of_them_is_given_out_and_not_the_clean_image() -> None:
    p = problem("segmentation")
    own: dict[str, Any] = {"steps": 4, "tau": 0.3, "beta": 0.3, "targeted": True}
    made = asma(p.model, p.images, p.labels, rng=p.streams(), **own)
    walks = [path(p.model, p.images[i], p.labels[i], **own) for i in range(4)]
    assert all(count > walk[0][0] for walk in walks for count, _, _ in walk[1:])
    torch.testing.assert_close(made, torch.stack([w[chosen(w)][1] for w in walks]), rtol=0, atol=1e-9)


class Cliff(Segmenter):
    """Two classes, the first two channels; the gradient at a pixel whose second channel is 1 is NaN."""

    class_names = ("a", "b")

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :2] + (1 - images[:, 1:2]).sqrt() * 0


def test_a_gradient_of_nan_comes_out_of_an_image_unless_it_was_finished_before() -> None:
    images = torch.tensor([[0.95, 0.9, 0], [1, 0, 0]]).T.reshape(1, 3, 1, 2)  # the first pixel is at 1 after a step
    own: dict[str, Any] = {"rng": ImageStreams(0, "a"), "tau": 0.1, "beta": 0.0, "targeted": True}
    both, first = torch.tensor([[[1, 1]]]), torch.tensor([[[1, VOID]]])
    assert asma(Cliff(), images, both, steps=1, **own).isfinite().all()
    assert asma(Cliff(), images, both, steps=2, **own).isnan().any()
    assert asma(Cliff(), images, both, steps=25, **own).isnan().any()
    expected = images.clone()
    expected[0, 1, 0, 0] = 1
    for steps in (1, 5, 25):
        assert torch.equal(asma(Cliff(), images, first, steps=steps, **own), expected)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tau", 0),
        ("tau", -1e-5),
        ("tau", "fast"),
        ("tau", True),
        ("tau", float("nan")),
        ("beta", -1e-9),
        ("beta", None),
    ],
)
def test_a_wrong_pace_is_refused(key: str, value: Any) -> None:
    p = problem("binary")
    with pytest.raises(UserError, match=f"^{key} must be a number .*, not {value!r}$"):
        asma(p.model, p.images, p.labels, rng=p.streams(), **{key: value})
