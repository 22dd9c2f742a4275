"""Purifiers trained on attacked images, and variational ones; and what a training with them leaves."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, distributions, nn

from nets import problem
from segaudit import cli
from segaudit.attacks.pgd import pgd
from segaudit.audit.parts import ModelSpec
from segaudit.audit.train import TrainSpec, train
from segaudit.models import weights
from segaudit.models.purifiers import build, load_purifier, save_purifier
from segaudit.rng import ImageStreams
from segaudit.training.denoise import psnr
from segaudit.training.loop import Progress, fit
from segaudit.training.purify import purify, scores
from segaudit.training.vae import apart, kl, vae
from segaudit.types import VOID, Batch, Segmenter, UserError
from train_kit import Drawn, batch_of, equal, schedule
from train_kit import weights as kept

pytestmark = pytest.mark.usefixtures("one_thread")

PGD = partial(pgd, eps=0.05, steps=2)


@pytest.fixture(autouse=True)
def _plain_arithmetic() -> Any:
    yield
    torch.set_flush_denormal(False)


class Seen(nn.Module):
    """Shows what it was given, and gives a share of it back."""

    def __init__(self, share: float = 0.5) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(share))
        self.images: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.images.append(images.detach())
        return self.share * images


def streams(batch: Batch) -> ImageStreams:
    return ImageStreams(0, batch.ids, "train/0")


def victim(kind: str = "segmentation") -> Segmenter:
    return problem(kind, torch.float32).model


class Attack:
    """Takes a tenth of the brightness away, and remembers what it was handed."""

    def __init__(self, by: float = 0.1) -> None:
        self.by, self.count, self.views = by, 0, list[tuple[Tensor, bool, bool]]()

    def __call__(self, model: Segmenter, images: Tensor, labels: Tensor, *, rng: ImageStreams) -> Tensor:
        flags = (any(m.training for m in model.modules()), any(p.requires_grad for p in model.parameters()))
        self.views.append((model(images).detach(), *flags))
        self.count = len(images)
        return (images - self.by).clamp(0, 1)


@pytest.mark.parametrize("through", [False, True])
def test_the_loss_is_the_squared_error_of_the_purified_attacked_images_to_the_clean_ones(through: bool) -> None:
    batch, model, attack, net = batch_of("segmentation", 6), Seen().train(), Attack(), victim()
    before = kept(net)
    loss = purify(model, batch, rng=streams(batch), segmenter=net, attacks=[attack], through=through, share=0.5)
    assert attack.count == 3
    given = model.images[-1]
    wanted = torch.cat([(batch.images[:3] - 0.1).clamp(0, 1), batch.images[3:]])
    assert torch.equal(given, wanted)
    assert loss.item() == pytest.approx(float((0.5 * wanted - batch.images).double().square().mean()), rel=1e-5)
    ((logits, training, learnt),) = attack.views
    own = net(0.5 * batch.images[:3] if through else batch.images[:3])
    torch.testing.assert_close(logits, own, rtol=1e-5, atol=1e-5)
    assert not training
    assert not learnt
    assert len(model.images) == 1 + through  # which it sees the purifier in
    assert model.training
    assert model.share.requires_grad
    loss.backward()
    slope = float((2 * (0.5 * wanted - batch.images) * wanted).double().mean())
    assert float(model.share.grad) == pytest.approx(slope, rel=1e-4)  # type: ignore[arg-type]
    assert equal(kept(net), before)


def test_each_batch_draws_one_of_the_attacks() -> None:
    several = [Attack(0.1), Attack(0.2), Attack(0.3)]
    whole = batch_of("segmentation", 24)

    def drawn(batch: Batch) -> int:
        before = [len(attack.views) for attack in several]
        purify(Seen(), batch, rng=streams(batch), segmenter=victim(), attacks=several)
        changed = [i for i, attack in enumerate(several) if len(attack.views) > before[i]]
        assert len(changed) == 1
        return changed[0]

    batches = [whole[i : i + 2] for i in range(0, 24, 2)]
    first = [drawn(batch) for batch in batches]
    assert set(first) == {0, 1, 2}
    assert [drawn(batch) for batch in batches] == first


def test_classify_adds_the_cross_entropy_of_what_the_segmenter_sees_against_the_truth() -> None:
    batch, net = batch_of("segmentation"), victim()

    def loss(**own: Any) -> float:
        return purify(Seen(), batch, rng=streams(batch), segmenter=net, attacks=[Attack()], **own).item()

    logs = net(0.5 * (batch.images - 0.1).clamp(0, 1)).log_softmax(1).movedim(1, 3).flatten(0, 2).tolist()
    truth = batch.labels.flatten().tolist()
    own = [-logs[i][k] for i, k in enumerate(truth) if k != VOID]
    assert 0 < len(own) < len(truth)
    assert loss(classify=0.3) - loss() == pytest.approx(0.3 * sum(own) / len(own), rel=1e-4)


class Negative(nn.Module):
    """Turns dark into bright."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return 1 - self.weight * images


