"""The denoiser that is trained here: the network, its weights, its recipe and what a training leaves."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from nets import problem
from segaudit import cli
from segaudit.audit import build as audit
from segaudit.audit import parts
from segaudit.audit.train import TrainSpec, read, train
from segaudit.models import bundled, weights
from segaudit.models.purifiers import Purifier, build, card_of, load_purifier, save_purifier
from segaudit.models.purifiers.residual import Bottleneck, Residual
from segaudit.rng import ImageStreams
from segaudit.training.denoise import denoise, psnr
from segaudit.training.loop import Progress, fit
from segaudit.types import Batch, UserError
from train_kit import Drawn, batch_of, equal, lines, schedule
from train_kit import weights as kept

pytestmark = pytest.mark.usefixtures("one_thread")

FORMS = {"residual": Residual, "bottleneck": Bottleneck}


@pytest.fixture(autouse=True)
def _plain_arithmetic() -> Any:
    yield
    torch.set_flush_denormal(False)


def lively(seed: int = 0, form: str = "residual", **own: Any) -> Residual:
    """With random weights in its last layer too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = FORMS[form](**{"width": 4} | own)
        nn.init.normal_(net.head.weight, std=0.1)
    return net.double().eval()


def noisy(*shape: int, seed: int = 0) -> Tensor:
    return 0.5 + 0.6 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("form", FORMS)
def test_images_of_any_size_come_back_in_range_and_each_on_its_own(form: str) -> None:
    for channels, height, width in ((3, 17, 23), (1, 28, 28), (3, 1, 1), (3, 8, 40), (4, 9, 64)):
        net, images = lively(channels=channels, form=form), noisy(3, channels, height, width)
        images.requires_grad_()
        made = net(images)
        assert made.shape == images.shape
        assert made.dtype == images.dtype
        assert 0 <= made.min() <= made.max() <= 1
        for i in range(3):
            torch.testing.assert_close(net(images[i : i + 1]), made[i : i + 1], rtol=0, atol=1e-12)
        (slope,) = torch.autograd.grad((made - 0.3).square().sum(), images)
        assert slope.isfinite().all()
        assert slope.any()
    with pytest.raises(UserError, match=f"purifier '{form}': it is made for 4 channels, and the images have 3"):
        net(noisy(1, 3, 8, 8))


def test_it_starts_from_the_picture_as_it_is_and_clips_it_when_it_is_not_trained() -> None:
    images, net = noisy(2, 3, 10, 12), Residual(width=4).double()
    assert torch.equal(net.train()(images), images)
    assert torch.equal(net.eval()(images), images.clamp(0, 1))


def test_a_bottleneck_lets_as_many_numbers_through_as_it_says() -> None:
    for form, rank in (("bottleneck", 2 * 3), ("residual", 64)):
        net = lively(channels=1, width=3, form=form).train()  # without the clip all is smooth
        slopes = torch.autograd.functional.jacobian(net, noisy(1, 1, 8, 8)).view(64, 64)
        assert int(torch.linalg.matrix_rank(slopes, rtol=1e-9)) == rank


def test_the_spec_s_network_is_of_the_size_that_was_wanted(tmp_path: Path) -> None:
    spec = parts.read(TrainSpec, Path(__file__).parent.parent / "experiments" / "train" / "camvid-denoiser.yaml")
    net = audit.purifier(spec.model, (3, 192, 256), 11)
    assert 50_000 < sum(p.numel() for p in net.parameters()) < 300_000
    save_purifier(net, tmp_path / "net.safetensors", dtype=torch.float16)
    assert (tmp_path / "net.safetensors").stat().st_size < 500_000


@pytest.mark.parametrize("form", FORMS)
def test_its_weights_build_it_again(form: str, tmp_path: Path) -> None:
    net, path = lively(channels=1, width=3, depth=2, form=form).float(), tmp_path / "net.safetensors"
    save_purifier(net, path, {"score": {"psnr": 30.0}})
    again, images = load_purifier(str(path)), noisy(2, 1, 9, 11).float()
    assert torch.equal(again(images), net(images))
    assert not torch.equal(again(images), images.clamp(0, 1))
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    assert weights.read(path)[1] == {"model": card_of(net), "score": {"psnr": 30.0}}
    assert card_of(again) == card_of(net)
    assert card_of(net)["name"] == form
    save_purifier(net, path, dtype=torch.float16)
    torch.testing.assert_close(load_purifier(path)(images), net(images), rtol=0, atol=1e-2)


