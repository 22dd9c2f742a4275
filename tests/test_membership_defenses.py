"""Defenses against membership inference: what each trains on, with what, and what it then answers."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from defense_kit import FakeTrainer
from nets import KINDS, Net
from segaudit import registry
from segaudit.audit.parts import Tuned
from segaudit.nn.norms import coupled
from segaudit.privacy.defenses import SEED, named
from segaudit.privacy.defenses._taught import Taught, answers, best
from segaudit.privacy.defenses.argmax import LabelOnly
from segaudit.privacy.defenses.crop import InPieces, starts
from segaudit.privacy.defenses.selena import split
from segaudit.rng import ImageStreams
from segaudit.training.budget import budget
from segaudit.training.selena import held_out_answers
from segaudit.training.selena import selena as recipe
from segaudit.types import VOID, Batch, Segmenter, UserError
from train_kit import Drawn, batch_of, equal, net, weights

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = registry.names("membership_defense")
NEEDS = {"minmax", "distillation"}
"""Those that need a reference set."""


def defend(name: str, trainer: FakeTrainer, **own: Any) -> Segmenter:
    return registry.load("membership_defense", name)(trainer, **own)  # type: ignore[no-any-return]


def test_the_seven_have_their_numbers() -> None:
    assert sorted(SEED) == list(range(1, 8))
    assert set(SEED.values()) < set(NAMES)
    assert [named(number) for number in SEED] == list(SEED.values()) == [named(str(number)) for number in SEED]
    assert (named("dp"), named(8), named("mine.py:defend")) == ("dp", "8", "mine.py:defend")


@pytest.mark.parametrize("name", NAMES)
def test_a_defense_trains_on_members_and_the_reference_alone(name: str, tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path, args={"dice": 0.5} if name != "none" else {})
    model = defend(name, trainer)
    read = {one for log in trainer.read for one in log}
    own = set(trainer.members)
    assert read <= own | set(trainer.reference if name in NEEDS else ())
    assert not read & set(trainer.outside)
    assert own <= read or name == "dp"  # which draws its batches
    with torch.no_grad():
        logits = model(trainer.samples.images[:2])
    assert logits.shape == (2, 5, 17, 23)
    assert logits.isfinite().all()
    assert not any(module.training for module in model.modules())
    assert not any(weight.requires_grad for weight in model.parameters())
    assert model.class_names == net().class_names
    again = defend(name, FakeTrainer(tmp_path / "again", args=trainer.args))
    assert equal(weights(model), weights(again))


@pytest.mark.parametrize("name", sorted(NEEDS))
def test_a_reference_set_is_needed_and_holds_no_member(name: str, tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path, reference=0)
    with pytest.raises(UserError, match=f"defense {name} needs a reference set, .* give a smaller train_size"):
        defend(name, trainer)
    trainer.reference = trainer.members[3:5]
    with pytest.raises(UserError, match=f"defense {name}: {trainer.members[3]} is a member, and cannot be in the ref"):
        defend(name, trainer)
    assert not trainer.calls


@pytest.mark.parametrize(
    ("name", "own", "fault"),
    [
        ("crop", {"size": 0}, "defense crop: size must be a whole number of at least 1, not 0"),
        ("crop", {"size": 23}, "defense crop: size 23 is the whole of images of 17 x 23; give it less, such as 8"),
        ("mixup", {"alpha": -1}, "recipe mixup: alpha must be a number above 0, not -1"),
        ("minmax", {"weight": -1}, "recipe minmax: weight must be a number of at least 0, not -1"),
        ("dp", {"unit": "patient"}, "defense dp: unit must be image or group, not 'patient'"),
        ("dp", {"lr": 0}, "defense dp: lr must be a number above 0, not 0"),
        ("dp", {"epsilon": 0}, "recipe private: epsilon must be a number above 0, not 0"),
        ("distillation", {"keep": 0}, "defense distillation: keep must be above 0 and at most 1, not 0"),
        ("distillation", {"soft": 1}, "defense distillation: soft must be true or false, not 1"),
        ("selena", {"models": 1}, "defense selena: models must be a whole number of at least 2, not 1"),
        ("selena", {"held_out": 5}, "defense selena: held_out must be below models (5), not 5"),
        ("adversarial", {"eps": 0}, "defense adversarial: eps must be a number above 0, not 0"),
        ("adversarial", {"share": 2}, "recipe adversarial: share must be above 0 and at most 1, not 2"),
    ],
)
def test_bad_arguments_are_one_line(name: str, own: dict[str, Any], fault: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        defend(name, FakeTrainer(tmp_path), **own)
    assert str(error.value) == fault
    check = getattr(registry.load("membership_defense", name), "check", None)
    if "images of" not in fault:  # what the images decide, no spec can
        with pytest.raises(UserError) as error:
            check(**own)
        assert str(error.value) == fault


@pytest.mark.parametrize("name", NAMES)
def test_what_a_defense_checks_lets_its_defaults_through(name: str) -> None:
    function = registry.load("membership_defense", name)
    usual = {key: p.default for key, p in inspect.signature(function).parameters.items() if key != "trainer"}
    getattr(function, "check", lambda **_: None)(**usual)


class Fixed(Segmenter):
    """The same logits, whatever the images are."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.class_names, self.logits = tuple("abc"), nn.Parameter(logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits + 0 * images.mean()


