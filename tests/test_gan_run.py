"""From a training spec to a generator, and from its path to a run with the defense and the attack that knows of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audit_kit import audit, by_name
from segaudit.audit.spec import RunSpec
from segaudit.audit.train import TrainSpec, train
from segaudit.models import weights
from segaudit.models.purifiers import load_purifier
from segaudit.report.learning import learning
from segaudit.training.loop import history

pytestmark = pytest.mark.usefixtures("one_thread")
LENET: dict[str, Any] = {"source": "classic", "name": "lenet", "args": {"channels": 1, "width": 0.3}, "label": "LeNet"}
SPEC: dict[str, Any] = {
    "name": "gan",
    "model": {"source": "purifier", "name": "cwgan", "args": {"z": 4, "width": 2, "embedding": 2}},
    "data": {
        key: {"name": "digits", "split": split, "size": [12, 12], "limit": 30}
        for key, split in (("train", "train"), ("val", "test"))
    },
    "epochs": 2,
    "batch": 5,
    "lr": "1e-3",
    "betas": [0, 0.9],
    "weight_decay": 0,
    "precision": "fp32",
    "augment": {"flip": False},
    "validate_every": 1,
}


@pytest.fixture(autouse=True)
def _plain_arithmetic() -> Any:
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of a training of a generator."""
    made = tmp_path_factory.mktemp("gan")
    spec = TrainSpec.model_validate(SPEC | {"recipe": {"name": "wgan_gp", "classifier": LENET}})
    path, score = train(spec, made)
    assert path == made / "model.safetensors"
    assert list(score) == ["Frechet-LeNet"]
    assert score["Frechet-LeNet"] > 0
    return made


def test_a_training_leaves_a_generator_with_its_card_and_its_curve(folder: Path) -> None:
    net: Any = load_purifier(folder / "model.safetensors")
    assert (net.classes, net.latent, net.size, int(net.turn)) == (10, 4, (12, 12), 12)
    card = weights.read(folder / "model.safetensors")[1]
    assert card["training"]["betas"] == [0, 0.9]
    assert card["score"].keys() == {"Frechet-LeNet"}
    epochs = history(folder)
    assert "Frechet-LeNet" in epochs[0]
    assert "held-out Frechet-LeNet" in learning("gan", epochs, card["score"])


def test_a_siamese_network_is_trained_by_its_name(tmp_path: Path) -> None:
    model = {"source": "purifier", "name": "siamese", "args": {"features": 3, "width": 2}}
    path, score = train(TrainSpec.model_validate(SPEC | {"model": model, "recipe": "siamese"}), tmp_path)
    assert load_purifier(path)(torch.rand(2, 1, 12, 12)).shape == (2, 3)
    assert 0 <= score["nearest"] <= 1


def test_a_run_puts_the_inversion_before_a_model_and_attacks_it(folder: Path, tmp_path: Path) -> None:
    path = str(folder / "model.safetensors")
    own = {"name": "gan_inversion", "generator": path, "steps": 4, "restarts": 2}
    spec = RunSpec.model_validate(
        {
            "name": "inverted",
            "data": {"name": "digits", "split": "test", "size": [12, 12], "limit": 3},
            "models": [LENET],
            "attacks": ["fgsm", {"name": "on_manifold", "generator": path, "steps": 6, "restarts": 2}],
            "eps": [0.2],
            "defenses": ["none", own, own | {"classify": "inversion"}],
            "pictures": {"images": 0},
            "diagnostics": False,
        }
    )
    found = by_name(audit(spec, tmp_path / "run"))
    assert len(found) == 3 + 2 * (1 + 2 + 2)
    for (_, defense, threat, attack, eps), rows in found.items():
        assert len(rows.ids) == 3
        if attack != "none":
            assert rows.norms.linf.max() <= 0.2 + 1e-6
            assert rows.norms.linf.min() > 0
        if "on_manifold" in attack and defense != "none" and threat == "adaptive":
            assert eps == 0.2
            assert not np.any(rows.forwards)  # the bare model alone is asked
