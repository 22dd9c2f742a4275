"""The trained nets on the real images: their clean quality, and what PGD leaves of it (make test-real)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from segaudit.audit import build, parts
from segaudit.audit.spec import RunSpec
from segaudit.metrics import confusion
from segaudit.models import weights
from segaudit.models.fast import Fast
from segaudit.nn.precision import prepare_process, resolve
from segaudit.registry import load
from segaudit.rng import ImageStreams
from segaudit.training.loop import evaluate

pytestmark = pytest.mark.real

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
NETS = [
    (study, model.title())
    for study in ("camvid-architectures", "camvid-adversarial", "kvasir")
    for model in parts.read(RunSpec, EXPERIMENTS / f"{study}.yaml").models
]


@pytest.fixture(scope="module", params=NETS, ids=" ".join)
def net(request, monkeypatch_module):
    """(model, data, its part of the spec) of one net of the experiments."""
    return made(*request.param)


def made(study: str, label: str):
    """The same of the net that a study calls so, with all images of its split."""
    prepare_process()
    spec = parts.read(RunSpec, EXPERIMENTS / f"{study}.yaml")
    data = build.dataset(spec.data.model_copy(update={"args": {**spec.data.args, "limit": None}}))
    (chosen,) = [model for model in spec.models if model.title() == label]
    return build.model(chosen, data.class_names), data, chosen


@pytest.fixture(scope="module")
def monkeypatch_module():
    """The checkout as the working folder: the experiment's weights are named from there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(EXPERIMENTS.parent)
        yield patch


def test_the_clean_score_is_what_the_card_says(net) -> None:
    model, data, spec = net
    card = weights.read(spec.weights)[1]
    assert len(data.ids) == card["images"] >= 100
    assert evaluate(model, data)["miou"] == pytest.approx(card["score"]["miou"], abs=1e-3)
    assert card["score"]["miou"] >= 0.25


def mious(model, data, eps: float) -> tuple[float, float]:
    """mIoU of 8 images: clean and under PGD-20."""
    batch = data.batch(data.ids[:: len(data.ids) // 8][:8])
    view = Fast(model, resolve("auto"), batch.images[:1])
    rng = ImageStreams(0, batch.ids)
    found = load("attack", "pgd")(view, batch.images, batch.labels, rng=rng, eps=eps, steps=20, step_size=eps / 4)
    with torch.no_grad():
        predictions = [model(images).argmax(1) for images in (batch.images, found)]
    clean, attacked = (confusion.miou(confusion.count(p, batch.labels, model.num_classes)) for p in predictions)
    return clean, attacked


@pytest.mark.parametrize("label", ["unet-regnetx002", "deeplabv3plus-resnet18", "fpn-regnetx002"])
def test_pgd_20_at_8_over_255_leaves_less_than_012(label: str, monkeypatch_module) -> None:
    clean, attacked = mious(*made("camvid-architectures", label)[:2], 8 / 255)
    assert clean > 0.45
    assert attacked < 0.12


def test_adversarial_training_keeps_several_times_as_much(monkeypatch_module) -> None:
    standard, robust = (made("camvid-adversarial", label)[:2] for label in ("standard", "adversarial"))
    for eps, times in ((4 / 255, 2.5), (8 / 255, 6)):
        kept = mious(*robust, eps)[1]
        assert kept > max(times * mious(*standard, eps)[1], 0.1)


def test_the_polyp_net_finds_most_of_the_polyps(monkeypatch_module) -> None:
    model, data, _ = made("kvasir", "unet-regnety002-small")
    counts = []
    for start in range(0, len(data.ids), 10):
        batch = data.batch(data.ids[start : start + 10])
        with torch.no_grad():
            counts.append(confusion.count(model(batch.images).argmax(1), batch.labels, 2))
    polyp = confusion.iou_by_class(confusion.join(counts))[1]
    assert 2 * polyp / (1 + polyp) >= 0.80
