"""Randomised smoothing: certificates of models whose probabilities are known, and what a run makes of them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binom, binomtest
from sklearn.metrics import accuracy_score, jaccard_score
from torch import Tensor

from audit_kit import audit, content, parts_of, save_spec, small
from nets import Flat, problem
from report_kit import Reader, two_nets
from segaudit.attacks.pgd import pgd
from segaudit.audit import parts
from segaudit.audit.spec import RunSpec
from segaudit.audit.votes import tabulate
from segaudit.defenses.certify import ABSTAIN, CORRECTIONS, Ballot, ballot, certify, least_votes, radius
from segaudit.report.certified import certificates, radii
from segaudit.report.page import page
from segaudit.report.tables import table
from segaudit.rng import ImageStreams, drawing, streams_of
from segaudit.types import VOID, Results, Segmenter, Smoothed, UserError, Votes
from test_defenses import Mirror, behind, picture, streams

pytestmark = pytest.mark.usefixtures("one_thread")

SIGMA = 0.25


class Sign(Segmenter):
    """Class 0 where a pixel is above 0, else class 1: in noise, of a probability that is known."""

    class_names = ("above", "below")

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([images, torch.zeros_like(images)], 1)


def known(probability: Tensor | float, *shape: int) -> Tensor:
    """Images N x 1 x H x W on which `Sign` says class 0 with a probability, pixel by pixel."""
    wanted = torch.as_tensor(probability, dtype=torch.float64).expand(shape)
    return SIGMA * torch.special.ndtri(wanted)


class Watched(Segmenter):
    """A model that keeps what it was given."""

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.model, self.class_names = model, model.class_names
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.clone())
        made: Tensor = self.model(images)
        return made


def by_hand(votes: Sequence[int], n: int, tau: float, alpha: float, correction: str) -> list[bool]:
    """Bonferroni, or Holm's steps one after the other, on p-values of scipy."""
    chance = {k: binomtest(k, n, tau, alternative="greater").pvalue for k in set(votes)}
    p = [chance[k] for k in votes]
    if correction == "bonferroni":
        return [value <= alpha / len(p) for value in p]
    made = [False] * len(p)
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[i] > alpha / (len(p) - rank):
            break
        made[i] = True
    return made


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize(("n", "tau", "alpha"), [(60, 0.75, 0.01), (40, 0.5, 0.1), (100, 0.9, 0.3)])
def test_the_tests_are_those_of_scipy_and_of_holm(correction: str, n: int, tau: float, alpha: float) -> None:
    rng, sure, between = np.random.default_rng(0), 0, set()
    for pixels in (1, 2, 7, 60, 400):
        for low in (0.2, tau, 0.9 + tau / 10):
            votes = rng.binomial(n, rng.uniform(low, 1, pixels))
            least = least_votes(np.bincount(votes, minlength=n + 1), tau=tau, alpha=alpha, correction=correction)
            expected = by_hand(votes.tolist(), n, tau, alpha, correction)
            assert (votes >= least).tolist() == expected
            sure += sum(expected)
            other = least_votes(np.bincount(votes, minlength=n + 1), tau=tau, alpha=alpha, correction="bonferroni")
            assert least <= other
            between.add(int(((votes >= least) & (votes < other)).sum()))
    assert 50 < sure < 1200
    assert (max(between) > 0) == (correction == "holm")


def test_no_pixel_is_no_test_and_no_vote_is_no_certificate() -> None:
    assert least_votes(np.zeros(61, np.int64), tau=0.75, alpha=0.01) > 0
    every = np.eye(61, dtype=np.int64)[0] * 5
    assert least_votes(every, tau=0.5, alpha=0.5) > 0