class OfNegatives(Segmenter):
    """A segmenter of negatives: behind `Negative` it is right, and alone it is not."""

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.model, self.class_names = model, model.class_names

    def forward(self, images: Tensor) -> Tensor:
        return self.model(1 - images)


def test_the_attack_through_a_purifier_finds_what_the_one_before_it_does_not() -> None:
    data, net, attack = Drawn("classifier", 16, 3), victim("classifier"), partial(pgd, eps=0.01, steps=4)
    found = {
        through: scores(Negative(), data, 5, segmenter=OfNegatives(net), attacks=[attack], through=through)
        for through in (False, True)
    }
    clean = float((net(data.images).argmax(1) == data.labels).double().mean())
    assert found[True]["accuracy"] == found[False]["accuracy"] == clean > 0.8
    assert found[False].keys() == {"miou", "accuracy", "miou_oblivious", "accuracy_oblivious"}
    assert found[True].keys() == {"miou", "accuracy", "miou_adaptive", "accuracy_adaptive"}
    assert found[True]["accuracy_adaptive"] < found[False]["accuracy_oblivious"] - 0.2


def test_scores_are_of_the_worst_attack_and_the_same_in_every_call() -> None:
    inner, net = Drawn("classifier", 12, 3), victim("classifier")
    model = build("autoencoder", (3, 17, 23), 4, {"noisy": True})
    weak, strong = partial(pgd, eps=1e-6, steps=1), partial(pgd, eps=0.2, steps=3)
    both = scores(model, inner, 5, segmenter=net, attacks=[weak, strong, weak], through=True)
    assert both == scores(model, inner, 5, segmenter=net, attacks=[weak, strong, weak], through=True)
    assert scores(model, inner, 5, segmenter=net).keys() == {"miou", "accuracy"}
    blind = Seen(1.0)
    alone = [scores(blind, inner, 5, segmenter=net, attacks=[own])["accuracy_oblivious"] for own in (weak, strong)]
    assert alone[1] < alone[0] == scores(blind, inner, 5, segmenter=net)["accuracy"]
    assert scores(blind, inner, 5, segmenter=net, attacks=[weak, strong])["accuracy_oblivious"] == alone[1]


def test_psnr_is_the_same_in_every_call_whatever_is_drawn() -> None:
    model, data = build("autoencoder", (3, 17, 23), 4, {"noisy": True}), Drawn("classifier", 5, 3)
    assert psnr(model, data, 2, sigma=0.1) == psnr(model, data, 2, sigma=0.1)
    assert psnr(model, data, 2, sigma=0.1) == pytest.approx(psnr(model, data, 5, sigma=0.1), rel=1e-5)


def test_kl_and_errors_are_those_of_torch() -> None:
    rng = torch.Generator().manual_seed(0)
    mean, log_var = torch.randn(2, 5, 7, generator=rng, dtype=torch.float64)
    own = distributions.Normal(mean, log_var.exp().sqrt())
    wanted = distributions.kl_divergence(own, distributions.Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(kl(mean, log_var), wanted, rtol=1e-12, atol=0)
    made, images = torch.rand(2, 5, 2, 3, 4, generator=rng, dtype=torch.float64)
    wanted = F.binary_cross_entropy(made, images, reduction="none").sum((1, 2, 3))
    torch.testing.assert_close(apart(made, images, "bernoulli"), wanted, rtol=1e-9, atol=0)
    torch.testing.assert_close(apart(made, images, "squared"), ((made - images) ** 2).sum((1, 2, 3)))
    edges = apart(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2), torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), "bernoulli")
    assert edges.isfinite().all()


