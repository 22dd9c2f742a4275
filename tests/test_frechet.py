"""The Frechet distance: closed forms, scipy and torchmetrics; and what a classifier's features are."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from nets import problem
from segaudit.metrics.frechet import features, frechet, named
from segaudit.models.classic.lenet import lenet
from segaudit.models.wrap import Wrapped
from segaudit.types import Segmenter, UserError

pytestmark = pytest.mark.usefixtures("one_thread")


def rows(count: int, size: int, seed: int = 0) -> Tensor:
    """Correlated, of several scales, and not around 0."""
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=rng, dtype=torch.float64)
    return torch.randn(count, size, generator=rng, dtype=torch.float64) @ mix + torch.arange(size)


def white(count: int, size: int, seed: int = 0) -> Tensor:
    """Of mean 0 and covariance 1, exactly."""
    x = rows(count, size, seed)
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(x.mT @ x / (count - 1))).mT


def test_gaussians_with_known_distances() -> None:
    x = rows(40, 5)
    assert frechet(x, x) == pytest.approx(0, abs=1e-8)
    assert frechet(x, x.flip(0)) == pytest.approx(0, abs=1e-8)
    assert frechet(x, x + torch.tensor([3.0, 0, 4, 0, 0])) == pytest.approx(25)
    first, second = white(30, 4), white(50, 4, seed=1)
    assert frechet(first, second) == pytest.approx(0, abs=1e-8)
    one, other = torch.tensor([1.0, 2, 3, 0.5]).double(), torch.tensor([2.0, 2, 0.1, 4]).double()
    away = torch.tensor([1.0, -1, 0, 2]).double()
    assert frechet(first * one, second * other + away) == pytest.approx(float((one - other).square().sum()) + 6)
    turn = torch.linalg.qr(rows(4, 4, seed=2))[0]  # turned together they are as far apart
    assert frechet(first * one @ turn, second * other @ turn) == pytest.approx(float((one - other).square().sum()))
    assert frechet(first, 3 * first) == pytest.approx(4 * 4)


def test_it_is_what_scipy_and_torchmetrics_make_of_it() -> None:
    for count, size in ((60, 7), (200, 20)):
        x, y = rows(count, size), rows(count + 13, size, seed=3)
        c, d = (np.cov(z.numpy(), rowvar=False) for z in (x, y))
        root = scipy.linalg.sqrtm(c @ d).real
        wanted = float((x.mean(0) - y.mean(0)).square().sum()) + np.trace(c + d - 2 * root)
        assert frechet(x, y) == pytest.approx(wanted, rel=1e-6)
        assert frechet(y, x) == pytest.approx(wanted, rel=1e-6)

        class Same(nn.Module):
            num_features = size

            def forward(self, images: Tensor) -> Tensor:
                return images

        metric = FrechetInceptionDistance(feature=Same())
        metric.update(x, real=True)
        metric.update(y, real=False)
        assert frechet(x, y) == pytest.approx(float(metric.compute()), rel=1e-5)


def test_fewer_images_than_features_are_a_singular_covariance_and_no_trouble() -> None:
    x, y = rows(6, 30), rows(9, 30, seed=4)
    parts = [(z - z.mean(0)).numpy() / np.sqrt(len(z) - 1) for z in (x, y)]
    between = np.linalg.svd(parts[0] @ parts[1].T, compute_uv=False).sum()  # the nuclear norm: another way there
    wanted = float((x.mean(0) - y.mean(0)).square().sum()) + sum((p**2).sum() for p in parts) - 2 * between
    assert frechet(x, y) == pytest.approx(wanted, rel=1e-6)
    assert frechet(x.float(), y.float()) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(("first", "second"), [((1, 3), (5, 3)), ((5, 3), (5, 4)), ((5,), (5, 3))])
def test_sets_that_have_no_distance_are_refused(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="the Frechet distance is of two or more rows of the same features each"):
        frechet(torch.zeros(first), torch.zeros(second))


def test_features_are_what_the_last_layer_is_given() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = lenet(10, channels=1).net.eval()
    model, images = Wrapped(net, [str(k) for k in range(10)], mean=0.1, std=0.3), torch.rand(3, 1, 28, 28)
    found = features(model, images)
    assert found.shape == (3, 84)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), net[:-1]((images - 0.1) / 0.3), rtol=0, atol=1e-6)
    assert not any(part._forward_pre_hooks for part in model.modules())

    p = problem("classifier")  # a 1 x 1 convolution, on maps of 1 x 1
    wanted = p.model.norm(p.model.first(p.images)).relu().mean((2, 3))
    torch.testing.assert_close(features(p.model, p.images), wanted, rtol=0, atol=1e-12)
    p = problem("segmentation")  # the mean over the places of a map
    wanted = p.model.norm(p.model.first(p.images)).relu().mean((2, 3))
    torch.testing.assert_close(features(p.model, p.images), wanted, rtol=0, atol=1e-12)
    assert named("lenet") == "Frechet-lenet"


def test_a_model_without_layers_is_refused() -> None:
    class Mean(Segmenter):
        class_names = ("a", "b")

        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3), keepdim=True)[:, :2]

    with pytest.raises(UserError, match="needs a classifier whose last layer is dense or a convolution; a Mean has"):
        features(Mean(), torch.rand(2, 3, 4, 4))
