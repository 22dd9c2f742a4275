"""What the documentation shows is tried."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import torch
import yaml
from torch import Tensor

from segaudit.audit.spec import RunSpec
from segaudit.rng import ImageStreams
from segaudit.types import Segmenter

ROOT = Path(__file__).parent.parent


def _blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


def test_the_readme_spec_is_one() -> None:
    block, private, given = _blocks("README.md", "yaml")
    experiment = RunSpec.model_validate(yaml.safe_load(private)).membership
    assert experiment is not None
    assert [defense.name for defense in experiment.defenses][-1] == "dp"
    taken = RunSpec.model_validate(yaml.safe_load(given)).membership
    assert taken is not None
    assert taken.members == {"split": "train"}
    spec = RunSpec.model_validate(yaml.safe_load(block))
    assert [attack.label() for attack in spec.attacks][-1] == "pgd(steps=40) to next"
    assert spec.eps[-1] == 8 / 255


def test_the_attack_of_the_contributing_page_runs_from_a_file(tmp_path: Path) -> None:
    (block,) = _blocks("CONTRIBUTING.md", "python")
    (tmp_path / "mine.py").write_text(block)
    from segaudit import registry

    attack = registry.load("attack", f"{tmp_path}/mine.py:signed_noise")
    images, labels = torch.full((2, 3, 4, 5), 0.5), torch.zeros(2, 4, 5, dtype=torch.int64)

    class Flat(Segmenter):
        class_names = ("a", "b")

        def forward(self, images: Tensor) -> Tensor:
            return images[:, :2]

    made = attack(Flat(), images, labels, rng=ImageStreams(0, ("a", "b")), eps=0.1)
    assert torch.allclose((made - images).abs(), torch.tensor(0.1))


def test_every_experiment_is_a_valid_spec() -> None:
    from segaudit.audit import parts
    from segaudit.audit.train import TrainSpec

    runs = sorted((ROOT / "experiments").glob("*.yaml"))
    trainings = sorted((ROOT / "experiments" / "train").glob("*.yaml"))
    assert runs
    assert len(trainings) >= 6
    for path in runs:
        parts.read(RunSpec, path)
    for path in trainings:
        parts.read(TrainSpec, path)


def test_the_reference_has_the_arguments_of_a_spec_alone() -> None:
    text = (ROOT / "docs" / "reference.md").read_text()
    assert "`scenes(split='val', images=None, " in text
    for signature in ("median(reach=1.0)", "down_up_mse()", "pgd(eps, steps=20, ", "next()", "multiscale(scales="):
        assert f"\n`{signature}" in text


def test_the_reference_is_up_to_date() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "build.py"))["reference"]()
    assert (ROOT / "docs" / "reference.md").read_text() == made, "run `make docs`"
