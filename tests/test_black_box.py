"""MI-FGSM, whose images are made to transfer, and random search on scores, which asks for no gradient."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nets import KINDS, Linear, Problem, problem
from segaudit import registry
from segaudit.attacks.mifgsm import gaussian, mifgsm, shrunk, smoothed
from segaudit.attacks.square import square
from segaudit.nn.passes import count_passes
from segaudit.rng import ImageStreams
from segaudit.types import VOID, Segmenter, UserError

pytestmark = pytest.mark.usefixtures("one_thread")
EPS = 8 / 255


def loss_slope(p: Problem, x: Tensor, labels: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    loss = F.cross_entropy(p.model(x), labels, ignore_index=VOID, reduction="sum")
    return torch.autograd.grad(loss, x)[0]


def mifgsm_by_hand(p: Problem, labels: Tensor, norm: str, eps: float, steps: int, mu: float, sign: int) -> Tensor:
    """The recursion of the paper, an image at a time."""
    rows = []
    for i, name in enumerate(p.ids):
        one = Problem(p.model, p.images[i : i + 1], labels[i : i + 1], (name,))
        x, g = one.images, torch.zeros_like(one.images)
        for _ in range(steps):
            slope = sign * loss_slope(one, x, one.labels)
            g = mu * g + (slope / slope.abs().sum() if slope.any() else slope)
            if norm == "linf":
                delta = (x + eps / steps * g.sign() - one.images).clamp(-eps, eps)
            else:
                delta = x + (eps / steps * g / g.norm() if g.any() else g) - one.images
                delta = delta * min(1.0, eps / max(float(delta.norm()), 1e-30))
            x = (one.images + delta).clamp(0, 1)
        rows.append(x)
    return torch.cat(rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("momentum", "targeted"), [(0.0, False), (1.0, False), (0.8, True)])
def test_mifgsm_is_the_recursion_written_out(kind: str, norm: str, momentum: float, targeted: bool) -> None:
    p, eps = problem(kind), EPS if norm == "linf" else 0.7
    labels = p.labels.roll(1, 0) if targeted else p.labels
    own: dict[str, Any] = {"eps": eps, "steps": 6, "norm": norm, "momentum": momentum, "targeted": targeted}
    with count_passes(p.model) as passes:
        made = mifgsm(p.model, p.images, labels, rng=p.streams(), **own)
    assert (passes.forwards, passes.backwards) == (6 * len(p.images), 6 * len(p.images))
    expected = mifgsm_by_hand(p, labels, norm, eps, 6, momentum, -1 if targeted else 1)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-9)
    other = mifgsm(p.model, p.images, labels, rng=p.streams(), **own | {"momentum": 0.4})
    assert (other - made).abs().max() > 1e-4  # the sum is not its last term


def test_the_kernel_is_a_gaussian_over_three_deviations_that_sums_to_1() -> None:
    for side in (1, 3, 7, 15):
        kernel = gaussian(side)
        assert kernel.shape == (side,)
        assert float(kernel.sum()) == pytest.approx(1, abs=1e-12)
        assert torch.equal(kernel, kernel.flip(0))
    sigma = 7 / 3  # 15 places from -7 to 7
    expected = torch.exp(-(torch.arange(-7, 8, dtype=torch.float64) ** 2) / (2 * sigma**2))
    torch.testing.assert_close(gaussian(15), expected / expected.sum(), rtol=0, atol=1e-12)


def test_smoothing_is_the_loop_over_shifts() -> None:
    """TI: the sum of the gradients of all shifted images, each shifted back and weighted."""
    gradient = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kernel = gaussian(7)
    expected = torch.zeros_like(gradient)
    for i in range(-3, 4):
        for j in range(-3, 4):
            for y in range(5):
                for x in range(8):
                    if 0 <= y + i < 5 and 0 <= x + j < 8:
                        expected[:, :, y, x] += kernel[i + 3] * kernel[j + 3] * gradient[:, :, y + i, x + j]
    torch.testing.assert_close(smoothed(gradient, kernel), expected, rtol=0, atol=1e-12)


def test_translation_smooths_the_gradient_before_its_norm_is_taken() -> None:
    p = problem("segmentation")
    made = mifgsm(p.model, p.images, p.labels, rng=p.streams(), eps=EPS, steps=1, translation=5)
    slope = loss_slope(p, p.images, p.labels)
    expected = (p.images + EPS * smoothed(slope, gaussian(5)).sign()).clamp(0, 1)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-9)
    assert not torch.equal(expected, (p.images + EPS * slope.sign()).clamp(0, 1))
    own: dict[str, Any] = {"rng": p.streams(), "eps": EPS}
    plain = mifgsm(p.model, p.images, p.labels, **own)
    torch.testing.assert_close(mifgsm(p.model, p.images, p.labels, translation=1, **own), plain, rtol=0, atol=1e-9)


def test_a_shrunk_image_keeps_each_label_at_its_pixel() -> None:
    """Colours that say the class: wherever a pixel is not black or on an edge, its label is that of its colour."""
    classes = 4
    labels = torch.randint(classes, (8, 5, 6), generator=torch.Generator().manual_seed(0))
    labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    images = F.one_hot(labels, classes).movedim(-1, 1).double()
    rng = ImageStreams(0, [str(i) for i in range(8)])
    small, moved = shrunk(images, labels, 1.0, rng)
    assert small.shape == images.shape
    covered = moved != VOID
    sides = torch.stack([covered.any(2).sum(1), covered.any(1).sum(1)])
    assert (sides.float() / torch.tensor([[40.0], [48.0]])).min() >= 0.87
    assert len(set(covered.flatten(1).sum(1).tolist())) > 4  # every image has its own size
    assert (covered[:, 0].any(1) | covered[:, :, 0].any(1)).float().mean() < 1  # and its own place
    assert (small.sum(1)[~covered].abs() < 1e-12).all()
    torch.testing.assert_close(small.sum(1)[covered], torch.ones(()).double().expand(int(covered.sum())))
    clear = covered & (small.amax(1) > 0.999)
    assert clear.float().mean() > 0.5
    assert torch.equal(small.argmax(1)[clear], moved[clear])
    assert ((moved == small.argmax(1)) | ~covered).double().mean() > 0.97


def test_some_of_the_images_are_shrunk_and_a_classifier_keeps_its_label() -> None:
    images = torch.rand(400, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(400).remainder(5).view(-1, 1, 1)
    rng = ImageStreams(0, [str(i) for i in range(400)])
    small, moved = shrunk(images, labels, 0.3, rng)
    changed = (small != images).flatten(1).any(1)
    assert abs(float(changed.float().mean()) - 0.3) < 0.07
    assert torch.equal(moved, labels)


def test_diversity_of_a_pixelwise_model_finds_its_optimum_all_the_same() -> None:
    """Each pixel is on its own, so the best sign is the same however the image is laid out, if its label is there."""
    weight = torch.tensor([1.7, -0.4, 0.9], dtype=torch.float64)
    images = torch.rand(3, 3, 24, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    blocks = torch.arange(12).view(3, 4).remainder(2).repeat_interleave(8, 0).repeat_interleave(8, 1)
    labels = torch.stack([blocks, 1 - blocks, blocks])
    push = torch.where(labels == 1, -1.0, 1.0)[:, None] * weight.sign().view(1, 3, 1, 1)
    best = (images + 0.1 * push).clamp(0, 1)
    made = mifgsm(Linear(weight, -1.1), images, labels, rng=ImageStreams(0, "abc"), eps=0.1, steps=20, diversity=1.0)
    assert (made - best).abs().mean() < 0.02 * 0.1  # but for blocks' edges, where pixels of both labels are mixed
    backwards = mifgsm(
        Linear(weight, -1.1), images, 1 - labels, rng=ImageStreams(0, "abc"), eps=0.1, steps=20, diversity=1.0
    )
    assert (backwards - best).abs().mean() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_with_diversity_and_translation_images_do_not_depend_on_their_neighbours(kind: str) -> None:
    p = problem(kind)
    own: dict[str, Any] = {"eps": EPS, "steps": 4, "diversity": 0.5, "translation": 5}
    made = mifgsm(p.model, p.images, p.labels, rng=p.streams(), **own)
    assert (made - p.images).abs().max() <= EPS * (1 + 1e-9)
    assert p.accuracy(made) < p.accuracy(p.images) - 0.1
    for i, name in enumerate(p.ids):
        one = slice(i, i + 1)
        alone = mifgsm(
            p.model, p.images[one], p.labels[one], rng=Problem(p.model, p.images, p.labels, (name,)).streams(), **own
        )
        torch.testing.assert_close(alone, made[one], rtol=0, atol=1e-12)
    assert not torch.equal(mifgsm(p.model, p.images, p.labels, rng=p.streams(1), **own), made)
    empty = mifgsm(p.model, p.images, torch.full_like(p.labels, VOID), rng=p.streams(), **own)
    assert torch.equal(empty, p.images)


def test_mifgsm_refuses_wrong_arguments() -> None:
    p = problem("binary")
    for key, value, says in (
        ("momentum", -1, "momentum must be a number of at least 0, not -1"),
        ("diversity", 1.5, "diversity must be a chance from 0 to 1, not 1.5"),
        ("translation", 4, "translation must be 0 or an odd number of pixels, not 4"),
        ("translation", 2.0, "translation must be 0 or an odd number of pixels, not 2.0"),
    ):
        with pytest.raises(UserError, match=f"^{says}$"):
            mifgsm(p.model, p.images, p.labels, rng=p.streams(), eps=EPS, **{key: value})


class Recorded(Segmenter):
    """A model that keeps what it was asked, and refuses to be differentiated."""

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.model, self.class_names = model, model.class_names
        self.asked: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        assert not images.requires_grad
        assert not torch.is_grad_enabled()
        self.asked.append(images)
        return self.model(images)


def right(p: Problem, images: Tensor, labels: Tensor) -> Tensor:
    """Pixels an image that are predicted as the label."""
    with torch.no_grad():
        return ((p.model(images).argmax(1) == labels) & (labels != VOID)).flatten(1).sum(1)


def shortfall(p: Problem, images: Tensor, labels: Tensor) -> Tensor:
    """An image's sum of how far its right pixels are from being wrong."""
    logits = p.model(images).movedim(1, -1)
    own = F.one_hot(labels.where(labels != VOID, 0), logits.shape[-1]).bool()
    gap = logits.masked_fill(~own, -torch.inf).amax(-1) - logits.masked_fill(own, -torch.inf).amax(-1)
    return (gap.clamp_min(0) * (labels != VOID)).flatten(1).sum(1)


