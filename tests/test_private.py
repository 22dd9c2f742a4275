"""DP-SGD: gradients of single images by loops, what the noise is, what is drawn, what is refused."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nets import KINDS
from segaudit.models.smp import smp
from segaudit.models.tiny import tiny
from segaudit.models.wrap import Wrapped
from segaudit.nn.norms import coupled, group_norms, groups
from segaudit.rng import ImageStreams
from segaudit.training import clipping
from segaudit.training.budget import budget, spent
from segaudit.training.clipping import clipped_sum, private_gradient, unit_gradients, verify
from segaudit.training.course import Course
from segaudit.training.loop import Progress, fit
from segaudit.training.private import image_losses, private, refuse_coupling
from segaudit.training.schedule import Schedule
from segaudit.training.standard import standard
from segaudit.types import VOID, Batch, Segmenter, UserError
from train_kit import Drawn, batch_of, equal, net, schedule, weights

pytestmark = pytest.mark.usefixtures("one_thread")

NETS = ["plain", "unet", "pyramid", "dilated", "smp", "timm"]


def network(name: str) -> Segmenter:
    """A network of a kind with batch norms, in-place ReLUs and, of smp and timm, in-place sums of residuals."""
    if name == "plain":
        return net()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name in ("smp", "timm"):
            encoder = {"smp": "resnet18", "timm": "tu-resnet10t"}[name]
            made = smp("Unet", 3, encoder_name=encoder, encoder_depth=3, decoder_channels=[16, 12, 8])
            return Wrapped(made.net, "abc", stride=8)
        made = tiny(name, 3, 6)
        return Wrapped(made.net, "abc", **made.preprocess)


def ready(name: str = "plain") -> Segmenter:
    return group_norms(network(name)).train().requires_grad_(True)


def some(model: Segmenter, count: int = 3) -> Batch:
    rng = torch.Generator().manual_seed(1)
    labels = torch.randint(model.num_classes, (count, 16, 16), generator=rng)
    labels[:, :3] = VOID
    return Batch(torch.rand(count, 3, 16, 16, generator=rng), labels, tuple("abcdefgh"[:count]))


def one_by_one(model: nn.Module, batch: Batch) -> list[list[Tensor]]:
    """The gradient of each image's own loss, by a pass for each."""
    learnt = list(model.parameters())
    return [
        [
            torch.zeros_like(weight) if slope is None else slope
            for weight, slope in zip(
                learnt,
                torch.autograd.grad(image_losses(model, batch[row : row + 1])[0], learnt, allow_unused=True),
                strict=True,
            )
        ]
        for row in range(len(batch))
    ]