FALSE = {"sigma": SIGMA, "tau": 0.75, "n0": 10, "n": 100, "alpha": 0.05}
"""Without a correction some 4 in 100 pixels at tau would be certified, some in every image."""


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("probability", [0.75, 0.72])
def test_false_certificates_are_rarer_than_alpha_and_true_ones_as_frequent_as_they_must_be(
    correction: str, probability: float
) -> None:
    """10,000 pixels that none may be certified of, in 20 images, beside as many that most must be."""
    shares = torch.full((20, 1, 20, 50), probability, dtype=torch.float64)
    shares[..., 25:] = 0.93
    images, ids = known(shares, *shares.shape), [f"{i}" for i in range(20)]
    made = certify(Sign(), images, rng=ImageStreams(3, ids, "x"), batch=10, correction=correction, **FALSE)
    wrong = (made != ABSTAIN) & (shares[:, 0] < 0.8)
    assert wrong.numel() // 2 == 10_000
    assert wrong.sum() <= FALSE["alpha"] * 10_000
    assert wrong.flatten(1).any(1).sum() <= 3  # of 20 images at alpha 0.05: more in 2 of 100 seeds at most
    true = (made == 0)[shares[:, 0] > 0.8].double().mean()
    every = least_votes(np.array([0] * 100 + [1000]), tau=0.75, alpha=0.05, correction="bonferroni")
    power = binom.sf(every - 1, 100, 0.93)
    assert 0.5 < power < 0.95
    assert float(true) > power - 0.02
    if correction == "bonferroni":
        assert float(true) < power + 0.02


def test_the_draws_that_choose_a_class_do_not_vote_for_it() -> None:
    images = known(0.5, 4, 1, 50, 50)
    found = ballot(Sign(), images, rng=streams(4), sigma=SIGMA, n0=50, n=50)
    mean = float(found.votes.double().mean())
    assert mean == pytest.approx(25, abs=4 * math.sqrt(50 / 4) / 100)  # 50 draws that had voted twice: 27.8
    assert 0.4 < float(found.classes.double().mean()) < 0.5  # a tie is the first class's
    assert float(found.votes.double().var()) == pytest.approx(12.5, rel=0.1)


@pytest.mark.parametrize("batch", [1, 4, 7, 100])
def test_no_draw_repeats_in_a_batch_or_between_batches_images_or_stages(batch: int) -> None:
    model, images = Watched(Mirror()), picture(3, 3, 8, 9)
    ballot(model, images, rng=streams(3), sigma=0.5, n0=5, n=13, batch=batch)
    assert max(map(len, model.seen)) == min(batch, 13)
    copies = torch.cat(model.seen)
    assert len(copies) == 3 * 18
    noise = (copies - images.repeat_interleave(18, 0)) / 0.5
    numbers = noise.round(decimals=6).flatten(1)
    assert len(numbers.unique(dim=0)) == 3 * 18
    assert len(numbers.flatten().unique()) > 0.95 * numbers.numel()  # nor a part of a draw
    assert float(noise.mean()) == pytest.approx(0, abs=0.04)
    assert float(noise.std()) == pytest.approx(1, abs=0.03)
    assert float(torch.corrcoef(noise.flatten(1)).triu(1).abs().max()) < 0.4
    assert copies.min() < 0  # and nothing is clipped
    assert copies.max() > 1


def test_neither_the_batch_nor_the_other_images_change_a_vote() -> None:
    p = problem("segmentation")
    own: dict[str, Any] = {"sigma": 0.1, "n0": 3, "n": 10}
    whole = ballot(p.model, p.images, rng=p.streams(), batch=32, **own)
    assert len(whole.votes.unique()) > 6
    for batch in (1, 4):
        again = ballot(p.model, p.images, rng=p.streams(), batch=batch, **own)
        assert torch.equal(again.classes, whole.classes)
        assert torch.equal(again.votes, whole.votes)
    rows = torch.tensor([2, 0])
    some = ballot(p.model, p.images[rows], rng=p.streams()[rows], **own)
    assert torch.equal(some.classes, whole.classes[rows])
    assert torch.equal(some.votes, whole.votes[rows])
    other = ballot(p.model, p.images, rng=p.streams(seed=1), **own)
    assert not torch.equal(other.votes, whole.votes)


