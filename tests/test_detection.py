"""Detectors of attacked images, the attack that evades them, and what an audit makes of both."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linprog
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import ledoit_wolf
from torch import Tensor, nn

from audit_kit import audit, by_name, content, parts_of, small, write_net, write_pictures
from nets import Linear, Net, problem
from report_kit import Reader, cell, run, scored
from segaudit import registry
from segaudit.attacks._iterate import project
from segaudit.attacks._resize import Resizer
from segaudit.attacks.blended_scaling import blended_scaling
from segaudit.attacks.evading import box_step, evading
from segaudit.attacks.image_scaling import image_scaling
from segaudit.attacks.pgd import pgd
from segaudit.audit import build
from segaudit.audit.keys import Contents
from segaudit.audit.plan import plan
from segaudit.audit.recipe import Recipe
from segaudit.audit.resizing import Scaling
from segaudit.audit.spec import RunSpec
from segaudit.audit.store import Store
from segaudit.defenses.detectors import reference
from segaudit.defenses.detectors.divergence import divergence
from segaudit.defenses.detectors.entropy_map import entropy_map
from segaudit.defenses.detectors.reconstruction import reconstruction
from segaudit.defenses.detectors.spatial_consistency import spatial_consistency
from segaudit.defenses.detectors.squeezing import squeezing
from segaudit.defenses.scaling_detectors import down_up_mse, spectrum_energy
from segaudit.metrics import confusion
from segaudit.metrics.roc import auc, tpr_at
from segaudit.metrics.scaling import scaled
from segaudit.models.denoiser import Denoiser, save_denoiser
from segaudit.report import detection, scaling
from segaudit.report.page import page
from segaudit.report.tables import table
from segaudit.rng import ImageStreams, drawing
from segaudit.types import EVADING, Segmenter, UserError, Watched

pytestmark = pytest.mark.usefixtures("one_thread")


class Fixed(Segmenter):
    """The logits of a pixel are its channels, times a gain."""

    class_names = ("a", "b", "c")

    def __init__(self, gain: float = 10.0) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, images: Tensor) -> Tensor:
        return self.gain * images


class Halves(nn.Module):
    """A denoiser that gives back half of the picture's brightness."""

    def forward(self, images: Tensor) -> Tensor:
        return images / 2


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_entropies_are_summed_up_as_a_loop_over_the_pixels_does() -> None:
    images = noise(2, 3, 6, 7)
    images[:, 0, :, :4] += 0.4
    made = entropy_map(Fixed(), images)
    for image, features in zip(images, made, strict=True):
        p = (10 * image).exp() / (10 * image).exp().sum(0)
        entropy = -(p * p.log()).sum(0) / math.log(3)
        guess = image.argmax(0)
        edge, inside = [], []
        for y in range(6):
            for x in range(7):
                near = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
                others = [guess[v, u] != guess[y, x] for v, u in near if 0 <= v < 6 and 0 <= u < 7]
                (edge if any(others) else inside).append(float(entropy[y, x]))
        ranked = sorted(entropy.flatten().tolist())
        wanted = [np.mean(ranked), np.std(ranked), ranked[4], ranked[20], ranked[37], np.mean(edge), np.mean(inside)]
        np.testing.assert_allclose(features.numpy(), wanted, atol=1e-12)
        assert min(len(edge), len(inside)) > 2


def test_a_classifier_has_one_entropy_and_no_boundary() -> None:
    p = problem("classifier")
    made = entropy_map(p.model, p.images)
    assert made.shape == (4, 1)
    log = p.model(p.images)[:, :, 0, 0].log_softmax(1)
    torch.testing.assert_close(made[:, 0], -(log.exp() * log).sum(1) / math.log(4))


@pytest.mark.parametrize(("count", "size"), [(40, 5), (6, 7), (12, 1)])
def test_the_distance_is_mahalanobis_with_the_shrinkage_of_scikit_learn(count: int, size: int) -> None:
    rng = np.random.default_rng(count)
    features = rng.normal(2, 1, (count, size)) @ rng.normal(0, 1, (size, size)) * 0.01
    known = reference.learnt(torch.from_numpy(features))
    mean, scale = features.mean(0), features.std(0)
    covariance, _ = ledoit_wolf((features - mean) / scale, assume_centered=True)
    inverse = np.linalg.inv(covariance + 1e-6 * np.eye(size))
    others = rng.normal(0, 0.02, (5, size))
    wanted = [mahalanobis(own / scale, mean / scale, inverse) for own in others]
    np.testing.assert_allclose(reference.distance(torch.from_numpy(others), known).numpy(), wanted, rtol=1e-6)


