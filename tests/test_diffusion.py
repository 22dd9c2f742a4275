"""The diffusion purifier: its process by hand, its way back beside diffusers' own, its recipe and its defense."""

from __future__ import annotations

import math
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audit_kit import CLASSES, audit, by_name, small, write_pictures
from segaudit import registry
from segaudit.audit.train import TrainSpec, train
from segaudit.defenses.diffusion import diffusion as defense
from segaudit.defenses.eot import draws_of
from segaudit.models import weights
from segaudit.models.purifiers import load_purifier, save_purifier
from segaudit.models.purifiers.residual import Residual
from segaudit.rng import ImageStreams, drawing, is_random
from segaudit.training.denoise import denoise
from segaudit.training.diffusion import LEVELS, diffusion, noise_error
from segaudit.training.loop import Progress, fit
from segaudit.types import Batch, Segmenter, UserError
from train_kit import Drawn, batch_of, equal, schedule
from train_kit import weights as kept

diffusers = pytest.importorskip("diffusers")
Diffusion: Any = registry.load("purifier", "diffusion")
pytestmark = pytest.mark.usefixtures("one_thread")
TINY: dict[str, Any] = {"width": 8, "timesteps": 50}


@pytest.fixture(autouse=True)
def _plain_arithmetic() -> Any:
    yield
    torch.set_flush_denormal(False)


class Mirror(Segmenter):
    """A model that shows what it was given."""

    class_names = ("red", "green", "blue")

    def forward(self, images: Tensor) -> Tensor:
        return images


class Oracle(Diffusion):  # type: ignore[misc]
    """It knows the clean image, so it tells the noise exactly."""

    clean = torch.empty(0)

    def noise(self, x: Tensor, level: Tensor | int) -> Tensor:
        kept = self.alphas[level]
        return (x - kept.sqrt() * (2 * self.clean - 1)) / (1 - kept).sqrt()


def net(make: Any = Diffusion, seed: int = 0, **own: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(**TINY | own).double().eval()


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def streams(count: int, seed: int = 0) -> ImageStreams:
    return ImageStreams(seed, [f"image {i}" for i in range(count)])


def test_what_is_left_of_an_image_at_a_level_is_as_by_hand() -> None:
    own, left, spread = net(timesteps=4), 1.0, 0.0
    for level, beta in enumerate((0.025, 0.3496666667, 0.6743333333, 0.999), 1):
        left, spread = left * (1 - beta), (1 - beta) * spread + beta  # of what x is made of, step by step
        assert float(own.alphas[level]) == pytest.approx(left, rel=1e-4)
        assert 1 - float(own.alphas[level]) == pytest.approx(spread, rel=1e-3)
    assert own.alphas[0] == 1
    assert own.alphas[2].item() == pytest.approx(0.634075, abs=1e-7)
    image, noise = torch.full((1, 3, 4, 4), 0.75).double(), torch.full((1, 3, 4, 4), 2.0).double()
    # 0.5 * 0.79629 + 2 * 0.60492
    assert own.noised(image, 2, noise).unique().item() == pytest.approx(1.60798, abs=1e-4)
    assert torch.equal(own.noised(image, 0, noise), 2 * image - 1)
    each = own.noised(image.expand(2, -1, -1, -1), torch.tensor([0, 2]), noise)
    assert torch.equal(each[1:], own.noised(image, 2, noise))
    assert torch.equal(each[:1], 2 * image - 1)
    cosine = net(timesteps=1000, schedule="cosine").alphas
    wanted = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (0, 300, 700)]
    assert (cosine[[300, 700]] * wanted[0]).tolist() == pytest.approx(wanted[1:], rel=1e-4)


def test_a_share_of_the_process_is_as_much_noise_with_any_number_of_levels() -> None:
    assert float(net(timesteps=1000).alphas[-1]) == pytest.approx(4.0358e-5, rel=1e-4)  # of the paper's 1e-4 to 0.02
    for kind in ("linear", "cosine"):
        nets = [net(timesteps=count, schedule=kind) for count in (100, 1000, 10_000)]
        for share in (0.1, 0.3, 0.5):
            few, some, many = (float(own.alphas[own.level(share)]) for own in nets)
            assert few == pytest.approx(some, rel=0.1)
            assert many == pytest.approx(some, rel=0.1)
        assert all(0 < own.alphas[-1] < 1e-4 for own in nets)