def test_argmax_serves_labels_and_nothing_else() -> None:
    logits, images = torch.randn(2, 3, 5, 6), torch.rand(2, 3, 5, 6, requires_grad=True)
    served = LabelOnly(Fixed(logits))(images)
    assert torch.equal(served.argmax(1), logits.argmax(1))
    assert ((served == 0) | (served == 1)).all()
    assert (served.sum(1) == 1).all()
    assert served.dtype == logits.dtype
    assert not served.requires_grad  # neither of the images nor of the weights
    order = logits.argsort(1).argsort(1).float()
    for other in (9 * logits + 2, order, torch.where(order == 2, 1e-3, -torch.rand_like(order))):
        assert torch.equal(LabelOnly(Fixed(other))(images), served)  # the same labels are the same answer


def test_a_label_is_the_argmax_and_not_the_rounded_logit() -> None:
    """The seed rounded: below one half all classes were 0, and above it several were 1."""
    logits = torch.tensor([[0.4, -2.0, 0.3], [0.7, 0.9, 1.4], [-3.0, -2.0, -5.0]]).T[None, :, None]
    served = LabelOnly(Fixed(logits))(torch.zeros(1, 3, 1, 3))
    assert served[0, :, 0].argmax(0).tolist() == [0, 2, 1]
    assert not torch.equal(served, logits.round())
    assert not torch.equal(served, logits.round().clamp(0, 1))


def test_argmax_is_the_undefended_network_with_less_said(tmp_path: Path) -> None:
    bare, served = defend("none", FakeTrainer(tmp_path / "a")), defend("argmax", FakeTrainer(tmp_path / "b"))
    images = Drawn("segmentation", 4, 2).images
    assert torch.equal(bare(images).argmax(1), served(images).argmax(1))


def test_crop_trains_on_squares_with_the_rest_of_the_experiment_s_views(tmp_path: Path) -> None:
    trainer, sizes = FakeTrainer(tmp_path), set[tuple[int, ...]]()
    real = Net.forward

    def watched(self: Net, images: Tensor) -> Tensor:
        sizes.add(tuple(images.shape[2:]))
        return real(self, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Net, "forward", watched)
        model = defend("crop", trainer)
        assert sizes == {(8, 8)}
        assert trainer.calls[0]["augment"] == {"flip": False, "crop": [8, 8]}
        model(trainer.samples.images[:2])
        assert sizes == {(8, 8)}
        defend("crop", trainer, size=20)
        assert sizes == {(8, 8), (17, 20)}


