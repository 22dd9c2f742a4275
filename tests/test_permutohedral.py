"""The lattice against dictionaries and loops, exact Gaussian sums, and pydensecrf2's where that is installed."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from photo import photo
from segaudit.nn.permutohedral import Lattice
from segaudit.types import UserError

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(*shape: int, seed: int = 0, width: float = 1.0) -> Tensor:
    return width * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def oracle(points: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """One item by the book: corners as tuples of D + 1 whole coordinates, each blur over a dictionary of them."""
    full = points.shape[1] + 1
    shares: list[dict[tuple[int, ...], float]] = []
    for point in points:
        scaled = [x * math.sqrt(2 / 3) * full / math.sqrt((i + 1) * (i + 2)) for i, x in enumerate(point)]
        raised = np.array([sum(scaled[j:]) - (j * scaled[j - 1] if j else 0) for j in range(full)])
        # Of the points whose coordinates are multiples of D + 1, the one whose simplex in one of the orders holds it.
        nearest = np.round(raised / full).astype(int)
        off = raised / full - nearest
        for _ in range(abs(nearest.sum())):
            if nearest.sum() > 0:
                j = int(np.argmin(off))
                nearest[j] -= 1
            else:
                j = int(np.argmax(off))
                nearest[j] += 1
            off[j] = raised[j] / full - nearest[j]
        rising = np.argsort(off)
        own, corner, below = {}, full * nearest, off[rising[-1]] - 1
        for j in rising:
            own[tuple(int(c) for c in corner)] = off[j] - below
            below = off[j]
            corner = corner + 1
            corner[j] -= full
        shares.append(own)
    on: dict[tuple[int, ...], NDArray[np.float64]] = defaultdict(lambda: np.zeros(values.shape[1]))
    for own, value in zip(shares, values, strict=True):
        for corner, share in own.items():
            on[corner] = on[corner] + share * value
    for axis in range(full):
        step = np.ones(full, dtype=int)
        step[axis] -= full
        blurred = {}
        for corner in on:
            sides = [tuple(int(c) for c in np.array(corner) + s * step) for s in (-1, 1)]
            blurred[corner] = on[corner] + sum(on[side] / 2 for side in sides if side in on)
        on = blurred
    return np.stack([sum(share * on[corner] for corner, share in own.items()) for own in shares])


@pytest.mark.parametrize(("dims", "count", "width"), [(1, 30, 5.0), (2, 60, 2.0), (3, 60, 1.5), (5, 80, 1.0)])
def test_it_is_a_dictionary_of_corners(dims: int, count: int, width: float) -> None:
    points, values = drawn(2, count, dims, width=width), drawn(2, count, 3, seed=1)
    found = Lattice(points)(values)
    for item in range(2):
        expected = torch.from_numpy(oracle(points[item].numpy(), values[item].numpy()))
        torch.testing.assert_close(found[item], expected, rtol=1e-10, atol=1e-10)
    apart = (found - values).abs().mean()
    assert apart > 0.1


def test_items_of_a_batch_do_not_meet() -> None:
    points, values = drawn(3, 40, 5), drawn(3, 40, 2, seed=1)
    points[1] = points[0]
    found = Lattice(points)(values)
    for item in range(3):
        alone = Lattice(points[item : item + 1])(values[item : item + 1])
        torch.testing.assert_close(found[item : item + 1], alone, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("dims", "width"), [(2, 2.0), (5, 0.7)])
def test_the_gradient_to_values_and_points_is_that_of_finite_differences(dims: int, width: float) -> None:
    points, values = drawn(2, 12, dims, width=width).requires_grad_(), drawn(2, 12, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, v: Lattice(p)(v), (points, values))
    (slope,) = torch.autograd.grad(Lattice(points)(values).square().sum(), points)
    assert slope.abs().amin() > 0


def test_a_gradient_to_the_values_alone_is_the_same() -> None:
    points, values, up = drawn(1, 50, 5), drawn(1, 50, 2, seed=1).requires_grad_(), drawn(1, 50, 2, seed=2)
    (alone,) = torch.autograd.grad(Lattice(points)(values), values, up)
    (both,) = torch.autograd.grad(Lattice(points.requires_grad_())(values), values, up)
    assert torch.equal(alone, both)
    (moved,) = torch.autograd.grad(Lattice(points)(values.detach()), points, up)
    assert moved.any()


def features(picture: NDArray[np.float64], position: float, colour: float) -> Tensor:
    y, x = np.mgrid[: picture.shape[1], : picture.shape[2]] / position
    return torch.from_numpy(np.concatenate([np.stack([y, x]), picture / colour])).flatten(1).mT[None]


def test_means_are_near_those_of_exact_gaussians() -> None:
    """The lattice is an approximation: means of values in [0, 1] are off by 0.006 here, one in a hundred by 0.03."""
    points = features(photo(48, 64), 160, 3)
    values = drawn(1, 8, 12, 16, seed=1)
    values = torch.nn.functional.interpolate(values, (48, 64), mode="bilinear").mul(4).softmax(1).flatten(2).mT
    kernel = torch.cdist(points, points).square().mul(-0.5).exp()
    exact = kernel @ values / kernel.sum(2, keepdim=True)
    lattice = Lattice(points)
    found = lattice(values) / lattice(torch.ones_like(values[..., :1]))
    error = (found - exact).abs()
    assert error.mean() < 0.01
    assert error.flatten().quantile(0.99) < 0.05
    assert (values - exact).abs().mean() > 0.08


def test_what_reaches_too_far_is_refused() -> None:
    with pytest.raises(UserError, match=r"^the kernel is too narrow for a lattice over this picture: choose larger"):
        Lattice(drawn(1, 20, 5, width=1e5))


def test_float32_is_near_float64() -> None:
    points, values = features(photo(20, 20), 160, 3), drawn(1, 400, 4, seed=1)
    found = Lattice(points.float())(values.float()).double()
    torch.testing.assert_close(found, Lattice(points)(values), rtol=1e-3, atol=1e-3)


def test_it_is_the_public_lattice() -> None:
    """One step of pydensecrf2 from uniform weights and unary energies gives its normalised sums, here compared."""
    crf = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed (extra `bench`)")
    points = features(photo(48, 64), 160, 3) + 1e-3  # off the borders between simplices, where rounding decides
    energy = drawn(11, 48 * 64, seed=1).float()
    public = crf.DenseCRF(48 * 64, 11)
    public.setUnaryEnergy(energy.contiguous().numpy())
    flat = np.ascontiguousarray(points[0].mT.float().numpy())
    public.addPairwiseEnergy(flat, compat=2, kernel=crf.DIAG_KERNEL, normalization=crf.NORMALIZE_AFTER)
    made = torch.from_numpy(np.array(public.inference(1)))
    belief, lattice = (-energy).softmax(0), Lattice(points.float())
    mean = lattice(belief.mT[None])[0].mT / lattice(torch.ones(1, 48 * 64, 1))[0].mT
    ours = (2 * mean - energy).softmax(0)
    assert (ours - made).abs().max() < 1e-4
    assert (belief - made).abs().max() > 0.05