def test_the_way_back_is_even_and_ends_at_the_image() -> None:
    own = net(timesteps=1000)
    assert own.path(0.1, 10) == [100, 90, 80, 70, 60, 50, 40, 30, 20, 10, 0]
    assert own.path(0.1, 3) == [100, 67, 33, 0]
    assert own.path(0.0001, 1) == [1, 0]
    for steps in range(1, 101):
        path = own.path(0.1, steps)
        assert len(path) == steps + 1
        assert all(level > to for level, to in pairwise(path))


def test_a_step_back_is_that_of_diffusers() -> None:
    own, x, beyond = net(), 2 * pictures(2, 3, 8, 8) - 1, 0
    known: dict[str, Any] = {"num_train_timesteps": 50, "beta_start": 0.002, "beta_end": 0.4, "clip_sample": True}
    for level, to in ((20, 15), (5, 0)):
        told = own.noise(x, level)
        beyond += int(((x - (1 - own.alphas[level]).sqrt() * told).abs() > own.alphas[level].sqrt()).sum())
        ddpm = diffusers.DDPMScheduler(variance_type="fixed_small", **known)
        ddpm.set_timesteps(timesteps=[19, 14, 9, 4])
        drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
        found = ddpm.step(told, level - 1, x, generator=torch.Generator().manual_seed(3), return_dict=False)[0]
        torch.testing.assert_close(own.back(x, level, to, drawn), found, rtol=0, atol=2e-5)
        ddim = diffusers.DDIMScheduler(**known)
        ddim.set_timesteps(10)
        found = ddim.step(told, level - 1, x, use_clipped_model_output=True, return_dict=False)[0]
        torch.testing.assert_close(own.back(x, level, to, None), found, rtol=0, atol=2e-5)
        assert torch.equal(own.back(x, level, to, drawn, loose=True), own.back(x, level, to, drawn))
    assert beyond > 0  # some are clipped


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_with_a_network_that_knows_it_the_clean_image_comes_back(sampler: str, steps: int) -> None:
    clean = pictures(3, 3, 7, 9)
    oracle = net(Oracle)
    oracle.clean = clean
    attacked = (clean + 0.1 * (pictures(3, 3, 7, 9, seed=1) - 0.5)).clamp(0, 1)
    model = defense(Mirror(), purifier=oracle, share=0.5, steps=steps, sampler=sampler)
    for images in (attacked, attacked.clone().requires_grad_()):
        with drawing(streams(3)):
            torch.testing.assert_close(model(images), clean, rtol=0, atol=1e-6)
    with drawing(streams(3)):
        torch.testing.assert_close(oracle(attacked), clean, rtol=0, atol=1e-6)


def by_hand(own: Any, images: Tensor, path: list[int], ddpm: bool, some: list[int], loose: bool) -> Tensor:
    """The process without a checkpoint; some: which of the numbers that it draws after the first it uses."""
    rng = streams(len(images))
    numbers = [rng.normal(images.detach()) for _ in range(20)]
    x = own.noised(images, path[0], numbers[0])
    for i, (level, to) in enumerate(pairwise(path)):
        x = own.back(x, level, to, numbers[1 + some[i]] if ddpm and to else None, loose=loose)
    return (x + 1) / 2


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_the_gradient_with_checkpoints_is_the_one_without(sampler: str) -> None:
    own, weight, ddpm = net(), pictures(2, 3, 9, 8, seed=5) - 0.5, sampler == "ddpm"
    images = pictures(2, 3, 9, 8).requires_grad_()
    fine = by_hand(own, images, [20, 17, 13, 10, 7, 3, 0], ddpm, [0, 1, 2, 3, 4, 5], loose=False)
    coarse = by_hand(own, images, [20, 10, 0], ddpm, [0, 3], loose=True)
    slopes = {
        name: torch.autograd.grad((weight * made).sum(), images)[0]
        for name, made in (("exact", fine), ("coarse", coarse))
    } | {"straight_through": weight}
    assert not torch.allclose(slopes["exact"], slopes["coarse"], rtol=0.1)
    for gradient, slope in slopes.items():
        asked = {"share": 0.4, "steps": 6, "gradient_steps": 2, "sampler": sampler, "gradient": gradient}
        model = defense(Mirror(), purifier=own, **asked)
        with drawing(streams(2)):
            made = model(images)
        torch.testing.assert_close(made, fine, rtol=0, atol=1e-12)
        (found,) = torch.autograd.grad((weight * made).sum(), images)
        torch.testing.assert_close(found, slope, rtol=0, atol=1e-10)
        with drawing(streams(2)), torch.no_grad():
            assert torch.equal(model(images), made)