def test_what_is_no_denoiser_is_said_in_one_line(tmp_path: Path) -> None:
    bare, damaged = tmp_path / "bare.safetensors", tmp_path / "damaged.safetensors"
    weights.write(nn.Conv2d(3, 2, 1), bare, {})
    damaged.write_bytes(b"nothing")
    other = tmp_path / "other.safetensors"
    weights.write(nn.Conv2d(3, 2, 1), other, {"model": card_of(Residual(width=4))})
    for path, said in (
        (bundled.ZOO / "unet.safetensors", "unet.safetensors holds model 'unet'; give weights that `segaudit train`"),
        (bare, "bare.safetensors has no card that says what network it is of; give weights"),
        (other, "other.safetensors is of another network: lacks "),
        (damaged, "damaged.safetensors is not a whole safetensors file"),
        (tmp_path / "none.safetensors", "weights: there is no file"),
    ):
        with pytest.raises(UserError) as error:
            load_purifier(path)
        assert said in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("x", "has no card that says what network it is of; give weights"),
        ([], "has no card that says what network it is of; give weights"),
        ({"name": "residual"}, "holds model 'residual'; give weights"),
        ({"source": "purifier"}, "holds purifier None, which is none of residual, bottleneck"),
        ({"source": "purifier", "name": []}, "holds purifier [], which is none of residual, bottleneck"),
        ({"source": "purifier", "name": "residul"}, "holds purifier 'residul', which is none of residual, bottleneck"),
        ({"source": "purifier", "name": "residual"}, "args must be channels, width, depth, not None; give weights"),
        (
            {"source": "purifier", "name": "os:system", "args": {"command": "true"}},
            "holds purifier 'os:system', which is none",
        ),
        ({"source": "purifier", "name": "residual", "args": [1]}, "must be channels, width, depth, not [1]; give"),
        ({"source": "purifier", "name": "residual", "args": {"foo": 1}}, "width, depth, not {'foo': 1}; give weights"),
        (
            {"source": "purifier", "name": "residual", "args": {"channels": 3, "width": "x", "depth": 1}},
            "no network fits (purifier 'residual': width must be a whole number of at least 1, not 'x'); give",
        ),
        (
            {"source": "purifier", "name": "residual", "args": {"channels": 3, "width": 4, "depth": 10**9}},
            "no network fits (purifier 'residual': depth must be a whole number of at most 64, not 1000000000); give",
        ),
    ],
)
def test_a_card_that_is_none_is_one_line(model: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    weights.write(lively().float(), path, {"model": model})
    with pytest.raises(UserError) as error:
        load_purifier(path)
    assert str(error.value).startswith(f"purifier: {path} ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("form", "other"), [("residual", "bottleneck"), ("bottleneck", "residual")])
def test_weights_of_the_other_form_are_refused_where_their_card_tells(form: str, other: str, tmp_path: Path) -> None:
    path, net = tmp_path / "net.safetensors", lively(form=other).float()
    save_purifier(net, path)
    with pytest.raises(UserError) as error:
        build(form, (3, 8, 8), 2, {"width": 4}, str(path))
    assert str(error.value) == f"purifier {form!r}: {path} holds a {other!r}; give `name: {other}`, or other weights"
    assert equal(kept(build(other, (3, 8, 8), 2, {"width": 4}, str(path))), kept(net))
    weights.write(net, path, {})  # which may be of either
    assert equal(kept(build(form, (3, 8, 8), 2, {"width": 4}, str(path))), kept(net))


class Seen(nn.Module):
    """Shows what it was given, and gives a share of it back."""

    def __init__(self, share: float = 0.5) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(share))
        self.images = torch.empty(0)

    def forward(self, images: Tensor) -> Tensor:
        self.images = images.detach()
        return self.share * images


def streams(batch: Batch) -> ImageStreams:
    return ImageStreams(0, batch.ids, "train/0")


def test_the_loss_is_the_squared_error_in_noise_of_each_image_s_own_size() -> None:
    batch, model = batch_of("segmentation", 6), Seen()
    loss = float(denoise(model, batch, rng=streams(batch), sigma=0.25).detach())
    noise = model.images - batch.images
    torch.testing.assert_close(noise / 0.25, streams(batch).child("noise").normal(batch.images), rtol=0, atol=1e-5)
    assert noise.std((1, 2, 3)).tolist() == pytest.approx([0.25] * 6, rel=0.1)
    assert model.images.min() < 0  # as certification draws it
    pairs = zip(model.images.flatten().tolist(), batch.images.flatten().tolist(), strict=True)
    by_hand = sum((0.5 * a - b) ** 2 for a, b in pairs)
    assert loss == pytest.approx(by_hand / batch.images.numel(), rel=1e-4)

    denoise(model, batch, rng=streams(batch), sigma=[0.1, 0.4])
    sizes = (model.images - batch.images).std((1, 2, 3))
    wanted = 0.1 + 0.3 * streams(batch).child("sigma").uniform(torch.empty(6, 1)).flatten()
    assert sizes.tolist() == pytest.approx(wanted.tolist(), rel=0.1)
    assert float(sizes.max() - sizes.min()) > 0.05
    whole = model.images
    some = Batch(batch.images[[4, 1]], batch.labels[[4, 1]], (batch.ids[4], batch.ids[1]))
    denoise(model, some, rng=streams(some), sigma=[0.1, 0.4])
    assert torch.equal(model.images, whole[[4, 1]])
    denoise(model, batch, rng=streams(batch), sigma=0)
    assert torch.equal(model.images, batch.images)


def test_stability_is_the_cross_entropy_to_what_the_segmenter_sees_in_the_clean_image() -> None:
    batch, segmenter = batch_of("segmentation"), problem("segmentation", torch.float32).model
    before = kept(segmenter)

    def loss(model: nn.Module, **own: Any) -> Tensor:
        return denoise(model, batch, rng=streams(batch), sigma=0.1, **own)

    model, weight = Seen(0.8), 0.3
    both, plain = loss(model, segmenter=segmenter, stability=weight), loss(model)
    logs = segmenter(0.8 * model.images).log_softmax(1).movedim(1, 3).flatten(0, 2).tolist()
    classes = segmenter(batch.images).argmax(1).flatten().tolist()
    own = sum(-logs[i][k] for i, k in enumerate(classes)) / len(classes)
    assert (both - plain).item() == pytest.approx(weight * own, rel=1e-4)
    assert own > 0.1
    (slope,) = torch.autograd.grad(both - plain, model.share)
    h = 1e-2
    ahead, behind = (loss(Seen(0.8 + s * h), segmenter=segmenter, stability=weight).item() for s in (1, -1))
    both_ways = (ahead - behind) / (2 * h)
    (smooth,) = torch.autograd.grad(loss(model), model.share)
    assert float(slope + smooth) == pytest.approx(both_ways, rel=0.05)
    assert abs(float(slope)) > 0.1 * abs(float(smooth))  # it reaches the denoiser through the segmenter
    assert equal(kept(segmenter), before)
    assert all(p.grad is None for p in segmenter.parameters())


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"sigma": -0.1}, "sigma must be a number of at least 0, or [low, high], not -0.1; images are in [0, 1]"),
        ({"sigma": [0.3, 0.1]}, "sigma must be a number of at least 0, or [low, high], not [0.3, 0.1]"),
        ({"sigma": [0, 0.1, 0.2]}, "sigma must be a number of at least 0, or [low, high], not [0, 0.1, 0.2]"),
        ({"sigma": "much"}, "sigma must be a number of at least 0, or [low, high], not 'much'"),
        ({"sigma": math.inf}, "sigma must be a number of at least 0, or [low, high], not inf"),
        ({"sigma": 0.1, "segmenter": nn.Identity(), "stability": 0}, "stability must be a number above 0, not 0"),
    ],
)
def test_wrong_numbers_are_one_line(own: dict[str, Any], said: str) -> None:
    batch = batch_of("segmentation")
    with pytest.raises(UserError) as error:
        denoise(Seen(), batch, rng=streams(batch), **own)
    assert str(error.value).startswith(f"recipe denoise: {said}")


