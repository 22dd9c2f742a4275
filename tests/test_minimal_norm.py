"""Minimal-norm attacks against norms that are known exactly, the share that they must reach, and their failures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from nets import KINDS, Linear, Problem, problem
from segaudit.attacks import _prox
from segaudit.attacks._minimal import Lead, Smallest
from segaudit.attacks.alma_prox import _but_largest, _largest_three, _slope, alma_prox
from segaudit.attacks.dag import dag
from segaudit.attacks.fmn import fmn
from segaudit.attacks.pdpgd import pdpgd
from segaudit.nn.passes import count_passes
from segaudit.nn.precision import is_exact
from segaudit.rng import ImageStreams
from segaudit.types import VOID, Segmenter, UserError

pytestmark = pytest.mark.usefixtures("one_thread")
ATTACKS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "alma_prox": (alma_prox, "linf", {}),
    "pdpgd": (pdpgd, "linf", {}),
    "fmn-linf": (fmn, "linf", {}),
    "fmn-l2": (fmn, "l2", {"norm": "l2"}),
    "dag": (dag, "l2", {}),  # its steps are along the gradient: nearest in L2, in Linf with equal weights alone
}
every = pytest.mark.parametrize("name", ATTACKS)
IDS = ("a", "b", "c")
WEIGHT = torch.tensor([1.7, -0.4, 0.9], dtype=torch.float64)


def attack(name: str, model: Segmenter, images: Tensor, labels: Tensor, **own: Any) -> Tensor:
    function, _, usual = ATTACKS[name]
    made: Tensor = function(model, images, labels, rng=ImageStreams(0, IDS[: len(images)]), **usual | own)
    return made


def linear(dtype: torch.dtype = torch.float64, weight: Tensor = WEIGHT) -> tuple[Linear, Tensor, Tensor, Tensor]:
    """A linear model that is right everywhere, far from the walls, and the margins N x H x W of its pixels."""
    weight = weight.to(dtype)
    noise = torch.rand(3, 3, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images = (0.4 + 0.2 * noise).to(dtype)
    model = Linear(weight, float(-weight.sum() / 2))
    margins = torch.einsum("nchw,c->nhw", images, weight) - weight.sum() / 2
    return model, images, (margins > 0).long(), margins.abs()


def exact(margins: Tensor, norm: str, weight: Tensor = WEIGHT) -> Tensor:
    """The smallest norm that flips all pixels: each is on its own."""
    if norm == "linf":
        return margins.amax((1, 2)) / weight.abs().sum()
    return margins.square().sum((1, 2)).sqrt() / weight.norm()


def size(delta: Tensor, norm: str) -> Tensor:
    flat = delta.double().flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


def won(model: Segmenter, images: Tensor, labels: Tensor, *, targeted: bool = False) -> Tensor:
    """The share of each image's valid pixels that are wrong (targeted: on target), by argmax."""
    with torch.no_grad():
        hit = model(images).argmax(1) == labels
    rows = zip(hit if targeted else ~hit, labels, strict=True)
    return torch.stack([row[own != VOID].double().mean() for row, own in rows])


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
def test_on_a_linear_model_the_norm_is_the_exact_one(name: str, dtype: torch.dtype, targeted: bool) -> None:
    model, images, labels, margins = linear(dtype)
    labels = 1 - labels if targeted else labels
    made = attack(name, model, images, labels, success=1.0, targeted=targeted)
    norm = ATTACKS[name][1]
    ratio = size(made - images, norm) / exact(margins, norm).double()
    assert (won(model, made, labels, targeted=targeted) == 1).all()
    assert (ratio > 1 - 1e-5).all(), ratio
    assert (ratio < 1.05).all(), ratio


def test_with_equal_weights_dag_finds_the_smallest_linf_norm_too() -> None:
    weight = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    model, images, labels, margins = linear(weight=weight)
    ratio = size(dag(model, images, labels, rng=ImageStreams(0, IDS), success=1.0) - images, "linf")
    ratio = ratio / exact(margins, "linf", weight)
    assert ((ratio > 1 - 1e-6) & (ratio < 1.05)).all(), ratio


class Rough(Segmenter):
    """A linear model that sees every lead on some images a little smaller than it is, unless it is asked exactly."""

    class_names = ("a", "b")

    def __init__(self, exact: Segmenter, images: Tensor, off: float) -> None:
        super().__init__()
        self.exact, self.shift = exact, off * exact(images)[:, 1:].sign()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.exact(images)
        return logits if is_exact() else torch.cat([logits[:, :1], logits[:, 1:] - self.shift], 1)


