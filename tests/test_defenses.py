"""Defenses as filters of what a model sees: naive oracles, limits where they change nothing, and their gradients."""

from __future__ import annotations

import io
import math
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from skimage.restoration import denoise_tv_chambolle
from torch import Tensor, nn

from nets import HEIGHT, KINDS, WIDTH, Net, Painter, problem
from segaudit import registry
from segaudit.attacks.fgsm import fgsm
from segaudit.defenses.eot import draws_of
from segaudit.models.purifiers.cvae import CVAE
from segaudit.models.purifiers.residual import Residual
from segaudit.nn.jpeg import jpeg as compressed
from segaudit.nn.straight import through
from segaudit.rng import ImageStreams, drawing, is_random
from segaudit.types import Segmenter, UserError

pytestmark = pytest.mark.usefixtures("one_thread")


def denoiser() -> Residual:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Residual(width=4)
        nn.init.normal_(net.head.weight, std=0.1)
    return net.double()


def teller() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = CVAE(channels=3, size=(HEIGHT, WIDTH), classes=3, z=4)
    return net.double()


def diffuser() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net: nn.Module = registry.load("purifier", "diffusion")(width=8, timesteps=50)
    return net.double()


DIFFUSERS = find_spec("diffusers") is not None
DEFENSES: list[dict[str, Any]] = [
    {"name": "none"},
    {"name": "multiscale"},
    {"name": "multiscale", "scales": [0.6, 1, 1.5], "fusion": "max"},
    {"name": "random_transforms"},
    {"name": "random_transforms", "scales": [0.9, 1.2], "blur": None},
    {"name": "jpeg", "quality": 60},
    {"name": "median"},
    {"name": "median", "gradient": "straight_through"},
    {"name": "bilateral"},
    {"name": "tv"},
    {"name": "bit_depth"},
    {"name": "blur"},
    {"name": "crf"},
    {"name": "crf", "exact": 0, "colour_width": 20},
    {"name": "smoothing", "sigma": 0.1, "draws": 3},
    {"name": "smoothing", "draws": 2, "fusion": "votes"},
    {"name": "denoise", "denoiser": denoiser()},
    {"name": "purify", "purifier": denoiser()},
    {"name": "puvae", "purifier": teller()},
    *([{"name": "diffusion", "purifier": diffuser(), "steps": 3, "gradient_steps": 2}] if DIFFUSERS else []),
    {"name": "gan_inversion", "generator": Painter(3, HEIGHT, WIDTH), "steps": 4, "restarts": 2},
    {"name": "chain", "parts": ["jpeg", {"name": "random_transforms", "bits": None}, {"name": "multiscale"}]},
]
RANDOM = ("random_transforms", "smoothing", "diffusion", "gan_inversion")
ONE_SIZE = {"puvae", "gan_inversion"}
"""What is made for images of one size."""
every = pytest.mark.parametrize("defense", DEFENSES, ids=lambda d: "-".join(map(str, d.values()))[:50])


def behind(model: Segmenter, defense: dict[str, Any]) -> Segmenter:
    own = {key: value for key, value in defense.items() if key != "name"}
    made: Segmenter = registry.load("defense", defense["name"])(model, **own)
    return made


class Mirror(Segmenter):
    """A model that shows what it was given."""

    class_names = ("red", "green", "blue")

    def forward(self, images: Tensor) -> Tensor:
        return images


def seen(images: Tensor, name: str, **own: Any) -> Tensor:
    return behind(Mirror(), {"name": name, **own})(images)


def picture(*shape: int, seed: int = 0, smooth: float = 1.0) -> Tensor:
    """A picture with edges, soft places and some noise, on the 8-bit grid: N x C x H x W in float64."""
    rng = np.random.default_rng(seed)
    made = ndimage.gaussian_filter(rng.normal(size=shape), (0, 0, 2 * smooth, 2 * smooth))
    made = (
        0.5 + 0.25 * made / made.std() + 0.25 * np.sign(ndimage.gaussian_filter(rng.normal(size=shape), (0, 0, 4, 4)))
    )
    return torch.from_numpy((made + 0.02 * rng.normal(size=shape)).clip(0, 1) * 255).round() / 255


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def streams(count: int, seed: int = 0) -> ImageStreams:
    return ImageStreams(seed, [f"image {i}" for i in range(count)], "test")