def test_psnr_is_the_mean_of_the_images_own() -> None:
    samples = Drawn("segmentation", 5, 2)
    found = psnr(Seen(0.9), samples, 2, sigma=0.2)
    noise = ImageStreams(0, samples.ids, "psnr").normal(samples.images).double()
    clean = samples.images.double()
    seen = clean + 0.2 * noise
    for key, made in (("psnr", 0.9 * seen), ("psnr_noisy", seen)):
        own = [10 * math.log10(1 / float(((a - b) ** 2).mean())) for a, b in zip(made, clean, strict=True)]
        assert found[key] == pytest.approx(sum(own) / 5, rel=1e-5)
    assert found["psnr_noisy"] == pytest.approx(-20 * math.log10(0.2), abs=0.2)
    assert psnr(Seen(1.0), samples, 5, sigma=0) == {"psnr": 100, "psnr_noisy": 100}


RECIPE = partial(denoise, sigma=[0.1, 0.25])


def test_it_learns_to_take_noise_away(tmp_path: Path) -> None:
    train, held_out = Drawn("segmentation", 64, 1), Drawn("segmentation", 8, 2)
    net = build("residual", (3, 17, 23), 5, {"width": 16})
    judge = partial(psnr, sigma=0.25)
    before = judge(net, held_out)
    own = schedule(epochs=8, lr=5e-3, weight_decay=0.0, validate_every=4)
    score = fit(net, train, held_out, RECIPE, own, tmp_path, judge=judge)
    assert before["psnr_noisy"] == score["psnr_noisy"] == pytest.approx(12, abs=0.3)
    assert score["psnr"] > before["psnr"] + 3  # which is that of the clipped picture
    assert score["psnr"] > score["psnr_noisy"] + 4.5
    assert judge(net, held_out) == score
    assert [sorted(line.keys() & score.keys()) for line in lines(tmp_path)] == [
        ["psnr", "psnr_noisy"] if epoch == 3 else [] for epoch in range(8)
    ]


