"""A user's own net, known to segaudit by a few lines alone: BGR, its own scale, 12 outputs for 11 classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from audit_kit import audit, by_name
from segaudit.audit import build, parts
from segaudit.audit.spec import RunSpec
from segaudit.audit.train import TrainSpec, train
from segaudit.data.camvid import CLASS_NAMES, PALETTE
from segaudit.metrics.confusion import accuracy, miou

ROOT = Path(__file__).parent.parent
SPEC, TRAINING = ROOT / "examples" / "my_net.yaml", ROOT / "examples" / "my_net_train.yaml"
SIZE = (48, 64)


def write_camvid(root: Path, split: str, count: int) -> None:
    """CamVid's layout with blocks of the classes' colours, noisy and dimmed, and some void."""
    for folder in (split, f"{split}annot"):
        (root / folder).mkdir(parents=True)
    colours = np.array([*PALETTE, (0, 0, 0)])
    for i in range(count):
        rng = np.random.default_rng([i, len(split)])
        mask = rng.integers(0, 12, (SIZE[0] // 16, SIZE[1] // 16), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
        image = colours[mask] * rng.uniform(0.7, 1) + rng.normal(0, 6, (*SIZE, 3))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / split / f"{i:04d}.png")
        Image.fromarray(mask).save(root / f"{split}annot" / f"{i:04d}.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The tree, and the weights of the example's net trained on it by the example's training spec, made small."""
    folder = tmp_path_factory.mktemp("camvid")
    for split, count in (("train", 16), ("val", 6)):
        write_camvid(folder, split, count)
    spec = parts.read(TrainSpec, TRAINING)
    made = spec.model_dump(mode="json") | {"epochs": 25, "augment": {}, "precision": "fp32", "batch": 4}
    made["data"] = {
        split: {"name": "camvid", "root": str(folder), "split": split, "size": list(SIZE)} for split in ("train", "val")
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        weights, score = train(TrainSpec.model_validate(made), folder / "trained")
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
    assert score["miou"] > 0.6
    return folder, weights


def asked(tree: Path, weights: Path, **over: Any) -> RunSpec:
    """The example's spec on the small tree."""
    content: dict[str, Any] = yaml.safe_load(SPEC.read_text())
    content["data"] |= {"root": str(tree), "size": list(SIZE), "limit": None}
    content["models"][0] |= {"weights": str(weights)} | over
    return RunSpec.model_validate(content | {"precision": "fp32"})


def test_the_example_s_spec_has_less_than_15_lines_and_is_one() -> None:
    assert len(SPEC.read_text().splitlines()) < 15
    spec = parts.read(RunSpec, SPEC)
    training = parts.read(TrainSpec, TRAINING)
    (model,) = spec.models
    assert model.model_dump(exclude={"weights"}) == training.model.model_dump(exclude={"weights"})
    assert model.preprocess["order"] == "bgr"
    assert model.outputs == 12
    assert model.class_map == {11: None}


def test_it_is_audited_with_its_own_colours_scale_and_outputs(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    spec = asked(*trained)
    results = audit(spec, tmp_path / "out")
    assert results.class_names == CLASS_NAMES
    found = {(attack, eps): records for (_, _, _, attack, eps), records in by_name(results).items()}
    clean = found["none", 0.0]
    assert miou(clean.counts) > 0.6
    assert clean.counts.target.sum() < clean.places.sum()  # void is not scored
    pgd = [miou(found["pgd(steps=20)", eps].counts) for eps in spec.eps]
    assert miou(clean.counts) > pgd[0] > pgd[1] > pgd[2]
    assert accuracy(found["pgd(steps=20)", 8 / 255].counts) < accuracy(clean.counts) - 0.05


def test_without_its_colour_order_it_is_another_net(
    trained: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    spec = asked(*trained)
    data = build.dataset(spec.data)
    batch = data.batch(data.ids)
    own = dict(spec.models[0].preprocess)

    def right(preprocess: dict[str, Any]) -> float:
        model = build.model(asked(*trained, preprocess=preprocess).models[0], data.class_names)
        with torch.no_grad():
            logits = model(batch.images)
        assert logits.shape == (len(batch), 11, *SIZE)
        return float((logits.argmax(1) == batch.labels)[batch.labels != 255].float().mean())

    assert right(own) > 0.7
    assert right(own | {"order": "rgb"}) < 0.6
    assert right(own | {"scale": 1}) < 0.4
