"""The adversarial and the noise recipe, and class weights that are counted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nets import KINDS, draw
from segaudit.attacks.pgd import pgd
from segaudit.attacks.segpgd import segpgd
from segaudit.rng import ImageStreams
from segaudit.training.adversarial import adversarial
from segaudit.training.balance import balanced, class_weights
from segaudit.training.loop import Progress, fit
from segaudit.training.noise import noise
from segaudit.training.standard import standard
from segaudit.types import VOID, Batch, Segmenter, UserError
from train_kit import Drawn, Noisy, batch_of, equal, net, schedule, weights

pytestmark = pytest.mark.usefixtures("one_thread")

PGD = partial(pgd, eps=0.03, steps=3)


def streams(batch: Batch) -> ImageStreams:
    return ImageStreams(0, batch.ids, "train/0")


def black(model: Segmenter, images: Tensor, labels: Tensor, *, rng: ImageStreams) -> Tensor:
    return torch.zeros_like(images)


def test_the_attack_sees_eval_mode_and_frozen_weights_and_leaves_no_trace() -> None:
    batch, model, seen = batch_of("segmentation", 8), net(make=Noisy).train(), list[Any]()
    model.head.eval()
    model.head.bias.requires_grad_(False)
    before = weights(model)

    def attack(view: Segmenter, images: Tensor, labels: Tensor, *, rng: ImageStreams) -> Tensor:
        assert (view.num_classes, view.class_names) == (5, model.class_names)
        found = PGD(view, images, labels, rng=rng)
        seen.append((any(m.training for m in view.modules()), any(p.requires_grad for p in view.parameters())))
        assert equal(weights(model), before)  # the running statistics among them
        assert all(p.grad is None for p in model.parameters())
        return found

    torch.manual_seed(3)
    adversarial(model, batch, rng=streams(batch), attack=attack).backward()
    assert seen == [(False, False)]
    assert int(model.norm.num_batches_tracked) == 1  # the one pass that is learnt from
    assert [m.training for m in (model, model.first, model.norm, model.head)] == [True, True, True, False]
    assert [p.requires_grad for p in (model.first.weight, model.norm.weight, model.head.bias)] == [True, True, False]
    assert model.first.weight.grad is not None

    twin = net(make=Noisy)
    twin.load_state_dict(before)
    images = PGD(twin.eval(), batch.images, batch.labels, rng=streams(batch).child("attack"))
    torch.manual_seed(3)  # of the dropout, which is not drawn in the attack
    twin.train()(images.contiguous(memory_format=torch.channels_last))  # which orders the dropout's draws
    for key in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(model.norm, key), getattr(twin.norm, key), rtol=1e-4, atol=1e-6)


def test_a_batch_of_weightless_pixels_counts_for_nothing() -> None:
    model = net()
    images = torch.rand(2, 3, 8, 8)
    batch = Batch(images, torch.zeros(2, 8, 8, dtype=torch.int64), ("a", "b"))
    weights = [0.0] + [1.0] * (model.num_classes - 1)
    loss = standard(model, batch, rng=streams(batch), class_weights=weights)
    assert loss.item() == 0
    assert loss.requires_grad


def test_a_failing_attack_leaves_the_network_as_it_was() -> None:
    model = net().train().requires_grad_(True)

    def attack(view: Segmenter, images: Tensor, labels: Tensor, *, rng: ImageStreams) -> Tensor:
        raise RuntimeError("out of memory")

    batch = batch_of("segmentation")
    with pytest.raises(RuntimeError, match="out of memory"):
        adversarial(model, batch, rng=streams(batch), attack=attack)
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("share", "count"), [(1.0, 8), (0.5, 4), (0.7, 6), (0.01, 1)])
def test_a_share_of_the_batch_is_attacked_and_the_rest_is_clean(kind: str, share: float, count: int) -> None:
    batch, model, given = batch_of(kind, 8), net(kind).train(), list[tuple[Tensor, Tensor]]()

    def attack(view: Segmenter, images: Tensor, labels: Tensor, *, rng: ImageStreams) -> Tensor:
        given.append((images, labels))
        assert torch.equal(rng.normal(images), streams(batch[:count]).child("attack").normal(images))
        return black(view, images, labels, rng=rng)

    heavy = [1.0, 3.0, 0.5, 2.0, 1.5][: KINDS[kind]]
    own = {"class_weights": heavy, "label_smoothing": 0.1}
    loss = adversarial(model, batch, rng=streams(batch), attack=attack, share=share, **own)
    (seen,) = given
    assert torch.equal(seen[0], batch.images[:count])
    assert torch.equal(seen[1], batch.labels[:count])
    mixed = Batch(torch.cat([torch.zeros_like(seen[0]), batch.images[count:]]), batch.labels, batch.ids)
    torch.testing.assert_close(loss, standard(model, mixed, rng=streams(batch), **own), rtol=1e-3, atol=1e-3)


def test_the_network_runs_in_bf16_and_the_attack_does_not() -> None:
    batch, model, seen = batch_of("segmentation"), net().train(), list[tuple[bool, torch.dtype]]()
    model.first.register_forward_hook(lambda module, _, output: seen.append((module.training, output.dtype)))

    def attack(view: Segmenter, images: Tensor, labels: Tensor, *, rng: ImageStreams) -> Tensor:
        assert not torch.is_autocast_enabled("cpu")
        logits = view(images)
        assert logits.dtype == torch.float32
        found = PGD(view, images, labels, rng=rng)
        assert found.dtype == torch.float32
        return found

    with torch.autocast("cpu", torch.bfloat16):
        adversarial(model, batch, rng=streams(batch), attack=attack).backward()
    assert seen == [(False, torch.bfloat16)] * 4 + [(True, torch.bfloat16)]
    seen.clear()
    adversarial(model, batch, rng=streams(batch), attack=PGD)
    assert seen == [(False, torch.float32)] * 3 + [(True, torch.float32)]


RECIPES = {
    "PGD-AT": partial(adversarial, attack=PGD),
    "SegPGD-AT": partial(adversarial, attack=partial(segpgd, eps=0.03, steps=2), share=0.5),
    "noise": partial(noise, sigma=0.1, varied=True),
}


@pytest.mark.parametrize("name", RECIPES)
def test_an_interrupted_training_ends_in_the_same_weights(name: str, tmp_path: Path) -> None:
    train, recipe = Drawn("segmentation", 18, 1), RECIPES[name]
    own = schedule(epochs=3, batch=4, augment={"scale": [0.8, 1.25]})

    class Killed(Exception):
        pass

    def kill(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (1, 2):
            raise Killed

    undisturbed, resumed = net(make=Noisy), net(make=Noisy, seed=9)
    fit(undisturbed, train, None, recipe, own, tmp_path / "whole")
    torch.rand(7)
    with pytest.raises(Killed):
        fit(net(make=Noisy), train, None, recipe, own, tmp_path / "parts", kill)
    fit(resumed, train, None, recipe, own, tmp_path / "parts")
    assert equal(weights(resumed), weights(undisturbed))
    other = net(make=Noisy)
    fit(other, train, None, recipe, schedule(**{**vars(own), "seed": 1}), tmp_path / "other")
    assert not equal(weights(other), weights(undisturbed))


class TwoCues(Drawn):
    """Regions told apart by a faint tint that is always right, and by a strong one that is right in 6 images of 7.

    The tint is lost in an eps of 0.06 or in noise; what is left is the strong one. After Tsipras et al. 2019.
    """

    def __init__(self, count: int, seed: int) -> None:
        super().__init__("binary", count, seed)
        sign = 2 * draw("binary", count, seed)[1].float() - 1
        turned = torch.where(torch.arange(count) % 7 == 0, -1.0, 1.0).view(-1, 1, 1)
        noise = 0.01 * torch.randn(sign.shape, generator=torch.Generator().manual_seed(seed))
        grey = torch.full_like(sign, 0.5)
        self.images = torch.stack([grey + 0.2 * turned * sign, grey + 0.03 * sign + noise, grey], 1)


def right(model: Segmenter, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((model(images).argmax(1) == labels)[labels != VOID].double().mean())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_trained_on_attacks_or_in_noise_withstands_them(precision: str, tmp_path: Path) -> None:
    train, val = TwoCues(64, 1), TwoCues(21, 2)
    rng, own = ImageStreams(0, val.ids), schedule(epochs=8, precision=precision)
    recipes = {
        "standard": standard,
        "adversarial": partial(adversarial, attack=partial(pgd, eps=0.06, steps=3), share=0.75),
        "noise": partial(noise, sigma=0.25),
    }
    clean, attacked, noisy = {}, {}, {}
    for name, recipe in recipes.items():
        model = net("binary")
        fit(model, train, None, recipe, own, tmp_path / name)
        clean[name] = right(model, val.images, val.labels)
        images = pgd(model, val.images, val.labels, rng=rng.child("attack"), eps=0.06, steps=20)
        attacked[name] = right(model, images, val.labels)
        noisy[name] = right(model, val.images + 0.25 * rng.child("noise").normal(val.images), val.labels)
    assert clean["standard"] > 0.95
    assert min(clean.values()) > 0.8
    assert attacked["adversarial"] > 0.75
    assert attacked["standard"] < 0.4
    assert noisy["noise"] > noisy["standard"] + 0.1


def test_noise_is_each_image_s_own_and_of_the_size_that_was_asked_for() -> None:
    batch, model, seen = batch_of("segmentation", 6), net().train(), list[Tensor]()
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))

    def delta(ids: tuple[str, ...] = batch.ids, **own: Any) -> Tensor:
        noise(model, Batch(batch.images, batch.labels, ids), rng=ImageStreams(0, ids, "train/0"), **own)
        return seen[-1] - batch.images

    fixed, varied = delta(sigma=0.25), delta(sigma=0.25, varied=True)
    torch.testing.assert_close(fixed / 0.25, streams(batch).child("noise").normal(batch.images), atol=1e-5, rtol=0)
    assert fixed.std((1, 2, 3)).tolist() == pytest.approx([0.25] * 6, rel=0.1)
    sizes = streams(batch).child("sigma").uniform(batch.images[:, :1, :1, :1])
    torch.testing.assert_close(varied, fixed * sizes, atol=1e-6, rtol=0)
    assert len(set(varied.std((1, 2, 3)).tolist())) == 6
    assert (batch.images + fixed).min() < 0  # as certification draws them
    assert all(not torch.equal(fixed[0], other) for other in fixed[1:])
    loss = noise(model, batch, rng=streams(batch), sigma=0.25, class_weights=[1, 2, 1, 0.5, 1], label_smoothing=0.1)
    again = standard(
        model,
        Batch(batch.images + fixed, batch.labels, batch.ids),
        rng=streams(batch),
        class_weights=[1, 2, 1, 0.5, 1],
        label_smoothing=0.1,
    )
    torch.testing.assert_close(loss, again)


@pytest.mark.parametrize(
    ("recipe", "fault"),
    [
        (partial(adversarial, attack=black, share=0), "share must be above 0 and at most 1, not 0"),
        (partial(adversarial, attack=black, share=1.5), "share must be above 0 and at most 1, not 1.5"),
        (partial(adversarial, attack=black, share="half"), "share must be above 0 and at most 1, not 'half'"),
        (partial(adversarial, attack=lambda *_, rng: None), "the attack returned NoneType for images (4, 3, 17, 23)"),
        (
            partial(adversarial, attack=lambda m, x, y, rng: x[:, :1]),
            "the attack returned (4, 1, 17, 23) for images (4, 3, 17, 23)",
        ),
        (partial(adversarial, attack=lambda m, x, y, rng: x + 1), "the attack left [0, 1] or returned NaN; if the"),
        (partial(adversarial, attack=lambda m, x, y, rng: x * torch.nan), "the attack left [0, 1] or returned NaN"),
        (partial(noise, sigma=0), "sigma must be a number above 0, not 0; images are in [0, 1]"),
        (partial(noise, sigma="0.1 "), "sigma must be a number above 0, not '0.1 '"),
        (partial(noise, sigma=float("inf")), "sigma must be a number above 0, not inf"),
    ],
)
def test_bad_arguments_are_one_line(recipe: Callable[..., Tensor], fault: str) -> None:
    batch, model = batch_of("segmentation"), net().train()
    with pytest.raises(UserError) as error:
        recipe(model, batch, rng=streams(batch))
    assert str(error.value).startswith(f"recipe {recipe.func.__name__}: {fault}")  # type: ignore[attr-defined]
    assert "\n" not in str(error.value)
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize("value", [-0.1, 1.1, "much", True, float("nan")])
def test_a_label_smoothing_is_from_0_to_1(value: Any) -> None:
    batch = batch_of("segmentation")
    with pytest.raises(UserError) as error:
        standard(net().train(), batch, rng=streams(batch), label_smoothing=value)
    assert str(error.value) == f"recipe: label_smoothing must be a number from 0 to 1, not {value!r}"


def test_balanced_weights_are_the_median_frequency_over_each_class_s_own() -> None:
    samples = Drawn("segmentation", 7, 3)
    samples.labels[samples.labels == 3] = 4  # a class without a pixel
    samples.labels[:4][samples.labels[:4] == 1] = VOID  # and one that four images lack
    frequency = {}
    for k in (0, 1, 2, 4):
        rows = [mask for mask in samples.labels.numpy() if (mask == k).any()]
        frequency[k] = sum((mask == k).sum() for mask in rows) / sum((mask != VOID).sum() for mask in rows)
    median = np.median(list(frequency.values()))
    found = balanced(samples, 5)
    assert found == pytest.approx([median / frequency[k] if k in frequency else 0 for k in range(5)])
    assert found == class_weights("balanced", samples, "abcde")
    assert class_weights((1, 2.5, 0, 1, 1), samples, "abcde") == [1, 2.5, 0, 1, 1]


@pytest.mark.parametrize(
    ("wanted", "fault"),
    [
        ("balancd", "recipe: class_weights must be `balanced`, or a list of 2 numbers, not 'balancd'"),
        ([1, "2 "], "recipe: class_weights must be `balanced`, or a list of 2 numbers, not [1, '2 ']"),
        ([1, -2], "recipe: class_weights must be `balanced`, or a list of 2 numbers, not [1, -2]"),
        ([1, 2, 3], "recipe: 3 class_weights for 2 classes (no, yes)"),
    ],
)
def test_bad_class_weights_are_said_before_anything_is_trained(wanted: Any, fault: str) -> None:
    with pytest.raises(UserError) as error:
        class_weights(wanted, Drawn("binary", 2, 1), ("no", "yes"))
    assert str(error.value) == fault


def test_void_alone_has_no_balance() -> None:
    samples = Drawn("binary", 2, 1)
    samples.labels[:] = VOID
    with pytest.raises(UserError, match="no training image has a pixel that is not void"):
        balanced(samples, 2)
