"""What a membership block may say, how each fault in it is named, and what stays as it was without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from membership_kit import content, write
from segaudit import cli, running
from segaudit.audit import parts
from segaudit.audit.membership import command
from segaudit.audit.spec import RunSpec
from segaudit.privacy.defenses import named
from segaudit.types import UserError

VICTIM = {"source": "tiny", "name": "unet"}


def read(folder: Path, made: dict[str, Any]) -> RunSpec:
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(made, sort_keys=False))
    return parts.read(RunSpec, path)


def refusal(folder: Path, made: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        read(folder, made)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"refrences": 4}, "unknown key 'refrences' (did you mean 'references'?)"),
        ({"training": {"epoch": 4}}, "unknown key 'epoch' (did you mean 'epochs'?)"),
        ({"training": {"augment": {"flipp": True}}}, "augment has no 'flipp' (did you mean 'flip'?)"),
        ({"training": {"recipe": "vae"}}, "recipe 'vae' trains a purifier"),
        ({"training": {"recipe": {"name": "standard", "dise": 1}}}, "did you mean 'dice'?"),
        (
            {"training": {"recipe": {"name": "standard", "class_weights": "balanced"}}, "defenses": ["none", "dp"]},
            "recipe private: class_weights 'balanced' tell of the private images",
        ),
        ({"attacks": ["lirra"]}, "no membership is called 'lirra' (did you mean 'lira'?)"),
        ({"attacks": [{"name": "rmia", "gama": 2}]}, "(did you mean 'gamma'?)"),
        ({"attacks": [{"name": "rmia", "gamma": -2}]}, "gamma must be a number above 0"),
        ({"defenses": ["argmx"]}, "(did you mean 'argmax'?)"),
        ({"defenses": [{"name": "crop", "sise": 8}]}, "(did you mean 'size'?)"),
        ({"poison": [{"trigger": "lines"}]}, "(did you mean 'line'?)"),
        ({"poison": [{"trigger": "line", "probabillity": 1}]}, "(did you mean 'probability'?)"),
        ({"poison": [{"trigger": "line", "probability": 3}]}, "probability must be above 0, to 1"),
        ({"references": 3}, "references must be even"),
        ({"unit": "patient"}, "unit"),
        ({"unit": "order", "clip": 3}, "clip cuts groups"),
        ({"unit": "order", "shuffled": True}, "shuffled draws who is a member"),
        ({"defenses": ["none", "argmax"], "threats": ["oblivious"]}, "never reported by an oblivious attack alone"),
        ({"defenses": ["argmax", "2"]}, "defenses: 'argmax' is there twice"),
        ({"victim": [VICTIM, VICTIM]}, "victim: 'unet' is there twice"),
    ],
)
def test_what_is_misspelt_or_does_not_fit_is_named(tmp_path: Path, over: dict[str, Any], said: str) -> None:
    assert said in refusal(tmp_path, content(tmp_path, **over))


def test_a_spec_with_the_block_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    made = read(tmp_path, content(tmp_path, defenses=["none", 2, {"name": "crop", "size": 8}], poison=["none"]))
    assert made.membership is not None
    assert [own.label() for own in made.membership.defenses] == ["none", "argmax", "crop(size=8)"]
    assert made.models == made.attacks == made.eps == []
    assert read(tmp_path, made.model_dump(mode="json")) == made


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"attacks": ["fgsm"]}, "attacks and eps go together"),
        ({"eps": ["8/255"]}, "attacks and eps go together"),
        ({"models": [VICTIM]}, "models need both"),
        ({"certification": {}}, "certification is of models that are attacked"),
        ({"transfer": True, "attacks": ["fgsm"], "eps": ["8/255"]}, "transfer is between models that are given"),
        ({"attacks": ["fgsmm"], "eps": ["8/255"]}, "did you mean 'fgsm'?"),
    ],
)
def test_what_is_attacked_is_all_there_or_left_out(tmp_path: Path, over: dict[str, Any], said: str) -> None:
    assert said in refusal(tmp_path, content(tmp_path) | over)


def test_without_the_block_a_spec_needs_what_it_needed(tmp_path: Path) -> None:
    bare = {"name": "x", "data": "scenes"}
    assert refusal(tmp_path, bare).endswith("models: Field required; attacks: Field required; eps: Field required")
    some = bare | {"models": [VICTIM], "attacks": ["fgsm"]}
    assert refusal(tmp_path, some).endswith("spec.yaml: eps: Field required")
    assert "eps: List should have at least 1 item" in refusal(tmp_path, some | {"eps": []})


def test_all_attacks_are_meant_unless_told_and_the_check_of_the_split_is_always_there(tmp_path: Path) -> None:
    every = read(tmp_path, content(tmp_path, attacks=None)).membership
    some = read(tmp_path, content(tmp_path, attacks=["lira"])).membership
    own = read(tmp_path, content(tmp_path, attacks=[{"name": "no_model", "trees": 3}, "lira"])).membership
    assert every is not None
    assert some is not None
    assert own is not None
    assert {"no_model", "type1", "type2", "global_loss", "lira", "rmia"} <= {a.name for a in every.asked()}
    assert [a.name for a in some.asked()] == ["no_model", "lira"]
    assert [a.label() for a in own.asked()] == ["no_model(trees=3)", "lira"]


def test_the_flags_of_the_command_are_a_spec(tmp_path: Path) -> None:
    chosen = [named(own) for own in ("1", "5", "crop")]
    made = command.spec_of("scenes", "resnet18", "resnet34", 40, chosen, "square", 8, 255, 0.2, 96, 3)
    asked = RunSpec.model_validate(made)
    block = asked.membership
    assert block is not None
    assert asked.data.args["images"] == 200
    assert asked.data.args["size"] == [96, 96]
    assert block.victim[0].args == {"encoder_name": "resnet18"}
    assert block.shadow is not None
    assert block.shadow.args == {"encoder_name": "resnet34"}
    assert (block.train_size, block.training.epochs) == (40, 3)
    assert [own.name for own in block.defenses] == ["none", "minmax", "crop"]
    assert [own.trigger for own in block.poison] == ["none", "square"]
    assert (block.poison[1].size, block.poison[1].value, block.poison[1].probability) == (8, 1.0, 0.2)
    path = command.write(made, str(tmp_path / "runs" / "out"))
    assert path == tmp_path / "runs" / "out.yaml"
    assert parts.read(RunSpec, path) == asked
    assert command.write(made | {"seed": 1}, str(tmp_path / "runs" / "out")) == path
    path.write_text("name: mine\n")
    with pytest.raises(UserError, match=r"out.yaml is the spec of something else"):
        command.write(made, str(tmp_path / "runs" / "out"))
    kvasir = command.spec_of("{name: kvasir, root: here}", "resnet18", None, None, [], "line", 0.1, 1, 0, None, 70)
    assert kvasir["data"] == {"name": "kvasir", "root": "here"}
    assert kvasir["membership"]["poison"] == ["none"]
    assert "shadow" not in kvasir["membership"]
    for over, said in (
        ({"data": "[1]"}, "--data"),
        ({"poison": 2}, "--poison"),
        ({"trigger_value": -1}, "--triggerval"),
        ({"trigger": "sqare"}, r"no trigger is called 'sqare' \(did you mean 'square'"),
        ({"trigger": "square"}, "are of a poison; give --poison too"),
        ({"trigger_size": 8}, "are of a poison; give --poison too"),
        ({"trigger_value": 0.5}, "are of a poison; give --poison too"),
    ):
        usual = {"data": "scenes", "trigger": "line", "trigger_size": 0.1, "trigger_value": 1, "poison": 0}
        rest = {"victim": "resnet18", "shadow": None, "train_size": None, "defenses": [], "size": None, "epochs": 1}
        flags: dict[str, Any] = usual | rest | over
        with pytest.raises(UserError, match=said):
            command.spec_of(**flags)


def test_the_command_runs_the_spec_that_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[Any, ...]] = []
    monkeypatch.setattr(running, "run", lambda *own: ran.append(own))
    flags = [
        "--victim",
        "resnet18",
        "--trainsize",
        "8",
        "--defensetype",
        "2",
        "--defensetype",
        "mixup",
        "--epochs",
        "1",
    ]
    flags += ["--triggertype", "square", "--triggersize", "8", "--triggerval", "255", "--poison", "0.5"]
    found = CliRunner().invoke(cli.app, ["membership", *flags, "--out", str(tmp_path / "out"), "--workers", "2"])
    assert found.exit_code == 0, found.output
    ((path, out, workers, ray, limit),) = ran
    assert (path, out, workers, ray, limit) == (tmp_path / "out.yaml", str(tmp_path / "out"), 2, None, None)
    block = parts.read(RunSpec, path).membership
    assert block is not None
    assert [own.name for own in block.defenses] == ["none", "argmax", "mixup"]
    assert [own.label() for own in block.poison] == ["none", "square(size=8, probability=0.5)"]
    bare = CliRunner().invoke(cli.app, ["membership", "--out", str(tmp_path / "bare")])
    assert bare.exit_code == 0, bare.output  # what is not given is no flag of a poison
    for flags in (["--triggertype", "foo"], ["--triggersize", "8"]):
        wrong = CliRunner().invoke(cli.app, ["membership", *flags, "--out", str(tmp_path / "wrong")])
        assert isinstance(wrong.exception, UserError)
    assert len(ran) == 2


def test_the_example_is_a_spec_whose_images_are_enough() -> None:
    asked = parts.read(RunSpec, Path(__file__).parent.parent / "examples" / "privacy.yaml")
    assert asked.membership is not None
    assert asked.membership.of(asked.data.args["images"]) == asked.membership


def test_fewer_images_mean_fewer_members_where_they_must(tmp_path: Path) -> None:
    write(tmp_path)
    block = read(tmp_path, content(tmp_path)).membership
    assert block is not None
    assert block.of(32) == block
    assert block.of(31).train_size is None