@pytest.mark.parametrize("name", [name for name in registry.names("attack") if registry.gradient_free(name)])
@pytest.mark.parametrize("kind", KINDS)
def test_what_says_that_it_asks_for_no_gradient_asks_for_none(name: str, kind: str) -> None:
    p = problem(kind)
    with count_passes(p.model) as passes:
        registry.load("attack", name)(Recorded(p.model), p.images, p.labels, rng=p.streams(), eps=EPS, steps=5)
    assert passes.forwards > 0
    assert passes.backwards == 0


def test_of_the_others_none_says_so() -> None:
    assert registry.gradient_free("square")
    assert not any(registry.gradient_free(name) for name in ("fgsm", "pgd", "mifgsm"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targeted", [False, True])
def test_square_returns_the_best_image_that_it_asked_about(kind: str, targeted: bool) -> None:
    p = problem(kind, count=6)
    labels = p.labels.roll(1, 0) if targeted else p.labels
    valid = (labels != VOID).flatten(1).sum(1)
    for i, name in enumerate(p.ids):
        model, one = Recorded(p.model), slice(i, i + 1)
        rng = ImageStreams(0, (name,))
        made = square(model, p.images[one], labels[one], rng=rng, eps=EPS, steps=40, targeted=targeted)
        found = torch.stack([right(p, asked, labels[one])[0] for asked in model.asked])
        left = valid[i] - found if targeted else found
        assert any(torch.equal(made, asked) for asked, own in zip(model.asked, left, strict=True) if own == left.min())
        if not targeted:
            close = [float(shortfall(p, asked, labels[one])) for asked in model.asked]
            best = min(gap for gap, own in zip(close, left, strict=True) if own == left.min())
            assert float(shortfall(p, made, labels[one])) == pytest.approx(best, abs=1e-5)
        for asked in model.asked:
            delta = (asked - p.images[one]).abs()
            inside = (asked > 1e-9) & (asked < 1 - 1e-9)
            torch.testing.assert_close(delta[inside], torch.full_like(delta[inside], EPS), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_square_counts_a_query_a_step_and_one_for_its_start(kind: str) -> None:
    p = problem(kind)
    for steps in (1, 2, 3, 4, 11):
        with count_passes(p.model) as passes:
            square(p.model, p.images, p.labels, rng=p.streams(), eps=1e-6, steps=steps)
        going = int((right(p, p.images, p.labels) > 0).sum())
        assert passes.forwards == len(p.images) + steps * going
    model = Recorded(p.model)
    square(model, p.images, p.labels, rng=p.streams(), eps=1e-6, steps=1)
    assert not torch.equal(*(asked[0] for asked in model.asked))  # the last query is no repetition
    with count_passes(p.model) as passes:
        square(p.model, p.images, torch.full_like(p.labels, VOID), rng=p.streams(), eps=EPS, steps=50)
    assert passes.forwards == len(p.images)


def test_an_image_without_a_right_pixel_leaves_the_batch() -> None:
    weight = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64)
    images = torch.full((3, 3, 8, 8), 0.5, dtype=torch.float64)
    images[1] = 0.5003  # won as soon as a pixel's three channels have all gone down
    images[2] = 0.9  # out of reach
    labels = torch.zeros(3, 8, 8, dtype=torch.int64)
    labels[1:] = 1
    labels[0] = VOID
    model = Recorded(Linear(weight, -1.5))
    own: dict[str, Any] = {"eps": 0.01, "steps": 200}
    made = square(model, images, labels, rng=ImageStreams(0, "abc"), **own)
    sizes = [len(asked) for asked in model.asked]
    assert sizes[0] == 3
    assert sizes == sorted(sizes, reverse=True)
    assert set(sizes) == {3, 2, 1}
    assert len(sizes) == 201
    assert right(Problem(model.model, images, labels, ("a",)), made, labels).tolist() == [0, 0, 64]
    alone = square(Linear(weight, -1.5), images[1:2], labels[1:2], rng=ImageStreams(0, "b"), **own)
    assert torch.equal(alone, made[1:2])


def test_square_on_a_classifier_is_the_published_search() -> None:
    """Every query is the best one so far, but for one square window of one colour; it is kept when it is better."""
    p = problem("classifier", count=5)
    one = Problem(p.model, p.images[:1] * 0.5 + 0.25, p.labels[:1], p.ids[:1])
    model, eps = Recorded(p.model), 2 / 255
    square(model, one.images, one.labels, rng=one.streams(), eps=eps, steps=60)
    signs = [((asked - one.images) / eps).round()[0] for asked in model.asked]
    assert all(torch.equal(s.abs(), torch.ones_like(s)) for s in signs)
    assert (signs[0] == signs[0][:, :1]).all()  # stripes from top to bottom
    assert {-1.0, 1.0} == set(signs[0][:, 0].unique().tolist())
    best, kept, sides = signs[0], 0, []
    score = float(shortfall(p, model.asked[0], one.labels))
    assert score > 0
    for asked, tried in zip(model.asked[1:], signs[1:], strict=True):
        rows, columns = ((tried != best).any(0).any(axis).nonzero().flatten() for axis in (1, 0))
        if len(rows):
            window = tried[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert (window == window[:, :1, :1]).flatten(1).all(1)[(tried != best).flatten(1).any(1)].all()
            sides.append(max(int(rows.max() - rows.min()), int(columns.max() - columns.min())) + 1)
        own = float(shortfall(p, asked, one.labels))
        if own < score - 1e-6:
            best, score, kept = tried, own, kept + 1
    assert kept > 3
    assert 4 < max(sides[:5]) <= 9  # half of the shorter side, 17
    assert max(sides[-10:]) <= 4


def test_square_finds_the_best_corner_of_a_tiny_classifier() -> None:
    """All 2^8 corners of the ball, tried one by one."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(2, 8, generator=generator, dtype=torch.float64)

    class Whole(Segmenter):
        class_names = ("a", "b")

        def forward(self, images: Tensor) -> Tensor:
            return (images.flatten(1) @ weight.T)[:, :, None, None]

    images = torch.rand(1, 2, 2, 2, generator=generator, dtype=torch.float64) * 0.5 + 0.25
    gap = Whole()(images).flatten()
    label = gap.argmax().view(1, 1, 1)
    p = Problem(Whole(), images, label, ("x",))
    for eps in (0.01, 0.1):
        corners = [images + eps * torch.tensor(s).view(1, 2, 2, 2) for s in itertools.product((-1.0, 1.0), repeat=8)]
        best = min(float(shortfall(p, corner, label)) for corner in corners)
        made = square(Whole(), images, label, rng=ImageStreams(0, "x"), eps=eps, steps=300)
        assert 0 < best < float(shortfall(p, images, label))
        assert float(shortfall(p, made, label)) == pytest.approx(best, abs=1e-6)


def naive(p: Problem, eps: float, steps: int) -> Tensor:
    """One flat window a query, kept when the whole map is better for it."""
    rng = torch.Generator().manual_seed(0)
    size = p.images.shape[2:]
    signs = (torch.rand(*p.images.shape[:2], 1, size[1], generator=rng) < 0.5).double().expand_as(p.images) * 2 - 1
    score = shortfall(p, (p.images + eps * signs).clamp(0, 1), p.labels)
    for step in range(1, steps + 1):
        side = max(1, round(min(size) / 2 / (1 + step / 10) ** 0.5))
        tried = signs.clone()
        for row in tried:
            y, x = (int(torch.randint(length - side + 1, (), generator=rng)) for length in size)
            row[:, y : y + side, x : x + side] = (torch.rand(3, 1, 1, generator=rng) < 0.5).double() * 2 - 1
        own = shortfall(p, (p.images + eps * tried).clamp(0, 1), p.labels)
        signs = torch.where((own < score).view(-1, 1, 1, 1), tried, signs)
        score = torch.minimum(own, score)
    return (p.images + eps * signs).clamp(0, 1)


@pytest.mark.parametrize("kind", ["segmentation", "binary"])
def test_on_maps_many_windows_a_query_win_more_pixels_than_one(kind: str) -> None:
    p = problem(kind)
    kept = [p.accuracy(square(p.model, p.images, p.labels, rng=p.streams(), eps=EPS, steps=n)) for n in (1, 30, 150)]
    assert kept[0] > kept[1] > kept[2]
    assert kept[2] < p.accuracy(naive(p, EPS, 150)) - 0.1


def test_square_refuses_wrong_arguments() -> None:
    p = problem("binary")
    with pytest.raises(UserError, match=r"^loss must be one of .*, not 'margn' \(did you mean 'margin'\?\)$"):
        square(p.model, p.images, p.labels, rng=p.streams(), eps=EPS, loss="margn")