def empty(batch: Batch) -> Batch:
    return Batch(torch.empty(0, 1, 1, 1), torch.empty(0, 1, 1, dtype=torch.int64), ())


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_single_images_are_those_of_a_loop_over_them(name: str, order: torch.memory_format) -> None:
    model = ready(name).to(memory_format=order)  # type: ignore[call-overload]
    batch, before = some(model), weights(model)
    batch = Batch(batch.images.contiguous(memory_format=order), batch.labels, batch.ids)
    verify(model, image_losses, batch)
    sums, losses = unit_gradients(model, image_losses, batch, [0, 1, 2])
    assert equal(weights(model), before)
    assert all(weight.grad is None and not hasattr(weight, "grad_sample") for weight in model.parameters())
    torch.testing.assert_close(losses, image_losses(model, batch).detach())
    for row, loop in enumerate(one_by_one(model, batch)):
        size = max(float(slope.abs().max()) for slope in loop)
        assert size > 1e-3
        for total, slope in zip(sums, loop, strict=True):
            torch.testing.assert_close(total[row], slope, rtol=1e-5, atol=1e-5 * max(1, size))
    twice, _ = unit_gradients(model, image_losses, batch, [1, 0, 1])
    for pair, each in zip(twice, sums, strict=True):
        torch.testing.assert_close(pair, torch.stack([each[1], each[0] + each[2]]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("most", [1, 2, 8])
def test_a_group_is_clipped_once_however_many_passes_it_takes(most: int) -> None:
    model = ready()
    batch, units = some(model, 5), ["x", "y", "x", "y", "x"]
    each = one_by_one(model, batch)
    own = {"sigma": 0.0, "expected": 2.5, "most": most}
    for unit, whose in (("group", units), ("image", list(batch.ids))):
        wanted = [torch.zeros_like(weight) for weight in model.parameters()]
        for name in dict.fromkeys(whose):
            rows = [row for row, other in enumerate(whose) if other == name]
            total = [sum(each[row][i] for row in rows) for i in range(len(wanted))]
            length = float(torch.stack([slope.square().sum() for slope in total]).sum().sqrt())
            assert length > 0.05, unit
            for one, slope in zip(wanted, total, strict=True):
                one += min(1.0, 0.05 / length) * slope / 2.5
        found, loss = private_gradient(model, image_losses, batch, whose, np.random.default_rng(0), norm=0.05, **own)
        assert loss == pytest.approx(float(image_losses(model, batch).sum().detach()), rel=1e-5)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    free, _ = private_gradient(model, image_losses, batch, units, np.random.default_rng(0), norm=1e9, **own)
    for i, one in enumerate(free):  # what is shorter than the norm stays as it is
        torch.testing.assert_close(one, sum(row[i] for row in each) / 2.5, rtol=1e-4, atol=1e-5)


def test_clipping_is_to_the_norm_over_all_weights() -> None:
    gradients = [torch.tensor([[3.0, 0.0], [0.3, 0.0], [0.0, 0.0]]), torch.tensor([[4.0], [0.4], [0.0]])]
    found = clipped_sum(gradients, 1.0)
    torch.testing.assert_close(found[0], torch.tensor([0.6 + 0.3, 0.0]))
    torch.testing.assert_close(found[1], torch.tensor([0.8 + 0.4]))


def test_the_noise_is_of_sigma_times_the_norm_over_the_expected_batch() -> None:
    model = ready("unet")
    batch = some(model)
    own: dict[str, Any] = {"norm": 2.0, "expected": 8.0, "most": 8}

    def gradient(batch: Batch, sigma: float, key: int) -> Tensor:
        rng = np.random.default_rng(key)
        found = private_gradient(model, image_losses, batch, batch.ids, rng, sigma=sigma, **own)[0]
        return torch.cat([one.flatten() for one in found])

    bare = gradient(batch, 0.0, 0)
    assert bare.norm() > 0.01
    assert torch.equal(bare, gradient(batch, 0.0, 1))
    for where in (batch, empty(batch)):  # a step without an image has the same noise
        noise = gradient(where, 0.8, 0) - (bare if len(where) else 0)
        count = len(noise)
        assert count > 10_000
        assert float(noise.std()) == pytest.approx(0.8 * 2 / 8, rel=4 / count**0.5)
        assert abs(float(noise.mean())) < 5 * 0.2 / count**0.5
        assert not torch.equal(gradient(where, 0.8, 0), gradient(where, 0.8, 1))
    assert not gradient(empty(batch), 0.0, 0).any()


@pytest.mark.parametrize(("delta", "sigma"), [(None, 0.80), (1e-5, 0.93)])
def test_sigma_is_found_from_epsilon_and_gives_it_back(delta: float | None, sigma: float) -> None:
    from opacus.accountants import RDPAccountant

    found = budget(500, 500, Schedule(epochs=70, batch=8), epsilon=8.5, delta=delta)
    assert found.sigma == pytest.approx(sigma, abs=0.01)
    assert (found.rate, found.units, found.steps) == (8 / 500, 8, 70 * 62)
    assert found.delta == (1 / 500 if delta is None else delta)
    accountant = RDPAccountant()
    for _ in range(found.steps):
        accountant.step(noise_multiplier=found.sigma, sample_rate=8 / 500)
    assert found.epsilon == pytest.approx(accountant.get_epsilon(delta=found.delta), rel=1e-9)
    assert 8.48 < found.epsilon <= 8.5
    assert spent(1.2 * found.sigma, found.delta, found.rate, found.steps) < 8 < found.epsilon


def test_a_group_has_a_budget_of_its_own_and_no_noise_has_none() -> None:
    own = Schedule(epochs=2, batch=8)
    groups, images = (budget(40, count, own, epsilon=3.0) for count in (5, 40))
    assert (groups.delta, groups.units, groups.rate) == (1 / 5, 1, images.rate)
    assert (images.delta, images.units) == (1 / 40, 8)
    assert groups.sigma < images.sigma  # of the larger delta
    bare = budget(40, 40, own, epsilon=3.0, noise=False)
    assert (bare.sigma, bare.epsilon) == (0, float("inf"))
    with pytest.raises(UserError, match="recipe private: all images are one unit, which no noise hides; give it other"):
        budget(40, 1, own, epsilon=3.0)


def course(recipe: Any, samples: Any, own: Schedule, model: nn.Module) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    made = Course.of(recipe)(recipe, samples, own, model, optimizer, None, nullcontext())
    made.resume({})
    return made


def test_batches_are_drawn_by_units_each_apart_from_the_others() -> None:
    samples = Drawn("segmentation", 12, 1)
    units = tuple((name, f"unit {row % 4}") for row, name in enumerate(samples.ids))
    for given, size in ((None, 1), (units, 3)):
        own = schedule(batch=3, epochs=1)
        made = course(partial(private, units=given, noise=False), samples, own, ready())
        drawn = [rows for epoch in range(300) for rows in made.rows(epoch)]
        assert len(drawn) == 300 * 4
        counts = torch.tensor([len(rows) for rows in drawn]).double()
        assert float(counts.mean()) == pytest.approx(3, abs=0.3)
        assert float(counts.var()) == pytest.approx(size * 12 * 0.25 * 0.75, rel=0.15)  # of a binomial
        assert any(not rows for rows in drawn)  # the seed left these out
        assert made.rows(5) == made.rows(5) != made.rows(6)
        whole = {tuple(row for row in range(12) if row % 4 == unit) for unit in range(4)}
        for rows in drawn if given else []:
            assert {tuple(rows[start : start + 3]) for start in range(0, len(rows), 3)} <= whole


def test_an_empty_poisson_batch_still_takes_its_noisy_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, changed = list[int](), list[bool]()
    real = clipping.private_gradient

    def watched(model: nn.Module, losses: Any, batch: Batch, *own: Any, **named: Any) -> Any:
        sizes.append(len(batch))
        found = real(model, losses, batch, *own, **named)
        changed.append(all(bool(one.any()) for one in found[0]))
        return found

    monkeypatch.setattr(clipping, "private_gradient", watched)
    samples, own = Drawn("segmentation", 12, 1), schedule(epochs=2, batch=1)
    fit(group_norms(net()), samples, None, private, own, tmp_path)
    assert len(sizes) == 2 * 12
    assert 0 in sizes
    assert len(set(sizes)) > 2
    assert all(changed)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["course"]["steps"] == 24
    model = ready()
    made = course(partial(private, noise=False), samples, own, model)
    before = weights(model)
    assert made.step(empty(batch_of("segmentation")), None) == 0
    assert equal(weights(model), before)  # clipping alone has no noise
    made = course(private, samples, own, model)
    made.step(empty(batch_of("segmentation")), None)
    assert not equal(weights(model), before)


def test_no_two_steps_have_the_same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's generators keep 32 bits of a seed: some thousand steps would meet again."""
    drawn = list[np.random.Generator]()

    def kept(model: nn.Module, losses: Any, batch: Batch, units: Any, rng: Any, **_: Any) -> Any:
        drawn.append(rng)
        return [torch.zeros_like(weight) for weight in model.parameters()], 0.0

    monkeypatch.setattr(clipping, "private_gradient", kept)
    monkeypatch.setattr("segaudit.training.private.number", lambda *parts: parts[-1] * 2**32)
    made = course(private, Drawn("segmentation", 12, 1), schedule(epochs=2, batch=1), ready())
    for _ in range(3):
        made.step(empty(batch_of("segmentation")), None)
    first = [rng.standard_normal(4).tolist() for rng in drawn]
    assert len({str(one) for one in first}) == 3


def test_a_training_that_is_resumed_has_taken_the_same_steps(tmp_path: Path) -> None:
    samples, own = Drawn("segmentation", 18, 1), schedule(epochs=3, batch=4, precision="bf16")
    recipe = partial(private, units=tuple((name, name[-1]) for name in samples.ids))

    class Killed(Exception):
        pass

    def kill(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (1, 2):
            raise Killed

    whole, parts = group_norms(net()), group_norms(net(seed=9))
    fit(whole, samples, None, recipe, own, tmp_path / "whole")
    with pytest.raises(Killed):
        fit(group_norms(net()), samples, None, recipe, own, tmp_path / "parts", kill)
    assert torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)["course"]["steps"] == 4
    with pytest.raises(UserError, match=r"recipe private: the training that is resumed had sigma .*, not 0.0: the bud"):
        fit(group_norms(net()), samples, None, partial(recipe, noise=False), own, tmp_path / "parts")
    images = partial(private, delta=1 / 10)  # the noise is the same, and each of them is now promised what a group was
    with pytest.raises(UserError, match="recipe private: the training that is resumed had units 10, not 18: the"):
        fit(group_norms(net()), samples, None, images, own, tmp_path / "parts")
    fit(parts, samples, None, recipe, own, tmp_path / "parts")
    assert equal(weights(parts), weights(whole))
    state = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)["course"]
    assert state["steps"] == 12 == budget(18, 10, own, epsilon=8.5).steps
    other = group_norms(net())
    fit(other, samples, None, recipe, schedule(**{**vars(own), "seed": 1}), tmp_path / "other")
    assert not equal(weights(other), weights(whole))


def test_what_another_recipe_began_is_not_private(tmp_path: Path) -> None:
    samples = Drawn("segmentation", 8, 1)
    fit(group_norms(net()), samples, None, standard, schedule(epochs=1), tmp_path)
    with pytest.raises(UserError, match="recipe private: the training that is resumed was begun by another recipe"):
        fit(group_norms(net()), samples, None, private, schedule(epochs=2), tmp_path)


def test_it_learns_where_there_is_no_noise(tmp_path: Path) -> None:
    samples, model = Drawn("segmentation", 32, 1), group_norms(net())
    before = image_losses(model, Batch(samples.images, samples.labels, samples.ids)).mean().detach()
    fit(model, samples, None, partial(private, noise=False), schedule(epochs=12, lr=0.005), tmp_path)
    after = image_losses(model, Batch(samples.images, samples.labels, samples.ids)).mean().detach()
    assert after < 0.7 * before
    assert not any(module.training for module in model.modules())


class Centred(Segmenter):
    """Takes something of the batch away, in a module of its own making."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.class_names, self.net, self.how = ("a", "b"), nn.Conv2d(3, 2, 1), how

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.net(images)
        if self.how == "before":
            return found - found.cumsum(0)
        mean = found.mean(0, keepdim=True) if self.training or self.how != "training" else torch.zeros(())
        return found - (mean.detach() if self.how == "detached" else mean)


def test_batch_norm_couples_images_and_is_refused(tmp_path: Path) -> None:
    fault = "recipe private: the network's norm is a norm over the batch, so images depend on their neighbours; make "
    with pytest.raises(UserError, match=fault) as error:
        fit(net(), Drawn("segmentation", 8, 1), None, private, schedule(), tmp_path)
    assert "\n" not in str(error.value)
    for how in ("always", "training", "detached", "before"):
        with pytest.raises(UserError, match="the loss of an image depends on its neighbours in the batch"):
            fit(Centred(how), Drawn("binary", 8, 1), None, private, schedule(), tmp_path)


def test_batch_dice_couples_images_and_is_refused(tmp_path: Path) -> None:
    batch, model = batch_of("segmentation"), ready()
    both = partial(standard, rng=ImageStreams(0, batch.ids), dice=1.0)
    with pytest.raises(UserError, match=r"the loss is of the batch as a whole \(\), not one for each of its 4 images"):
        refuse_coupling(model, both, batch)
    with pytest.raises(UserError, match="the loss of an image depends on its neighbours"):
        refuse_coupling(model, lambda m, b: both(m, b) + image_losses(m, b), batch)
    with pytest.raises(UserError, match="the loss of an image depends on its neighbours"):
        refuse_coupling(model, lambda m, b: image_losses(m, b) / (b.labels != VOID).sum(), batch)
    refuse_coupling(model, partial(image_losses, image_dice=1.0), batch)
    assert all(module.training for module in model.modules())
    with pytest.raises(UserError, match="recipe private: dice is of a batch as a whole, so no image's part of it can"):
        fit(model, Drawn("segmentation", 8, 1), None, partial(private, dice=1.0), schedule(), tmp_path)


class Mirrored(Segmenter):
    """A convolution that repeats what is at the edge, of which Opacus does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.class_names, self.net = ("a", "b"), nn.Conv2d(3, 2, 5, padding=2, padding_mode="reflect")

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)  # type: ignore[no-any-return]


