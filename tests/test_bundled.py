"""The shipped networks and the tiny ones that they are made of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from segaudit.audit import parts
from segaudit.audit.train import TrainSpec
from segaudit.data.base import Dataset
from segaudit.data.scenes import scenes
from segaudit.metrics import confusion
from segaudit.models import bundled, weights
from segaudit.models.build import build
from segaudit.models.tiny import NETWORKS
from segaudit.types import Segmenter, UserError

SPECS = Path(__file__).parents[1] / "experiments" / "train"
NAMES = ("dilated", "lesion", "pyramid", "unet")
NINE = tuple("abcdefghi")


def kind(name: str) -> str:
    return "lesion" if name == "lesion" else "street"


def miou(model: Segmenter, data: Dataset) -> float:
    batch = data.batch(data.ids)
    with torch.no_grad():
        guess = torch.cat([model(part).argmax(1) for part in batch.images.split(8)])
    return confusion.miou(confusion.count(guess, batch.labels, model.num_classes))


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_network_is_right_on_scenes_that_no_training_saw(name: str) -> None:
    data = scenes(kind=kind(name), split="test", images=32)
    model = build("bundled", name, data.class_names)
    assert miou(model, data) >= 0.80
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_the_score_needs_the_weights() -> None:
    data = scenes(split="test", images=8)
    assert miou(build("tiny", "unet", data.class_names), data) < 0.2


def test_the_zoo_is_small_and_complete() -> None:
    assert tuple(bundled.names()) == NAMES
    assert sum(path.stat().st_size for path in bundled.ZOO.iterdir()) < 3e6


@pytest.mark.parametrize("name", NAMES)
def test_the_card_says_how_the_weights_were_made(name: str) -> None:
    _, card = weights.read(bundled.ZOO / f"{name}.safetensors")
    assert card["class_names"] == list(scenes(kind=kind(name)).class_names)
    assert TrainSpec.model_validate(card["training"]) == parts.read(TrainSpec, SPECS / f"scenes-{name}.yaml")
    assert card["training"]["seed"] == 0
    assert card["training"]["data"]["train"]["args"]["split"] == "train"
    assert card["model"]["source"] == "tiny"
    assert card["score"]["miou"] >= 0.80
    assert card["versions"].keys() >= {"segaudit", "torch"}


def test_a_shipped_network_audits_other_classes_through_a_map() -> None:
    names = ("vehicle", "anything")
    model = build("bundled", "unet", names, outputs=8, class_map={k: 0 if k == 5 else 1 for k in range(8)})
    data = scenes(images=4)
    batch = data.batch(data.ids)
    plain = build("bundled", "unet", data.class_names)(batch.images)
    assert torch.equal(model(batch.images).argmax(1) == 0, plain.argmax(1) == 5)


def test_other_classes_or_names_are_refused() -> None:
    with pytest.raises(UserError, match=r"'lesion' knows 2 classes \(tissue, lesion\), not 9; .* kind: lesion"):
        build("bundled", "lesion", NINE)
    with pytest.raises(UserError, match=r"no bundled model is called 'unett' \(did you mean 'unet'\?\)"):
        build("bundled", "unett", NINE)
    with pytest.raises(UserError, match=r"no bundled model is called '\.\./zoo/unet'"):
        build("bundled", "../zoo/unet", NINE)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(128, 128), (65, 97), (1, 1)])
def test_a_tiny_network_takes_any_size(name: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = build("tiny", name, NINE, args={"width": 4})
    images = torch.rand(2, 3, *size, requires_grad=True)
    logits = model(images)
    assert logits.shape == (2, 9, *size)
    (slope,) = torch.autograd.grad(F.cross_entropy(logits, torch.zeros(2, *size, dtype=torch.int64)), images)
    assert slope.isfinite().all()
    assert (slope.abs().flatten(1).sum(1) > 0).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_tiny_network_learns_two_scenes(name: str) -> None:
    torch.manual_seed(0)
    data = scenes(images=2)
    batch = data.batch(data.ids)
    images, labels = batch.images[:, :, 32:96, 32:96], batch.labels[:, 32:96, 32:96]
    model = build("tiny", name, data.class_names, args={"width": 8}).requires_grad_(True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = F.cross_entropy(model(images), labels, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_tiny_networks_are_of_different_families_and_widths() -> None:
    sizes = {
        (name, width): sum(p.numel() for p in build("tiny", name, NINE, args={"width": width}).parameters())
        for name in NETWORKS
        for width in (4, 8)
    }
    assert len(set(sizes.values())) == 6
    assert all(sizes[name, 8] > 2 * sizes[name, 4] for name in NETWORKS)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("unit", {}, r"tiny has no network 'unit' \(did you mean 'unet'\?\)"),
        ("unet", {"width": 0}, "width must be a whole number of at least 1, not 0"),
        ("unet", {"width": 1.5}, "width must be a whole number"),
        ("unet", {"widht": 8}, r"no argument 'widht' \(did you mean 'width'\?\)"),
    ],
)
def test_bad_arguments_are_named(name: str, args: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build("tiny", name, NINE, args=args)
