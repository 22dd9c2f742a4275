"""Defensive distillation: its loss by hand, a round of it, and what an attack on the logits makes of such a net."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import Tensor

from audit_kit import CLASSES, audit, by_name
from nets import KINDS, problem
from segaudit.audit.spec import RunSpec
from segaudit.audit.train import TrainSpec, train
from segaudit.metrics import confusion
from segaudit.models import weights
from segaudit.report.masking import diagnose
from segaudit.rng import ImageStreams
from segaudit.training.distillation import distillation
from segaudit.training.loop import Progress
from segaudit.training.standard import standard
from segaudit.types import VOID, Batch, UserError
from train_kit import batch_of, equal, net
from train_kit import weights as kept

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _plain_arithmetic() -> Any:
    yield
    torch.set_flush_denormal(False)


def softened(logits: Tensor, temperature: float) -> list[float]:
    top = max(logits.tolist())
    powers = [math.exp((value - top) / temperature) for value in logits.tolist()]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hard", [0.0, 0.3])
def test_the_loss_is_the_cross_entropy_with_the_softened_teacher(kind: str, hard: float) -> None:
    batch, teacher, student, heat = batch_of(kind, 3), problem(kind, torch.float32).model, net(kind).eval(), 7.0
    if kind == "classifier":
        batch.labels[1] = VOID
    rng, before = ImageStreams(0, batch.ids), kept(teacher)
    loss = distillation(student, batch, rng=rng, teacher=teacher, temperature=heat, hard=hard)
    said, own = teacher(batch.images).detach(), student(batch.images).detach()
    soft, true, count = 0.0, 0.0, 0
    for n, y, x in np.argwhere(batch.labels.numpy() != VOID).tolist():
        p, q = softened(said[n, :, y, x], heat), softened(own[n, :, y, x], heat)
        soft -= sum(a * math.log(b) for a, b in zip(p, q, strict=True))
        true -= math.log(q[int(batch.labels[n, y, x])])
        count += 1
    assert loss.item() == pytest.approx(((1 - hard) * soft + hard * true) / count, rel=1e-4)
    slopes = torch.autograd.grad(loss, list(student.parameters()))
    assert any(slope.any() for slope in slopes)
    assert equal(kept(teacher), before)
    assert all(p.grad is None for p in teacher.parameters())


def test_a_teacher_is_matched_best_by_itself_and_a_batch_of_void_is_nothing() -> None:
    batch, teacher = batch_of("segmentation", 2), problem("segmentation", torch.float32).model
    rng = ImageStreams(0, batch.ids)
    own = distillation(teacher, batch, rng=rng, teacher=teacher, temperature=3)
    assert own < distillation(net().eval(), batch, rng=rng, teacher=teacher, temperature=3)
    void = Batch(batch.images, torch.full_like(batch.labels, VOID), batch.ids)
    assert distillation(net(), void, rng=rng, teacher=teacher) == 0


def test_standard_takes_a_temperature_for_the_first_teacher() -> None:
    batch, model = batch_of("segmentation", 2), net().eval()
    rng = ImageStreams(0, batch.ids)
    wanted = F.cross_entropy(model(batch.images) / 20, batch.labels, ignore_index=VOID)
    torch.testing.assert_close(standard(model, batch, rng=rng, temperature=20), wanted)
    assert abs(float((standard(model, batch, rng=rng) - wanted).detach())) > 0.01
    with pytest.raises(UserError, match="recipe: temperature must be a number above 0, not 0"):
        standard(model, batch, rng=rng, temperature=0)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"temperature": 0}, "temperature must be a number above 0, not 0"),
        ({"temperature": math.inf}, "temperature must be a number above 0, not inf"),
        ({"temperature": True}, "temperature must be a number above 0, not True"),
        ({"hard": 1}, "hard must be from 0 to below 1, not 1"),
        ({"teacher": net("binary")}, "the teacher gives logits of (2, 17, 23), and the network of (5, 17, 23)"),
    ],
)
def test_wrong_numbers_and_teachers_are_one_line(own: dict[str, Any], said: str) -> None:
    batch = batch_of("segmentation", 2)
    with pytest.raises(UserError) as error:
        distillation(net(), batch, rng=ImageStreams(0, batch.ids), **{"teacher": net()} | own)
    assert str(error.value) == f"recipe distillation: {said}"


def content(recipe: dict[str, Any]) -> dict[str, Any]:
    data = {split: {"name": "scenes", "split": split, "images": 4} for split in ("train", "val")}
    made = {"name": "tiny", "model": {"source": "tiny", "name": "unet", "args": {"width": 4}}, "data": data}
    return made | {"recipe": recipe, "epochs": 2, "batch": 2, "precision": "fp32"}


def test_a_round_is_a_training_with_the_one_before_as_teacher(tmp_path: Path) -> None:
    first, _ = train(TrainSpec.model_validate(content({"name": "standard", "temperature": 20})), tmp_path / "first")
    model = content({})["model"]
    recipe = {"name": "distillation", "teacher": model | {"weights": str(first)}, "temperature": 20}
    spec = TrainSpec.model_validate(content(recipe))
    assert TrainSpec.model_validate(yaml.safe_load(yaml.safe_dump(spec.model_dump(mode="json")))) == spec
    second, _ = train(spec, tmp_path / "second")

    class Killed(Exception):
        pass

    def kill(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (1, 1):
            raise Killed

    with pytest.raises(Killed):
        train(spec, tmp_path / "parts", kill)
    again, _ = train(spec, tmp_path / "parts")
    tensors, card = weights.read(second)
    assert equal(weights.read(again)[0], tensors)
    assert not equal(tensors, weights.read(first)[0])
    assert str(first) in card["files"]  # the digest of the teacher's weights
    with pytest.raises(UserError, match="recipe distillation: temperature must be"):
        TrainSpec.model_validate(content(recipe | {"temperature": -1})).recipe.check()


HOT = '''
from torch import nn


class Net(nn.Module):
    """The brightest channel, as sure of itself as a temperature of `scale` in its training leaves it."""

    def __init__(self, scale):
        super().__init__()
        self.scale = nn.Parameter(scale * nn.init.ones_(nn.Conv2d(1, 1, 1).weight))

    def forward(self, x):
        return 12 * self.scale * x


def build(scale):
    return Net(scale)
'''


def folder(root: Path, count: int = 8) -> Path:
    """Pictures of blocks in three plain colours, which such a net tells without an error."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for i in range(count):
        mask = np.random.default_rng(i).integers(0, 3, (4, 5), dtype=np.uint8).repeat(6, 0).repeat(6, 1)
        image = (90 + 60 * (mask[..., None] == np.arange(3))).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"{i}.png")
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
    (root / "net.py").write_text(HOT)
    return root