def test_features_that_never_vary_do_not_break_the_distance() -> None:
    features = torch.cat([noise(9, 2), torch.zeros(9, 1)], 1)
    known = reference.learnt(features)
    near, far = reference.distance(torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.1]]), known)
    assert known.isfinite().all()
    assert near < 3 < 1000 < far


def test_what_cannot_be_fitted_is_said() -> None:
    with pytest.raises(UserError, match="two clean images or more, not on 1"):
        reference.learnt(noise(1, 3))
    with pytest.raises(UserError, match="are NaN"):
        reference.learnt(noise(4, 3) * math.nan)
    with pytest.raises(UserError, match="gives 2 features, and was fitted on 3"):
        reference.distance(noise(4, 2), reference.learnt(noise(4, 3)))


def test_a_shifted_distribution_is_seen_and_its_own_is_not() -> None:
    rng = torch.Generator().manual_seed(0)

    def features(count: int, shift: float) -> Tensor:
        return torch.randn(count, 4, generator=rng) + shift

    known = reference.learnt(features(200, 0))
    clean, same, other = (reference.distance(features(200, shift), known).numpy() for shift in (0, 0, 2))
    assert auc(clean, other) > 0.94
    assert abs(auc(clean, same) - 0.5) < 0.08


def iou(one: Tensor, other: Tensor) -> float:
    """The mean IoU of two maps of classes, over those in either."""
    classes = set(one.flatten().tolist()) | set(other.flatten().tolist())
    pairs = [(one == k, other == k) for k in classes]
    return float(np.mean([float((a & b).sum()) / float((a | b).sum()) for a, b in pairs]))


class Placed(Segmenter):
    """The class of a pixel hangs on its place in what the network is given: no patch agrees with another."""

    class_names = ("a", "b", "c")
    seen: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        places = torch.arange(images.shape[2] * images.shape[3]).view(images.shape[2:])
        return F.one_hot(places % 5 % 3, 3).movedim(2, 0).to(images).expand(len(images), -1, -1, -1) + 0 * images


def test_patches_are_compared_where_they_overlap() -> None:
    """The picture's own values tell where a patch was cut."""
    images = torch.arange(13.0 * 17).view(1, 1, 13, 17).expand(2, 3, -1, -1).double() / 221
    model = Placed()
    with drawing(ImageStreams(0, ("a", "b"), "test")):
        made = spatial_consistency(model, images, pairs=5, size=0.6)
    height, width, scores = 8, 10, []
    assert len(model.seen) == 5
    corners = set()
    for patches in tuple(model.seen):
        guess = model(patches).argmax(1)
        firsts = [divmod(round(float(patch[0, 0, 0]) * 221), 17) for patch in patches]
        corners.update(firsts)
        maps = []
        for (y, x), own in zip(firsts, guess, strict=True):
            maps.append(torch.full((13, 17), -1))
            maps[-1][y : y + height, x : x + width] = own
        for i in range(2):
            one, other = maps[i], maps[i + 2]
            both = (one >= 0) & (other >= 0)
            assert both.sum() >= height * width / 4
            scores.append(1 - iou(one[both], other[both]))
    np.testing.assert_allclose(made.numpy(), np.reshape(scores, (5, 2)).mean(0), atol=1e-12)
    assert len(corners) > 8
    assert made.min() > 0.1


def test_a_model_that_sees_pixels_alone_is_consistent_and_a_classifier_is_refused() -> None:
    images = noise(3, 3, 12, 16)
    assert spatial_consistency(Fixed(), images).abs().max() < 1e-12
    p = problem("classifier")
    with pytest.raises(
        UserError,
        match=r"^detector 'spatial_consistency': it compares maps, and of a patch of 8 x 12 the model gives 1 x 1",
    ):
        spatial_consistency(p.model, p.images)
    for own in ({"pairs": 0}, {"size": 0}, {"size": 1.5}):
        with pytest.raises(UserError, match=f"^detector 'spatial_consistency': {next(iter(own))} must be"):
            spatial_consistency(Fixed(), images, **own)