def test_every_defense_is_here() -> None:
    lacking = set() if DIFFUSERS else {"diffusion"}
    assert {defense["name"] for defense in DEFENSES} | lacking == set(registry.names("defense"))


@every
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_of_the_model_s_shape_and_every_image_has_a_gradient(defense: dict[str, Any], kind: str) -> None:
    p = problem(kind)
    model = behind(p.model, defense)
    assert model.class_names == p.model.class_names
    others = [(24, 16), (9, 31)] if kind == "segmentation" and defense["name"] not in ONE_SIZE else []
    sizes = [(HEIGHT, WIDTH), *others]
    for size in sizes:
        images = F.interpolate(p.images, size).requires_grad_()
        with drawing(streams(4)):
            logits = model(images)
        assert logits.shape == (4, KINDS[kind], *((1, 1) if kind == "classifier" else size))
        assert logits.dtype == images.dtype
        (slope,) = torch.autograd.grad(F.cross_entropy(logits, logits.argmin(1), reduction="sum"), images)
        assert slope.isfinite().all()
        assert (slope.flatten(1).abs().amax(1) > 1e-8).all()


@every
def test_a_batch_of_one_equals_the_batch_and_its_order_does_not_matter(defense: dict[str, Any]) -> None:
    p = problem("segmentation")
    model, order = behind(p.model, defense), torch.tensor([2, 0, 3, 1])
    with drawing(streams(4)):
        made = model(p.images)
    with drawing(streams(4)[order]):
        torch.testing.assert_close(model(p.images[order]), made[order], rtol=0, atol=1e-12)
    for i in range(4):
        with drawing(streams(4)[torch.tensor([i])]):
            torch.testing.assert_close(model(p.images[i : i + 1]), made[i : i + 1], rtol=0, atol=1e-12)


@every
def test_images_and_model_are_as_they_were(defense: dict[str, Any]) -> None:
    p = problem("segmentation")
    before, kept = p.images.clone(), {k: v.clone() for k, v in p.model.state_dict().items()}
    model = behind(p.model, defense)
    with drawing(streams(4)):
        model(p.images)
    assert torch.equal(p.images, before)
    assert all(torch.equal(v, kept[k]) for k, v in p.model.state_dict().items())
    assert is_random(model) == any(name in str(defense) for name in RANDOM)


SMOOTH = [
    ("multiscale", {"scales": [0.5, 0.8, 1.3]}),
    ("multiscale", {"scales": [0.5, 0.8], "fusion": "max"}),
    ("blur", {"sigma": 1.3}),
    ("bilateral", {"size": 5, "colour": 0.3}),
    ("tv", {"weight": 0.1, "steps": 6}),
    ("median", {"size": 3}),
]


@pytest.mark.parametrize(("name", "own"), SMOOTH, ids=lambda v: str(v)[:40])
def test_the_gradient_is_that_of_finite_differences(name: str, own: dict[str, Any]) -> None:
    images, to, weight = noise(2, 3, 9, 11), noise(2, 3, 9, 11, seed=1) - 0.5, noise(2, 3, 9, 11, seed=2) - 0.5
    x = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad((weight * seen(x, name, **own)).sum(), x)
    h = 1e-6
    ahead, behind_it = ((weight * seen(images + s * h * to, name, **own)).sum() for s in (1, -1))
    assert float((slope * to).sum()) == pytest.approx(float(ahead - behind_it) / (2 * h), rel=1e-5)


NOTHING = [
    ("multiscale", {"scales": [1.0]}),
    ("bit_depth", {"bits": 8}),
    ("tv", {"weight": 0}),
    ("median", {"size": 1}),
    ("bilateral", {"size": 1}),
    ("blur", {"sigma": 0}),
    ("crf", {"spatial_weight": 0, "bilateral_weight": 0}),
    ("random_transforms", {"scales": [1, 1], "blur": None, "noise": [0, 0], "quality": None, "bits": [8, 8]}),
    ("chain", {"parts": ["none", {"name": "median", "size": 1}]}),
]