def test_large_logits_hide_a_net_from_cross_entropy_and_not_from_their_margin(tmp_path: Path) -> None:
    """What distillation at a temperature of 100 leaves: the softmax is 0 or 1 to the last bit, and so is its slope."""
    name, args = f"{folder(tmp_path)}/net.py:build", {"plain": 1.0, "distilled": 100.0}
    pgd, margin = {"name": "pgd", "steps": 10, "start": False}, {"name": "apgd", "steps": 10, "loss": "margin"}
    spec = RunSpec.model_validate(
        {
            "name": "hot",
            "data": {"name": "folder", "root": str(tmp_path), "classes": CLASSES},
            "models": [{"source": "python", "name": name, "label": k, "args": {"scale": v}} for k, v in args.items()],
            "attacks": [pgd, margin],
            "eps": ["40/255"],
            "precision": "fp32",
            "diagnostics": False,
        }
    )
    found = audit(spec, tmp_path / "out")
    labels = [attack.label() for attack in spec.attacks]
    left = {
        (model, label): confusion.miou(by_name(found)[model, "none", "white-box", label, 40 / 255].counts)
        for model in args
        for label in labels
    }
    assert left["plain", labels[0]] < 0.1
    assert left["distilled", labels[0]] == 1.0
    assert max(left["plain", labels[1]], left["distilled", labels[1]]) < 0.1
    raised = {d.model: d for d in diagnose(found) if d.name == "zero gradient"}
    assert not raised["plain"].raised
    assert raised["distilled"].raised
    assert raised["distilled"].numbers == (0.1, 1.0)
    assert "pgd" in raised["distilled"].line
