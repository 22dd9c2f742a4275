"""The networks that make images anew: what each gives back, what it draws, and how its weights build it again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segaudit import registry
from segaudit.models import weights
from segaudit.models.purifiers import Purifier, build, card_of, load_purifier, save_purifier
from segaudit.models.purifiers.autoencoder import Autoencoder
from segaudit.models.purifiers.cvae import CVAE
from segaudit.models.purifiers.vae import VAE
from segaudit.rng import ImageStreams, drawing, is_random
from segaudit.types import UserError
from train_kit import equal

pytestmark = pytest.mark.usefixtures("one_thread")

NETWORKS: list[tuple[str, dict[str, Any]]] = [
    ("autoencoder", {}),
    ("autoencoder", {"activation": "gelu", "noisy": True, "z": 4}),
    ("vae", {}),
    ("vae", {"activation": "relu", "noisy": True, "z": 3}),
    ("cvae", {}),
    ("cvae", {"noisy": True, "z": 2}),
]
SHAPES = [(1, 28, 28), (3, 32, 32), (1, 8, 8), (2, 9, 15), (1, 1, 1)]
every = pytest.mark.parametrize(("name", "own"), NETWORKS, ids=lambda v: str(v)[:30])


def made(name: str, shape: Sequence[int] = (1, 28, 28), classes: int = 4, **own: Any) -> Any:
    """In float64, its norms with statistics of their own."""
    net = build(name, shape, classes, own).double()
    rng = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=rng, dtype=torch.float64) / 5
            module.running_var = 0.1 + torch.rand(module.num_features, generator=rng, dtype=torch.float64)
    return net.eval()


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def streams(count: int) -> ImageStreams:
    return ImageStreams(0, [f"#{i}" for i in range(count)], "test")


@every
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_images_come_back_in_range_and_each_on_its_own(
    name: str, own: dict[str, Any], shape: tuple[int, int, int]
) -> None:
    net, images = made(name, shape, **own), some(3, *shape).requires_grad_()
    with drawing(streams(3)):
        found = net(images)
    assert found.shape == images.shape
    assert found.dtype == images.dtype
    assert 0 <= found.min() <= found.max() <= 1
    for i in range(3):
        with drawing(streams(3)[torch.tensor([i])]):
            torch.testing.assert_close(net(images[i : i + 1]), found[i : i + 1], rtol=0, atol=1e-12)
    (slope,) = torch.autograd.grad((found - 0.3).square().sum(), images)
    assert slope.isfinite().all()
    assert shape == (1, 1, 1) or (slope.flatten(1).abs().amax(1) > 0).all()


@every
def test_images_of_another_shape_are_refused(name: str, own: dict[str, Any]) -> None:
    net = made(name, (3, 8, 10), **own)
    with pytest.raises(UserError, match=f"purifier '{name}': it is made for 3 channels, and the images have 1"):
        net(some(1, 1, 8, 10))
    with pytest.raises(UserError, match=f"purifier '{name}': it is made for images of 8 x 10, not of 10 x 8"):
        net(some(1, 3, 10, 8))


def test_the_autoencoders_have_the_parameters_that_were_wanted() -> None:
    for shape, count in (((1, 28, 28), 88_667), ((3, 32, 32), 88_957)):
        assert sum(p.numel() for p in build("autoencoder", shape, 10, {}).parameters()) == count
    first = build("autoencoder", (1, 28, 28), 10, {}).encoder
    assert [tuple(layer.weight.shape) for layer in first.dense if isinstance(layer, nn.Linear)] == [
        (128, 288),
        (10, 128),
    ]


def test_the_activation_is_the_one_that_was_asked_for() -> None:
    for name, kind in (("relu", nn.ReLU), ("gelu", nn.GELU)):
        net = build("autoencoder", (1, 8, 8), 10, {"activation": name})
        found = [module for module in net.modules() if isinstance(module, (nn.ReLU, nn.GELU))]
        assert len(found) == 8
        assert {type(module) for module in found} == {kind}


@pytest.mark.parametrize("noisy", [False, True])
def test_an_autoencoder_adds_standard_normal_noise_to_its_numbers_or_none(noisy: bool) -> None:
    net, images = made("autoencoder", z=5, noisy=noisy), some(3, 1, 28, 28)
    z = net.encode(images)
    assert z.shape == (3, 5)
    assert is_random(net) is noisy
    with drawing(streams(3)):
        first, second = net(images), net(images)
    rng = streams(3)
    by_hand = [net.decode(z + rng.normal(z) if noisy else z) for _ in range(2)]
    for found, wanted in zip((first, second), by_hand, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    assert torch.equal(first, second) is not noisy
    with drawing(streams(3)):  # the copies of an expectation draw one after the other
        copies = net(images.repeat_interleave(2, 0))
    assert (torch.equal(copies[0], copies[1])) is not noisy
    assert torch.allclose(net.train()(images), net(images)) is not noisy


@pytest.mark.parametrize("noisy", [False, True])
def test_a_vae_draws_with_its_own_deviations_or_takes_the_means(noisy: bool) -> None:
    net, images = made("vae", z=5, noisy=noisy), some(3, 1, 28, 28)
    mean, log_var = net.encode(images)
    assert mean.shape == log_var.shape == (3, 5)
    with drawing(streams(3)):
        found = net(images)
    wanted = net.decode(mean + log_var.exp().sqrt() * streams(3).normal(mean) if noisy else mean)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    assert is_random(net) is noisy
    wild = VAE(size=(8, 8)).double()
    nn.init.constant_(wild.encoder.dense[-1].bias, 1e9)
    assert wild.encode(some(1, 1, 8, 8))[1].exp().isfinite().all()


def test_a_cvae_gives_back_the_candidate_that_is_closest() -> None:
    net, images = made("cvae", (1, 12, 12), classes=5, z=4), some(6, 1, 12, 12)
    candidates, found = net.candidates(images), net(images)
    assert candidates.shape == (6, 5, 1, 12, 12)
    chosen = set()
    for i in range(6):
        apart = []
        for k in range(5):
            label = torch.tensor([k])
            own = net.decode(net.encode(images[i : i + 1], label)[0], label)[0]
            torch.testing.assert_close(candidates[i, k], own, rtol=0, atol=1e-12)
            apart.append(((own - images[i]) ** 2).sum().item())
        nearest = apart.index(min(apart))
        chosen.add(nearest)
        assert torch.equal(found[i], candidates[i, nearest])
    assert len({str(row.tolist()) for row in candidates[0]}) == 5  # the label decides something
    assert CVAE.conditional
    noisy = made("cvae", (1, 12, 12), classes=5, z=4, noisy=True)
    rng = streams(6)
    with drawing(rng):
        drawn = noisy.candidates(images)
    hand = streams(6)[torch.tensor([2])]
    for k in range(5):
        mean, log_var = noisy.encode(images[2:3], torch.tensor([k]))
        own = noisy.decode(mean + (log_var / 2).exp() * hand.normal(mean), torch.tensor([k]))
        torch.testing.assert_close(drawn[2, k], own[0], rtol=0, atol=1e-12)


@every
def test_the_weights_build_it_again(name: str, own: dict[str, Any], tmp_path: Path) -> None:
    net, path, images = made(name, (2, 9, 12), **own).float(), tmp_path / "net.safetensors", some(3, 2, 9, 12).float()
    save_purifier(net, path, {"score": {"miou": 0.5}})
    again = load_purifier(str(path))
    with drawing(streams(3)):
        first = net(images)
    with drawing(streams(3)):
        assert torch.equal(again(images), first)
    assert type(again) is type(net)
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    assert weights.read(path)[1] == {"model": card_of(net), "score": {"miou": 0.5}}
    assert card_of(again) == card_of(net)
    assert card_of(net)["name"] == name
    assert card_of(net)["args"]["size"] == [9, 12]
    assert own.items() <= card_of(net)["args"].items()


def test_the_images_decide_what_no_spec_says() -> None:
    net: Any = build("cvae", (3, 16, 12), 7, {"z": 2})
    assert (net.channels, net.size, net.classes) == (3, (16, 12), 7)
    assert card_of(net)["args"] == {
        "channels": 3, "size": [16, 12], "classes": 7, "z": 2, "activation": "gelu", "noisy": False
    }  # fmt: skip
    for key in ("channels", "size", "classes"):
        with pytest.raises(UserError, match=f"purifier 'cvae' has no argument '{key}'; its arguments: z, activ"):
            build("cvae", (3, 16, 12), 7, {key: 3})
    same, other = (build("vae", (1, 8, 8), 10, {}, seed=seed).state_dict() for seed in (0, 1))
    again = build("vae", (1, 8, 8), 10, {}).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in same.items())
    assert not all(torch.equal(value, again[key]) for key, value in other.items())


@pytest.mark.parametrize(
    ("name", "own", "said"),
    [
        ("vaee", {}, "no purifier is called 'vaee' (did you mean 'vae'?); there are: residual, bottleneck, "),
        ("mine.py:net", {}, "no purifier is called 'mine.py:net'; there are: residual"),
        ("vae", {"z": 0}, "purifier 'vae': z must be a whole number of at least 1, not 0"),
        ("vae", {"z": 1e3}, "purifier 'vae': z must be a whole number of at least 1, not 1000.0"),
        ("vae", {"z": 10**9}, "purifier 'vae': z must be a whole number of at most 4096, not 1000000000"),
        ("vae", {"noisy": 1}, "purifier 'vae': noisy must be true or false, not 1"),
        ("autoencoder", {"activation": "relo"}, "must be relu or gelu, not 'relo' (did you mean 'relu'?)"),
        ("autoencoder", {"activation": ["relu"]}, "activation must be relu or gelu, not ['relu']"),
        ("cvae", {"hidden": 3}, "purifier 'cvae' has no argument 'hidden'; its arguments: z, activation, noisy"),
    ],
)
def test_wrong_arguments_are_said_in_one_line(name: str, own: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        build(name, (1, 28, 28), 10, own)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


ARGS: dict[str, Any] = {"channels": 1, "size": [8, 8], "z": 3, "activation": "relu", "noisy": False}


@pytest.mark.parametrize(
    ("over", "said"),
    [
        (
            {"size": [0, 8]},
            "(purifier 'autoencoder': size must be a whole number of at least 1, not 0)",
        ),
        ({"size": 8}, "no network fits (purifier 'autoencoder': size must be [height, width] in pixels, not 8)"),
        ({"size": [8, 8, 8]}, "no network fits (purifier 'autoencoder': size must be [height, width] in pixels, not "),
        ({"size": [10**7, 8]}, "size must be a whole number of at most 4096, not 10000000"),
        ({"channels": 10**6}, "channels must be a whole number of at most 64, not 1000000"),
        ({"channels": True}, "channels must be a whole number of at least 1, not True"),
        ({"noisy": "yes"}, "no network fits (purifier 'autoencoder': noisy must be true or false, not 'yes')"),
        ({"z": 2}, "is of another network: shapes: "),
        ({"z": None}, "no network fits (purifier 'autoencoder': z must be a whole number of at least 1, not None)"),
        ({"z": ...}, "has a card whose args must be channels, size, z, activation, noisy, not {"),
        ({"more": 1}, "has a card whose args must be channels, size, z, activation, noisy, not {"),
    ],
)
def test_a_card_that_is_none_is_one_line(over: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    args = {key: value for key, value in (ARGS | over).items() if value is not ...}
    model = {"source": "purifier", "name": "autoencoder", "args": args}
    weights.write(Autoencoder(size=(8, 8), z=3), path, {"model": model})
    with pytest.raises(UserError) as error:
        load_purifier(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_card_that_asks_for_much_memory_gets_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, places = tmp_path / "net.safetensors", list[str]()
    model = {"source": "purifier", "name": "autoencoder", "args": ARGS | {"size": [512, 512]}}
    weights.write(Autoencoder(size=(8, 8), z=3), path, {"model": model})
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda self: places.append(self.weight.device.type))
    with pytest.raises(UserError, match=r"is of another network: shapes: encoder.dense.0.weight is \(128, 32\), not"):
        load_purifier(path)
    assert set(places) == {"meta"}


@pytest.mark.parametrize("name", [name for name in registry.names("purifier") if name != "diffusion"])
def test_every_network_is_built_saved_and_loaded(name: str, tmp_path: Path) -> None:
    net, path = build(name, (1, 16, 16), 3, {}), tmp_path / "net.safetensors"
    assert isinstance(net, Purifier)
    save_purifier(net, path)
    again = load_purifier(path)
    assert card_of(again) == card_of(net)
    assert card_of(net)["name"] == name
    assert equal(again.state_dict(), net.state_dict())