@pytest.mark.parametrize(("name", "own"), NOTHING, ids=lambda v: str(v)[:30])
def test_at_its_limit_it_changes_nothing(name: str, own: dict[str, Any]) -> None:
    images = picture(2, 3, 13, 18)
    torch.testing.assert_close(seen(images, name, **own), images, rtol=0, atol=1e-12)
    changed = {"scales": [0.7], "bits": 3, "weight": 0.1, "size": 3, "sigma": 1.0}
    for key in own.keys() & changed.keys() if name != "random_transforms" else ():  # and away from it, something
        assert (seen(images, name, **{key: changed[key]}) - images).abs().mean() > 1e-3


def by_pillow(images: Tensor, quality: int) -> Tensor:
    made = []
    for image in images:
        array = (image * 255).round().byte().permute(1, 2, 0).numpy()
        file = io.BytesIO()
        Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(file, "JPEG", quality=quality)
        made.append(np.asarray(Image.open(file)).reshape(array.shape))
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).double() / 255


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [10, 40, 75, 100])
def test_jpeg_gives_what_pillow_s_files_give(quality: int, channels: int) -> None:
    for size in ((48, 64), (37, 51)):
        images = picture(2, channels, *size)
        expected = by_pillow(images, quality)
        error = (seen(images, "jpeg", quality=quality) - expected).abs() * 255
        assert error.mean() < (0.2 if channels == 1 else 1.0)  # a coefficient near a tie may fall on the other side
        assert error.quantile(0.95) < (1.5 if channels == 1 else 3.5)
        if quality < 100:
            assert error.mean() < 0.06 * float((expected - images).abs().mean()) * 255


def test_jpeg_of_quality_100_is_nearly_the_grey_picture_itself() -> None:
    images = picture(1, 1, 40, 40)
    assert (seen(images, "jpeg", quality=100) - images).abs().max() <= 1.01 / 255


def test_each_image_has_a_quality_of_its_own() -> None:
    images = picture(2, 3, 24, 24)
    both = compressed(images, torch.tensor([15, 90]))
    for i, quality in enumerate((15, 90)):
        torch.testing.assert_close(both[i], seen(images, "jpeg", quality=quality)[i], rtol=0, atol=1e-12)


def test_jpeg_s_gradient_goes_through_all_but_the_rounding() -> None:
    grey = picture(1, 1, 20, 27).requires_grad_()
    up = noise(1, 1, 20, 27)
    (slope,) = torch.autograd.grad(seen(grey, "jpeg", quality=30), grey, up)  # cosines there and back: nothing is left
    torch.testing.assert_close(slope, up, rtol=0, atol=1e-9)
    colour = picture(1, 3, 16, 16).requires_grad_()
    up = torch.zeros(1, 3, 16, 16, dtype=torch.float64)
    up[0, :, 5, 5] = 1  # a grey point is all luma, and luma is at full resolution
    (slope,) = torch.autograd.grad(seen(colour, "jpeg"), colour, up, retain_graph=True)
    grey_part = (slope * torch.tensor([1.0, 1, 1]).view(1, 3, 1, 1)).sum(1)
    torch.testing.assert_close(grey_part, up.sum(1), rtol=0, atol=1e-6)
    (slope,) = torch.autograd.grad(seen(colour, "jpeg"), colour, up * torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1))
    assert (slope[0].abs().amax(0) > 1e-3).sum() > 4  # a red one reaches its neighbours through the chroma
    (slope,) = torch.autograd.grad(seen(colour, "jpeg", gradient="exact").sum(), colour)
    assert not slope.any()


def test_median_and_blur_are_scipy_s() -> None:
    images = picture(2, 3, 12, 17)
    for size in (3, 5):
        expected = ndimage.median_filter(images.numpy(), (1, 1, size, size), mode="nearest")
        torch.testing.assert_close(seen(images, "median", size=size), torch.from_numpy(expected), rtol=0, atol=0)
    for sigma in (1.0, 2.0):
        expected = ndimage.gaussian_filter(images.numpy(), (0, 0, sigma, sigma), mode="nearest", truncate=3)
        torch.testing.assert_close(seen(images, "blur", sigma=sigma), torch.from_numpy(expected), rtol=0, atol=1e-12)