@pytest.mark.parametrize("name", ["alma_prox", "pdpgd", "fmn-linf"])
def test_a_win_is_one_in_full_precision_too(name: str) -> None:
    """The edge that the attack sees is a little inside of that of the verdict."""
    model, images, labels, margins = linear()
    rough = Rough(model, images, 5e-3 * float(margins.max()))
    made = attack(name, rough, images, labels, success=1.0)
    assert (won(rough, made, labels) == 1).all()
    assert (won(model, made, labels) == 1).all()
    norm = ATTACKS[name][1]
    assert (size(made - images, norm) < 1.08 * exact(margins, norm)).all()


@every
def test_more_steps_do_not_find_a_larger_norm(name: str) -> None:
    """To 2 %: the schedules of steps hang on how many there are."""
    model, images, labels, _ = linear()
    norm, few = ATTACKS[name][1], {"alma_prox": 300, "pdpgd": 200}.get(name, 100)
    sizes = []
    for steps in (few, 2 * few, 4 * few):
        made = attack(name, model, images, labels, success=1.0, steps=steps)
        assert (won(model, made, labels) == 1).all()
        sizes.append(size(made - images, norm))
    assert (sizes[1] <= 1.02 * sizes[0]).all()
    assert (sizes[2] <= 1.02 * sizes[1]).all()


@every
@pytest.mark.parametrize("kind", ["segmentation", "binary"])
def test_the_share_is_reached_and_hardly_more_is_done(name: str, kind: str) -> None:
    """Of the valid pixels, counted exactly; the easiest half of them costs less than all but a hundredth."""
    p = problem(kind)
    steps = {"alma_prox": 150, "pdpgd": 100, "dag": 150}.get(name, 100)
    more = {"step_size": 4 / 255} if name in ("dag", "alma_prox", "pdpgd") else {}
    norm, shares, sizes = ATTACKS[name][1], [], []
    for success in (0.5, 0.97):
        function, _, usual = ATTACKS[name]
        made = function(p.model, p.images, p.labels, rng=p.streams(), steps=steps, success=success, **usual | more)
        shares.append(won(p.model, made, p.labels))
        sizes.append(size(made - p.images, norm))
    assert (shares[0] >= 0.5).all()
    assert (shares[1] >= 0.97).all()
    assert (sizes[0] < sizes[1]).all()


def test_the_needed_pixels_are_a_whole_number_of_the_valid_ones() -> None:
    labels = torch.zeros(1, 10, 10, dtype=torch.int64)
    labels[0, 0] = VOID  # 90 valid pixels: 89.1, so 90; of 100: 99, exactly
    clean = torch.full((1, 1, 10, 10), 0.5)
    for truth, needed in ((labels, 90), (torch.zeros_like(labels), 99)):
        for count in (needed - 1, needed):
            lead = torch.ones(100)
            lead[-count:] = -1
            best = Smallest(clean, truth, success=0.99, norm="linf", targeted=False)
            assert bool(best.see(clean + 0.1, lead.view(1, 10, 10))) == (count == needed)
    tie = Smallest(clean, labels, success=0.5, norm="linf", targeted=False)
    assert not tie.see(clean + 0.1, torch.zeros(1, 10, 10))  # argmax would take the first class


def test_the_smallest_success_is_kept_and_before_it_the_nearest_failure() -> None:
    labels = torch.zeros(3, 1, 4, dtype=torch.int64)
    clean = torch.full((3, 1, 1, 4), 0.5)
    best = Smallest(clean, labels, success=1.0, norm="l2", targeted=False)
    story = [  # (size, pixels won) of the three images at each step
        [(0.0, 0), (0.0, 3), (0.0, 4)],
        [(0.3, 1), (0.3, 2), (0.1, 4)],
        [(0.2, 4), (0.1, 1), (0.1, 3)],
        [(0.4, 4), (0.2, 3), (0.1, 3)],
        [(0.1, 4), (0.4, 3), (0.1, 3)],
        [(0.05, 3), (0.4, 2), (0.1, 3)],
    ]
    for step, rows in enumerate(story):
        images = clean + torch.tensor([far for far, _ in rows]).view(3, 1, 1, 1)
        lead = torch.stack([torch.where(torch.arange(4) < count, -1.0, 1.0) for _, count in rows])[:, None]
        best.see(images, lead, clean=step == 0)
    kept = (best.images - clean).amax((1, 2, 3))
    torch.testing.assert_close(kept, torch.tensor([0.1, 0.2, 0.0]))  # the second: not the clean image, though it won 3
    assert best.found.tolist() == [True, False, True]