def test_each_image_has_its_own_patches_whatever_the_batch() -> None:
    p = problem("segmentation")
    made = []
    for rows in ([0, 1, 2, 3], [2]):
        with drawing(ImageStreams(3, [p.ids[i] for i in rows], "test")):
            made.append(spatial_consistency(p.model, p.images[rows]))
    torch.testing.assert_close(made[0][2:3], made[1])


def test_reconstruction_and_divergence_by_hand() -> None:
    images = noise(2, 3, 4, 5)
    torch.testing.assert_close(reconstruction(Fixed(), images, denoiser=Halves()), images.mean((1, 2, 3)) / 2)
    made = reconstruction(Fixed(), images, denoiser=Halves(), norm="l2")
    torch.testing.assert_close(made, (images / 2).square().mean((1, 2, 3)))
    found = divergence(Fixed(), images, denoiser=Halves(), temperature=4.0)
    for image, score in zip(images, found, strict=True):
        p, q = (own.flatten(1).T.softmax(1).numpy() for own in (10 * image / 4, 5 * image / 4))
        middle = (p + q) / 2
        each = (p * np.log(p / middle) + q * np.log(q / middle)).sum(1) / 2
        assert float(score) == pytest.approx(each.mean(), abs=1e-12)
    with pytest.raises(UserError, match="detector 'divergence': denoiser must be the path"):
        divergence(Fixed(), images, denoiser=None)
    with pytest.raises(UserError, match=r"^detector 'divergence': temperature must be a number above 0"):
        divergence(Fixed(), images, denoiser=Halves(), temperature=0)
    for own, said in (({"bits": 0}, "bits must be a whole number from 1 to 16"), ({"size": 2}, "size must be an odd")):
        with pytest.raises(UserError, match=f"^detector 'squeezing': {said}"):
            squeezing(Fixed(), images, **own)
    with pytest.raises(UserError, match=r"^detector 'reconstruction': norm must be l1 or l2, not 'l3'"):
        reconstruction(Fixed(), images, denoiser=Halves(), norm="l3")


def test_squeezing_takes_the_copy_that_is_farther_off() -> None:
    flat = torch.full((1, 3, 6, 8), 0.4, dtype=torch.float64)  # the median changes nothing, few bits do
    flat[:, 1] = 0.55
    spots = torch.zeros(1, 3, 6, 8, dtype=torch.float64)  # on the grid of any bits, but single pixels
    spots[:, 0, ::3, ::3] = 1
    made = squeezing(Fixed(), torch.cat([flat, spots]), bits=1)
    p, q = ((10 * own).softmax(1) for own in (flat, flat.round()))
    assert float(made[0]) == pytest.approx(float((p - q).abs().sum(1).mean()), abs=1e-12)
    p, q = ((10 * own).softmax(1) for own in (spots, 0 * spots))
    assert float(made[1]) == pytest.approx(float((p - q).abs().sum(1).mean()), abs=1e-12)


DETECTORS: dict[str, Callable[[Segmenter, Tensor], Tensor]] = {
    "entropy_map": entropy_map,
    "spatial_consistency": spatial_consistency,
    "reconstruction": lambda model, images: reconstruction(model, images, denoiser=Denoiser(width=2).double()),
    "divergence": lambda model, images: divergence(model, images, denoiser=Halves()),
    "squeezing": squeezing,
}


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("kind", ["segmentation", "classifier"])
def test_every_detector_scores_each_image_by_itself_with_a_gradient(name: str, kind: str) -> None:
    if (name, kind) == ("spatial_consistency", "classifier"):
        return
    assert set(DETECTORS) == set(registry.names("detector"))
    p = problem(kind)
    torch.manual_seed(0)
    score = DETECTORS[name]
    if name == "reconstruction":
        net = Denoiser(width=2, bottleneck=True).double().eval()
        score = lambda model, images: reconstruction(model, images, denoiser=net)
    images = p.images.clone().requires_grad_()
    with drawing(p.streams()):
        made = score(p.model, images)
    assert made.isfinite().all()
    (slope,) = torch.autograd.grad(made.sum(), images)
    assert (slope.flatten(1).abs().amax(1) > 0).all()
    assert slope.isfinite().all()
    with drawing(ImageStreams(0, p.ids[1:2], "test")):
        torch.testing.assert_close(score(p.model, p.images[1:2]), made[1:2].detach())