class Shaky(Segmenter):
    """Says class 1 where the sum of two numbers that it draws itself is above 0."""

    class_names, random = ("a", "b"), True

    def forward(self, images: Tensor) -> Tensor:
        streams = streams_of(images)
        drawn = streams.normal(images[:, :1]) + streams.uniform(images[:, :1], -0.5, 0.5)
        return torch.cat([-drawn, drawn], 1)


def test_a_random_model_votes_the_same_whatever_the_batch_and_the_other_images() -> None:
    found = []
    for batch in (1, 8):
        with drawing(streams(1, seed=5)):
            found.append(ballot(Shaky(), picture(1, 3, 6, 6), rng=streams(1), n0=3, n=30, batch=batch))
    assert torch.equal(found[0].votes, found[1].votes)
    assert 10 < float(found[0].votes.double().mean()) < 20
    with drawing(streams(3, seed=5)):  # and whatever the other images
        three = ballot(Shaky(), picture(3, 3, 6, 6), rng=streams(3), n0=3, n=30)
    assert torch.equal(three.votes[:1], found[0].votes)
    assert not torch.equal(three.votes[1], three.votes[0])


def test_the_first_class_wins_a_tie() -> None:
    class Turns(Segmenter):
        """One class after the other, from the last to the first."""

        class_names, calls = tuple("abcd"), 0

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            return F.one_hot(torch.tensor(-self.calls % 4), 4).view(1, 4, 1, 1) * torch.ones_like(images[:, :1])

    found = ballot(Turns(), torch.zeros(1, 1, 2, 2), rng=streams(1), n0=4, n=8, batch=1)
    assert found.classes.unique().tolist() == [0]
    assert found.votes.unique().tolist() == [2]


def test_what_says_any_class_abstains_and_what_never_changes_is_certified() -> None:
    own: dict[str, Any] = {"n0": 20, "n": 100, "alpha": 0.01}
    images = torch.zeros(2, 3, 20, 20, dtype=torch.float64)
    assert (certify(Mirror(), images, rng=streams(2), **own) == ABSTAIN).all()  # three channels of noise
    assert (certify(Flat(4), images, rng=streams(2), **own) == 3).all()
    shifted = images + torch.tensor([0.0, 2.0, 0.0], dtype=torch.float64).view(1, 3, 1, 1)
    assert (certify(Mirror(), shifted, rng=streams(2), **own) == 1).all()


def test_pixels_that_are_not_valid_are_neither_certified_nor_tested() -> None:
    images = known(0.93, 1, 1, 40, 40)
    valid = torch.zeros(1, 40, 40, dtype=torch.bool)
    valid[0, 0, :3] = True
    own: dict[str, Any] = {"n0": 10, "n": 60, "alpha": 0.05, "tau": 0.75, "sigma": SIGMA}
    all_of_them = certify(Sign(), images, rng=streams(1), **own)
    few = certify(Sign(), images, rng=streams(1), valid=valid, **own)
    assert (few[~valid] == ABSTAIN).all()
    votes = ballot(Sign(), images, rng=streams(1), sigma=SIGMA, n0=10, n=60).votes
    alone = least_votes(np.bincount(votes[valid], minlength=61), tau=0.75, alpha=0.05)
    assert (few[valid] == 0).tolist() == (votes[valid] >= alone).tolist()
    together = least_votes(np.bincount(votes.flatten(), minlength=61), tau=0.75, alpha=0.05)
    assert together > alone + 3  # 1,600 tests ask more of a pixel than 3
    assert (all_of_them != ABSTAIN).sum() == (votes >= together).sum()


