"""The trained nets on the real digits: the LeNet, and a purifier before it (make test-real)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from segaudit.audit import build, parts
from segaudit.audit.spec import RunSpec
from segaudit.nn.precision import prepare_process
from segaudit.registry import load
from segaudit.rng import ImageStreams
from segaudit.training.loop import evaluate

pytestmark = pytest.mark.real

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


@pytest.fixture(scope="module")
def study():
    """(the bare model, the one behind the purifier, all 10,000 test digits) of the study, named from the checkout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(EXPERIMENTS.parent)
        prepare_process()
        spec = parts.read(RunSpec, EXPERIMENTS / "mnist-purified.yaml")
        data = build.dataset(spec.data.model_copy(update={"args": {**spec.data.args, "limit": None}}))
        bare = build.model(spec.models[0], data.class_names)
        yield bare, build.defended(bare, spec.defenses[1]), data


def right(model, images, labels) -> float:
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).double().mean())


def test_the_lenet_knows_the_digits(study) -> None:
    bare, _, data = study
    assert evaluate(bare, data, 500)["accuracy"] >= 0.985


def test_the_purifier_holds_against_pgd_through_it_where_the_bare_net_does_not(study) -> None:
    bare, behind, data = study
    batch = data.batch(data.ids[:: len(data.ids) // 300][:300])
    assert right(behind, batch.images, batch.labels) >= 0.96
    for model, low, high in ((bare, 0, 0.2), (behind, 0.8, 1)):
        rng = ImageStreams(0, batch.ids)
        own = {"eps": 0.15, "steps": 40, "step_size": 0.01}
        found = load("attack", "pgd")(model, batch.images, batch.labels, rng=rng, **own)
        assert (found - batch.images).abs().max() <= 0.15 + 1e-6
        assert low <= right(model, found, batch.labels) <= high