def test_crop_trained_victims_are_asked_about_crops(tmp_path: Path) -> None:
    """The seed asked them about whole images, which they had never seen the like of."""
    trainer = FakeTrainer(tmp_path)
    pieces, whole = defend("crop", trainer, size=12), defend("crop", trainer, size=12, whole=True)
    assert isinstance(pieces, InPieces)
    assert not isinstance(whole, InPieces)
    images = trainer.samples.images[:2]
    with torch.no_grad():
        found, bare = pieces(images), whole(images)
        inside = [whole(images[..., y : y + 12, x : x + 12]) for y in (0, 5) for x in (0, 11)]
    assert not torch.allclose(found, bare, atol=1e-3)
    torch.testing.assert_close(found[..., :5, :11], inside[0][..., :5, :11])
    torch.testing.assert_close(found[..., 5:12, :11], (inside[0][..., 5:12, :11] + inside[2][..., :7, :11]) / 2)


class Itself(Segmenter):
    """The image's channels as logits."""

    class_names = ("r", "g", "b")

    def forward(self, images: Tensor) -> Tensor:
        return 2 * images


@pytest.mark.parametrize("size", [1, 5, 8, 12, 16, 17, 20])
def test_pieces_cover_an_image_once_they_are_put_together(size: int) -> None:
    images = torch.rand(2, 3, 17, 23, requires_grad=True)
    found = InPieces(Itself(), size)(images)
    torch.testing.assert_close(found, 2 * images)
    (slope,) = torch.autograd.grad(found.sum(), images)
    torch.testing.assert_close(slope, torch.full_like(slope, 2.0))
    with pytest.raises(UserError, match="a model of one label an image has no pieces; give it `whole: true`"):
        InPieces(net("classifier").eval(), size=8)(images)


def test_as_few_pieces_as_cover_a_side() -> None:
    assert [starts(*case) for case in ((8, 4), (8, 5), (9, 4), (4, 4))] == [[0, 4], [0, 3], [0, 2, 5], [0]]


def test_mixup_minmax_and_adversarial_keep_the_experiment_s_loss(tmp_path: Path) -> None:
    own = {"dice": 0.5, "class_weights": [1.0] * 5}
    for name, recipe_name in (("mixup", "mixup"), ("minmax", "minmax"), ("adversarial", "adversarial")):
        trainer = FakeTrainer(tmp_path / name, args={**own, "temperature": 2.0})
        defend(name, trainer)
        (call,) = trainer.calls
        assert call["recipe"] == recipe_name
        assert own.items() <= call["args"].items()
        assert "temperature" not in call["args"]
        assert call["ids"] == trainer.members
    assert trainer.calls[0]["args"]["attack"] == {"name": "pgd", "eps": 4 / 255, "steps": 3}
    trainer = FakeTrainer(tmp_path / "fgsm")
    defend("adversarial", trainer, attack="fgsm", steps=None)
    assert trainer.calls[0]["args"]["attack"] == {"name": "fgsm", "eps": 4 / 255}
    assert Tuned.model_validate(trainer.calls[0]["args"]["attack"]).name == "fgsm"


def test_the_min_max_adversary_is_trained_on_the_reference_and_not_on_the_audit_s_own_set(tmp_path: Path) -> None:
    """The seed's adversary saw the very images that the attack was then tried on."""
    trainer = FakeTrainer(tmp_path)
    defend("minmax", trainer)
    assert trainer.calls[0]["given"] == {"reference": trainer.reference}
    assert set(trainer.read[0]) == {*trainer.members, *trainer.reference}
    assert not set(trainer.read[0]) & set(trainer.outside)


@pytest.mark.parametrize("unit", ["image", "group"])
@pytest.mark.parametrize("noise", [True, False])
def test_dp_notes_what_it_spent(unit: str, noise: bool, tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path, args={"dice": 0.5, "label_smoothing": 0.1})
    model = defend("dp", trainer, unit=unit, noise=noise, lr=None if noise else 0.002)
    wanted = budget(16, 16 if unit == "image" else 8, trainer.schedule, epsilon=8.5, noise=noise)
    if noise:
        promised = {"private_groups": 8.0} if unit == "group" else {"private_images": 16.0}
        assert trainer.facts == promised | {"epsilon": wanted.epsilon, "delta": wanted.delta, "sigma": wanted.sigma}
        assert 8.4 < trainer.facts["epsilon"] <= 8.5
        assert trainer.facts["delta"] == 1 / (16 if unit == "image" else 8)
    else:
        assert trainer.facts == {"sigma": 0}
    state = torch.load(tmp_path / "1" / "checkpoint.pt", weights_only=True)["course"]
    assert (state["sigma"], state["steps"], state["norm"]) == (wanted.sigma, 4, 2.0)
    assert coupled(model) is None
    (call,) = trainer.calls
    assert call["given"] == (
        {"units": tuple((name, trainer.units[name]) for name in trainer.members)} if unit == "group" else None
    )
    assert call.get("lr") == (None if noise else 0.002)
    assert call["args"]["epsilon"] == 8.5
    assert call["args"]["image_dice"] == 0.5
    assert "dice" not in call["args"]