def test_a_classifier_is_one_test_an_image() -> None:
    class Mean(Segmenter):
        class_names = ("dark", "bright")

        def forward(self, images: Tensor) -> Tensor:
            bright = images.mean((1, 2, 3), keepdim=True) - 0.5
            return torch.cat([-bright, bright], 1)

    size = SIGMA / math.sqrt(3 * 8 * 8)
    images = torch.full((4, 3, 8, 8), 0.5, dtype=torch.float64)
    for i, away in enumerate((0.0, 0.5, 2.5, -2.5)):  # in standard deviations of the mean
        images[i] += away * size
    own: dict[str, Any] = {"sigma": SIGMA, "tau": 0.75, "n0": 20, "n": 200, "alpha": 1e-3}
    assert certify(Mean(), images, rng=streams(4), **own).flatten().tolist() == [ABSTAIN, ABSTAIN, 1, 0]
    p = problem("classifier")
    made = certify(p.model, p.images, rng=p.streams(), **own | {"sigma": 0.02})
    assert made.shape == (4, 1, 1)


class Mixed(Segmenter):
    """Two classes: a fixed filter over the neighbourhood, against a threshold; a linear model."""

    class_names = ("no", "yes")

    def __init__(self, sigma: float = 0.0) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(4)
        self.kernel = torch.randn(1, 3, 3, 3, generator=rng, dtype=torch.float64)
        self.sigma = sigma

    def forward(self, images: Tensor) -> Tensor:
        """Of the model itself, or with a sigma the exact log probabilities of the smoothed one."""
        yes = F.conv2d(images - 0.5, self.kernel, padding=1)
        if not self.sigma:
            return torch.cat([torch.zeros_like(yes), yes], 1)
        reach = yes / (self.sigma * self.norms(images))
        return torch.cat([torch.special.log_ndtr(-reach), torch.special.log_ndtr(reach)], 1)

    def norms(self, images: Tensor) -> Tensor:
        return F.conv2d(torch.ones_like(images), self.kernel.square(), padding=1).sqrt()


def test_no_certificate_is_refuted_by_an_attack_on_the_exact_smoothed_model() -> None:
    sigma, tau, side = 0.1, 0.75, 12
    size = radius(sigma, tau)
    assert size == pytest.approx(0.1 * 0.6744898, rel=1e-6)
    images = 0.5 + 0.1 * torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1)).double()
    own: dict[str, Any] = {"sigma": sigma, "tau": tau, "n0": 30, "n": 300, "alpha": 0.01}
    made = certify(Mixed(), images, rng=streams(1), **own)[0]
    exact = Mixed(sigma)
    true = exact(images).argmax(1)[0]
    distance = (F.conv2d(images - 0.5, exact.kernel, padding=1).abs() / exact.norms(images))[0, 0]
    sure = made != ABSTAIN
    assert 20 < int(sure.sum()) < side * side - 40
    assert torch.equal(made[sure], true[sure])
    assert (distance[sure] >= size).all()

    def flipped(eps: float) -> Tensor:
        """Each pixel of the map, attacked alone on a copy of the image."""
        labels = torch.full((side * side, side * side), VOID)
        labels[torch.arange(side * side), torch.arange(side * side)] = true.flatten()
        copies, ids = images.expand(side * side, -1, -1, -1), [str(i) for i in range(side * side)]
        attacked = pgd(
            exact, copies, labels.view(-1, side, side), rng=ImageStreams(0, ids), eps=eps, norm="l2", start=False
        )
        after = exact(attacked).argmax(1).flatten(1)
        return (after.diagonal() != true.flatten()).view(side, side)

    assert not flipped(size * (1 - 1e-6))[sure].any()
    within = distance < 0.98 * size
    assert within.any()
    assert flipped(size)[within].all()  # the attack is as strong as can be
    assert flipped(1.8 * size)[sure].any()  # and some certificates are all but tight


