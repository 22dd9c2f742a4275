"""The dense CRF as a defense: a mean field by loops, its gradients, its lattice on large maps, and pydensecrf2's."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nets import problem
from photo import photo
from segaudit.defenses.crf import crf
from segaudit.nn.mean_field import MeanField
from segaudit.types import Segmenter, UserError

pytestmark = pytest.mark.usefixtures("one_thread")

WIDE: dict[str, Any] = {"colour_width": 40.0, "steps": 2}
"""So that in a noisy picture pixels are like each other."""
FORMS = pytest.mark.parametrize("exact", [4096, 0], ids=["all pairs", "lattice"])


class Given(Segmenter):
    """The same logits whatever the image is, K x H x W."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits, self.class_names = logits, tuple(map(str, range(len(logits))))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1, -1, -1)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def picture(height: int, width: int, count: int = 1) -> Tensor:
    return torch.stack([torch.from_numpy(photo(height, width, seed)) / 255 for seed in range(count)])


def kernels(image: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The spatial and the bilateral kernel of the defaults between all pixels of a picture 3 x H x W, by two loops."""
    places = list(product(range(image.shape[1]), range(image.shape[2])))
    near, alike = np.zeros((2, len(places), len(places)))
    for i, p in enumerate(places):
        for j, q in enumerate(places):
            if i != j:
                apart = (p[0] - q[0]) ** 2 + (p[1] - q[1]) ** 2
                colour = sum((255 * (float(c[p]) - float(c[q]))) ** 2 for c in image)
                near[i, j] = math.exp(-apart / (2 * 3**2))
                alike[i, j] = math.exp(-apart / (2 * 160**2) - colour / (2 * 3**2))
    return near, alike


def by_loops(logits: NDArray[np.float64], image: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """The beliefs K x H x W of the mean field with weights 3 and 5, each class against all others."""
    near, alike = kernels(image)
    unary = logits.reshape(len(logits), -1)
    now = unary
    for _ in range(steps):
        belief = np.exp(now - now.max(0)) / np.exp(now - now.max(0)).sum(0)
        penalty = np.zeros_like(unary)
        for i in range(unary.shape[1]):
            told = 3 * (belief @ near[i]) / near[i].sum() + 5 * (belief @ alike[i]) / max(alike[i].sum(), 1e-6)
            for k in range(len(unary)):
                penalty[k, i] = sum(told[other] for other in range(len(unary)) if other != k)
        now = unary - penalty
    made: NDArray[np.float64] = np.exp(now - now.max(0)) / np.exp(now - now.max(0)).sum(0)
    return made.reshape(logits.shape)


@pytest.mark.parametrize("steps", [1, 5])
def test_the_defaults_are_those_of_loops_over_the_pixels(steps: int) -> None:
    image, logits = picture(12, 12), noise(4, 12, 12, seed=3) + 1
    expected = torch.from_numpy(by_loops(logits.numpy(), image[0].numpy(), steps))[None]
    for dtype, close in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        found = crf(Given(logits.to(dtype)), steps=steps)(image.to(dtype))
        assert found.dtype == dtype
        torch.testing.assert_close(found.softmax(1).double(), expected, rtol=0, atol=close)
    assert (expected.argmax(1) != logits.argmax(0)).double().mean() > 0.1


@FORMS
def test_it_puts_right_what_is_noise_and_keeps_what_is_an_edge(exact: int) -> None:
    image = picture(40, 48)
    truth = (image[:, 0] > image[:, 0].median()).long()
    image = 0.3 + 0.4 * truth[:, None].expand(-1, 3, -1, -1) + noise(1, 3, 40, 48) / 255
    logits = 2 * F.one_hot(truth, 2).movedim(3, 1) + 1.5 * noise(1, 2, 40, 48, seed=1)

    def right(found: Tensor) -> float:
        return float((found.argmax(1) == truth).double().mean())

    assert 0.75 < right(logits) < 0.9
    assert right(crf(Given(logits[0]), exact=exact)(image)) > 0.99


class Reader(Segmenter):
    """Logits that are linear in the pixels."""

    class_names = ("a", "b", "c", "d")
    weight = noise(4, 3, seed=5)

    def forward(self, images: Tensor) -> Tensor:
        return torch.einsum("kc,nchw->nkhw", self.weight, images)


@FORMS
@pytest.mark.parametrize("model", [Reader(), Given(noise(4, 12, 12, seed=2))], ids=["logits and picture", "picture"])
def test_the_gradient_is_that_of_finite_differences(model: Segmenter, exact: int) -> None:
    images = picture(12, 12, 2).requires_grad_()
    made, up, h = crf(model, exact=exact, **WIDE), noise(2, 4, 12, 12, seed=1), 1e-7
    (slope,) = torch.autograd.grad((made(images) * up).sum(), images)
    assert slope.abs().mean() > 1e-3
    for seed in range(3):
        to = noise(2, 3, 12, 12, seed=seed)
        with torch.no_grad():
            ahead, behind = ((made(images + s * h * to) * up).sum() for s in (1, -1))
        assert float((slope * to).sum()) == pytest.approx(float(ahead - behind) / (2 * h), rel=1e-5)


@FORMS
def test_the_gradient_of_the_logits_alone_leaves_the_picture_out(exact: int) -> None:
    images = picture(12, 12, 2).requires_grad_()
    full, masked = (crf(Reader(), exact=exact, gradient=way, **WIDE) for way in ("full", "logits"))
    assert torch.equal(full(images), masked(images))
    up = noise(2, 4, 12, 12, seed=1)
    slopes = [torch.autograd.grad((made(images) * up).sum(), images)[0] for made in (full, masked)]
    field = MeanField(4, learned=False, exact=exact, large="lattice", **WIDE).eval()
    (expected,) = torch.autograd.grad((field(Reader()(images), images.detach()) * up).sum(), images)
    torch.testing.assert_close(slopes[1], expected, rtol=1e-9, atol=1e-9)
    assert (slopes[0] - slopes[1]).abs().mean() > 1e-3
    fixed = crf(Given(noise(4, 12, 12)), gradient="logits", exact=exact)(images)
    assert not fixed.requires_grad


def test_a_classifier_s_logits_stay_as_they_are() -> None:
    p = problem("classifier")
    assert torch.equal(crf(p.model)(p.images), p.model(p.images))


def test_training_mode_makes_as_many_steps() -> None:
    image, model = picture(12, 12), Given(noise(4, 12, 12, seed=3))
    made = crf(model, steps=3)
    assert torch.equal(made.train()(image), made.eval()(image))
    assert not torch.equal(made(image), crf(model, steps=4)(image))


def test_the_lattice_gives_nearly_the_map_of_all_pairs() -> None:
    """Three labels in a hundred differ; where few pixels are alike, as all pairs leave the pixel itself out."""
    image = picture(48, 64)
    logits = F.interpolate(noise(1, 8, 12, 16, seed=1), (48, 64), mode="bilinear") * 3 + noise(1, 8, 48, 64, seed=2)
    exact, lattice = (crf(Given(logits[0]), exact=exact)(image) for exact in (4096, 0))
    agree = (exact.argmax(1) == lattice.argmax(1)).double().mean()
    assert agree > 0.96
    assert (exact.softmax(1) - lattice.softmax(1)).abs().mean() < 0.01
    assert (exact.argmax(1) == logits.argmax(1)).double().mean() < 0.9


def test_the_lattice_s_gradient_to_the_picture_is_nearly_that_of_all_pairs() -> None:
    """Within its simplex a pixel's sums are linear where a Gaussian is curved; their slopes point much the same way."""
    images, logits = picture(48, 64).requires_grad_(), F.interpolate(noise(1, 8, 12, 16), (48, 64), mode="bilinear")
    made = [crf(Given(logits[0]), exact=exact)(images) for exact in (4096, 0)]
    slopes = [torch.autograd.grad(F.cross_entropy(m, logits.argmax(1)), images)[0].flatten() for m in made]
    assert F.cosine_similarity(*slopes, dim=0) > 0.75
    assert 0.75 < slopes[1].norm() / slopes[0].norm() < 1.5


def test_the_field_filters_large_pictures_as_it_is_told() -> None:
    image, logits = picture(20, 20), noise(1, 4, 20, 20, seed=3)
    forms = [{"exact": 1}, {"exact": 1, "large": "window"}, {"exact": 1, "large": "lattice"}, {"large": "lattice"}, {}]
    usual, window, lattice, small, exact = (MeanField(4, **own).double().eval()(logits, image) for own in forms)
    assert torch.equal(usual, window)
    assert torch.equal(small, exact)
    assert (lattice - exact).abs().mean() < (window - exact).abs().mean()
    with pytest.raises(UserError, match=r"^large must be window or lattice, not 'grid'$"):
        MeanField(4, large="grid")


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1, not 0"),
        ({"exact": 2.5}, "exact must be a whole number of at least 0, not 2.5"),
        ({"spatial_width": 0}, "spatial_width must be a number above 0, not 0"),
        ({"position_width": "160"}, "position_width must be a number above 0, not '160'"),
        ({"colour_width": math.nan}, "colour_width must be a number above 0, not nan"),
        ({"spatial_weight": -1}, "spatial_weight must be a number of at least 0, not -1"),
        ({"bilateral_weight": True}, "bilateral_weight must be a number of at least 0, not True"),
        ({"gradient": "logit"}, "gradient must be full or logits, not 'logit' (did you mean 'logits'?)"),
    ],
)
def test_wrong_arguments_are_said_in_one_line(own: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        crf(Reader(), **own)
    assert str(error.value) == f"defense 'crf': {said}"


def test_it_is_pydensecrf_s_inference() -> None:
    """The public code counts each pixel in its own spatial mean too, and filters that on a lattice as well."""
    public = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed (extra `bench`)")
    image = picture(60, 80)
    logits = F.interpolate(noise(1, 8, 12, 16, seed=1), (60, 80), mode="bilinear") * 3 + noise(1, 8, 60, 80, seed=2)
    theirs = public.DenseCRF2D(80, 60, 8)
    theirs.setUnaryEnergy(np.ascontiguousarray(-logits[0].log_softmax(0).flatten(1).numpy(), dtype=np.float32))
    after = {"kernel": public.DIAG_KERNEL, "normalization": public.NORMALIZE_AFTER}
    theirs.addPairwiseGaussian(sxy=3, compat=3, **after)
    pixels = np.ascontiguousarray((image[0] * 255).round().byte().permute(1, 2, 0).numpy())
    theirs.addPairwiseBilateral(sxy=160, srgb=3, rgbim=pixels, compat=5, **after)
    belief = torch.from_numpy(np.array(theirs.inference(5))).view(1, 8, 60, 80)
    found = crf(Given(logits[0].float()), exact=0)(image.float())
    assert (found.argmax(1) == belief.argmax(1)).double().mean() > 0.98
    assert (found.softmax(1) - belief).abs().mean() < 0.01
    assert (found.argmax(1) == logits.argmax(1)).double().mean() < 0.9