@pytest.mark.parametrize("name", DETECTORS)
def test_a_small_step_against_the_gradient_lowers_the_score_and_one_along_it_raises_it(name: str) -> None:
    """A score of whole classes moves in jumps, so that its step is larger."""
    p = problem("segmentation", count=8)
    smooth = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    known = reference.learnt(entropy_map(p.model, problem("segmentation", count=28).images[8:]))
    score = DETECTORS[name]
    if name == "entropy_map":
        score = lambda model, images: reference.distance(entropy_map(model, images), known)
    if name == "reconstruction":
        score = lambda model, images: reconstruction(model, images, denoiser=smooth)

    def at(images: Tensor) -> Tensor:
        with drawing(p.streams()):
            return score(p.model, images)

    images = p.images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(at(images).sum(), images)
    step = (2 / 255 if name == "spatial_consistency" else 1e-4) * slope.sign()
    low, middle, high = (at(p.images + way * step).detach() for way in (-1, 0, 1))
    assert ((low < middle).sum(), (high > middle).sum()) >= (6, 6)
    assert low.mean() < middle.mean() < high.mean()


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


def watching(folder: Path, **over: Any) -> RunSpec:
    """A run on four pictures, watched by detectors of which one is fitted on four others."""
    block = {"detectors": ["entropy_map", "squeezing"], "evading": {"steps": 8}} | over.pop("block", {})
    if not (folder / "images").exists():
        write_pictures(folder, 9)
        write_net(folder)
    made = content(folder, detection=block, **over)
    made["data"] |= {"only": [f"p{i:02d}" for i in range(4)]}
    block.setdefault("fit", {"only": [f"p{i:02d}" for i in range(4, 9)]})
    if block["fit"] is None:
        del block["fit"]
    return RunSpec.model_validate(made)


def test_a_run_scores_its_cells_and_those_that_evade(tmp_path: Path) -> None:
    found = audit(watching(tmp_path), tmp_path / "run")
    words = [(own.detector, own.cell.threat, own.cell.attack, own.cell.eps) for own in found.detection]
    radii = (4 / 255, 16 / 255)
    assert words == [
        own
        for name in ("entropy_map", "squeezing")
        for own in (
            (name, "none", "none", 0.0),
            *((name, "white-box", attack, eps) for attack in ("fgsm", "pgd(steps=3)") for eps in radii),
            *((name, EVADING, f"evading(steps=8) {name}", eps) for eps in radii),
        )
    ]
    cells = by_name(found)
    for own in found.detection:
        assert own.records.ids == ("p00", "p01", "p02", "p03")
        assert own.scores.shape == (4,)
        if own.cell.threat != EVADING:
            kept = cells["net", "none", own.cell.threat, own.cell.attack, own.cell.eps]
            np.testing.assert_array_equal(own.records.counts.intersection, kept.counts.intersection)
    rows, found_clean = detection.noticed(found), confusion.miou(found.cells[0][1].counts)
    for name in ("entropy_map", "squeezing"):
        evaded = [own for own in rows if (own.detector, own.cell.threat) == (name, EVADING)]
        assert all(own.tpr == 0 for own in evaded)
        assert evaded[-1].miou < found_clean - 0.03
    assert max(own.auc for own in rows if own.cell.threat == "white-box") > 0.7
    assert not found.lacking


def test_the_scores_are_those_of_the_images_that_were_judged(tmp_path: Path) -> None:
    found = audit(watching(tmp_path, block={"detectors": ["squeezing"], "fit": None}, keep=True), tmp_path / "run")
    spec = watching(tmp_path, block={"detectors": ["squeezing"], "fit": None})
    data, store = build.dataset(spec.data), Store(str(tmp_path / "run"))
    model, images = build.model(spec.models[0], data.class_names), data.batch(data.ids).images
    jobs = {tuple(job["cell"].values()): job["key"] for job in store.read_json("plan.json")["jobs"]}
    own = next(w for w in found.detection if (w.cell.attack, w.cell.eps) == ("fgsm", 16 / 255))
    key = next(key for words, key in jobs.items() if "fgsm" in words and 16 / 255 in words)
    kept = {p.id: p.delta for p in store.read_pictures(key, 0)}
    attacked = images + torch.from_numpy(np.stack([kept[name] for name in data.ids])).float()
    with torch.no_grad():
        np.testing.assert_allclose(own.scores, squeezing(model, attacked).numpy(), rtol=1e-5)
        clean = next(w for w in found.detection if w.cell.attack == "none")
        np.testing.assert_allclose(clean.scores, squeezing(model, images).numpy(), rtol=1e-5)