def test_an_interrupted_training_ends_in_the_same_weights(tmp_path: Path) -> None:
    train, segmenter = Drawn("segmentation", 18, 1), problem("segmentation", torch.float32).model
    recipe = partial(RECIPE, segmenter=segmenter, stability=0.05)

    class Killed(Exception):
        pass

    def kill(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (1, 2):
            raise Killed

    def made(seed: int = 0) -> Purifier:
        return build("bottleneck", (3, 17, 23), 5, {"width": 3}, seed=seed)

    own = schedule(epochs=3, batch=4)
    undisturbed, resumed, plain = made(), made(9), made()
    fit(undisturbed, train, None, recipe, own, tmp_path / "whole")
    with pytest.raises(Killed):
        fit(made(), train, None, recipe, own, tmp_path / "parts", kill)
    fit(resumed, train, None, recipe, own, tmp_path / "parts")
    assert equal(kept(resumed), kept(undisturbed))
    assert not equal(kept(undisturbed), kept(made()))
    fit(plain, train, None, RECIPE, own, tmp_path / "plain")
    assert not equal(kept(plain), kept(undisturbed))


def content(**over: Any) -> dict[str, Any]:
    data = {split: {"name": "scenes", "split": split, "images": 4} for split in ("train", "val")}
    made = {"name": "tiny", "model": {"source": "purifier", "name": "residual", "args": {"width": 4}}, "data": data}
    made |= {"recipe": {"name": "denoise", "sigma": [0, "1/4"]}, "epochs": 1, "batch": 2, "precision": "fp32"}
    return made | over


def test_a_training_leaves_weights_a_card_and_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text(yaml.safe_dump(content(epochs=2, validate_every=1)))
    with pytest.raises(SystemExit) as exit:
        cli.main(["train", "spec.yaml", "--out", "out"])
    assert not exit.value.code
    path, *said = capfd.readouterr().out.splitlines()
    net, card = load_purifier(path), weights.read(path)[1]
    spec = parts.read(TrainSpec, Path("spec.yaml"))
    assert read(Path(path)) == spec
    score = card["score"]
    assert said == [f"psnr {score['psnr']:.4f}", f"psnr_noisy {score['psnr_noisy']:.4f}"]
    assert score["psnr_noisy"] == pytest.approx(-20 * math.log10(0.25), abs=0.1)
    assert score["psnr"] > score["psnr_noisy"]
    assert card["training"] == spec.model_dump(mode="json")
    assert (card["model"], card["training"]["seed"]) == (card_of(net), 0)
    assert card["model"]["args"] == {"channels": 3, "width": 4, "depth": 1}
    assert card["start"] == audit.digest(audit.purifier(spec.model, (3, 128, 128), 8, 0)) != audit.digest(net)
    assert card["data"]["val"]["images"] == card["images"] == 4
    assert "class_names" not in card
    page = Path("out/curves.html").read_text()
    history = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    for value in (history[0]["loss"], history[0]["psnr"], score["psnr"], score["psnr_noisy"]):
        assert repr(value) in page
    assert "held-out PSNR" in page
    again, _ = train(read(Path(path)), tmp_path / "again")
    assert equal(weights.read(again)[0], weights.read(path)[0])


def test_a_training_takes_a_segmenter_and_weights_to_start_from(tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    save_purifier(lively().float(), start)
    zoo = bundled.ZOO / "unet.safetensors"
    segmenter = {"source": "tiny", "name": "unet", "weights": str(zoo)}
    made = content(
        model=content()["model"] | {"weights": str(start)},
        recipe={"name": "denoise", "sigma": 0.1, "segmenter": segmenter},
        lr=1e-9, weight_decay=0,
    )  # fmt: skip
    spec = TrainSpec.model_validate(made)
    assert TrainSpec.model_validate_json(spec.model_dump_json()) == spec
    path, _ = train(spec, tmp_path / "out")
    for key, value in weights.read(path)[0].items():
        torch.testing.assert_close(value, weights.read(start)[0][key], rtol=0, atol=1e-6)
    assert list(weights.read(path)[1]["files"]) == [str(zoo)]
    recipe: Any = spec.recipe.make(Drawn("binary", 2, 1), audit.dataset(spec.data.train).class_names)
    assert audit.digest(recipe.keywords["segmenter"]) == audit.digest(
        audit.model(parts.ModelSpec(name="unet"), audit.dataset(spec.data.train).class_names)
    )


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"model": "unet"}, "recipe 'denoise' trains a purifier: give `model: {source: purifier, name: residual}`"),
        ({"recipe": "standard"}, "recipe 'standard' trains no purifier: give `recipe: {name: denoise, sigma"),
        (
            {"model": {"source": "purifier", "name": "residul"}},
            "no purifier is called 'residul' (did you mean 'residual'?)",
        ),
        ({"model": {"source": "purifier", "name": "residual", "args": {"widht": 3}}}, "(did you mean 'width'?)"),
        ({"model": {"source": "purifier", "name": "residual", "args": {"channels": 1}}}, "has no argument 'channels'"),
        ({"model": {"source": "purifier", "name": "residual", "args": {"depth": 0}}}, "depth must be a whole number"),
        ({"model": {"source": "purifier", "name": "residual", "outputs": 3}}, "model: a purifier has no outputs"),
        ({"recipe": {"name": "denoise", "sigma": [1]}}, "recipe denoise: sigma must be a number of at least 0, or"),
        ({"recipe": {"name": "denoise"}}, "recipe 'denoise' needs the argument 'sigma'"),
        ({"recipe": {"name": "denoise", "sigma": 1, "segmenter": 3}}, "segmenter must be a name, or {name: ..., and"),
        ({"recipe": {"name": "denoise", "sigma": 1, "segmenter": "unett"}}, "no bundled model is called 'unett'"),
    ],
)
def test_a_spec_that_does_not_fit_is_one_line_and_leaves_nothing(over: Any, said: str, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(content(**over)))
    with pytest.raises(UserError) as error:
        train(parts.read(TrainSpec, tmp_path / "spec.yaml"), tmp_path / "out")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