@pytest.mark.parametrize("error", ["squared", "bernoulli"])
@pytest.mark.parametrize("name", ["vae", "cvae"])
def test_the_loss_of_a_vae_is_its_negative_elbo_an_image_value(name: str, error: str) -> None:
    batch, beta = batch_of("classifier", 5), 0.7
    net: Any = build(name, (3, 17, 23), 4, {"z": 6}).eval()
    given = (batch.labels.flatten(),) if name == "cvae" else ()
    mean, log_var = net.encode(batch.images, *given)
    z = mean + (log_var / 2).exp() * streams(batch).child("z").normal(mean)
    made = net.decode(z, *given)
    if error == "squared":
        told = -distributions.Normal(made, 0.5**0.5).log_prob(batch.images) - 0.5 * torch.log(torch.tensor(torch.pi))
    else:
        told = -distributions.Bernoulli(made, validate_args=False).log_prob(batch.images)
    own = distributions.Normal(mean, (log_var / 2).exp())
    divergence = distributions.kl_divergence(own, distributions.Normal(0.0, 1.0)).sum(1)
    wanted = (told.sum((1, 2, 3)) + beta * divergence).mean() / (3 * 17 * 23)
    found = vae(net, batch, rng=streams(batch), error=error, beta=beta)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    found.backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


@pytest.mark.parametrize("bf16", [False, True])
def test_a_pixel_that_is_wrong_and_sure_is_put_right(bf16: bool) -> None:
    """In bfloat16 a probability of 0.9999 is 1, from which no slope leads back."""
    batch, net = batch_of("classifier", 4), build("vae", (3, 17, 23), 4, {"z": 2})
    last: Any = net.decoder.body[-1]  # type: ignore[union-attr, index]
    nn.init.constant_(last.bias, 9.0)
    dark = Batch(torch.zeros_like(batch.images), batch.labels, batch.ids)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = vae(net, dark, rng=streams(dark), error="bernoulli")
    loss.backward()
    assert loss.item() == pytest.approx(9, abs=0.5)
    assert float(last.bias.grad.sum()) == pytest.approx(1, abs=0.01)


def test_a_vae_sees_noisy_or_attacked_images_and_is_told_what_the_segmenter_says() -> None:
    batch, net = batch_of("segmentation", 4), victim()
    model: Any = build("vae", (3, 17, 23), 5, {"z": 6}).eval()
    seen: list[Tensor] = []
    model.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))

    def loss(**own: Any) -> float:
        return float(vae(model, batch, rng=streams(batch), **own).detach())

    loss(sigma=0.2)
    torch.testing.assert_close(
        (seen[-1] - batch.images) / 0.2, streams(batch).child("noise").normal(batch.images), rtol=0, atol=1e-5
    )
    plain = loss(segmenter=net, attacks=[Attack()], share=0.5)
    assert torch.equal(seen[-1], torch.cat([(batch.images[:2] - 0.1).clamp(0, 1), batch.images[2:]]))
    assert plain != loss()
    told = loss(segmenter=net, classify=0.5) - loss(segmenter=net)
    mean, log_var = model.encode(batch.images)
    made = model.decode(mean + (log_var / 2).exp() * streams(batch).child("z").normal(mean))
    own = F.cross_entropy(net(made), batch.labels, ignore_index=VOID)
    assert told == pytest.approx(0.5 * own.item(), rel=1e-3)
    with pytest.raises(
        UserError, match="a cvae is told the class of each image, and these have a map of classes: give"
    ):
        vae(build("cvae", (3, 17, 23), 5, {}), batch, rng=streams(batch))