def test_a_run_resumes_and_another_detector_leaves_the_rest_as_it_is(tmp_path: Path) -> None:
    out = tmp_path / "run"
    plain = watching(tmp_path, block={"detectors": ["squeezing"], "fit": None})
    first = audit(plain, out)
    before = parts_of(out)
    lost = sorted(out.glob("cells/*/part-0000.parquet"))[::3]
    for path in lost:
        path.unlink()
    again = audit(plain, out)
    after = parts_of(out)
    assert {name for name in before if before[name] != after[name]} >= {str(path.relative_to(out)) for path in lost}
    kept = [name for name in before if name.startswith("cells") and out / name not in lost]
    assert all(before[name] == after[name] for name in kept)
    for own, other in zip(first.detection, again.detection, strict=True):
        np.testing.assert_array_equal(own.scores, other.scores)
    more = audit(watching(tmp_path), out)
    assert {own.detector for own in more.detection} == {"squeezing", "entropy_map"}
    assert {name: parts_of(out)[name] for name in after} == after


def test_the_keys_of_cells_know_nothing_of_detectors(tmp_path: Path) -> None:
    watched, plain = watching(tmp_path), small(tmp_path, transfer=False)
    ids, contents = ("a", "b"), Contents()
    over = {"data": watched.data}
    with_one, without = (plan(spec.model_copy(update=over), ids, contents).jobs for spec in (watched, plain))
    assert [job.key for job in with_one] == [job.key for job in without]
    assert [job.keep for job in with_one] == [job.attack is not None for job in with_one]
    assert not any(job.keep for job in without)


