"""The training loop and the standard recipe."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nets import KINDS
from segaudit.rng import ImageStreams
from segaudit.training import loop
from segaudit.training.loop import Progress, evaluate, fit
from segaudit.training.rates import RATES, one_cycle, poly
from segaudit.training.standard import standard
from segaudit.types import VOID, Batch, Segmenter, UserError
from train_kit import Drawn, Noisy, batch_of, equal, lines, net, schedule, weights

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_falls_and_the_score_rises(kind: str, precision: str, tmp_path: Path) -> None:
    train, held_out, model, said = Drawn(kind, 66, 1), Drawn(kind, 16, 2), net(kind), list[Progress]()
    before = evaluate(model, held_out)
    own = schedule(epochs=8, precision=precision, validate_every=2, augment={"scale": [0.9, 1.1]})
    seen = set[tuple[bool, torch.dtype]]()
    model.first.register_forward_hook(lambda module, _, output: seen.add((module.training, output.dtype)))
    score = fit(model, train, held_out, standard, own, tmp_path, said.append)
    assert {dtype for training, dtype in seen if training} == {DTYPES[precision]}
    log = lines(tmp_path)
    assert log[-1]["loss"] < 0.7 * log[0]["loss"]
    assert score["miou"] > max(before["miou"] + 0.3, 0.55)
    assert score["accuracy"] > max(before["accuracy"] + 0.3, 0.75)
    assert [line["epoch"] for line in log] == list(range(8))
    assert ["miou" in line for line in log] == [False, True, False, True, False, True, False, False]
    assert [(p.epoch, p.step, p.steps) for p in said] == [(e, s, 8) for e in range(8) for s in range(1, 9)]
    assert said[7].loss == pytest.approx(log[0]["loss"])
    assert [p.miou for p in said[8::16]] == [None, *(line["miou"] for line in log if "miou" in line)]
    assert not any(module.training for module in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    seen.clear()
    assert evaluate(model, held_out) == score  # in float32, whatever the training was in
    assert seen == {(False, torch.float32)}


def test_an_interrupted_training_ends_in_the_same_weights(tmp_path: Path) -> None:
    train, held_out = Drawn("segmentation", 26, 1), Drawn("segmentation", 4, 2)
    own = schedule(epochs=4, augment={"scale": [0.8, 1.25], "light": 0.2})

    class Killed(Exception):
        pass

    def kill(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (2, 2):
            raise Killed

    undisturbed = net(make=Noisy)
    score = fit(undisturbed, train, held_out, standard, own, tmp_path / "whole")
    torch.rand(7)  # where the global generator stands is not the training's business
    with pytest.raises(Killed):
        fit(net(make=Noisy), train, held_out, standard, own, tmp_path / "parts", kill)
    assert [line["epoch"] for line in lines(tmp_path / "parts")] == [0, 1]
    epochs, resumed = set[int](), net(make=Noisy, seed=9)
    again = fit(resumed, train, held_out, standard, own, tmp_path / "parts", lambda p: epochs.add(p.epoch))
    assert epochs == {2, 3}
    assert again == score
    assert equal(weights(resumed), weights(undisturbed))

    def without_seconds(folder: str) -> list[dict[str, float]]:
        return [{key: value for key, value in line.items() if key != "seconds"} for line in lines(tmp_path / folder)]

    assert without_seconds("parts") == without_seconds("whole")
    finished = net(make=Noisy, seed=9)
    assert fit(finished, train, held_out, standard, own, tmp_path / "parts", kill) == score
    assert equal(weights(finished), weights(undisturbed))


def test_the_seed_decides_order_views_and_dropout(tmp_path: Path) -> None:
    train = Drawn("segmentation", 16, 1)
    found = []
    for i, seed in enumerate((0, 0, 1)):
        model = net(make=Noisy)
        assert fit(model, train, None, standard, schedule(epochs=1, seed=seed), tmp_path / str(i)) == {}
        found.append(weights(model))
    assert equal(found[0], found[1])
    assert not equal(found[0], found[2])


def test_every_image_is_seen_once_an_epoch_in_an_order_of_its_own(tmp_path: Path) -> None:
    train, seen = Drawn("binary", 16, 1), list[tuple[str, ...]]()

    def recipe(model: Segmenter, batch: Batch, *, rng: ImageStreams) -> Tensor:
        seen.append(batch.ids)
        own = [
            ImageStreams(0, (name,), f"train/{(len(seen) - 1) // 2}").normal(torch.empty(1, 1)) for name in batch.ids
        ]
        assert torch.equal(rng.normal(torch.empty(8, 1)), torch.cat(own))
        return standard(model, batch, rng=rng)

    fit(net("binary"), train, None, recipe, schedule(epochs=2), tmp_path)
    orders = [sum(seen[i : i + 2], ()) for i in (0, 2)]
    assert [sorted(order) for order in orders] == [sorted(train.ids)] * 2
    assert orders[0] != orders[1]


def test_fewer_images_than_a_batch_are_one(tmp_path: Path) -> None:
    said = list[Progress]()
    fit(net(), Drawn("segmentation", 3, 1), None, standard, schedule(epochs=2), tmp_path, said.append)
    assert [(p.step, p.steps) for p in said] == [(1, 1), (1, 1)]


def test_a_loss_that_is_not_a_number_ends_with_what_to_do(tmp_path: Path) -> None:
    def broken(model: Segmenter, batch: Batch, *, rng: ImageStreams) -> Tensor:
        return standard(model, batch, rng=rng) * float("nan")

    with pytest.raises(UserError, match=r"training: the loss is nan in epoch 0; lower lr \(0.02\)"):
        fit(net(), Drawn("segmentation", 8, 1), None, broken, schedule(), tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_change_no_result_and_say_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    train, found = Drawn("segmentation", 16, 1), []
    for workers in (0, 1):
        model = net()
        own = schedule(epochs=1, workers=workers, augment={"scale": [0.8, 1.25]})
        fit(model, train, None, standard, own, tmp_path / str(workers))
        found.append(weights(model))
    assert equal(*found)

    class Damaged(Drawn):
        def sample(self, image_id: str) -> tuple[Tensor, Tensor]:
            raise UserError(f"{image_id}: the file is truncated")

    for workers in (0, 1):
        with pytest.raises(UserError, match=r"^binary \d+: the file is truncated$"):
            fit(net("binary"), Damaged("binary", 8, 1), None, standard, schedule(workers=workers), tmp_path / "damaged")


def test_images_of_different_sizes_are_said(tmp_path: Path) -> None:
    class Uneven(Drawn):
        def sample(self, image_id: str) -> tuple[Tensor, Tensor]:
            image, labels = super().sample(image_id)
            return (image[:, 1:], labels[1:]) if image_id == self.ids[0] else (image, labels)

    fault = r"training: the images differ in size \(16 x 23 and 17 x 23\): give data a `size: \[H, W\]`"
    samples = Uneven("segmentation", 8, 1)
    with pytest.raises(UserError, match=fault):
        fit(net(), samples, None, standard, schedule(), tmp_path / "train")
    with pytest.raises(UserError, match=fault):
        evaluate(net(), samples)
    fit(net(), samples, None, standard, schedule(epochs=1, augment={"crop": [12, 16]}), tmp_path / "cropped")


def test_an_unknown_key_of_augment_is_said() -> None:
    with pytest.raises(UserError) as error:
        schedule(augment={"flipp": False})
    assert str(error.value) == "augment has no 'flipp' (did you mean 'flip'?); it has: flip, turn, scale, crop, light"
    with pytest.raises(UserError) as error:
        schedule(lr_schedule="polly")
    assert str(error.value) == "lr_schedule must be one of one_cycle, poly, not 'polly' (did you mean 'poly'?)"


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"epochs": 0}, "epochs must be a whole number of at least 1, not 0"),
        ({"batch": 2.5}, "batch must be a whole number of at least 1, not 2.5"),
        ({"validate_every": True}, "validate_every must be a whole number of at least 1, not True"),
        ({"workers": -1}, "workers must be a whole number of at least 0, not -1"),
        ({"lr": float("inf")}, "lr must be a number above 0, not inf"),
    ],
)
def test_a_schedule_refuses_numbers_that_cannot_be(own: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        schedule(**own)
    assert str(error.value) == said


def test_the_score_is_that_of_all_valid_pixels_at_once() -> None:
    samples = Drawn("segmentation", 5, 2)
    model = net().eval()
    guess, valid = model(samples.images).argmax(1)[samples.labels != VOID], samples.labels != VOID
    truth = samples.labels[valid]
    expected = [
        float(((guess == k) & (truth == k)).sum() / ((guess == k) | (truth == k)).sum()) for k in truth.unique()
    ]
    score = evaluate(model.train(), samples, batch=2)
    assert score["miou"] == pytest.approx(sum(expected) / len(expected))
    assert score["accuracy"] == pytest.approx(float((guess == truth).double().mean()))


def test_the_learning_rate_warms_up_and_falls_to_nothing() -> None:
    rates = [one_cycle(i / 100, 0.1) for i in range(101)]
    assert 0 < rates[0] < 0.02
    assert rates[10] == max(rates) == 1
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0)
    assert one_cycle(0, 0) == 1
    assert one_cycle(0.5, 1) == pytest.approx(0.5, abs=0.01)


def test_poly_is_deeplab_s_after_the_warm_up() -> None:
    assert [poly(i / 10, 0) for i in range(11)] == pytest.approx([(1 - i / 10) ** 0.9 for i in range(11)])
    assert [poly(i / 100, 0.2) for i in range(20)] == [one_cycle(i / 100, 0.2) for i in range(20)]
    assert poly(0.2, 0.2) == 1
    assert poly(0.6, 0.2) == pytest.approx(0.5**0.9)
    assert poly(1, 0.2) == 0


@pytest.mark.parametrize("name", RATES)
def test_the_peak_learning_rate_and_the_decay_of_weights_alone_reach_the_optimizer(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, groups = list[float](), list[Any]()

    class Watched(torch.optim.AdamW):
        def __init__(self, params: Any, **own: Any) -> None:
            groups.extend(params)
            super().__init__(params, **own)

        def step(self, closure: Any = None) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr(loop.torch.optim, "AdamW", Watched)
    own = schedule(weight_decay=0.3, lr=0.5, lr_schedule=name)
    fit(net(), Drawn("segmentation", 16, 1), None, standard, own, tmp_path)
    assert rates == [0.5 * RATES[name](i / 6, 0.1) for i in range(6)]
    decays = {group["weight_decay"]: sorted({p.ndim for p in group["params"]}) for group in groups}
    assert decays == {0.3: [4], 0.0: [1]}


@pytest.mark.parametrize("kind", KINDS)
def test_the_standard_loss_is_the_mean_over_valid_pixels(kind: str) -> None:
    batch, model = batch_of(kind), net(kind)
    logs = model(batch.images).log_softmax(1)
    rows = [
        (-logs[n, batch.labels[n, i, j], i, j], int(batch.labels[n, i, j]))
        for n, i, j in (batch.labels != VOID).nonzero().tolist()
    ]
    loss = standard(model, batch, rng=ImageStreams(0, batch.ids))
    torch.testing.assert_close(loss, torch.stack([row[0] for row in rows]).mean())
    heavy = [1.0, 3.0, 0.5, 2.0, 1.5][: KINDS[kind]]
    expected = sum(heavy[k] * row for row, k in rows) / sum(heavy[k] for _, k in rows)
    found = standard(model, batch, rng=ImageStreams(0, batch.ids), class_weights=heavy)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_dice_loss_is_that_of_each_class_in_the_batch(kind: str) -> None:
    batch, model = batch_of(kind), net(kind)
    p, rows = model(batch.images).softmax(1), (batch.labels != VOID).nonzero().tolist()
    dices = []
    for k in range(KINDS[kind]):
        true = sum(int(batch.labels[n, i, j]) == k for n, i, j in rows)
        both = sum(p[n, k, i, j] for n, i, j in rows if batch.labels[n, i, j] == k)
        if true:
            dices.append(2 * both / (true + sum(p[n, k, i, j] for n, i, j in rows)))
    bare = standard(model, batch, rng=ImageStreams(0, batch.ids))
    found = standard(model, batch, rng=ImageStreams(0, batch.ids), dice=0.5)
    torch.testing.assert_close(found - bare, 0.5 * (1 - torch.stack(dices).mean()), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="recipe: dice must be a number of at least 0, not -1"):
        standard(model, batch, rng=ImageStreams(0, batch.ids), dice=-1)


class Answers(Segmenter):
    """Logits of each place, which are what is learnt, whatever the images are."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.class_names = ("background", "polyp")
        self.logits = nn.Parameter(logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits[: len(images)]


@pytest.mark.parametrize("dice", [0, 1])
def test_defect_an_image_with_an_empty_mask_had_no_loss(dice: float) -> None:
    """A false polyp costs as much where there is none, and is learnt from, alone and beside an image with one."""
    model = Answers(torch.tensor([-2.0, 2.0]).view(1, 2, 1, 1).repeat(2, 1, 3, 4))
    masks = torch.zeros(2, 3, 4, dtype=torch.int64)
    masks[1, 0] = 1
    for ids in (("empty",), ("empty", "polyp")):
        batch = Batch(torch.zeros(len(ids), 3, 3, 4), masks[: len(ids)], ids)
        loss = standard(model, batch, rng=ImageStreams(0, ids), dice=dice)
        (slopes,) = torch.autograd.grad(loss, [model.logits])
        assert (slopes[0, 1] > 1e-4).all()
        assert (slopes[0, 0] < -1e-4).all()
        if len(ids) == 1:
            right = 1 / (1 + math.exp(4))
            assert loss.item() == pytest.approx(-math.log(right) + dice * (1 - 2 * right / (right + 1)), rel=1e-5)


@pytest.mark.parametrize("dice", [0, 1])
def test_void_teaches_nothing(dice: float) -> None:
    batch, model = batch_of("segmentation"), net().eval()
    place = torch.zeros_like(batch.labels, dtype=torch.bool)
    place[1] = True
    alone = Batch(batch.images[[0, 2, 3]], batch.labels[[0, 2, 3]], ("a", "b", "c"))
    blind = Batch(batch.images, batch.labels.masked_fill(place, VOID), batch.ids)

    def slopes(batch: Batch) -> list[Tensor]:
        loss = standard(model, batch, rng=ImageStreams(0, batch.ids), dice=dice)
        return [loss, *torch.autograd.grad(loss, list(model.parameters()))]

    torch.testing.assert_close(slopes(blind), slopes(alone), rtol=1e-4, atol=1e-6)
    nothing = slopes(Batch(batch.images, torch.full_like(batch.labels, VOID), batch.ids))
    assert all((value == 0).all() for value in nothing)


def test_as_many_class_weights_as_classes() -> None:
    batch = batch_of("segmentation")
    with pytest.raises(UserError, match="recipe: 2 class_weights for 5 classes"):
        standard(net(), batch, rng=ImageStreams(0, batch.ids), class_weights=[1, 2])
