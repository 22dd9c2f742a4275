"""The generator with its critic, and the recipe that trains the two in turn."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segaudit.audit import parts
from segaudit.audit.recipe import Recipe
from segaudit.audit.train import TrainSpec
from segaudit.metrics.frechet import features, frechet
from segaudit.models.purifiers import build, load_purifier, save_purifier
from segaudit.models.purifiers.gan import CWGAN, GAN, WGAN
from segaudit.rng import ImageStreams
from segaudit.training.loop import Progress, fit
from segaudit.training.wgan_gp import apart, critic_gap, slope_penalty, wgan_gp
from segaudit.types import Batch, Segmenter, UserError
from train_kit import equal, schedule, weights

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL: dict[str, Any] = {"size": (8, 8), "z": 5, "width": 4}


class Spots:
    """8 x 8 images of a bright corner each, which is their label."""

    def __init__(self, count: int, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.images, self.labels = 0.3 * torch.rand(count, 1, 8, 8, generator=rng), torch.arange(count) % 3
        for image, label in zip(self.images, self.labels, strict=True):
            image[:, 4 * int(label > 0) :, 4 * int(label > 1) :][:, :4, :4] += 0.6
        self.ids = tuple(f"spot {i}" for i in range(count))

    def sample(self, image_id: str) -> tuple[Tensor, Tensor]:
        row = self.ids.index(image_id)
        return self.images[row], self.labels[row].view(1, 1)

    def batch(self) -> Batch:
        return Batch(self.images, self.labels.view(-1, 1, 1), self.ids)


def net(make: type[GAN] = CWGAN, seed: int = 0, **own: Any) -> Any:
    labelled = {"classes": 3, "embedding": 2} if make is CWGAN else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(**SMALL | labelled | own)


@pytest.mark.parametrize("name", ["wgan", "cwgan"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)], ids=str)
def test_images_are_in_range_and_each_of_its_own_numbers(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    model: Any = build(name, shape, 4, {"z": 6, "width": 3}).double().eval()
    z, rng = torch.empty(3, 6, dtype=torch.float64), torch.Generator().manual_seed(0)
    z = torch.randn(z.shape, generator=rng, dtype=z.dtype)
    labels = torch.tensor([3, 0, 1]) if name == "cwgan" else None
    made = model.sample(z, labels)
    assert made.shape == (3, *shape)
    assert 0 < made.min() < made.max() < 1
    score = model.score(made, labels)
    assert score.shape == (3,)
    for i in range(3):
        own = None if labels is None else labels[i : i + 1]
        torch.testing.assert_close(model.sample(z[i : i + 1], own), made[i : i + 1], rtol=0, atol=1e-12)
        torch.testing.assert_close(model.score(made[i : i + 1], own), score[i : i + 1], rtol=0, atol=1e-12)
    if labels is not None:
        other = model.sample(z, labels.flip(0))
        assert ((other - made).flatten(1).abs().amax(1) > 1e-4).tolist() == [True, False, True]
        assert (model.score(made, labels.flip(0)) != score).tolist() == [True, False, True]
    model.turn += 7
    save_purifier(model.float(), tmp_path / "gan.safetensors")
    again: Any = load_purifier(tmp_path / "gan.safetensors")
    assert type(again) is type(model)
    assert equal(weights(again), weights(model))
    assert (again.latent, again.classes, int(again.turn)) == (6, 4 if labels is not None else 0, 7)


def test_what_a_gan_cannot_be_is_said_in_one_line() -> None:
    for size in ((28, 20), (10, 10), (4, 4)):
        with pytest.raises(UserError, match=r"images must be square, of a side that is a multiple of 4 from 8 on, not"):
            WGAN(size=size)
    with pytest.raises(UserError, match="purifier 'cwgan': classes must be a whole number of at least 1, not 0"):
        CWGAN(classes=0)
    with pytest.raises(UserError, match=r"purifier 'wgan': z must be a whole number of at least 1, not 1\.5"):
        WGAN(z=1.5)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="a generator takes no images; put it before a model with the defense gan_inv"):
        net()(torch.rand(1, 1, 8, 8))


def test_the_penalty_of_a_linear_critic_is_known() -> None:
    weight = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight = (2.5 * weight / weight.norm()).requires_grad_()
    images, made = torch.rand(2, 5, 2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    between = torch.rand(5, 1, 1, 1, dtype=torch.float64)
    found = slope_penalty(lambda x: (weight * x).sum((1, 2, 3)), images, made, between)
    assert found.item() == pytest.approx(1.5**2)
    (slope,) = torch.autograd.grad(found, weight)  # the second derivative: 2 (|w| - 1) w / |w|
    torch.testing.assert_close(slope, 2 * 1.5 * weight.detach() / 2.5)
    # a critic whose slope at a point is the point: each image has one of its own on the way
    found = slope_penalty(lambda x: x.square().sum((1, 2, 3)) / 2, images, made, between)
    points = images + between * (made - images)
    assert found.item() == pytest.approx((points.flatten(1).norm(dim=1) - 1).square().mean().item())


def test_the_losses_are_those_of_the_paper() -> None:
    model, batch = net().double(), Spots(6, 0).batch()
    batch = Batch(batch.images.double(), batch.labels, batch.ids)
    labels, rng = batch.labels.flatten(), ImageStreams(0, batch.ids)
    made = model.sample(rng.child("z").normal(torch.empty(6, 5, dtype=torch.float64)), labels).detach()
    between = rng.child("between").uniform(torch.empty(6, 1, 1, 1, dtype=torch.float64))
    penalty = slope_penalty(lambda x: model.score(x, labels), batch.images, made, between)
    wanted = model.score(made, labels).mean() - model.score(batch.images, labels).mean() + 3 * penalty
    found = wgan_gp(model, batch, rng=rng, penalty=3, critic_steps=1)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert penalty.item() > 1e-3
    found = wgan_gp(model, batch, rng=rng, penalty=3, critic_steps=1)
    assert found.item() == pytest.approx(-model.score(made, labels).mean().item(), rel=1e-6)


@pytest.mark.parametrize("make", [WGAN, CWGAN])
def test_five_steps_of_the_critic_and_one_of_the_generator(make: type[GAN]) -> None:
    model, batch = net(make), Spots(6, 0).batch()
    optimizer, moved = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1), []
    for _ in range(13):
        before = weights(model)
        loss = wgan_gp(model.train(), batch, rng=ImageStreams(0, batch.ids))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        moved.append("".join(sorted({key[0] for key, now in model.named_parameters() if (now != before[key]).any()})))
        assert all(p.requires_grad for p in model.parameters())
    generator = "eg" if make is CWGAN else "g"  # with the embedding of its labels
    assert moved == ["c"] * 5 + [generator] + ["c"] * 5 + [generator] + ["c"]
    assert int(model.turn) == 13


def test_the_loop_leaves_one_side_alone_while_it_trains_the_other(tmp_path: Path) -> None:
    model, seen, moved = net(), list[Any](), []
    own = schedule(epochs=1, batch=2, lr=1e-2, weight_decay=0.1)
    fit(model, Spots(28, 1), None, wgan_gp, own, tmp_path, lambda _: seen.append(weights(model)))
    for before, now in pairwise(seen):
        moved.append("".join(sorted({key[0] for key in now if key != "turn" and (now[key] != before[key]).any()})))
    assert moved == ["c"] * 4 + ["eg"] + ["c"] * 5 + ["eg"] + ["c"] * 2  # no decay, and no momentum of earlier steps


def test_an_interrupted_training_ends_in_the_same_weights(tmp_path: Path) -> None:
    train, own = Spots(14, 1), schedule(epochs=3, batch=2, lr=1e-3, weight_decay=0, betas=(0.0, 0.9))

    class Killed(Exception):
        pass

    def kill(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (1, 3):
            raise Killed

    whole, part = net(), net()
    score = fit(whole, train, Spots(6, 2), wgan_gp, own, tmp_path / "whole", judge=critic_gap)
    with pytest.raises(Killed):
        fit(part, train, None, wgan_gp, own, tmp_path / "part", kill)
    again = net(seed=1)
    fit(again, train, None, wgan_gp, own, tmp_path / "part")
    assert equal(weights(again), weights(whole))
    assert int(whole.turn) == 21
    assert not equal(weights(whole), weights(net()))
    assert score == critic_gap(whole, Spots(6, 2), batch=2)


def test_betas_reach_the_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, real = list[Any](), torch.optim.AdamW

    def spy(*args: Any, **own: Any) -> Any:
        given.append(own["betas"])
        return real(*args, **own)

    monkeypatch.setattr(torch.optim, "AdamW", spy)
    for i, own in enumerate(({"betas": (0, 0.9)}, {})):
        fit(net(), Spots(4, 1), None, wgan_gp, schedule(epochs=1, **own), tmp_path / str(i))
    assert given == [(0.0, 0.9), (0.9, 0.999)]
    with pytest.raises(UserError, match=r"betas must be two numbers from 0 to below 1, such as \[0.5, 0.9\], not"):
        schedule(betas=(0.5, 1.0))
    made = {"name": "x", "model": "unet", "data": {"train": "scenes"}}
    assert TrainSpec.model_validate(made).betas == (0.9, 0.999)
    assert TrainSpec.model_validate(made | {"betas": [0, "9e-1"]}).betas == (0, 0.9)


def test_the_held_out_images_are_scored_by_the_gap_or_by_a_classifier_s_features() -> None:
    model, spots = net().eval(), Spots(7, 3)
    z = ImageStreams(0, spots.ids, "wgan_gp").normal(torch.empty(7, 5))
    made = model.sample(z, spots.labels)
    wanted = (model.score(spots.images, spots.labels) - model.score(made, spots.labels)).mean()
    for batch in (3, 7):
        assert critic_gap(model, spots, batch)["critic_gap"] == pytest.approx(wanted.item(), abs=1e-6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = Small()
    found = apart(model, spots, 3, classifier=classifier)
    assert found == {
        "Frechet-classifier": pytest.approx(frechet(features(classifier, spots.images), features(classifier, made)))
    }
    classifier.title = "mine"  # type: ignore[assignment]
    assert list(wgan_gp.judge(classifier=classifier, penalty=3)(model, spots, 3)) == ["Frechet-mine"]
    assert wgan_gp.judge(penalty=3) is critic_gap


class Small(Segmenter):
    class_names = ("a", "b", "c")

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)[:, :, None, None]


def test_a_spec_s_classifier_is_built_and_called_by_its_name() -> None:
    recipe = Recipe.model_validate({"name": "wgan_gp", "classifier": {"source": "classic", "name": "lenet"}})
    recipe.check()
    made = recipe.make(Spots(2, 0), tuple("0123456789"))
    assert isinstance(made.keywords["classifier"], Segmenter)
    judge: Any = recipe.judge(made)
    assert judge.keywords["classifier"].title == "lenet"
    assert parts.ModelSpec(source="classic", name="lenet") in recipe.parts()


def test_wrong_arguments_are_said_in_one_line() -> None:
    batch = Spots(4, 0).batch()
    rng = ImageStreams(0, batch.ids)
    for own, said in (
        ({"penalty": 0}, "penalty must be a number above 0, not 0"),
        ({"critic_steps": 2.0}, "critic_steps must be a whole number of at least 1, not 2.0"),
    ):
        with pytest.raises(UserError, match=f"^recipe wgan_gp: {said}$"):
            wgan_gp(net(), batch, rng=rng, **own)
        with pytest.raises(UserError, match=f"^recipe wgan_gp: {said}$"):
            Recipe.model_validate({"name": "wgan_gp"} | own).check()
    for recipe, said in (("wgan_gp", "wgan or cwgan, not 'siamese'"), ("siamese", "siamese, not 'cwgan'")):
        other = {"source": "purifier", "name": said.split("'")[1]}
        with pytest.raises(ValueError, match=f"recipe '{recipe}' trains {said}"):
            TrainSpec.model_validate({"name": "x", "model": other, "data": {"train": "digits"}, "recipe": recipe})
    maps = Batch(batch.images, torch.zeros(4, 8, 8, dtype=torch.int64), batch.ids)
    with pytest.raises(UserError, match=r"a generator with labels needs one of 3 for each image, .* are \(8, 8\)"):
        wgan_gp(net(), maps, rng=rng)
    assert wgan_gp(net(WGAN), maps, rng=rng).isfinite()  # without labels any image will do
    with pytest.raises(UserError, match="it trains a generator with its critic"):
        wgan_gp(nn.Linear(2, 2), batch, rng=rng)
