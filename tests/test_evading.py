"""The attack that evades a detector of attacked images, and the step that it takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from detect_kit import noise
from nets import Linear, Net, problem
from segaudit.attacks._iterate import project
from segaudit.attacks.evading import box_step, evading
from segaudit.attacks.pgd import pgd
from segaudit.defenses.detectors import reference
from segaudit.defenses.detectors.entropy_map import entropy_map
from segaudit.defenses.detectors.reconstruction import reconstruction
from segaudit.defenses.detectors.squeezing import squeezing
from segaudit.metrics.roc import auc
from segaudit.rng import ImageStreams
from segaudit.types import Segmenter, UserError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("seed", range(6))
def test_the_step_in_the_box_is_that_of_a_linear_program(seed: int) -> None:
    """But for the one value that the program moves to where nothing is left of the constraint."""
    rng = np.random.default_rng(seed)
    goal, kept = rng.normal(0, 1, (2, 3 * 4 * 5))
    kept = kept - (0.6 * goal if seed % 2 else 0)
    low, high = -rng.uniform(0, 1, 60), rng.uniform(0, 1, 60)
    made = box_step(*(torch.from_numpy(own).view(1, 3, 4, 5) for own in (goal, kept, low, high))).flatten().numpy()
    best = linprog(-goal, -kept[None], [0], bounds=list(zip(low, high, strict=True))).x
    assert kept @ made >= -1e-9
    assert (np.abs(made - best) > 1e-9).sum() <= 1
    assert goal @ made <= goal @ best + 1e-9
    assert (np.minimum(np.abs(made - low), np.abs(made - high)) < 1e-12).all()


def test_a_step_that_disturbs_nothing_is_taken_whole() -> None:
    goal = noise(2, 3, 4, 5) - 0.5
    box = torch.ones_like(goal)
    torch.testing.assert_close(box_step(goal, 1e-20 * goal, -box, box), goal.sign())
    torch.testing.assert_close(box_step(goal, 0 * goal, -box, box), goal.sign())
    assert box_step(0 * goal, -goal, -box, 0 * box).isfinite().all()


def brightness(model: Segmenter, images: Tensor) -> Tensor:
    return images.mean((1, 2, 3))


def test_a_linear_model_is_attacked_beside_a_linear_detector() -> None:
    """Blue may fall as far as red rises: what the detector adds up stays as it is."""
    model = Linear(torch.tensor([-3.0, 0.0, 0.5], dtype=torch.float64), 1.1)
    images = torch.full((1, 3, 4, 4), 0.4, dtype=torch.float64)
    labels = torch.ones(1, 4, 4, dtype=torch.int64)
    made = evading(model, images, labels, rng=ImageStreams(0, ("a",)), eps=0.1, steps=10, detector=brightness)
    assert model(images).argmax(1).all()
    assert not model(made).argmax(1).any()
    assert float(brightness(model, made)) <= float(brightness(model, images))
    delta = (made - images)[0].mean((1, 2))
    assert delta[0] > 0.05 > 0 > delta[1:].sum()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ["entropy_map", "squeezing", "reconstruction"])
def test_what_evades_a_detector_is_not_seen_by_it_and_the_model_is_wrong(name: str, norm: str) -> None:
    p, eps = problem("segmentation", count=8), {"linf": 12 / 255, "l2": 1.5}[norm]
    others = problem("segmentation", count=28).images[8:]
    smooth = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    known = reference.learnt(entropy_map(p.model, others))
    score = {
        "entropy_map": lambda model, images: reference.distance(entropy_map(model, images), known),
        "squeezing": squeezing,
        "reconstruction": lambda model, images: reconstruction(model, images, denoiser=smooth),
    }[name]
    own: dict[str, Any] = {"rng": p.streams(), "eps": eps, "norm": norm, "steps": 16}
    blind = pgd(p.model, p.images, p.labels, **own)
    made = evading(p.model, p.images, p.labels, detector=score, **own)
    clean, seen, unseen = (score(p.model, images).detach().numpy() for images in (p.images, blind, made))
    assert auc(clean, unseen) < min(0.5, auc(clean, seen))
    assert (unseen <= clean + 1e-12).all()
    assert p.accuracy(made) < p.accuracy(p.images) - 0.3
    assert (project(made, p.images, eps, norm) - made).abs().max() < 1e-12


def test_a_weight_trades_the_score_for_the_loss() -> None:
    p = problem("segmentation", count=8)
    own: dict[str, Any] = {"rng": p.streams(), "eps": 12 / 255, "steps": 10, "detector": squeezing}
    scores, wrong = [], []
    for weight in (0.0, 0.3, 3.0):
        made = evading(p.model, p.images, p.labels, weight=weight, **own)
        scores.append(float(squeezing(p.model, made).mean()))
        wrong.append(-p.accuracy(made))
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 2 * scores[2]
    assert wrong == sorted(wrong, reverse=True)
    free = pgd(p.model, p.images, p.labels, rng=p.streams(), eps=12 / 255, steps=10, start=False)
    assert p.accuracy(free) == pytest.approx(-wrong[0], abs=0.02)


def test_what_is_below_the_threshold_is_not_noticed() -> None:
    p = problem("segmentation", count=8)
    clean = squeezing(p.model, p.images)
    own: dict[str, Any] = {"rng": p.streams(), "eps": 12 / 255, "steps": 8, "detector": squeezing}
    made = evading(p.model, p.images, p.labels, threshold=1.5 * float(clean.max()), **own)
    scores = squeezing(p.model, made)
    assert scores.max() <= 1.5 * clean.max()
    assert (scores > clean + 0.01).any()
    assert p.accuracy(made) < p.accuracy(evading(p.model, p.images, p.labels, **own))


def test_a_detector_without_a_gradient_and_none_at_all_are_said() -> None:
    p = problem("binary")
    own: dict[str, Any] = {"rng": p.streams(), "eps": 0.1}
    for weight in (None, 1.0):
        with pytest.raises(UserError, match="scores have no gradient"):
            evading(p.model, p.images, p.labels, detector=lambda _, x: x.detach().mean((1, 2, 3)), weight=weight, **own)
    with pytest.raises(UserError, match=r"detector must be a function of model and images .* not 'squeezing'"):
        evading(p.model, p.images, p.labels, detector="squeezing", **own)


def test_where_the_scores_gradient_is_zero_an_image_comes_back_as_it_was_before_it_was_noticed() -> None:
    p = problem("segmentation")
    moved = lambda _, x: ((x - p.images).abs() * 85).floor().flatten(1).sum(1)
    for steps, far in ((10, 2 / 255), (5, 0.0)):  # the first step is of 2/255, which is not noticed, or of 4/255
        made = evading(p.model, p.images, p.labels, rng=p.streams(), eps=8 / 255, steps=steps, detector=moved)
        assert float((made - p.images).abs().max()) == pytest.approx(far)
        assert not moved(p.model, made).any()
        assert (p.accuracy(made) < p.accuracy(p.images)) is (far > 0)


def test_loss_and_detector_share_a_pass() -> None:
    class Counted(Net):
        calls = 0

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(images)

    p = problem("segmentation")
    model = Counted(5).double().eval()
    evading(model, p.images, p.labels, rng=p.streams(), eps=0.1, steps=5, detector=lambda m, x: entropy_map(m, x)[:, 0])
    assert model.calls == 6