def test_a_denoiser_is_read_from_its_weights_and_transfers_are_scored(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_denoiser(Denoiser(width=2, bottleneck=True), tmp_path / "net.safetensors")
    path = str(tmp_path / "net.safetensors")
    detectors = [{"name": name, "denoiser": path} for name in ("reconstruction", "divergence")]
    name = f"{tmp_path}/user_net.py:build"
    models = [{"source": "python", "name": name, "label": f"net{i}", "args": {"seed": i}} for i in range(2)]
    block = {"detectors": detectors, "fit": None, "attacks": ["fgsm"], "evading": {"steps": 2}}
    found = audit(watching(tmp_path, block=block, models=models, transfer=True, eps=["16/255"]), tmp_path / "run")
    words = [(own.cell.model, own.detector.partition("(")[0], own.cell.threat) for own in found.detection]
    assert words == [
        (f"net{i}", kind, threat)
        for i in range(2)
        for kind in ("reconstruction", "divergence")
        for threat in ("none", "white-box", f"transfer:net{1 - i}", EVADING)
    ]
    moved = [own.scores for own in found.detection if own.detector.startswith("reconstruction")]
    np.testing.assert_array_equal(moved[1], moved[6])  # the images of the one are scored for the other
    np.testing.assert_array_equal(moved[2], moved[5])


def test_table_and_page_show_what_is_worth_what(tmp_path: Path) -> None:
    found = audit(watching(tmp_path), tmp_path / "run")
    lines = table(found, "csv", form="detection").splitlines()
    assert lines[0] == "model,detector,threat,attack,norm,eps,images,mIoU,AUC,TPR at 5 %"
    assert len(lines) == 1 + 2 * (4 + 2)
    assert "| evading(steps=8) squeezing " in table(found, form="detection")
    made = Reader(page(found))
    assert "Detection" in made.text
    assert "does not know of the detector (AUC " in " ".join(made.text.split())
    assert "); 0.0 % of those of the attack that does, at a mIoU of " in " ".join(made.text.split())
    assert sum(tag == "polyline" for tag, _ in made.tags) == 4


def watched(scores: dict[tuple[str, str, float], list[float]], miou: float = 0.3) -> list[Watched]:
    found = []
    for (threat, attack, eps), own in scores.items():
        kind = cell(attack=attack, eps=eps, threat=threat)
        found.append(Watched("squeezing", kind, scored(miou, images=len(own)), np.array(own)))
    return found


def test_areas_and_hits_by_hand() -> None:
    clean = [float(i) for i in range(40)]
    scores = {
        ("none", "none", 0): clean,
        ("white-box", "pgd", 8): [37.5, 38.5, 100.0, -1.0],
        (EVADING, "evading squeezing", 8): [0.5, 1.5],
    }
    found = run([(cell(), scored(0.6))], detection=watched(scores))
    blind, knowing = detection.noticed(found)
    assert blind.auc == pytest.approx((38 + 39 + 40 + 0) / 160)
    assert blind.tpr == 0.75  # two of 40 clean images are false positives: the threshold is just below 37.5
    assert knowing.auc == pytest.approx((1 + 2) / 80)
    assert knowing.tpr == 0
    (told,) = detection.lines([blind, knowing])
    assert told == (
        "net, squeezing, Linf 8/255: at 5 % false positives 75.0 % are found of the images of pgd, which leaves a mIoU "
        "of 30.0 and does not know of the detector (AUC 0.73); 0.0 % of those of the attack that does, at a mIoU of "
        "30.0 (AUC 0.04)."
    )
    (figure,) = detection.figures([blind, knowing])
    assert [line["dash"] for line in figure["lines"]] == ["", "5 4"]
    rows = table(found, "csv", form="detection").splitlines()
    assert rows[1] == f"net,squeezing,white-box,pgd,linf,{8 / 255!r},4,{blind.miou!r},{blind.auc!r},0.75"


def test_a_run_without_detectors_says_how_to_ask_for_them() -> None:
    with pytest.raises(UserError, match=r"holds no scores of detectors; ask for them in its spec with `detection: \{"):
        table(run([(cell(), scored(0.6))]), form="detection")


@pytest.mark.parametrize(
    ("block", "over", "said"),
    [
        ({"detectors": ["squeeze"]}, {}, r"no detector is called 'squeeze' \(did you mean 'squeezing'\?\)"),
        ({"detectors": ["squeezing", "squeezing"], "fit": None}, {}, "'squeezing' is there twice"),
        ({"detectors": [{"name": "squeezing", "bit": 3}]}, {}, "has no argument 'bit'"),
        ({"detectors": ["reconstruction"]}, {}, "detector 'reconstruction' needs the argument 'denoiser'"),
        ({"detectors": []}, {}, "List should have at least 1 item"),
        ({"detectors": ["squeezing"]}, {}, "fit: none of squeezing is fitted on clean images; leave it out"),
        ({"evading": {"stepz": 3}}, {}, r"has no argument 'stepz' \(did you mean 'steps'\?\)"),
        ({"evading": {"detector": "squeezing"}}, {}, "has no argument 'detector'"),
        ({"evading": {"steps": 0}}, {}, "evading: steps must be a whole number of at least 1, not 0"),
        ({"evading": {"steps": 2.5}}, {}, "evading: steps must be a whole number of at least 1, not 2.5"),
        ({"evading": {"norm": "l3"}}, {}, "evading: norm must be linf or l2, not 'l3'"),
        ({"evading": {"step_size": 5}}, {}, "step_size 5 of evading must be above 0 and within"),
        ({"evading": {"step_size": -1, "norm": "l2"}}, {}, "step_size -1 of evading must be above 0"),
        ({"evading": {"threshold": "high"}}, {}, "evading: threshold must be a number, not 'high'"),
        ({"evading": {"weight": True}}, {}, "evading: weight must be a number of at least 0, not True"),
        ({"attacks": ["pgd"]}, {}, r"the run has no attack 'pgd'.*; it has: fgsm, pgd\(steps=3\)"),
        ({}, {"eps": [2]}, "eps 2 is larger than the image range"),
        ({}, {"defenses": ["jpeg"]}, "put none among the defenses"),
        ({}, {"attacks": ["segaudit.attacks.evading:evading"]}, "is run by the block `detection`; leave it out"),
        ({}, {"attacks": ["evading"]}, "attack 'evading' is run by the block `detection`; leave it out"),
    ],
)
def test_what_a_block_cannot_ask_for_is_one_line(
    tmp_path: Path, block: dict[str, Any], over: dict[str, Any], said: str
) -> None:
    with pytest.raises((ValueError, UserError), match=said):
        watching(tmp_path, block=block, **over)


def test_an_attack_of_a_users_own_may_have_an_argument_of_that_name_and_no_training_evades(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def still(model, images, labels, *, rng, eps, detector=0):\n    return images\n")
    (own,) = watching(tmp_path, attacks=[{"name": f"{mine}:still", "detector": 1}]).attacks
    assert own.args == {"detector": 1}
    with pytest.raises(UserError, match="recipe: attack 'evading' evades a detector, and there is none"):
        Recipe.model_validate({"name": "adversarial", "attack": {"name": "evading", "eps": 0.1}}).check()


@pytest.mark.parametrize("how", ["images.detach().mean((1, 2, 3))", "torch.tensor(images.numpy().mean((1, 2, 3)))"])
def test_a_detector_without_a_gradient_is_met_by_the_oblivious_attacks_alone(tmp_path: Path, how: str) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(f"import torch\n\n\ndef dull(model, images):\n    return {how}\n")
    block = {"detectors": [f"{mine}:dull", "squeezing"], "fit": None, "evading": {"steps": 2}}
    found = audit(watching(tmp_path, block=block, eps=["16/255"], attacks=["fgsm"]), tmp_path / "run")
    assert not found.lacking
    threats = [(own.detector.rpartition(":")[2], own.cell.threat) for own in found.detection]
    kinds = [("dull", "none"), ("dull", "white-box"), *(("squeezing", own) for own in ("none", "white-box", EVADING))]
    assert threats == kinds
    rows = detection.noticed(found)
    told = sorted(detection.lines(rows), key=lambda line: "squeezing" in line)
    assert told[0].endswith("no attack that does was made, as it or the model has no gradient.")
    assert "no gradient" not in told[1]
    assert sum(tag == "polyline" for tag, _ in Reader(page(found)).tags) == 3


def test_what_evades_is_handed_the_threshold_at_few_false_positives(tmp_path: Path) -> None:
    block = {"detectors": ["squeezing"], "fit": None}
    out, spec = tmp_path / "run", watching(tmp_path, block=block, attacks=["fgsm"], eps=["16/255"])
    found = audit(spec, out)
    clean, _, made = found.detection
    (kept,) = (out / "fits").iterdir()
    allowed = float(Store(str(out)).read_fit(kept.stem)[0])
    assert allowed == clean.scores.max()  # of four images none may be a false positive
    assert (made.scores > clean.scores + 1e-3).any()
    assert (made.scores <= allowed + 1e-3).all()
    told = block | {"evading": {"steps": 8, "threshold": 0.0}}
    strict = audit(watching(tmp_path, block=told, attacks=["fgsm"], eps=["16/255"]), out).detection[-1]
    assert (strict.scores <= clean.scores + 1e-3).all()
    kept.unlink()
    again = audit(spec, out)
    np.testing.assert_array_equal(again.detection[-1].scores, made.scores)
    assert not kept.exists()  # nothing needs it again


@pytest.mark.parametrize("count", [1, 4, 19, 20, 21, 40, 100])
def test_no_threshold_at_few_false_positives_notices_what_is_allowed(count: int) -> None:
    scores = noise(count, seed=count)
    allowed = float(reference.allowed(scores))
    clean = scores.numpy()
    assert tpr_at(clean, [allowed], reference.FPR) == 0
    assert tpr_at(clean, [np.nextafter(allowed, 2)], reference.FPR) == 1


RANDOM = """
import torch
from segaudit.rng import streams_of
from torch import nn


class Net(nn.Module):
    random = True

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(9.0))

    def forward(self, x):
        return self.gain * (x + 0.2 * streams_of(x).normal(x))


def build():
    return Net()
"""


def test_what_a_detector_says_of_a_random_model_knows_nothing_of_the_batch(tmp_path: Path) -> None:
    (tmp_path / "random_net.py").write_text(RANDOM)
    model = {"source": "python", "name": f"{tmp_path}/random_net.py:build", "label": "net"}
    block = {"detectors": ["entropy_map", "spatial_consistency", "squeezing"], "evading": {"steps": 1}}
    one, other = (
        audit(
            watching(tmp_path, block=dict(block), models=[model], attacks=["fgsm"], eps=["16/255"], batch=batch),
            tmp_path / f"run{batch}",
        ).detection
        for batch in (1, 4)
    )
    assert len(one) == 9
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.scores, b.scores)


def test_what_cannot_be_watched_is_said_before_any_work(tmp_path: Path) -> None:
    out, mine = tmp_path / "run", tmp_path / "mine.py"
    mine.write_text("def wide(model, images):\n    return images.mean((2, 3))\n")
    for block, said in (
        ({"detectors": [f"{mine}:wide"], "fit": None}, r"wide' gives \(1, 3\) for one image; let it be N scores"),
        ({"fit": {"only": ["p03", "p05"]}}, "detection would be fitted on p03, which is scored too"),
        ({"detectors": [{"name": "divergence", "denoiser": "no.safetensors"}], "fit": None}, r"no\.safetensors"),
    ):
        with pytest.raises(UserError, match=said):
            audit(watching(tmp_path, block=block), out)
    assert not (out / "cells").exists()


def test_a_detector_of_scaling_attacks_is_evaded_at_the_cost_of_the_picture(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    source = np.clip(rng.normal(150, 3, (48, 64, 3)), 0, 255).astype(np.uint8)
    target = np.clip(rng.normal(90, 3, (12, 16, 3)), 0, 255).astype(np.uint8)
    resizer = Resizer("torch", "bilinear")
    for detector in (down_up_mse, spectrum_energy):

        def noticed(picture: Any, detector: Any = detector) -> float:
            return float(detector([picture], resizer, (12, 16))[0])

        plain = image_scaling(source, target, resizer)
        made = blended_scaling(source, target, resizer, noticed=noticed)
        assert noticed(plain) > noticed(source) >= noticed(made)
        assert np.abs(resizer(made, (12, 16)) - target / 255).max() <= 2 / 255 + 1e-6
        change = [np.square(own.astype(float) - source).sum() for own in (plain, made, resizer(target, (48, 64)) * 255)]
        assert change[0] < change[1] < 1.02 * change[2]
    assert (blended_scaling(source, target, resizer, noticed=lambda _: 0.0) == plain).all()
    calm = blended_scaling(source, target, resizer, noticed=lambda picture: float((picture != source).mean()))
    assert (calm == plain).all()  # none is as calm as the source, and this is the calmest


def test_a_run_evades_the_detectors_of_scaling_attacks(tmp_path: Path) -> None:
    write_pictures(tmp_path, 3)
    write_net(tmp_path)
    block = {"library": "torch", "methods": ["nearest"], "factor": 3, "detectors": ["down_up_mse"], "evading": True}
    given = content(tmp_path, scaling=block, attacks=["fgsm"], eps=["4/255"])
    given["data"]["size"] = [16, 20]
    found = audit(RunSpec.model_validate(given), tmp_path / "run")
    plain, knowing = found.scaling
    assert [own.threat for own in found.scaling] == ["white-box", "evading down_up_mse"]
    areas = [auc(*own.scores["down_up_mse"]) for own in found.scaling]
    assert areas[0] == 1
    assert areas[1] <= 0.5
    assert (knowing.similarity < plain.similarity).all()
    assert np.abs(knowing.target.intersection - plain.target.intersection).max() <= 2  # it is as well hidden
    assert "evading down\\_up\\_mse" in table(found, "latex", form="scaling_detectors")
    assert table(found, "csv", form="scaling").splitlines()[2].startswith("net,torch,nearest,none,evading down_up_mse,")
    first, later = (scaled(own) for own in (knowing, plain))  # what it costs is told in the change without a guard
    grid = scaling.attacks([first, later, replace(later, guard="median", threat="adaptive")], True)
    assert [row[-1] for row in grid.rows] == [repr(first.change / later.change), "1.0", "1.0"]
    with pytest.raises(ValueError, match="there is nothing to evade"):
        Scaling.model_validate({"evading": True})


def test_step_sizes_of_the_block_are_in_the_specs_unit(tmp_path: Path) -> None:
    spec = watching(tmp_path, block={"evading": {"steps": 4, "step_size": 2}}, unit="1/255", eps=[4], pictures=None)
    assert spec.detection is not None
    assert spec.detection.evading["step_size"] == pytest.approx(2 / 255)