@every
@pytest.mark.parametrize("steps", [1, 3])
def test_without_a_success_the_nearest_attempt_is_returned_and_not_the_clean_image(name: str, steps: int) -> None:
    p = problem("segmentation")
    more = {"step_size": 2 / 255} if name in ("dag", "alma_prox") else {}
    function, _, usual = ATTACKS[name]
    made = function(p.model, p.images, p.labels, rng=p.streams(), steps=steps, success=1.0, **usual | more)
    before, after = won(p.model, p.images, p.labels), won(p.model, made, p.labels)
    assert (after < 1).all()
    assert ((made - p.images).flatten(1).abs().amax(1) > 1e-4).all()
    assert (after > before).all()


@every
def test_an_image_without_truth_or_won_as_it_is_comes_back_as_it_was(name: str) -> None:
    model, images, labels, _ = linear()
    labels[0], labels[1] = VOID, 1 - labels[1]
    made = attack(name, model, images, labels, success=1.0, steps=100)
    assert torch.equal(made[:2], images[:2])
    assert made.data_ptr() != images.data_ptr()
    assert not torch.equal(made[2], images[2])


@every
def test_void_pixels_cost_nothing(name: str) -> None:
    model, images, labels, margins = linear()
    hardest = margins.flatten(1).topk(20).indices
    labels = labels.flatten(1).scatter(1, hardest, VOID).view_as(labels)
    norm, counted = ATTACKS[name][1], margins * (labels != VOID)
    ratio = size(attack(name, model, images, labels, success=1.0) - images, norm) / exact(counted, norm)
    assert ((ratio > 1 - 1e-6) & (ratio < 1.05)).all(), ratio


@every
def test_steps_are_counted_in_gradients_and_one_more_look(name: str) -> None:
    p = problem("segmentation")
    function, _, usual = ATTACKS[name]
    with count_passes(p.model) as passes:
        function(p.model, p.images, p.labels, rng=p.streams(), steps=4, success=1.0, **usual)
    assert (passes.forwards, passes.backwards) == (5 * len(p.images), 4 * len(p.images))


def test_dag_leaves_out_finished_images() -> None:
    model, images, labels, _ = linear()
    labels[0] = VOID
    seen = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    dag(model, images, labels, rng=ImageStreams(0, IDS), success=1.0)
    assert seen[0] == 3
    assert seen[1] == 2
    assert len(seen) < 100


@every
def test_wrong_arguments_are_said_in_one_line(name: str) -> None:
    model, images, labels, _ = linear()
    for success in (0, 1.5, -0.1):
        with pytest.raises(UserError, match=f"^success must be .*, not {success!r}$"):
            attack(name, model, images, labels, success=success)
    if "norm" in ATTACKS[name][2]:
        with pytest.raises(UserError, match=r"^norm must be linf or l2, not 'l1'$"):
            attack(name, model, images, labels, norm="l1")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_proximal_step_is_the_minimum_that_scipy_finds(dtype: torch.dtype) -> None:
    """Also where the box cuts entries: there the pull jumps."""
    rng = torch.Generator().manual_seed(0)
    walls = 0
    for trial in range(12):
        shape = (2, 3, 2, 2)
        clean = torch.rand(shape, generator=rng).to(dtype)
        clean[:, :, 0] = torch.randint(0, 4, (2, 3, 2), generator=rng).to(dtype) / 255
        reach = (0.02, 0.3, 1.5)[trial % 3]
        delta = (torch.randn(shape, generator=rng) * reach).to(dtype)
        metric = (torch.rand(shape, generator=rng).square() + 1e-2).to(dtype)
        weight = (torch.tensor([0.02, 0.5]) * reach * (trial % 5 + 0.2)).view(2, 1, 1, 1).to(dtype)
        found = _prox.linf(delta, weight, metric, clean)
        for rows in zip(found, delta, weight, metric, clean, strict=True):
            x, d, w, h, c = (row.double().numpy().ravel() for row in rows)
            torch.testing.assert_close(
                torch.from_numpy(x), torch.from_numpy(by_scipy(d, w[0], h, c)), rtol=0, atol=1e-6
            )
            walls += int(((np.abs(d) > np.abs(x) + 1e-3) & (np.abs(x) < np.abs(x).max() - 1e-3)).sum())
    assert walls > 10