def test_tv_is_chambolle_s() -> None:
    images = picture(1, 3, 14, 19)
    for weight, steps in ((0.1, 1), (0.05, 7), (0.3, 30)):
        expected = denoise_tv_chambolle(
            images[0].permute(1, 2, 0).numpy(), weight=weight, eps=0, max_num_iter=steps + 1, channel_axis=2
        )
        found = seen(images, "tv", weight=weight, steps=steps)[0].permute(1, 2, 0)
        torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=1e-5)


def test_bilateral_is_a_loop_over_the_pixels() -> None:
    images = picture(1, 3, 6, 7)
    found, array = seen(images, "bilateral", size=3, space=1.2, colour=0.2), images[0].numpy()
    for y in range(6):
        for x in range(7):
            total, weights = np.zeros(3), 0.0
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    other = array[:, min(max(y + dy, 0), 5), min(max(x + dx, 0), 6)]
                    apart = ((other - array[:, y, x]) ** 2).sum() / 0.2**2 + (dy**2 + dx**2) / 1.2**2
                    weight = math.exp(-apart / 2)
                    total, weights = total + weight * other, weights + weight
            np.testing.assert_allclose(found[0, :, y, x].numpy(), total / weights, rtol=0, atol=1e-12)


def test_bit_depth_rounds_to_its_levels_and_goes_straight_through() -> None:
    images = noise(1, 3, 20, 20).requires_grad_()
    made = seen(images, "bit_depth", bits=2)
    assert sorted(set((made * 3).flatten().tolist())) == [0, 1, 2, 3]
    assert (made - images).abs().max() <= 1 / 6
    up = noise(1, 3, 20, 20, seed=3)
    assert torch.equal(torch.autograd.grad(made, images, up)[0], up)
    assert not torch.autograd.grad(seen(images, "bit_depth", gradient="exact").sum(), images)[0].any()


def test_straight_through_has_the_values_of_one_and_the_gradient_of_the_other() -> None:
    images, other = noise(2, 3).requires_grad_(), noise(2, 3, seed=1)
    made = through(images, other * 1e9)
    assert torch.equal(made, other * 1e9)
    (slope,) = torch.autograd.grad((made * other).sum(), images)
    assert torch.equal(slope, other)
    with pytest.raises(ValueError, match="straight-through"):
        through(images, other[:1])


def test_scales_are_fused_by_average_or_maximum() -> None:
    images = picture(2, 3, 12, 18)
    small = F.interpolate(images, (6, 9), mode="bilinear", align_corners=False)
    back = F.interpolate(small, (12, 18), mode="bilinear", align_corners=False)
    found = seen(images, "multiscale", scales=[0.5, 1])
    torch.testing.assert_close(found, (back + images) / 2, rtol=0, atol=1e-12)
    found = seen(images, "multiscale", scales=[0.5, 1], fusion="max")
    torch.testing.assert_close(found, torch.maximum(back, images), rtol=0, atol=1e-12)


def test_a_chain_is_its_parts_in_the_order_in_which_the_image_meets_them() -> None:
    images = picture(2, 3, 12, 18)
    bits, blur = {"name": "bit_depth", "bits": 1}, {"name": "blur", "sigma": 2.0}
    one = seen(images, "chain", parts=[bits, blur])
    other = seen(images, "chain", parts=[blur, bits])
    assert len(one.unique()) > 2 == len(other.unique())
    inside = seen(seen(images, **bits), **blur)
    torch.testing.assert_close(one, inside, rtol=0, atol=1e-12)
    nested = seen(images, "chain", parts=[{"name": "chain", "parts": [bits]}, {"name": "blur", "args": {"sigma": 2.0}}])
    torch.testing.assert_close(nested, inside, rtol=0, atol=1e-12)
    assert draws_of(behind(Mirror(), {"name": "chain", "parts": ["random_transforms"], "eot": 7})) == 7
    assert draws_of(behind(Mirror(), {"name": "chain", "parts": [{"name": "random_transforms", "eot": 3}]})) == 3