def test_the_smoothed_model_is_the_log_of_the_mean_answer() -> None:
    p = problem("segmentation")
    own: dict[str, Any] = {"name": "smoothing", "sigma": 0.1, "draws": 6}
    with drawing(streams(4)):
        made = behind(p.model, own)(p.images)
    torch.testing.assert_close(made.exp().sum(1), torch.ones_like(made[:, 0]), rtol=0, atol=1e-12)
    with drawing(streams(4)):
        share = behind(p.model, own | {"fusion": "votes"})(p.images)
    for i in range(4):
        rng = streams(4)[torch.tensor([i])]
        noise = torch.cat([rng.normal(p.images[i : i + 1]) for _ in range(6)])
        logits = p.model(p.images[i] + 0.1 * noise)
        torch.testing.assert_close(made[i], logits.softmax(1).mean(0).log(), rtol=0, atol=1e-10)
        votes = F.one_hot(logits.argmax(1), 5).sum(0).movedim(2, 0)
        torch.testing.assert_close(share[i], ((votes.double() + 0.2) / 7).log(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("fusion", ["softmax", "votes"])
def test_the_gradient_goes_through_the_mean(fusion: str) -> None:
    p = problem("segmentation")
    images, to = p.images.clone().requires_grad_(), picture(4, 3, 17, 23) - 0.5

    def value(seen: Tensor, fusion: str) -> Tensor:
        with drawing(streams(4)):
            logits = behind(p.model, {"name": "smoothing", "sigma": 0.1, "draws": 4, "fusion": fusion})(seen)
        return F.nll_loss(logits, p.labels, ignore_index=VOID, reduction="sum")

    (slope,) = torch.autograd.grad(value(images, fusion), images)
    with torch.no_grad():
        ahead, back = (value(p.images + step * to, "softmax") for step in (1e-6, -1e-6))
    assert float((slope * to).sum()) == pytest.approx(float(ahead - back) / 2e-6, rel=1e-4)


def test_a_chain_puts_a_denoiser_between_the_noise_and_the_model() -> None:
    model, images = Watched(Mirror()), picture(1, 3, 20, 20)
    smooth = {"name": "smoothing", "sigma": 0.3, "draws": 5}
    with drawing(streams(1)):
        behind(model, {"name": "chain", "parts": [smooth, {"name": "blur", "sigma": 1.5}]})(images)
    (seen,) = model.seen
    assert len(seen) == 5
    noise = torch.cat([rng.normal(images) for rng in [streams(1)] for _ in range(5)])
    torch.testing.assert_close(seen, behind(Mirror(), {"name": "blur", "sigma": 1.5})(images + 0.3 * noise))


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"sigma": 0}, "sigma must be a number above 0, not 0"),
        ({"sigma": math.inf}, "sigma must be a number above 0, not inf"),
        ({"sigma": True}, "sigma must be a number above 0, not True"),
        ({"tau": 0.4}, "tau must be a number of at least 0.5 and below 1, not 0.4"),
        ({"tau": 1}, "tau must be a number of at least 0.5 and below 1, not 1"),
        ({"alpha": 0.0}, "alpha must be a number above 0 and below 1, not 0.0"),
        ({"alpha": 1}, "alpha must be a number above 0 and below 1, not 1"),
        ({"n0": 0}, "n0 must be a whole number of at least 1, not 0"),
        ({"n": 2.5}, "n must be a whole number of at least 1, not 2.5"),
        ({"batch": 0}, "batch must be a whole number of at least 1, not 0"),
        ({"correction": "holms"}, "correction must be holm or bonferroni, not 'holms' (did you mean 'holm'?)"),
        (
            {"n": 20},
            "n 20 certifies nothing at tau 0.75 and alpha 0.0001, however the draws vote; one pixel alone needs 33",
        ),
    ],
)
def test_wrong_arguments_are_said_in_one_line(own: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        certify(Sign(), torch.zeros(1, 1, 4, 4), rng=streams(1), **own)
    assert str(error.value) == f"certification: {said}"


def test_nan_is_not_a_vote() -> None:
    with pytest.raises(UserError, match="certification: the model gives NaN"):
        ballot(Mirror(), torch.full((1, 3, 4, 4), math.nan), rng=streams(1), n0=1, n=1)


def cast(rng: np.random.Generator, images: int = 3, classes: int = 4, n: int = 80) -> tuple[Votes, Any]:
    """Made-up votes and the maps that they are of."""
    shape = images, 20, 25
    truth = rng.integers(0, classes, shape)
    chosen = np.where(rng.random(shape) < 0.8, truth, rng.integers(0, classes, shape))
    votes = rng.binomial(n, np.where(rng.random(shape) < 0.7, 0.995, rng.uniform(0.3, 1, shape)))
    truth[rng.random(shape) < 0.1] = VOID
    maps = [torch.from_numpy(array) for array in (chosen, votes, truth)]
    tables = tabulate(Ballot(maps[0], maps[1], n), maps[2])
    return Votes(tuple(f"{i}" for i in range(images)), tuple(tables), np.arange(images) + 1.0), (truth, chosen, votes)


ASKED: dict[str, Any] = {"tau": [0.6, 0.75], "alpha": 0.01, "correction": "holm"}


def voted(*sets: tuple[Smoothed, Votes], **asked: Any) -> Results:
    return two_nets().results(spec={"name": "a run", "certification": ASKED | asked}, votes=sets)


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_the_table_is_what_scikit_learn_makes_of_the_maps(correction: str) -> None:
    votes, (truth, chosen, agreed) = cast(np.random.default_rng(2))
    found = certificates(voted((Smoothed("net", "none", 0.5, 10, 80), votes), correction=correction))
    assert [(row.tau, row.images, row.seconds) for row in found] == [(0.6, 3, 2.0), (0.75, 3, 2.0)]
    valid = truth != VOID
    for row in found:
        assert row.radius == pytest.approx(0.5 * {0.6: 0.2533471, 0.75: 0.6744898}[row.tau], rel=1e-6)
        sure = np.zeros_like(valid)
        for i in range(3):
            sure[i][valid[i]] = by_hand(agreed[i][valid[i]].tolist(), 80, row.tau, 0.01, correction)
        answer = np.where(sure, chosen, 99)[valid]
        assert row.abstained == pytest.approx(1 - sure[valid].mean(), rel=1e-12)
        assert 0.05 < row.abstained < 0.6
        assert row.certified_accuracy == pytest.approx(accuracy_score(truth[valid], answer), rel=1e-12)
        miou = jaccard_score(truth[valid], answer, average="macro", labels=range(4))
        assert row.certified_miou == pytest.approx(miou, rel=1e-12)
        assert row.smoothed_accuracy == pytest.approx((truth == chosen)[valid].mean(), rel=1e-12)
        miou = jaccard_score(truth[valid], chosen[valid], average="macro")
        assert row.smoothed_miou == pytest.approx(miou, rel=1e-12)
    assert found[1].certified_accuracy < found[0].certified_accuracy < found[0].smoothed_accuracy


def test_tables_page_and_curves_of_certificates() -> None:
    rng = np.random.default_rng(0)
    evil = "<script>alert(1)</script>"
    sets = [(Smoothed(name, blur, sigma, 10, 80), cast(rng)[0]) for name, blur, sigma in
            (("net", "none", 0.25), ("net", "blur(sigma=2)", 0.5), (evil, "none", 0.25))]  # fmt: skip
    results = voted(*sets)
    lines = table(results, form="certified").splitlines()
    assert "n0 10, n 80, alpha 0.01 an image (holm)" in lines[0]
    assert "certified accuracy" in lines[2]
    assert len(lines) == 4 + 3 * 2
    exact = table(results, "csv", form="certified").splitlines()
    assert exact[0] == (
        "model,denoiser,sigma,tau,radius,images,certified_accuracy,certified_miou,abstained,smoothed_accuracy,"
        "smoothed_miou,seconds"
    )
    assert len(exact) == 1 + 3 * 2
    assert float(exact[1].split(",")[6]) == certificates(results)[0].certified_accuracy
    drawn = radii(results)
    assert drawn is not None
    for line in drawn["lines"]:
        points = [tuple(map(float, point.split(","))) for point in line["points"].split()]
        (x, y) = zip(*points, strict=True)
        assert list(x) == sorted(x)
        assert list(y) == sorted(y)  # downwards: less is certified at a larger radius
        assert y[0] < y[-1]
        assert y[-1] == drawn["bottom"]
        assert max(x) <= drawn["right"]
    far = [max(float(p.split(",")[0]) for p in line["points"].split()) for line in drawn["lines"]]
    assert far[1] == drawn["right"]
    assert far[0] == pytest.approx((far[1] + drawn["left"]) / 2, abs=0.1)
    html = page(results)
    assert evil not in html
    read = Reader(html)
    assert sum(tag == "polyline" for tag, _ in read.tags) == 3
    assert "net + blur(sigma=2), sigma 0.5" in read.text
    assert "certified accuracy" in read.text
    with pytest.raises(UserError, match=r"holds no certificates; ask for them in its spec with `certification: \{"):
        table(two_nets().results(), form="certified")
    assert radii(two_nets().results()) is None
    assert "polyline" not in {tag for tag, _ in Reader(page(two_nets().results())).tags}


def test_images_that_are_all_void_have_no_certificate_and_no_nan() -> None:
    empty = tabulate(Ballot(torch.zeros(1, 2, 2).long(), torch.zeros(1, 2, 2).long(), 80), torch.full((1, 2, 2), VOID))
    assert empty[0].shape == (0, 4)
    results = voted((Smoothed("net", "none", 0.5, 10, 80), Votes(("a",), tuple(empty), np.ones(1))))
    assert math.isnan(certificates(results)[0].certified_accuracy)
    assert not re.search(r"\bnan\b", Reader(page(results)).text, re.IGNORECASE)
    assert ",," in table(results, "csv", form="certified")


TINY: dict[str, Any] = {"sigma": [0.05, 0.1], "tau": [0.6], "n0": 2, "n": 16, "alpha": 0.05}


def keys(out: Path, kind: str = "jobs") -> list[str]:
    index = json.loads((out / "plan.json").read_text())
    return [job["key"] for job in (index["jobs"] if kind == "jobs" else index["votes"]["jobs"])]


def test_a_run_certifies_a_bundled_net_on_scenes(tmp_path: Path) -> None:
    smooth = {"name": "smoothing", "sigma": 0.05, "draws": 2}
    asked: dict[str, Any] = {
        "name": "certified", "data": {"name": "scenes", "split": "test", "images": 2}, "models": ["dilated"],
        "attacks": ["fgsm"], "eps": ["4/255"], "defenses": ["none", smooth], "precision": "fp32", "diagnostics": False,
        "certification": TINY | {"sigma": 0.02, "n": 30, "limit": 1, "tau": [0.5, 0.6], "alpha": "5e-2",
                                 "denoisers": ["none", {"name": "blur", "sigma": 1.0}]},
    }  # fmt: skip
    spec = parts.read(RunSpec, save_spec(tmp_path / "spec.yaml", asked))
    results = audit(spec, tmp_path / "out")
    found = certificates(results)
    assert [(row.denoiser, row.tau, row.images) for row in found] == [
        (denoiser, tau, 1) for denoiser in ("none", "blur(sigma=1)") for tau in (0.5, 0.6)
    ]
    for row in found:
        assert 0.5 < row.certified_accuracy <= row.smoothed_accuracy
        assert 0 < row.abstained < 0.4
        assert row.certified_accuracy + row.abstained <= 1
    assert found[0].radius == 0
    assert found[0].certified_accuracy >= found[1].certified_accuracy
    assert [ids for _, votes in results.votes for ids in votes.ids] == ["street-test-0000"] * 2
    for _, votes in results.votes:
        for rows in votes.pixels:
            assert rows[:, 3].sum() > 0.9 * 128 * 128
    label = spec.defenses[1].label()
    assert {cell.threat for cell, _ in results.cells if cell.defense == label} == {"none", "oblivious", "adaptive"}
    text = Reader(page(results)).text
    assert "dilated + blur(sigma=1), sigma 0.02" in text


def test_votes_resume_and_are_asked_anew_without_a_draw(tmp_path: Path) -> None:
    own: dict[str, Any] = {"attacks": ["fgsm"], "eps": ["4/255"], "count": 10}
    out = tmp_path / "out"
    plain = audit(small(tmp_path, **own), tmp_path / "plain")
    assert not plain.votes
    whole = audit(small(tmp_path, **own, certification=TINY), out)
    assert keys(out) == keys(tmp_path / "plain")  # no other cell knows of it
    assert "votes" not in json.loads((tmp_path / "plain" / "plan.json").read_text())
    votes = [path for key in keys(out, "votes") for path in (out / "cells" / key).iterdir()]
    assert len(votes) == 2 * 2
    before = parts_of(out)
    votes[1].unlink()
    votes[2].unlink()
    log = json.loads((out / "log.json").read_text())
    assert log["parts"] == log["sessions"][0]["computed"] == 2 * 2 + 2 * 2
    from segaudit.audit.run import results

    assert results(str(out)).lacking == 2
    again = audit(small(tmp_path, **own, certification=TINY), out)
    assert again.lacking == 0
    assert len(before.items() & parts_of(out).items()) == len(before) - 2
    for (of, one), (same, other) in zip(whole.votes, again.votes, strict=True):
        assert of == same
        assert one.ids == other.ids == tuple(f"p{i:02d}" for i in range(10))
        for a, b in zip(one.pixels, other.pixels, strict=True):
            np.testing.assert_array_equal(a, b)
    before = parts_of(out)
    more = audit(small(tmp_path, **own, certification=TINY | {"tau": [0.5, 0.7], "alpha": 0.2}), out)
    assert parts_of(out) == before
    assert [row.tau for row in certificates(more)] == [0.5, 0.7] * 2
    audit(small(tmp_path, **own, certification=TINY | {"sigma": [0.05, 0.2]}), out)
    assert len(parts_of(out)) == len(before) + 2


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"sigmas": 0.5}, "certification: unknown key 'sigmas' (did you mean 'sigma'?)"),
        ({"sigma": []}, "certification.sigma: "),
        ({"sigma": "a lot"}, "certification.sigma.0: 'a lot' is not a number"),
        ({"sigma": -1}, "certification: sigma must be a number above 0, not -1"),
        ({"tau": 2}, "certification: tau must be a number of at least 0.5 and below 1, not 2"),
        ({"alpha": 0}, "certification: alpha must be a number above 0 and below 1, not 0"),
        ({"n": 10}, "certification: n 10 certifies nothing at tau 0.75 and alpha 0.0001"),
        ({"n0": 0}, "certification.n0: "),
        ({"correction": "none"}, "certification.correction: "),
        ({"limit": 0}, "certification.limit: "),
        ({"denoisers": ["blurr"]}, "no defense is called 'blurr' (did you mean 'blur'?)"),
        ({"denoisers": ["blur", "blur"]}, "denoisers: 'blur' is there twice"),
        (3, "certification: write {key: value, ...}, not 3"),
    ],
)
def test_a_wrong_block_is_one_line(tmp_path: Path, over: Any, said: str) -> None:
    with pytest.raises(UserError) as error:
        parts.read(RunSpec, save_spec(tmp_path / "spec.yaml", content(tmp_path, certification=over)))
    assert said in str(error.value)
    assert "\n" not in str(error.value)
