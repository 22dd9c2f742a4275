"""What every attack of the registry keeps to, whoever wrote it. A new one is in here by its line in the registry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets import HEIGHT, KINDS, WIDTH, Flat, Linear, Painter, Problem, draw, problem
from segaudit import registry
from segaudit.rng import ImageStreams
from segaudit.types import VOID, Batch, Segmenter, UserError

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.parametrize("kind", KINDS)]

RADII = {"linf": 12 / 255, "l2": 1.5}
EXTRA: dict[str, dict[str, Any]] = {
    "universal": {"batch_size": 2},  # or all images are in every step, and their order changes nothing
    "patch": {"size": [4, 5], "place": "random", "steps": 24},
    "square": {"steps": 100},
    "asma": {"tau": 0.03, "beta": 0.03},
    "dag": {"steps": 30, "step_size": 4 / 255},
    "alma_prox": {"steps": 60, "step_size": 4e-3},
    "pdpgd": {"steps": 60, "step_size": 0.01},
    "fmn": {"steps": 40},
    "evading": {"detector": lambda model, images: images.square().mean((1, 2, 3))},
    "on_manifold": {"generator": Painter(3, HEIGHT, WIDTH), "steps": 16, "rate": 0.2, "restarts": 1},
}
"""What an attack needs beside the usual arguments, or in their place."""
CONTROLS = {"noise"}
"""What the others must beat."""
REACH = 4
"""How many pixels away the tiny networks see a pixel; a classifier sees them all."""


@dataclass(frozen=True)
class Variant:
    """An attack with the arguments that it takes: few steps, a norm, restarts, or its targeted form."""

    name: str
    own: dict[str, Any]
    norm: str | None

    def __call__(self, p: Problem, *, seed: int = 0, **changed: Any) -> Tensor:
        given = {"model": p.model, "images": p.images, "labels": p.labels, "rng": p.streams(seed)}
        return registry.load("attack", self.name)(**given | self.own | self.learnt(p, seed, **changed) | changed)

    def learnt(self, p: Problem, seed: int = 0, **changed: Any) -> dict[str, Any]:
        """What an attack in two parts has fitted on the very images that it is asked about; nothing for the others."""
        if not self.fitted or "fitted" in changed:
            return {}
        given = {"model": p.model, "images": p.images, "labels": p.labels} | self.own | changed
        batch = Batch(given.pop("images"), given.pop("labels"), p.ids)
        rng = p.streams(seed).child("fit")
        return {"fitted": registry.load("attack", self.name).fit(given.pop("model"), [batch], rng=rng, **given)}

    @property
    def fitted(self) -> bool:
        return hasattr(registry.load("attack", self.name), "fit")

    @property
    def outside(self) -> bool:
        """Whether only the pixels that it leaves alone are scored."""
        return bool(getattr(registry.load("attack", self.name), "outside", False))

    @property
    def targeted(self) -> bool:
        return bool(self.own.get("targeted"))

    def size(self, delta: Tensor) -> Tensor:
        flat = delta.double().flatten(1)
        return flat.abs().amax(1) if self.norm == "linf" else flat.norm(dim=1)

    def __str__(self) -> str:
        shown = {key: value for key, value in self.own.items() if key in ("restarts", "targeted")}
        free = "-".join(["free", *([self.own["norm"]] if "norm" in self.own else [])])
        return "-".join([self.name, self.norm or free, *shown])


def variants() -> Iterator[Variant]:
    for name in registry.names("attack"):
        for i, norm in enumerate(norms(name)):
            own = arguments(name, norm) | EXTRA.get(name, {})
            yield Variant(name, own, norm)
            if registry.accepts("attack", name, "targeted"):
                yield Variant(name, own | {"targeted": True}, norm)
            if norm is None and registry.accepts("attack", name, "norm"):
                yield Variant(name, own | {"norm": "l2"}, norm)
                yield Variant(name, own | {"norm": "l2", "targeted": True}, norm)
            if i == 0 and registry.accepts("attack", name, "restarts"):
                yield Variant(name, own | {"restarts": 3}, norm)


def norms(name: str) -> list[str | None]:
    """The norms whose ball an attack keeps to: its default, and the others that it does not refuse."""
    if not registry.accepts("attack", name, "eps"):
        return [None]
    if not registry.accepts("attack", name, "norm"):
        return ["linf"]
    image, label = torch.full((1, 3, HEIGHT, WIDTH), 0.5), torch.zeros(1, HEIGHT, WIDTH, dtype=torch.int64)
    kept: list[str | None] = []
    for norm in RADII:
        own = arguments(name, norm) | EXTRA.get(name, {})
        try:
            Variant(name, own, norm)(Problem(Linear(torch.ones(3)), image, label, ("one",)))
        except UserError:
            continue
        kept.append(norm)
    return kept


def arguments(name: str, norm: str | None) -> dict[str, Any]:
    eps = RADII.get(norm or "", 0.0)
    usual = {"eps": eps, "norm": norm, "steps": 6} | ({"step_size": eps / 4} if eps else {})
    told = {key: value for key, value in usual.items() if value is not None}
    return {key: value for key, value in told.items() if registry.accepts("attack", name, key)}


VARIANTS = list(variants())
every = pytest.mark.parametrize("attack", VARIANTS, ids=str)


def test_every_attack_is_here(kind: str) -> None:
    assert {variant.name for variant in VARIANTS} == set(registry.names("attack"))
    assert {str(v) for v in VARIANTS} >= {"pgd-linf", "pgd-l2", "pgd-linf-restarts", "pgd-l2-targeted", "fgsm_ll-l2"}
    assert problem(kind).accuracy(problem(kind, count=48).images[:4]) > 0.7  # the networks have learnt something


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_it_gives_other_images_in_its_ball_and_box(attack: Variant, kind: str, dtype: torch.dtype) -> None:
    p = problem(kind, dtype)
    made = attack(p)
    assert (made.shape, made.dtype, made.device) == (p.images.shape, dtype, p.images.device)
    assert not made.requires_grad
    assert made.isfinite().all()
    assert made.min() >= 0
    assert made.max() <= 1
    size = attack.size(made - p.images)
    valid = (p.labels != VOID).flatten(1).any(1)
    if attack.norm is None:  # the smallest way to win what is won already is none
        hit = ((p.model(p.images).argmax(1) == p.labels) & (p.labels != VOID)).flatten(1).sum(1)
        pixels = (p.labels != VOID).flatten(1).sum(1)
        valid &= hit < 0.99 * pixels if attack.targeted else hit > 0.01 * pixels
    assert (size[valid] > 0).all()
    if attack.norm:
        assert size.max() <= RADII[attack.norm] * (1 + 1e-6)


@every
def test_a_batch_of_one_equals_the_batch_and_its_order_does_not_matter(attack: Variant, kind: str) -> None:
    p = problem(kind)
    learnt = attack.learnt(p)  # what is fitted hangs on the whole set; how it is applied, on the image alone
    made = attack(p, **learnt)
    for i in range(len(p.ids)):
        alone = Problem(p.model, p.images[i : i + 1], p.labels[i : i + 1], p.ids[i : i + 1])
        torch.testing.assert_close(attack(alone, **learnt), made[i : i + 1], rtol=0, atol=1e-12)
    order = torch.tensor([2, 0, 3, 1])
    images = p.images[order].contiguous(memory_format=torch.channels_last)
    mixed = Problem(p.model, images, p.labels[order], tuple(p.ids[i] for i in order))
    torch.testing.assert_close(attack(mixed, **learnt), made[order], rtol=0, atol=1e-12)


class Altered(Segmenter):
    """A network whose logits at some places are others, with gradients of their own."""

    def __init__(self, model: Segmenter, places: Tensor) -> None:
        super().__init__()
        self.model, self.places, self.class_names = model, places, model.class_names

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        return torch.where(self.places, 30 * logits.flip(1) * images.mean((1, 2, 3), keepdim=True), logits)


@every
def test_what_void_pixels_are_predicted_as_does_not_matter(attack: Variant, kind: str) -> None:
    p = problem(kind)
    i = len(p.ids) - 1
    one = Problem(p.model, p.images[i:], p.labels[i:], p.ids[i:])
    void = (one.labels == VOID)[:, None]
    assert void.any()
    made = attack(one)
    torch.testing.assert_close(attack(one, model=Altered(p.model, void)), made, rtol=0, atol=1e-12)
    if kind != "classifier":  # and the test sees what an attack does with a pixel that counts
        assert not torch.equal(attack(one, model=Altered(p.model, ~void)), made)


@every
def test_an_image_without_truth_stays_in_its_ball_and_leaves_the_others_alone(attack: Variant, kind: str) -> None:
    p = problem(kind)
    labels = p.labels.clone()
    labels[1] = VOID
    made = attack(p, labels=labels)
    assert made.isfinite().all()
    assert made.min() >= 0
    assert made.max() <= 1
    if attack.norm:
        assert attack.size(made - p.images).max() <= RADII[attack.norm] * (1 + 1e-6)
    others, learnt = torch.tensor([0, 2, 3]), attack.learnt(p, labels=labels)
    torch.testing.assert_close(made[others], attack(p, **learnt)[others], rtol=0, atol=1e-12)


@every
def test_a_network_without_a_gradient_gives_images_in_the_ball(attack: Variant, kind: str) -> None:
    p = problem(kind)
    made = attack(p, model=Flat(KINDS[kind], whole=kind == "classifier"))
    assert made.isfinite().all()
    assert made.min() >= 0
    assert made.max() <= 1
    if attack.norm:
        assert attack.size(made - p.images).max() <= RADII[attack.norm] * (1 + 1e-6)


@every
def test_the_seed_alone_decides(attack: Variant, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    p, drawn = problem(kind, torch.float32), []
    for method in ("_draw", "integers"):
        real = getattr(ImageStreams, method)
        monkeypatch.setattr(ImageStreams, method, lambda self, *args, real=real: drawn.append(1) or real(self, *args))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = attack(p, seed=0)
        torch.manual_seed(2)
        before = torch.get_rng_state()
        assert torch.equal(attack(p, seed=0), made)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(attack(p, seed=1), made) is not bool(drawn)


@every
def test_inputs_and_network_are_untouched(attack: Variant, kind: str) -> None:
    p = problem(kind, torch.float32)
    p.model.head.requires_grad_(True)
    p.model.add_module("in_train_mode", nn.Dropout().train())
    kept = {key: value.clone() for key, value in p.model.state_dict().items()}
    images, labels = p.images.clone(), p.labels.clone()
    made = attack(p)
    assert made.data_ptr() != p.images.data_ptr()
    assert torch.equal(p.images, images)
    assert torch.equal(p.labels, labels)
    assert not p.images.requires_grad
    assert p.images.grad is None
    assert all(torch.equal(value, kept[key]) for key, value in p.model.state_dict().items())
    assert {name for name, w in p.model.named_parameters() if w.requires_grad} == {"head.weight", "head.bias"}
    assert all(w.grad is None for w in p.model.parameters())
    assert [name for name, module in p.model.named_modules() if module.training] == ["in_train_mode"]
    assert not any(module._forward_hooks or module._backward_hooks for module in p.model.modules())


def noise(attack: Variant, p: Problem, made: Tensor) -> Tensor:
    """Random images as far from the clean ones as what the attack made, each in its norm."""
    z = p.streams().child("noise").normal(p.images)
    z = z.sign() if attack.norm == "linf" else z
    z = z * (made != p.images).any(1, keepdim=True) if attack.outside else z
    size = attack.size(made - p.images) / attack.size(z)
    return (p.images + z * size.view(-1, 1, 1, 1).to(z)).clamp(0, 1)


@every
def test_it_beats_noise_of_its_norm(attack: Variant, kind: str) -> None:
    p = problem(kind, torch.float32, count=48 if kind == "classifier" or attack.outside else 4)
    goal = p.labels.roll(1, dims=0) if attack.targeted else p.labels
    if (
        attack.targeted and attack.fitted
    ):  # what is the same on all images can lead them to one class, not to four masks
        goal = p.labels.where(p.labels == VOID, 0)
    made, margin = attack(p, labels=goal), 0.15
    if attack.outside and kind != "classifier":  # what these networks can see of a patch without being covered by it
        covered = (made != p.images).any(1)
        near = F.max_pool2d(covered.float(), 2 * REACH + 1, 1, REACH) > 0
        goal, margin = goal.where(near & ~covered, VOID), 0.1
    reached, by_noise = (p.accuracy(images, goal) for images in (made, noise(attack, p, made)))
    if attack.name in CONTROLS:
        assert abs(reached - by_noise) < margin  # and does what it is to be compared with
        return
    if attack.targeted:
        assert reached > max(by_noise, p.accuracy(p.images, goal)) + margin
    else:
        assert reached < min(by_noise, p.accuracy(p.images, goal)) - margin


@every
def test_wrong_arguments_are_said_in_one_line(attack: Variant, kind: str) -> None:
    p = problem(kind)
    for key, value in (("norm", "l3"), ("steps", 0), ("steps", 2.5), ("restarts", 0)):
        if registry.accepts("attack", attack.name, key):
            with pytest.raises(UserError, match=f"^{key} must be .*, not {value!r}$"):
                attack(p, **{key: value})


def test_pictures_for_the_contract_reach_both_ends_of_the_range(kind: str) -> None:
    images, _ = draw(kind, 4, seed=2)
    assert (images == 0).double().mean() > 0.02
    assert (images == 1).double().mean() > 0.02