@pytest.mark.parametrize("recipe", ["purify", "vae"])
def test_an_interrupted_training_ends_in_the_same_weights(recipe: str, tmp_path: Path) -> None:
    data, net = Drawn("classifier", 12, 1), victim("classifier")
    both = {"segmenter": net, "attacks": [PGD, partial(PGD, eps=0.1)], "through": True, "classify": 0.1}
    own: Any = partial({"purify": purify, "vae": vae}[recipe], **both)
    name = "autoencoder" if recipe == "purify" else "vae"

    class Killed(Exception):
        pass

    def kill(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (1, 2):
            raise Killed

    def made(seed: int = 0) -> nn.Module:
        return build(name, (3, 17, 23), 4, {"noisy": True}, seed=seed)

    once = schedule(epochs=3, batch=4)
    undisturbed, resumed = made(), made(9)
    fit(undisturbed, data, None, own, once, tmp_path / "whole")
    with pytest.raises(Killed):
        fit(made(), data, None, own, once, tmp_path / "parts", kill)
    fit(resumed, data, None, own, once, tmp_path / "parts")
    assert equal(kept(resumed), kept(undisturbed))
    assert not equal(kept(undisturbed), kept(made()))


def test_it_learns_to_undo_an_attack(tmp_path: Path) -> None:
    data, held_out, net = Drawn("classifier", 32, 1), Drawn("classifier", 16, 2), victim("classifier")
    model = build("residual", (3, 17, 23), 4, {"width": 8})
    own: Any = {"segmenter": net, "attacks": [partial(pgd, eps=0.01, steps=2)], "through": True}
    judge, recipe = partial(scores, **own), partial(purify, classify=1.0, **own)
    before = judge(model, held_out)
    score = fit(model, data, held_out, recipe, schedule(epochs=6, lr=5e-3, validate_every=9), tmp_path, judge=judge)
    assert judge(model, held_out) == score
    assert score["accuracy_adaptive"] > before["accuracy_adaptive"] + 0.1


def content(**over: Any) -> dict[str, Any]:
    data = {split: {"name": "digits", "split": split, "size": [12, 12], "limit": 6} for split in ("train", "test")}
    lenet = {"source": "classic", "name": "lenet", "args": {"channels": 1}}
    attacks = [{"name": "fgsm", "eps": 0.3}, {"name": "pgd", "eps": "4/255", "steps": 2}]
    made: dict[str, Any] = {
        "name": "tiny",
        "model": {"source": "purifier", "name": "autoencoder", "args": {"z": 4, "noisy": True}},
        "data": {"train": data["train"], "val": data["test"]},
        "recipe": {"name": "purify", "segmenter": lenet, "attacks": attacks, "through": True, "classify": 0.1},
        "epochs": 1, "batch": 2, "precision": "fp32", "augment": {"flip": False},
    }  # fmt: skip
    return made | over


def test_a_training_leaves_weights_a_card_and_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text(yaml.safe_dump(content()))
    with pytest.raises(SystemExit) as exit:
        cli.main(["train", "spec.yaml", "--out", "out"])
    assert not exit.value.code
    path, *said = capfd.readouterr().out.splitlines()
    net, card = load_purifier(path), weights.read(path)[1]
    assert [line.split()[0] for line in said] == ["miou", "accuracy", "miou_adaptive", "accuracy_adaptive"]
    assert card["model"] == {
        "source": "purifier", "name": "autoencoder",
        "args": {"channels": 1, "size": [12, 12], "z": 4, "activation": "relu", "noisy": True},
    }  # fmt: skip
    assert net.size == (12, 12)
    spec = TrainSpec.model_validate(content())
    assert card["training"] == spec.model_dump(mode="json")
    assert TrainSpec.model_validate(card["training"]) == spec
    assert "held-out pixel accuracy" in Path("out/curves.html").read_text()
    again, score = train(TrainSpec.model_validate(card["training"]), tmp_path / "again")
    assert equal(weights.read(again)[0], weights.read(Path(path))[0])
    assert score == card["score"]


@pytest.mark.parametrize(("name", "precision"), [("vae", "bf16"), ("cvae", "fp32"), ("cvae", "bf16")])
def test_a_vae_is_trained_without_a_segmenter_too(name: str, precision: str, tmp_path: Path) -> None:
    model = {"source": "purifier", "name": name, "args": {"noisy": precision == "bf16"}}
    spec = content(model=model, recipe={"name": "vae", "sigma": [0, 0.1], "error": "bernoulli"}, precision=precision)
    path, score = train(TrainSpec.model_validate(spec), tmp_path / "out")
    assert score.keys() == {"psnr", "psnr_noisy"}
    assert score["psnr_noisy"] == pytest.approx(20, abs=0.5)
    assert type(load_purifier(path)).__name__.lower() == name


def test_the_files_that_parts_in_lists_name_are_in_the_card(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def dark(model, images, labels, *, rng, eps):\n    return (images - eps).clamp(0, 1)\n")
    recipe = content()["recipe"] | {"attacks": {"name": f"{mine}:dark", "eps": 0.1}, "through": False}
    spec = TrainSpec.model_validate(content(recipe=recipe, precision="bf16"))
    assert [type(part) is ModelSpec for part in spec.recipe.parts()].count(True) == 1
    path, score = train(spec, tmp_path / "out")
    assert list(weights.read(path)[1]["files"]) == [f"{mine}:dark"]
    assert score.keys() == {"miou", "accuracy", "miou_oblivious", "accuracy_oblivious"}


def test_an_attack_s_path_becomes_the_network_and_is_in_the_card(tmp_path: Path) -> None:
    path = tmp_path / "wgan.safetensors"
    save_purifier(build("wgan", (1, 12, 12), 10, {"z": 2, "width": 2}), path)
    attack = {"name": "on_manifold", "generator": str(path), "eps": 0.1, "steps": 1, "restarts": 1}
    spec = content(recipe=content()["recipe"] | {"attacks": [attack], "through": False})
    made, _ = train(TrainSpec.model_validate(spec), tmp_path / "out")
    assert list(weights.read(made)[1]["files"]) == [str(path)]


RECIPE = content()["recipe"]
VAE = {"model": {"source": "purifier", "name": "vae"}}


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"recipe": RECIPE | {"attacks": []}}, "attacks must be a part or a list of them, such as [{name: fgsm,"),
        ({"recipe": RECIPE | {"attacks": [3]}}, "attacks must be a name, or {name: ..., and its arguments}, not 3"),
        ({"recipe": RECIPE | {"attacks": ["fgsm"]}}, "attack 'fgsm' needs the argument 'eps'"),
        (
            {"recipe": RECIPE | {"attacks": [{"name": "pgd", "eps": 3}]}},
            "eps 3 of attack 'pgd' must be above 0",
        ),
        (
            {"recipe": RECIPE | {"attacks": [{"name": "universal", "eps": 0.1}]}},
            "attack 'universal' is fitted on a set of ",
        ),
        ({"recipe": RECIPE | {"attack": "fgsm"}}, "has no argument 'attack' (did you mean 'attacks'?)"),
        ({"recipe": RECIPE | {"share": 0}}, "recipe purify: share must be above 0 and at most 1, not 0"),
        ({"recipe": RECIPE | {"classify": -1}}, "recipe purify: classify must be a number of at least 0, not -1"),
        ({"recipe": RECIPE | {"through": 1}}, "recipe 'purify': through must be true or false, not 1"),
        ({"recipe": {"name": "purify", "attacks": ["fgsm"]}}, "recipe 'purify' needs the argument 'segmenter'"),
        ({"model": {"name": "unet"}}, "recipe 'purify' trains a purifier: give `model: {source: purifier, name:"),
        ({"recipe": "vae"}, "recipe 'vae' trains vae or cvae, not 'autoencoder'"),
        (
            {"model": {"source": "purifier", "name": "siamese"}},
            "recipe 'purify' trains residual or bottleneck or autoencoder or vae or cvae, not 'siamese'",
        ),
        (VAE | {"recipe": {"name": "vae", "beta": -1}}, "recipe vae: beta must be a number of at least 0, not -1"),
        (VAE | {"recipe": {"name": "vae", "error": "mse"}}, "error must be squared or bernoulli, not 'mse'"),
        (VAE | {"recipe": {"name": "vae", "sigma": -1}}, "recipe vae: sigma must be a number of at least 0, or"),
        (VAE | {"recipe": {"name": "vae", "share": 2}}, "recipe vae: share must be above 0 and at most 1, not 2"),
        (
            VAE | {"recipe": {"name": "vae", "classify": 1}},
            "vae: classify needs a `segmenter`, such as `{source: ",
        ),
        (VAE | {"recipe": {"name": "vae", "attacks": [{"name": "fgsm", "eps": 0.1}]}}, "attacks needs a `segmenter`"),
    ],
)
def test_a_spec_that_does_not_fit_is_one_line_and_leaves_nothing(over: Any, said: str, tmp_path: Path) -> None:
    from segaudit.audit import parts

    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(content(**over)))
    with pytest.raises(UserError) as error:
        train(parts.read(TrainSpec, tmp_path / "spec.yaml"), tmp_path / "out")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
