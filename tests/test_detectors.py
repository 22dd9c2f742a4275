"""What each detector of attacked images makes of an image, by hand and against naive loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detect_kit import Fixed, Halves, noise
from nets import problem
from segaudit import registry
from segaudit.defenses.detectors import reference
from segaudit.defenses.detectors.divergence import divergence
from segaudit.defenses.detectors.entropy_map import entropy_map
from segaudit.defenses.detectors.reconstruction import reconstruction
from segaudit.defenses.detectors.spatial_consistency import spatial_consistency
from segaudit.defenses.detectors.squeezing import squeezing
from segaudit.models.purifiers.residual import Bottleneck, Residual
from segaudit.rng import ImageStreams, drawing
from segaudit.types import Segmenter, UserError

pytestmark = pytest.mark.usefixtures("one_thread")


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
    "reconstruction": lambda model, images: reconstruction(model, images, denoiser=Residual(width=2).double()),
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
        net = Bottleneck(width=2).double().eval()
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