def test_a_gradient_holds_the_memory_of_one_step() -> None:
    own, images = net(), pictures(1, 3, 8, 8).requires_grad_()

    def held(run: Any) -> int:
        sizes = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t)
        with hooks, drawing(streams(1)):
            run(images)
        return sum(sizes)

    few, many = (defense(Mirror(), purifier=own, share=0.4, steps=n, gradient="exact") for n in (1, 10))
    plain = held(partial(by_hand, own, path=[20, 10, 0], ddpm=False, some=[0, 1], loose=False))
    assert held(many) - held(few) < 20 * images.numel()
    assert plain > 100 * images.numel()


def test_two_images_have_noise_of_their_own_and_a_stream_repeats_it() -> None:
    model = defense(Mirror(), purifier=net(), share=0.3, steps=4, eot=7)
    images = pictures(1, 3, 8, 8).expand(2, -1, -1, -1)
    with drawing(streams(2)):
        first, second = model(images), model(images)
    with drawing(streams(2)):
        assert torch.equal(model(images), first)
        assert torch.equal(model(images), second)
    for one, other in ((first[0], first[1]), (first[0], second[0]), (first[1], second[1])):
        assert (one - other).abs().max() > 1e-3
    assert first.min() >= 0
    assert first.max() <= 1
    assert is_random(model)
    assert draws_of(model) == 7
    with drawing(streams(1)):
        torch.testing.assert_close(model(images[:1]), first[:1], rtol=0, atol=1e-12)


def test_with_ddim_the_first_noise_alone_is_drawn() -> None:
    images, rng = pictures(2, 3, 8, 8), streams(2)
    with drawing(rng):
        defense(Mirror(), purifier=net(), share=0.3, steps=4, sampler="ddim")(images)
    rest, other = rng.normal(images), streams(2)
    other.normal(images)
    assert torch.equal(rest, other.normal(images))


class Half(Diffusion):  # type: ignore[misc]
    """Tells half of x, and keeps what it was asked."""

    def noise(self, x: Tensor, level: Tensor | int) -> Tensor:
        self.asked = x.detach(), level
        return 0.5 * x + 0 * self.unet.conv_in.bias.sum()


def test_the_loss_is_the_squared_error_of_the_noise_at_a_level_of_each_image_s_own() -> None:
    batch, own = batch_of("segmentation", 6), net(Half).float()
    rng = ImageStreams(0, batch.ids, "train/0")
    loss = float(diffusion(own, batch, rng=rng, share=0.5).detach())
    x, levels = own.asked
    noise = rng.child("noise").normal(batch.images)
    assert len(set(levels.tolist())) > 2
    assert 1 <= min(levels) <= max(levels) <= 25
    total = 0.0
    for image, own_noise, own_x, level in zip(batch.images, noise, x, levels.tolist(), strict=True):
        kept = float(own.alphas[level])
        seen = math.sqrt(kept) * (2 * image - 1) + math.sqrt(1 - kept) * own_noise
        torch.testing.assert_close(own_x, seen, rtol=0, atol=1e-5)
        total += float((0.5 * seen - own_noise).double().square().sum())
    assert loss == pytest.approx(total / batch.images.numel(), rel=1e-4)
    some = Batch(batch.images[[4, 1]], batch.labels[[4, 1]], (batch.ids[4], batch.ids[1]))
    diffusion(own, some, rng=ImageStreams(0, some.ids, "train/0"), share=0.5)
    assert torch.equal(own.asked[1], levels[[4, 1]])
    assert torch.equal(own.asked[0], x[[4, 1]])
    many = Batch(torch.zeros(400, 3, 2, 2), torch.zeros(400, 2, 2).long(), tuple(map(str, range(400))))
    for share, last in ((1.0, 50), (0.1, 5)):
        diffusion(own, many, rng=ImageStreams(0, many.ids), share=share)
        assert (int(own.asked[1].min()), int(own.asked[1].max())) == (1, last)


