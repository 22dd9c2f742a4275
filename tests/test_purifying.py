"""Purifiers as defenses: what the model sees, what an attack that knows of them goes through, and a whole audit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from audit_kit import audit, by_name
from nets import KINDS, problem
from segaudit.attacks.pgd import pgd
from segaudit.audit import build as parts
from segaudit.audit.parts import Part
from segaudit.audit.spec import RunSpec
from segaudit.defenses.denoise import denoise
from segaudit.defenses.detectors.divergence import divergence
from segaudit.defenses.detectors.reconstruction import reconstruction
from segaudit.defenses.eot import EOT, draws_of
from segaudit.defenses.purify import purify
from segaudit.defenses.puvae import puvae
from segaudit.metrics import confusion
from segaudit.models.purifiers import build, save_purifier
from segaudit.models.purifiers.cvae import CVAE
from segaudit.rng import ImageStreams, drawing, is_random
from segaudit.types import Segmenter, UserError
from test_denoiser import lively
from test_purifiers import made
from test_purify import Negative, OfNegatives

pytestmark = pytest.mark.usefixtures("one_thread")


def streams(count: int) -> ImageStreams:
    return ImageStreams(0, [f"#{i}" for i in range(count)], "test")


def slope_of(model: Segmenter, images: Tensor, labels: Tensor) -> Tensor:
    images = images.clone().requires_grad_()
    with drawing(streams(len(images))):
        logits = model(images)
    (slope,) = torch.autograd.grad(F.cross_entropy(logits, labels, ignore_index=255, reduction="sum"), images)
    return slope


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_sees_what_the_purifier_makes_and_the_gradient_goes_through_both(kind: str) -> None:
    p, net = problem(kind), lively(1)
    model = purify(p.model, purifier=net)
    torch.testing.assert_close(model(p.images), p.model(net(p.images)), rtol=0, atol=0)
    assert model.class_names == p.model.class_names
    images = p.images.clone().requires_grad_()
    own = F.cross_entropy(p.model(net(images)), p.labels, ignore_index=255, reduction="sum")
    (wanted,) = torch.autograd.grad(own, images)
    torch.testing.assert_close(slope_of(model, p.images, p.labels), wanted, rtol=0, atol=1e-12)
    straight = slope_of(purify(p.model, purifier=net, gradient="straight_through"), p.images, p.labels)
    torch.testing.assert_close(straight, slope_of(p.model, net(p.images), p.labels), rtol=0, atol=1e-12)
    assert not torch.allclose(straight, wanted, atol=1e-3)


def test_a_random_purifier_says_so_and_is_attacked_in_expectation() -> None:
    p = problem("classifier")
    for noisy in (False, True):
        net = made("vae", (3, 17, 23), z=3, noisy=noisy)
        model = purify(p.model, purifier=net, eot=3)
        assert is_random(model) is noisy
        assert draws_of(model) == (3 if noisy else 1)
        assert draws_of(denoise(p.model, denoiser=net)) == (10 if noisy else 1)
    rng = streams(4)
    with drawing(streams(4)):
        found = EOT(model, 3)(p.images)
    mean, log_var = net.encode(p.images)
    each: list[list[Tensor]] = [[], [], [], []]
    for i in range(4):
        one = rng[torch.tensor([i])]
        for _ in range(3):
            z = mean[i : i + 1] + (log_var[i : i + 1] / 2).exp() * one.normal(mean[i : i + 1])
            each[i].append(p.model(net.decode(z)))
    wanted = torch.cat([torch.stack(own).mean(0) for own in each])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


def test_a_network_that_gives_no_images_back_is_said_in_one_line(tmp_path: Path) -> None:
    p, net = problem("classifier", torch.float32), build("siamese", (3, 17, 23), 4, {})
    said = r"its network gives \(4, 32\) for images \(4, 3, 17, 23\); give one that gives images back, such as a `resid"
    for gradient in ("exact", "straight_through"):
        with pytest.raises(UserError, match=f"defense 'purify': {said}"):
            purify(p.model, purifier=net, gradient=gradient)(p.images)
    for detector in (reconstruction, divergence):
        with pytest.raises(UserError, match=f"detector '{detector.__name__}': {said}"):
            detector(p.model, p.images, denoiser=net)


def test_a_purifier_of_other_images_is_one_line_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_purifier(build("autoencoder", (3, *SIZE), 10, {}), path)
    spec = run_spec(tmp_path, defenses=[{"name": "purify", "purifier": str(path)}])
    with pytest.raises(UserError, match=r"^purifier 'autoencoder': it is made for 3 channels, and the images have 1$"):
        audit(spec, tmp_path / "out")


def test_an_attack_through_it_beats_one_that_does_not_know_of_it() -> None:
    p = problem("segmentation", torch.float32, count=8)
    bare = OfNegatives(p.model)
    model = purify(bare, purifier=Negative())

    def accuracy(images: Tensor) -> float:
        return confusion.accuracy(confusion.count(model(images).argmax(1), p.labels, 5))

    blind, knowing = (pgd(net, p.images, p.labels, rng=p.streams(), eps=6 / 255, steps=4) for net in (bare, model))
    assert accuracy(p.images) > 0.5
    assert accuracy(knowing) < accuracy(blind) - 0.2


def test_puvae_s_model_sees_the_closest_candidate() -> None:
    p, net = problem("classifier"), made("cvae", (3, 17, 23), classes=4, z=3)
    wanted = p.model(net(p.images))
    for gradient in ("soft", "exact", "straight_through"):
        assert torch.equal(puvae(p.model, purifier=net, gradient=gradient)(p.images), wanted)


def test_puvae_s_gradient_sees_the_other_classes_or_does_not() -> None:
    p, net = problem("classifier"), made("cvae", (3, 17, 23), classes=4, z=3)
    found = {
        gradient: slope_of(puvae(p.model, purifier=net, gradient=gradient, temperature=0.001), p.images, p.labels)
        for gradient in ("soft", "exact", "straight_through")
    }
    chosen = net(p.images)
    torch.testing.assert_close(found["exact"], slope_of(Before(p.model, net), p.images, p.labels))
    (up,) = torch.autograd.grad(_loss(p.model, x := chosen.detach().requires_grad_(), p.labels), x)
    torch.testing.assert_close(found["straight_through"], up, rtol=0, atol=1e-12)
    images = p.images.clone().requires_grad_()
    mixed = torch.zeros_like(p.images)
    for i in range(4):
        candidates = net.candidates(images[i : i + 1])[0]
        errors = torch.stack([(own - images[i]).square().mean() for own in candidates])
        weights = (-errors / 0.001).exp() / (-errors / 0.001).exp().sum()
        mixed[i] = sum(w * own for w, own in zip(weights, candidates, strict=True))
    (soft,) = torch.autograd.grad(mixed, images, up)
    torch.testing.assert_close(found["soft"], soft, rtol=1e-6, atol=1e-12)
    assert not torch.allclose(found["soft"], found["exact"], rtol=0.01)


class Before(Segmenter):
    """A model behind a network, by hand."""

    def __init__(self, model: Segmenter, net: Any) -> None:
        super().__init__()
        self.model, self.net, self.class_names = model, net, model.class_names

    def forward(self, images: Tensor) -> Tensor:
        return self.model(self.net(images))


def _loss(model: Segmenter, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(images), labels, ignore_index=255, reduction="sum")


@pytest.mark.parametrize(
    ("defense", "own", "said"),
    [
        ("purify", {"purifier": 3}, "purifier must be the path of a purifier's weights, not 3"),
        ("purify", {"gradient": "none"}, "gradient must be straight_through or exact, not 'none'"),
        ("purify", {"eot": 0}, "eot must be a whole number of at least 1, not 0"),
        ("puvae", {}, "purifier must be a class-conditional one, such as a `cvae`"),
        ("puvae", {"purifier": CVAE(), "temperature": 0}, "temperature must be a number above 0, not 0"),
        ("puvae", {"purifier": CVAE(), "gradient": "hard"}, "gradient must be soft or straight_through or exact, not"),
        ("puvae", {"purifier": None}, "purifier must be the path of a purifier's weights, not None"),
    ],
)
def test_wrong_arguments_are_said_in_one_line(defense: str, own: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        {"purify": purify, "puvae": puvae}[defense](problem("classifier").model, **{"purifier": lively()} | own)
    assert str(error.value).startswith(f"defense {defense!r}: {said}")
    assert "\n" not in str(error.value)


def test_a_spec_s_path_becomes_the_network(tmp_path: Path) -> None:
    path, p = tmp_path / "net.safetensors", problem("classifier", torch.float32)
    net = build("cvae", (3, 17, 23), 4, {}).eval()
    save_purifier(net, path)
    wanted = p.model(net(p.images))
    here = {"purifier": str(path)}
    for part in (
        Part(name="purify", args=here),
        Part(name="puvae", args=here),
        Part(name="chain", args={"parts": [{"name": "puvae", **here}]}),
    ):
        torch.testing.assert_close(parts.defended(p.model, part)(p.images), wanted, rtol=0, atol=1e-5)
    assert set(parts.handed("inverted", {"generator": str(path), "denoiser": str(path)}).values()) != {str(path)}


SIZE = [12, 12]


def run_spec(tmp_path: Path, **over: Any) -> RunSpec:
    """An audit of a LeNet on digits, behind a noisy autoencoder and a class-conditional one."""
    for name, own in (("vae", {"z": 4, "noisy": True}), ("cvae", {"z": 4}), ("autoencoder", {"z": 6})):
        save_purifier(build(name, (1, *SIZE), 10, own), tmp_path / f"{name}.safetensors")
    made: dict[str, Any] = {
        "name": "digits",
        "data": {"name": "digits", "size": SIZE, "limit": 6},
        "models": [{"source": "classic", "name": "lenet", "args": {"channels": 1}}],
        "attacks": [{"name": "pgd", "steps": 5}],
        "eps": [0.15],
        "defenses": [
            "none",
            {"name": "purify", "purifier": str(tmp_path / "vae.safetensors"), "eot": 2},
            {"name": "puvae", "purifier": str(tmp_path / "cvae.safetensors")},
        ],
        "threats": ["oblivious", "adaptive"],
        "precision": "fp32",
        "diagnostics": False,
    }
    return RunSpec.model_validate(made | over)


def test_an_audit_goes_through_the_purifiers(tmp_path: Path) -> None:
    spec = run_spec(tmp_path)
    found = by_name(audit(spec, tmp_path / "out"))
    labels = [defense.label() for defense in spec.defenses[1:]]
    assert len(found) == 2 + 2 * 3
    for label in labels:
        loss = {
            threat: found["lenet", label, threat, "pgd(steps=5)", 0.15].loss for threat in ("oblivious", "adaptive")
        }
        assert loss["adaptive"].mean() > loss["oblivious"].mean()
    costs = [found["lenet", label, "adaptive", "pgd(steps=5)", 0.15].backwards for label in labels]
    assert (costs[0] == 2 * costs[1]).all()  # two draws


def test_magnet_is_one_line_a_part_of_a_spec(tmp_path: Path) -> None:
    """The reformer among the defenses, and both detectors, with one autoencoder."""
    path = str(tmp_path / "autoencoder.safetensors")
    detectors = [{"name": name, "denoiser": path} for name in ("reconstruction", "divergence")]
    detection = {"detectors": detectors, "evading": {"steps": 2}}
    defenses = ["none", {"name": "purify", "purifier": path}]
    found = audit(run_spec(tmp_path, defenses=defenses, detection=detection), tmp_path / "out")
    assert {own.cell.attack for own in found.detection} > {"none", "pgd(steps=5)"}
    assert len({own.detector for own in found.detection}) == 2
    for own in found.detection:
        assert len(own.scores) == 6
    assert any(cell.defense.startswith("purify(") and cell.threat == "adaptive" for cell, _ in found.cells)