def by_scipy(d: Any, w: float, h: Any, c: Any) -> Any:
    """min of w t + 1/2 sum h (x - d)^2 over -t <= x <= t in the box, by a general solver."""
    n = len(d)
    rows = [(-np.eye(n), 1.0), (np.eye(n), 1.0)]
    bounds = [{"type": "ineq", "jac": lambda v, m=m: np.c_[m, np.ones(n)], "fun": lambda v, m=m: v[-1] + m @ v[:-1]}
              for m, _ in rows]  # fmt: skip
    start = np.clip(d, -c, 1 - c)
    solved = minimize(
        lambda v: w * v[-1] + 0.5 * (h * (v[:-1] - d) ** 2).sum(),
        np.append(start, np.abs(start).max()),
        jac=lambda v: np.append(h * (v[:-1] - d), w),
        bounds=[(-low, 1 - low) for low in c] + [(0, None)],
        constraints=bounds,
        method="SLSQP",
        options={"maxiter": 2000, "ftol": 1e-16},
    )
    return solved.x[:-1]


def test_the_pieces_of_alma_prox_are_those_of_its_formulas() -> None:
    rng = torch.Generator().manual_seed(0)
    y = torch.randn(2, 5, 6, dtype=torch.float64, generator=rng, requires_grad=True)
    rho, mu = torch.rand(2, 5, 6, dtype=torch.float64, generator=rng) * 3, torch.rand_like(y.detach())
    above = mu * y + mu * rho * y**2 + rho**2 * y**3 / 6
    below = mu * y / (1 - rho.clamp_min(1) * y)
    (slope,) = torch.autograd.grad(torch.where(y >= 0, above, below).sum(), y)
    torch.testing.assert_close(_slope(y.detach(), rho, mu), slope)

    logits = torch.randn(2, 7, 5, 6, generator=rng)
    torch.testing.assert_close(torch.stack(_largest_three(logits), 1), logits.sort(1, descending=True).values[:, :3])

    constraint, valid = torch.randn(2, 5, 6, generator=rng), torch.rand(2, 5, 6, generator=rng) > 0.3
    counts = valid.sum((1, 2)).tolist()
    kept = _but_largest(constraint, valid, counts, 0.2).bool() | ~valid
    for i, count in enumerate(counts):
        dropped = set((~kept[i]).flatten().nonzero().flatten().tolist())
        ranked = constraint[i].masked_fill(~valid[i], -torch.inf).flatten().argsort(descending=True)
        assert dropped == set(ranked[: int(0.2 * count)].tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_the_lead_and_its_slope_are_those_of_autograd(kind: str) -> None:
    p: Problem = problem(kind)
    logits = p.model(p.images).detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    known = p.labels.where(p.labels != VOID, 0)[:, None]
    own = logits.gather(1, known)
    rival = logits.scatter(1, known, -torch.inf).amax(1, keepdim=True)
    slope = torch.randn(p.labels.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (expected,) = torch.autograd.grad(((own - rival).squeeze(1) * slope).sum(), logits)
    lead = Lead(logits, p.labels)
    torch.testing.assert_close(lead.values, (own - rival).squeeze(1).detach())
    torch.testing.assert_close(lead.pull_back(slope), expected)


@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
@pytest.mark.parametrize("kind", ["segmentation", "binary"])
def test_alma_prox_is_indifferent_to_the_scale_of_the_logits(kind: str, targeted: bool) -> None:
    """Two classes have no third logit: what stands for it must scale with the others."""

    class Scaled(Segmenter):
        def __init__(self, model: Segmenter, factor: float) -> None:
            super().__init__()
            self.model, self.factor, self.class_names = model, factor, model.class_names

        def forward(self, images: Tensor) -> Tensor:
            return self.factor * self.model(images)

    p = problem(kind)
    labels = p.labels.roll(1, 0) if targeted else p.labels
    own: dict[str, Any] = {"steps": 60, "step_size": 4e-3, "targeted": targeted}
    made = [alma_prox(Scaled(p.model, f), p.images, labels, rng=p.streams(), **own) for f in (100.0, 10000.0)]
    sizes = [size(x - p.images, "linf") for x in made]
    torch.testing.assert_close(sizes[0], sizes[1], rtol=0.25, atol=0)
    for x in made:
        reached, before = (won(p.model, i, labels, targeted=targeted) for i in (x, p.images))
        assert (reached > before + 0.2).all()