def test_held_out_images_are_scored_with_the_same_noise_every_time() -> None:
    samples, own = Drawn("segmentation", 5, 2), net(Half).float()
    found = noise_error(own, samples, 2, share=0.5)
    assert noise_error(own, samples, 5, share=0.5)["noise_mse"] == pytest.approx(found["noise_mse"], rel=1e-6)
    total = []
    for i, level in zip(range(LEVELS), (3, 9, 16, 22), strict=True):
        noise = ImageStreams(0, samples.ids, f"noise {i}").normal(samples.images)
        total.append((0.5 * own.noised(samples.images, level, noise) - noise).square().mean())
    assert found == {"noise_mse": pytest.approx(float(torch.stack(total).mean()), rel=1e-5)}


def test_outside_of_training_the_weights_are_running_means() -> None:
    own, x = net(ema=0.5), pictures(1, 3, 8, 8)
    weight, wanted, started = own.unet.conv_in.bias, own.unet.conv_in.bias.detach().clone(), own.noise(x, 3)
    for i in range(1, 4):
        with torch.no_grad():
            weight += 1
        own.track(5)
        decay = min(0.5, (1 + i) / (10 + i))
        wanted = decay * wanted + (1 - decay) * weight.detach()
    torch.testing.assert_close(own.mean.get_buffer("conv_in/bias"), wanted, rtol=0, atol=1e-12)
    told = own.noise(x, 3)
    assert not torch.allclose(told, started)
    assert not torch.allclose(own.train().noise(x, 3), told)
    with torch.no_grad():
        weight.copy_(wanted)
    torch.testing.assert_close(own.noise(x, 3), told, rtol=0, atol=1e-10)
    assert not any("/" in key for key in net(ema=0).state_dict())
    assert sum(p.numel() for p in own.parameters()) == sum(p.numel() for p in own.unet.parameters())


def test_a_defense_goes_no_further_into_the_process_than_was_trained(tmp_path: Path) -> None:
    own = net()
    defense(Mirror(), purifier=own, share=1.0, steps=2)  # nobody knows of one that came untrained
    fit(own.float(), Drawn("segmentation", 4, 1), None, partial(diffusion, share=0.2), schedule(batch=2), tmp_path)
    again = net()
    again.load_state_dict(own.state_dict())
    defense(Mirror(), purifier=again, share=0.2, steps=2)
    with pytest.raises(UserError, match=r"trained on the first 0\.2 of the process, and share is 0\.22; lower it"):
        defense(Mirror(), purifier=again, share=0.22, steps=2)
    again.reached.fill_(4)  # of 50, less than what is noised by itself
    with pytest.raises(UserError, match=r"trained on the first 0\.08 of the process, and share is 0\.1; lower it"):
        again.eval()(pictures(1, 3, 8, 8))


def test_what_another_recipe_trains_is_what_is_used(tmp_path: Path) -> None:
    own, samples = net(timesteps=10).float(), Drawn("segmentation", 4, 1)
    before = own.unet.conv_in.bias.detach().clone()
    fit(own, samples, None, partial(denoise, sigma=0.1), schedule(epochs=3, batch=2), tmp_path)
    assert int(own.mean.get_buffer("count")) == 6
    assert not torch.equal(own.mean.get_buffer("conv_in/bias"), before)