KNOWN = [
    {"name": "multiscale", "scales": [0.5, 0.75]},
    {"name": "blur", "sigma": 1.5},
    {"name": "bilateral", "colour": 0.3},
    {"name": "chain", "parts": [{"name": "bit_depth", "bits": 5}, {"name": "tv", "weight": 0.1}]},
]


@pytest.mark.parametrize("defense", KNOWN, ids=lambda d: d["name"])
def test_an_attack_that_knows_of_the_defense_beats_one_that_does_not(defense: dict[str, Any]) -> None:
    p = problem("segmentation", torch.float32, count=12)
    model = behind(p.model, defense)

    def accuracy(images: Tensor) -> float:
        return float((model(images).argmax(1) == p.labels)[p.labels != 255].double().mean())

    blind, knowing = (fgsm(net, p.images, p.labels, rng=p.streams(), eps=8 / 255) for net in (p.model, model))
    assert accuracy(p.images) > 0.5
    assert accuracy(knowing) < accuracy(blind) - 0.03


@pytest.mark.parametrize(
    ("name", "own", "said"),
    [
        ("multiscale", {"scales": 0.5}, "scales must be a list such as [0.5, 0.75, 1], not 0.5"),
        ("multiscale", {"scales": [0, 1]}, "scales must be a number above 0, not 0"),
        ("multiscale", {"fusion": "mean"}, "fusion must be average or max, not 'mean'"),
        ("jpeg", {"quality": 0}, "quality must be a whole number from 1 to 100, not 0"),
        ("jpeg", {"gradient": "none"}, "gradient must be straight_through or exact, not 'none'"),
        ("bit_depth", {"bits": 3.5}, "bits must be a whole number from 1 to 16, not 3.5"),
        ("median", {"size": 4}, "size must be an odd whole number of at least 1, not 4"),
        ("bilateral", {"colour": "0.1"}, "colour must be a number above 0, not '0.1'"),
        ("bilateral", {"space": math.nan}, "space must be a number above 0, not nan"),
        ("tv", {"weight": -1}, "weight must be a number of at least 0, not -1"),
        ("tv", {"steps": 0}, "steps must be a whole number of at least 1, not 0"),
        ("blur", {"sigma": True}, "sigma must be a number of at least 0, not True"),
        ("random_transforms", {"scales": 0.5}, "scales must be null or [from, to], not 0.5"),
        ("random_transforms", {"blur": [2, 1]}, "blur must go from a smaller to a larger number, not [2, 1]"),
        ("random_transforms", {"noise": ["a", 1]}, "noise must be a number of at least 0, not 'a'"),
        ("random_transforms", {"quality": [50.5, 60]}, "quality must be a whole number from 1 to 100, not 50.5"),
        ("random_transforms", {"eot": 0}, "eot must be a whole number of at least 1, not 0"),
        ("denoise", {"denoiser": 0.5}, "denoiser must be the path of a denoiser's weights, not 0.5"),
        ("smoothing", {"sigma": 0}, "sigma must be a number above 0, not 0"),
        ("smoothing", {"draws": 1.5}, "draws must be a whole number of at least 1, not 1.5"),
        ("smoothing", {"fusion": "vote"}, "fusion must be softmax or votes, not 'vote' (did you mean 'votes'?)"),
        ("chain", {"parts": "jpeg"}, "parts must be a list such as [jpeg, {name: blur, sigma: 2}], not 'jpeg'"),
        ("chain", {"parts": [3]}, "a part is a name, or {name: ..., and its arguments}, not 3"),
        ("chain", {"parts": ["jpg"]}, "no defense is called 'jpg' (did you mean 'jpeg'?)"),
        ("chain", {"parts": [{"name": "jpeg", "qualty": 3}]}, "has no argument 'qualty' (did you mean 'quality'?)"),
        ("chain", {"parts": ["jpeg"], "eot": 4}, "eot 4 is for a chain with a random part; leave it out"),
    ],
)
def test_wrong_arguments_are_said_in_one_line(name: str, own: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        behind(Net(3), {"name": name, **own})
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert said.startswith(("no ", "has ")) or str(error.value).startswith(f"defense {name!r}: ")
