"""The trained CamVid nets on the real images: their clean quality, and what PGD leaves of it (make test-real)."""

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

SPEC = Path(__file__).parent.parent / "experiments" / "camvid-arnab.yaml"
LABELS = ["unet-regnetx002", "deeplabv3plus-resnet18", "fpn-regnetx002"]


@pytest.fixture(scope="module", params=LABELS)
def net(request, monkeypatch_module):
    """(label, model, data) of one net of the experiment."""
    prepare_process()
    spec = parts.read(RunSpec, SPEC)
    data = build.dataset(spec.data.model_copy(update={"args": {**spec.data.args, "limit": None}}))
    (chosen,) = [model for model in spec.models if model.title() == request.param]
    return build.model(chosen, data.class_names), data, chosen


@pytest.fixture(scope="module")
def monkeypatch_module():
    """The checkout as the working folder: the experiment's weights are named from there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(SPEC.parent.parent)
        yield patch


def test_clean_miou_is_at_least_one_half_and_what_the_card_says(net) -> None:
    model, data, spec = net
    score = evaluate(model, data)
    card = weights.read(spec.weights)[1]
    assert len(data.ids) == 101
    assert score["miou"] >= 0.50
    assert score["miou"] == pytest.approx(card["score"]["miou"], abs=1e-3)


def test_pgd_20_at_8_over_255_leaves_less_than_012(net) -> None:
    model, data, _ = net
    ids = data.ids[:: len(data.ids) // 8][:8]
    batch = data.batch(ids)
    view = Fast(model, resolve("auto"), batch.images[:1])
    rng = ImageStreams(0, batch.ids)
    made = load("attack", "pgd")(view, batch.images, batch.labels, rng=rng, eps=8 / 255, steps=20, step_size=2 / 255)
    with torch.no_grad():
        predictions = [model(images).argmax(1) for images in (batch.images, made)]
    clean, attacked = (confusion.miou(confusion.count(p, batch.labels, 11)) for p in predictions)
    assert clean > 0.45
    assert attacked < 0.12