def test_dp_refuses_weights_that_are_counted_on_the_members(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path, args={"class_weights": "balanced"})
    with pytest.raises(UserError, match="recipe private: class_weights 'balanced' tell of the private images; give"):
        defend("dp", trainer)
    assert not trainer.calls
    trainer.args = {"class_weights": [1.0, 2.0, 1.0, 1.0, 1.0]}
    defend("dp", trainer)
    assert trainer.calls[0]["args"]["class_weights"] == trainer.args["class_weights"]


def test_the_student_sees_what_the_teacher_says_of_reference_images_alone(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    defend("distillation", trainer, keep=0.5)
    first, second = trainer.calls
    assert first["ids"] == trainer.members
    assert set(trainer.read[1]) == set(second["ids"]) < set(trainer.reference)
    teacher = defend("none", FakeTrainer(tmp_path / "teacher"))
    rows = [trainer.samples.ids.index(name) for name in trainer.reference]
    guess = teacher(trainer.samples.images[rows]).argmax(1)
    scores = []
    for mask, truth in zip(guess.numpy(), trainer.samples.labels[rows].numpy(), strict=True):
        ious = []
        for k in set(truth[truth != VOID].tolist()):
            inside, said = truth == k, (mask == k) & (truth != VOID)
            ious.append((inside & said).sum() / (inside | said).sum())
        scores.append(np.mean(ious))
    kept = sorted(range(8), key=lambda row: -scores[row])[:4]
    assert second["ids"] == tuple(name for row, name in enumerate(trainer.reference) if row in kept)
    for name in second["ids"]:
        row = trainer.reference.index(name)
        image, labels = second["samples"].sample(name)
        truth = trainer.samples.labels[rows[row]]
        assert torch.equal(image, trainer.samples.images[rows[row]])
        assert torch.equal(labels, guess[row].where(truth != VOID, VOID))
        assert labels.dtype == torch.int64
        assert not torch.equal(labels, truth)
    assert len(defend("distillation", trainer, keep=1.0).class_names) == 5
    assert trainer.calls[-1]["ids"] == trainer.reference


def test_a_soft_student_learns_the_teacher_s_softmax(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    defend("distillation", trainer, soft=True, temperature=4.0)
    first, second = trainer.calls
    assert first["recipe"] is None
    assert (second["recipe"], second["args"], second["samples"]) == ("distillation", {"temperature": 4.0}, None)
    assert equal(weights(second["given"]["teacher"]), weights(defend("none", FakeTrainer(tmp_path / "teacher"))))
    assert set(trainer.read[1]) == set(second["ids"]) < set(trainer.reference)


def test_other_labels_have_another_digest() -> None:
    samples = Drawn("segmentation", 3, 1)
    masks = {name: torch.zeros(17, 23, dtype=torch.uint8) for name in samples.ids}
    made = Taught(samples, masks)
    assert made.digest() == Taught(samples, dict(masks)).digest()
    other = {**masks, samples.ids[1]: torch.ones(17, 23, dtype=torch.uint8)}
    assert made.digest() != Taught(samples, other).digest()
    assert made.digest() != Taught(Drawn("segmentation", 3, 2), masks).digest()
    assert best(("a", "b", "c", "d"), np.array([0.1, 0.9, 0.2, 0.9]), 0.5) == ("b", "d")
    assert best(("a", "b"), np.array([0.1, 0.9]), 0.01) == ("b",)
    masks, scores = answers(net().eval(), samples, samples.ids, batch=2)
    assert tuple(masks) == samples.ids
    assert scores.shape == (3,)


def test_selena_s_labels_come_from_networks_that_did_not_see_the_image(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    defend("selena", trainer, models=4, held_out=2)
    *parts, student = trainer.calls
    assert len(parts) == 4
    assert (student["recipe"], student["ids"]) == ("selena", trainer.members)
    trained_on = student["given"]["trained_on"]
    assert trained_on == tuple(call["ids"] for call in parts)
    for read, ids in zip(trainer.read, trained_on, strict=False):
        assert set(read) == set(ids) < set(trainer.members)
    for name in trainer.members:
        assert sum(name not in ids for ids in trained_on) == 2
        both = [other for other in trainer.members if trainer.units[other] == trainer.units[name]]
        assert all((name in ids) == (other in ids) for ids in trained_on for other in both)  # a unit goes whole
    for teacher, ids in zip(student["given"]["teachers"], trained_on, strict=True):
        wanted = FakeTrainer(tmp_path / ids[0] / str(len(ids)) / str(trained_on.index(ids)))
        assert equal(weights(teacher), weights(wanted.fit(ids)))


def test_selena_splits_evenly_and_by_the_seed() -> None:
    ids = [f"{i}" for i in range(40)]
    parts = split(ids, ids, 5, 2, seed=0)
    assert [len(part) for part in parts] == [24] * 5
    assert parts == split(ids, ids, 5, 2, seed=0) != split(ids, ids, 5, 2, seed=1)
    trainer = FakeTrainer(Path("nowhere"))
    trainer.members = trainer.members[:1]
    with pytest.raises(UserError, match="defense selena: too few members for 5 models; give it fewer"):
        defend("selena", trainer, models=5, held_out=4)


def test_the_selena_recipe_by_hand() -> None:
    batch, model = batch_of("segmentation"), net().eval()
    teachers = tuple(net(seed=seed).eval() for seed in (1, 2, 3))
    a, b, c, d = batch.ids
    trained_on = ((a, b), (b, c), (a, c, d))
    held_out = {a: [1], b: [2], c: [0], d: [0, 1]}
    with torch.no_grad():
        soft = [teacher(batch.images).div(2).softmax(1) for teacher in teachers]
        wanted = torch.stack([sum(soft[i][row] for i in held_out[name]) for row, name in enumerate(batch.ids)])
        wanted[3] /= 2
        found = held_out_answers(batch, teachers, trained_on, 2.0)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    valid = batch.labels != VOID
    rng = ImageStreams(0, batch.ids)
    loss = recipe(model, batch, rng=rng, teachers=teachers, trained_on=trained_on, temperature=2.0)
    logs = model(batch.images).div(2).log_softmax(1)
    torch.testing.assert_close(loss, -(wanted * logs).sum(1)[valid].mean())
    nothing = Batch(batch.images, torch.full_like(batch.labels, VOID), batch.ids)
    assert float(recipe(model, nothing, rng=rng, teachers=teachers, trained_on=trained_on).detach()) == 0
    with pytest.raises(UserError, match=f"recipe selena: every teacher was trained on {b}; hold each image out of one"):
        recipe(model, batch, rng=rng, teachers=teachers, trained_on=((a, b), (b, c), (b, d)))
    with pytest.raises(UserError, match="recipe selena: 3 teachers, and trained_on of 2; give one of each"):
        recipe(model, batch, rng=rng, teachers=teachers, trained_on=trained_on[:2])
    with pytest.raises(UserError, match="recipe selena: temperature must be a number above 0, not 0"):
        recipe(model, batch, rng=rng, teachers=teachers, trained_on=trained_on, temperature=0)


@pytest.mark.parametrize("name", ["none", "argmax", "mixup", "minmax", "dp", "distillation", "selena", "adversarial"])
def test_a_classifier_is_defended_alike(name: str, tmp_path: Path) -> None:
    model = defend(name, FakeTrainer(tmp_path, "classifier"))
    assert model(Drawn("classifier", 2, 2).images).shape == (2, KINDS["classifier"], 1, 1)
