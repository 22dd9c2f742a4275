"""What a plan finds wrong with defenses and poisons: before anything is trained, and at next to no cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from membership_kit import content, spec
from segaudit import registry
from segaudit.audit import build
from segaudit.audit.membership import experiment, trial
from segaudit.audit.spec import RunSpec
from segaudit.audit.store import Store
from segaudit.types import UserError

pytestmark = pytest.mark.usefixtures("one_thread", "alone")
ODD = """
def weighed(trainer): return trainer.fit(trainer.members, recipe="mixup", args={"alpha": -1})
def misspelt(trainer): return trainer.fit(trainer.members, recipe="mixup", args={"alfa": 1})
def taught(trainer): return trainer.fit(trainer.members, recipe="distillation")
def attacked(trainer): return trainer.fit(trainer.members, recipe="adversarial", args={"attack": {"name": "pdg"}})
def timeless(trainer): return trainer.fit(trainer.members, epochs=0)
def adapted(trainer): return trainer.fit(trainer.members, adapt="segaudit.nn.norms:group_normz")
def curious(trainer):
    for name in trainer.members: trainer.samples.sample(name)
    return trainer.fit(trainer.members)
def served(trainer): return trainer.fit(trainer.members, epochs=2)
served.serves = True
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No attack but that of the tests."""
    monkeypatch.setitem(registry.TABLES, "membership", {})


def odd(folder: Path, name: str) -> str:
    path = folder / "odd.py"
    path.write_text(ODD)
    return f"{path}:{name}"


def planned(asked: RunSpec, out: Path) -> experiment.Plan:
    made = experiment.plan(asked, build.dataset(asked.data), str(out))
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("weighed", "alpha must be a number above 0"),
        ("misspelt", "did you mean 'alpha'?"),
        ("taught", "needs the argument 'teacher'"),
        ("attacked", "no attack is called 'pdg'"),
        ("timeless", "epochs must be a whole number"),
        ("adapted", "did you mean 'group_norms'?"),
    ],
)
def test_what_a_defense_would_have_trained_is_checked_before_anything_is(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        planned(spec(tmp_path, defenses=["none", odd(tmp_path, name)]), tmp_path / "out")
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_defense_that_would_train_a_victim_from_elsewhere_is_refused_before_the_shadows_are(tmp_path: Path) -> None:
    net = tmp_path / "net.py"
    net.write_text(
        "import torch\n\n\ndef build():\n    with torch.random.fork_rng():\n        torch.manual_seed(7)\n"
        "        return torch.nn.Conv2d(3, 2, 1)\n"
    )
    victim, shadow = {"source": "python", "name": f"{net}:build", "label": "own"}, {"source": "tiny", "name": "unet"}
    ids = [f"{i:02d}-{i:03d}" for i in range(12)]
    usual: dict[str, Any] = {"members": {"only": ids}, "train_size": None, "victim": victim, "shadow": shadow}
    for name, said in (("served", "trains the victim anew"), ("argmax", None)):
        defense = odd(tmp_path, name) if said else name
        asked = RunSpec.model_validate(content(tmp_path, **usual, defenses=["none", defense]))
        if said is None:
            assert planned(asked, tmp_path / "out").study.split.given
            continue
        with pytest.raises(UserError, match=said):
            planned(asked, tmp_path / "out")


def test_all_defenses_and_triggers_are_tried_on_no_more_than_a_few_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = ["none", {"trigger": "line"}, {"trigger": "square"}, {"trigger": "inside", "size": 15}]  # without a place
    clipped = {"name": "dp", "noise": False}  # how much noise there is to be takes seconds
    names = [clipped if name == "dp" else name for name in registry.names("membership_defense")]
    asked = spec(tmp_path, poison=poison, defenses=[*names, odd(tmp_path, "curious")])
    made, data, read = planned(asked, tmp_path / "out"), build.dataset(asked.data), list[str]()
    sample = data.sample
    monkeypatch.setattr(data, "sample", lambda name: (read.append(name), sample(name))[1])
    assert len(made.victims) == len(poison) * (len(names) + 1)
    trial.attempt(made.study, made.victims, data)
    assert read == list(made.study.split.inside["victim"][: trial.MOST])
    assert not (tmp_path / "out").exists()
    for net in made.victims:
        Store(str(tmp_path / "out")).write_json(f"networks/{net.key}.json", {})
    trial.attempt(made.study, made.victims, data)  # what was made needs no trial
    assert len(read) == trial.MOST