class Halved(Segmenter):
    """Looks at the halves of an image apart, as images of their own, of which Opacus then counts twice as many."""

    def __init__(self) -> None:
        super().__init__()
        self.class_names, self.net = ("a", "b"), nn.Conv2d(3, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        height = images.shape[2] // 2
        parts = torch.stack([images[:, :, :height], images[:, :, height : 2 * height]], 1).flatten(0, 1)
        found = self.net(parts).unflatten(0, (-1, 2)).movedim(1, 2).flatten(2, 3)
        return nn.functional.pad(found, (0, 0, 0, images.shape[2] - 2 * height))  # type: ignore[no-any-return]


@pytest.mark.parametrize("make", [Mirrored, Halved])
def test_gradients_that_opacus_gets_wrong_are_refused(make: type[Segmenter], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Opacus gets the gradients of single images in net.weight wrong; build"):
        fit(make(), Drawn("binary", 8, 1), None, private, schedule(), tmp_path)


class Adding(Segmenter):
    """Adds to what a layer gave, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.class_names, self.net = ("a", "b"), nn.Conv2d(3, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.net(images)
        found += 1
        return found


def test_what_works_in_place_on_a_layer_s_output_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="recipe private: the network changes what a layer gave in place"):
        fit(Adding(), Drawn("binary", 8, 1), None, private, schedule(), tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dice", [0, 0.5])
def test_the_loss_of_an_image_is_the_standard_one_of_it_alone(kind: str, dice: float) -> None:
    batch, model = batch_of(kind), net(kind).eval()
    batch.labels[1] = VOID
    own: dict[str, Any] = {"class_weights": [1.0, 3.0, 0.5, 2.0, 1.5][: KINDS[kind]], "label_smoothing": 0.1}
    found = image_losses(model, batch, image_dice=dice, **own)
    for row in range(len(batch)):
        alone = standard(model, batch[row : row + 1], rng=ImageStreams(0, batch.ids), dice=dice, **own)
        torch.testing.assert_close(found[row], alone, rtol=1e-4, atol=1e-6)
    assert float(found[1].detach()) == 0
    mean = private(model, batch, rng=ImageStreams(0, batch.ids), image_dice=dice, **own)
    torch.testing.assert_close(mean, found.mean())
    slopes = torch.autograd.grad(image_losses(model.requires_grad_(True), batch).sum(), model.head.weight)
    assert slopes[0].isfinite().all()


def test_an_empty_mask_has_a_loss() -> None:
    batch, model = batch_of("binary"), net("binary").eval()
    nothing = Batch(batch.images, torch.zeros_like(batch.labels), batch.ids)
    alone = image_losses(model, nothing, image_dice=1.0) - image_losses(model, nothing)
    assert (alone > 0.05).all()
    assert (image_losses(model, nothing) > 0.05).all()


def test_groups_have_several_channels() -> None:
    assert [groups(count) for count in (4, 5, 6, 8, 12, 16, 32, 64, 128, 512)] == [1, 1, 1, 2, 3, 4, 8, 16, 32, 32]
    for count in range(2, 300):
        assert count % groups(count) == 0
        assert count // groups(count) >= min(4, count)


@pytest.mark.parametrize("name", NETS)
def test_group_norms_keep_images_apart(name: str) -> None:
    bare, model = network(name), ready(name)
    assert coupled(bare) is not None
    assert coupled(model) is None
    assert sum(weight.numel() for weight in bare.parameters()) == sum(weight.numel() for weight in model.parameters())
    batch = some(model)
    with torch.no_grad():
        torch.testing.assert_close(model(batch.images)[1:2], model(batch.images[1:2]), rtol=1e-4, atol=1e-5)
        trained = model(batch.images)
        torch.testing.assert_close(model.eval()(batch.images), trained)
    again = group_norms(network(name))
    again.load_state_dict(model.state_dict())


def test_a_norm_keeps_its_scale_its_mode_and_what_comes_after_it() -> None:
    from timm.layers import BatchNormAct2d

    norm = nn.BatchNorm2d(8)
    with torch.no_grad():
        norm.weight.uniform_()
        norm.bias.uniform_()
    made = group_norms(nn.Sequential(copy.deepcopy(norm), nn.ReLU(inplace=True)).eval())
    x = torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    own = nn.functional.group_norm(x, 2, norm.weight, norm.bias)
    torch.testing.assert_close(made(x), own.relu())
    assert not made[1].inplace
    assert not any(module.training for module in made.modules())
    with_act = group_norms(nn.Sequential(BatchNormAct2d(8)))
    assert (with_act(x) >= 0).all()
    assert (with_act(x) > 0).any()


@pytest.mark.parametrize(
    ("own", "fault"),
    [
        ({"epsilon": 0}, "epsilon must be a number above 0, not 0"),
        ({"norm": "2"}, "norm must be a number above 0, not '2'"),
        ({"delta": 1.0}, "delta must be between 0 and 1, such as 1e-5, not 1.0"),
        ({"noise": 1}, "noise must be true or false, not 1"),
        ({"accountant": "gdp"}, "accountant must be rdp or prv, not 'gdp'"),
        ({"image_dice": -1}, "image_dice must be a number of at least 0, not -1"),
        ({"class_weights": "balanced"}, "class_weights 'balanced' tell of the private images; give numbers"),
        ({"units": (("a",),)}, "units must be pairs of an image's id and its unit"),
    ],
)
def test_bad_arguments_are_one_line(own: dict[str, Any], fault: str) -> None:
    batch = batch_of("segmentation")
    with pytest.raises(UserError) as error:
        private(net(), batch, rng=ImageStreams(0, batch.ids), **own)
    assert str(error.value) == f"recipe private: {fault}"


def test_units_are_said_of_every_image(tmp_path: Path) -> None:
    samples = Drawn("segmentation", 8, 1)
    recipe = partial(private, units=tuple((name, "all") for name in samples.ids[1:]))
    with pytest.raises(UserError, match=f"recipe private: units says nothing of {samples.ids[0]}; give"):
        fit(group_norms(net()), samples, None, recipe, schedule(), tmp_path)