def test_images_of_any_size_come_back_and_a_file_builds_it_again(tmp_path: Path) -> None:
    for own, size in (({"channels": 1}, (28, 28)), ({"patch": 1, "levels": 3}, (17, 5)), ({"depth": 2}, (1, 1))):
        made = net(**own).float()
        images = pictures(2, own.get("channels", 3), *size).float()
        with drawing(streams(2)):
            found = made(images)
        assert found.shape == images.shape
        path = tmp_path / "net.safetensors"
        save_purifier(made, path)
        again = load_purifier(path)
        with drawing(streams(2)):
            assert torch.equal(again(images), found)
        assert not again.training
        assert weights.read(path)[1]["model"]["name"] == "diffusion"
    with pytest.raises(UserError, match="it is made for 3 channels, and the images have 1"):
        made(pictures(1, 1, 8, 8).float())


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"width": 12}, "purifier 'diffusion': width must be a multiple of 8, not 12"),
        ({"levels": 0}, "purifier 'diffusion': levels must be a whole number of at least 1, not 0"),
        ({"schedule": "cosin"}, "schedule must be linear or cosine, not 'cosin' (did you mean 'cosine'?)"),
        ({"ema": 1}, "purifier 'diffusion': ema must be a number from 0 to"),
    ],
)
def test_a_network_that_cannot_be_is_one_line(own: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        net(**own)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"purifier": "net.safetensors"}, "purifier must be the path of"),
        ({"purifier": Residual(width=4)}, "purifier must be a diffusion model, not a Residual"),
        ({"share": 1.5}, "share must be a number above 0 and at most 1, not 1.5"),
        ({"share": 0.1, "steps": 6}, "steps must be a whole number from 1 to 5, not 6"),
        ({"gradient": "rough"}, "gradient must be exact or coarse or straight_through, not 'rough'"),
        ({"sampler": "ddmp"}, "sampler must be ddpm or ddim, not 'ddmp' (did you mean 'ddpm'?)"),
    ],
)
def test_a_defense_that_cannot_be_is_one_line(own: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        defense(Mirror(), **{"purifier": net(), "share": 0.5} | own)
    assert str(error.value).startswith("defense 'diffusion': ")
    assert said in str(error.value)


def test_wrong_shares_and_networks_of_the_recipe_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of("segmentation", 2)
    for share in (0, 1.1, True, "all"):
        with pytest.raises(UserError, match="recipe diffusion: share must be a number above 0 and at most 1"):
            diffusion(net(), batch, rng=streams(2), share=share)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"give `model: \{source: purifier, name: diffusion\}`"):
        diffusion(nn.Identity(), batch, rng=streams(2))
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"needs diffusers: pip install 'segaudit\[diffusion\]'"):
        net()


def test_a_spec_with_another_network_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    asked = spec_of(tmp_path).model_dump(mode="json")
    with pytest.raises(ValueError, match="recipe 'diffusion' trains diffusion, not 'residual'"):
        TrainSpec.model_validate(asked | {"model": {"source": "purifier", "name": "residual"}})


def test_it_learns_to_tell_the_noise(tmp_path: Path) -> None:
    samples = Drawn("segmentation", 48, 1)
    samples.images = F.interpolate(samples.images, (8, 8), mode="area")
    samples.labels = samples.labels[:, :8, :8]
    own = net(ema=0.9, patch=1).float()
    before = noise_error(own, samples)["noise_mse"]
    done = schedule(epochs=8, lr=1e-2, weight_decay=0.0, validate_every=9)
    score = fit(own, samples, samples, diffusion, done, tmp_path, judge=noise_error)
    assert before > 0.95
    assert score["noise_mse"] < 0.85 * before
    assert noise_error(own, samples) == score


def spec_of(folder: Path) -> TrainSpec:
    data = {"name": "folder", "root": str(folder), "classes": CLASSES, "size": [8, 8]}
    model = {"source": "purifier", "name": "diffusion", "args": TINY}
    return TrainSpec.model_validate(
        {"name": "tiny", "model": model, "data": {"train": data, "val": data}, "epochs": 3, "batch": 2, "lr": 1e-3}
        | {"recipe": {"name": "diffusion", "share": 0.5}, "precision": "fp32", "validate_every": 2}
    )


def test_a_training_that_was_killed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    spec = spec_of(write_pictures(tmp_path / "data"))
    path, score = train(spec, tmp_path / "whole")

    class Killed(Exception):
        pass

    def kill(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (1, 2):
            raise Killed

    with pytest.raises(Killed):
        train(spec, tmp_path / "parts", kill)
    again, other = train(spec, tmp_path / "parts")
    assert equal(weights.read(again)[0], weights.read(path)[0])
    assert other == score
    assert weights.read(path)[0]["mean.count"] == 9  # three steps an epoch
    assert weights.read(path)[1]["score"] == score
    assert not equal(kept(load_purifier(path)), kept(net().float()))


def test_an_audit_takes_it_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_purifier(net().float(), path)
    own = {"name": "diffusion", "purifier": str(path), "share": 0.1, "steps": 2, "gradient_steps": 1, "eot": 2}
    spec = small(tmp_path, 2, attacks=["fgsm"], eps=["16/255"], defenses=["none", own])
    found = audit(spec, tmp_path / "out")
    label = spec.defenses[1].label()
    rows = by_name(found)["net", label, "adaptive", "fgsm", 16 / 255]
    assert set(rows.backwards) == {2}
    assert found.parameters == {"none": 0, label: sum(p.numel() for p in net().parameters())}
    (first, *_), *_ = (shown for cell, shown in found.pictures.items() if cell.threat == "adaptive")
    assert first.purified is not None
