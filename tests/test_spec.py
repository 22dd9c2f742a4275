"""What a spec may say, and how each fault in it is named."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from audit_kit import audit, content, save_spec, small
from segaudit.audit import parts
from segaudit.audit.spec import AttackSpec, RunSpec
from segaudit.audit.train import TrainSpec
from segaudit.types import UserError

BASE: dict[str, Any] = {
    "name": "a",
    "data": {"name": "folder", "root": "x", "classes": ["a", "b"]},
    "models": [{"source": "tiny", "name": "unet"}],
    "attacks": ["fgsm"],
    "eps": ["8/255"],
}


def read(tmp_path: Path, **over: Any) -> RunSpec:
    return parts.read(RunSpec, save_spec(tmp_path / "spec.yaml", BASE | over))


def refusal(tmp_path: Path, **over: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(tmp_path, **over)
    line = str(caught.value)
    assert line.startswith(f"{tmp_path}/spec.yaml: ")
    assert "\n" not in line
    return line


def test_a_part_is_a_name_or_a_name_with_arguments_in_either_form(tmp_path: Path) -> None:
    short = read(tmp_path, attacks=["pgd", {"name": "pgd", "steps": 5, "step_size": "2/255"}])
    long = read(tmp_path, attacks=[{"name": "pgd"}, {"name": "pgd", "args": {"steps": 5, "step_size": "2/255"}}])
    assert short == long
    assert short.attacks[1].args == {"steps": 5, "step_size": 2 / 255}
    assert [attack.label() for attack in short.attacks] == ["pgd", "pgd(steps=5, step_size=2/255)"]


def test_a_target_is_a_part_too_and_its_id_is_no_number(tmp_path: Path) -> None:
    attack = {"name": "pgd", "steps": 5, "target": {"name": "image", "id": "1/0005"}}
    made = read(tmp_path, attacks=[attack, {"name": "pgd", "target": "next"}]).attacks
    assert made[0].target is not None
    assert made[0].target.args == {"id": "1/0005"}
    assert made[1].label() == "pgd to next"


def test_a_model_is_a_name_or_a_mapping(tmp_path: Path) -> None:
    made = read(tmp_path, models=["unet", {"source": "tiny", "name": "unet", "label": "other", "class_map": {3: None}}])
    assert [(m.source, m.title()) for m in made.models] == [("bundled", "unet"), ("tiny", "other")]
    assert made.models[1].class_map == {3: None}


@pytest.mark.parametrize(
    ("where", "key", "near"),
    [
        ((), "modles", "models"),
        ((), "esp", "eps"),
        (("models", 0), "wieghts", "weights"),
        (("pictures",), "image", "images"),
        (("attacks", 0), "stepz", "steps"),
        (("attacks", 0, "target"), "idd", "id"),
    ],
)
def test_an_unknown_key_is_refused_with_a_suggestion(
    tmp_path: Path, where: tuple[str | int, ...], key: str, near: str
) -> None:
    made: Any = copy.deepcopy(BASE) | {
        "pictures": {"images": 2},
        "attacks": [{"name": "pgd", "target": {"name": "image", "id": "a"}}],
    }
    inside = made
    for step in where:
        inside = inside[step]
    inside[key] = 1
    line = refusal(tmp_path, **made)
    assert repr(key) in line
    assert f"did you mean {near!r}?" in line


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"attacks": ["pgdd"]}, "no attack is called 'pgdd' (did you mean 'pgd'?)"),
        ({"attacks": [{"name": "fgms", "norm": "l2"}]}, "no attack is called 'fgms' (did you mean 'fgsm'?)"),
        ({"attacks": [{"name": "pgd", "target": "nxt"}]}, "no target is called 'nxt' (did you mean 'next'?)"),
        ({"defenses": ["none", "noen"]}, "no defense is called 'noen' (did you mean 'none'?)"),
        ({"attacks": [{"name": "fgsm_ll", "target": "next"}]}, "attack 'fgsm_ll' has no targeted form"),
        ({"attacks": [{"name": "pgd", "target": "image"}]}, "target 'image' needs the argument 'id'"),
        ({"attacks": [{"name": "pgd", "eps": "1/255"}]}, "attack 'pgd' has no argument 'eps'"),
        ({"attacks": ["nowhere.py:attack"]}, "nowhere.py"),
        ({"threats": ["adaptiv"]}, "threats.0"),
        ({"precision": "fp8"}, "precision"),
        ({"batch": 0}, "batch"),
        ({"models": []}, "models"),
        ({"name": "a/b"}, "name"),
    ],
)
def test_what_is_misspelt_or_does_not_fit_is_named(tmp_path: Path, over: dict[str, Any], said: str) -> None:
    assert said in refusal(tmp_path, **over)


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"data": {"name": "camvidd", "root": "x"}}, "no data is called 'camvidd' (did you mean 'camvid'?)"),
        ({"data": {"name": "folder", "root": "x", "classes": ["a"], "limitt": 3}}, "did you mean 'limit'?"),
        ({"models": [{"source": "tinyy", "name": "unet"}]}, "no model is called 'tinyy' (did you mean 'tiny'?)"),
        ({"models": [{"source": "tiny", "name": "unett"}]}, "(did you mean 'unet'?)"),
        ({"models": [{"source": "tiny", "name": "unet", "args": {"widht": 4}}]}, "did you mean 'width'?"),
        ({"models": [{"source": "tiny", "name": "unet", "preprocess": {"ordr": "bgr"}}]}, "did you mean 'order'?"),
    ],
)
def test_wrong_data_and_models_are_named_before_any_work(tmp_path: Path, over: dict[str, Any], said: str) -> None:
    spec = small(tmp_path, **over)
    with pytest.raises(UserError) as caught:
        audit(spec, tmp_path / "out")
    assert said in str(caught.value)
    assert not (tmp_path / "out" / "cells").exists()


@pytest.mark.parametrize(
    ("over", "radii"),
    [
        ({"eps": ["8/255", 0.03]}, [0.03, 8 / 255]),
        ({"eps": [8, 0.25], "unit": "1/255"}, [0.25 / 255, 8 / 255]),
        ({"eps": [8, "2/255"], "unit": "1/255"}, [2 / 255, 8 / 255]),
        ({"eps": ["0.5/255", " 1 / 255 "]}, [0.5 / 255, 1 / 255]),
        ({"eps": ["1e-3", 0.01]}, [0.001, 0.01]),
        ({"eps": ["5e-1", "1/255"], "unit": "1/255"}, [0.5 / 255, 1 / 255]),
        ({"eps": [4, "16/255"], "attacks": [{"name": "pgd", "norm": "l2"}]}, [16 / 255, 4]),
    ],
)
def test_eps_is_read_as_people_write_it(tmp_path: Path, over: dict[str, Any], radii: list[float]) -> None:
    assert read(tmp_path, **over).eps == pytest.approx(radii, rel=1e-12)


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"eps": ["8/0"]}, "divides by zero"),
        ({"eps": ["abc"]}, "'abc' is not a number; write 8/255"),
        ({"eps": [0]}, "must be above 0"),
        ({"eps": [-1]}, "must be above 0"),
        ({"eps": ["-8/255"]}, "must be above 0"),
        ({"eps": [float("nan")]}, "must be above 0"),
        ({"eps": [8]}, "did you mean unit: 1/255?"),
        ({"eps": [True]}, "True is not a number"),
        ({"eps": [True], "unit": "1/255"}, "True is not a number"),
        ({"eps": []}, "eps"),
        ({"eps": "8/255"}, "list"),
        ({"eps": [8], "unit": "abc"}, "unit: 'abc' is not a number"),
        ({"eps": [8.5], "unit": "abc"}, "unit: 'abc' is not a number"),
        ({"eps": [8], "unit": None}, "unit: None is not a number"),
        ({"eps": [8], "unit": "1/0"}, "unit: '1/0' divides by zero"),
        ({"eps": [8], "unit": 0}, "must be above 0"),
    ],
)
def test_eps_of_the_wrong_form_is_refused(tmp_path: Path, over: dict[str, Any], said: str) -> None:
    line = refusal(tmp_path, **over)
    assert "eps" in line
    assert said in line


def test_a_step_size_is_in_the_same_unit(tmp_path: Path) -> None:
    attacks = [
        {"name": "pgd", "step_size": 2},
        {"name": "ifgsm", "args": {"step_size": 0.5}},
        {"name": "pgd", "step_size": "3/255"},
    ]
    made = read(tmp_path, eps=[8], unit="1/255", attacks=attacks)
    assert [attack.args["step_size"] for attack in made.attacks] == [2 / 255, 0.5 / 255, 3 / 255]


@pytest.mark.parametrize("step", [0, -1, "0/255", 2, "a lot"])
def test_a_step_size_out_of_range_is_refused(tmp_path: Path, step: Any) -> None:
    with pytest.raises(UserError, match=r"step_size .* of pgd must be above 0"):
        read(tmp_path, attacks=[{"name": "pgd", "step_size": step}])


def test_the_eps_of_the_pictures_is_in_the_same_unit(tmp_path: Path) -> None:
    made = read(tmp_path, eps=[1, 4, 8], unit="1/255", pictures={"eps": 8})
    assert made.shown_eps() == 8 / 255
    assert read(tmp_path, eps=[1, 4, 8], unit="1/255").shown_eps() == 4 / 255


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"models": ["unet", "unet"]}, "models: 'unet' is there twice; give one of them a label"),
        ({"attacks": ["pgd", "fgsm", "pgd"]}, "attacks: 'pgd' is there twice; leave one of them out"),
        ({"defenses": ["none", {"name": "none"}]}, "defenses: 'none' is there twice"),
    ],
)
def test_two_rows_of_one_name_are_refused(tmp_path: Path, over: dict[str, Any], said: str) -> None:
    assert said in refusal(tmp_path, **over)


def test_transfer_asks_for_bare_models(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def same(model):\n    return model\n")
    defense = f"{tmp_path}/mine.py:same"
    assert "put none among the defenses" in refusal(tmp_path, defenses=[defense], transfer=True)
    assert read(tmp_path, defenses=["none", defense], transfer=True).transfer


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\n  models: [\n", "is not YAML"),
        ("", "must be a mapping"),
        ("- a\n- b\n", "must be a mapping"),
        ("name: !!python/object/apply:os.getcwd []\n", "is not YAML"),
    ],
)
def test_what_is_no_spec_at_all_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        parts.read(RunSpec, path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_spec_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            parts.read(RunSpec, path)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(UserError, match="is not YAML"):
        parts.read(RunSpec, tmp_path / "latin.yaml")


def test_a_spec_is_frozen_and_goes_through_its_file_unchanged(tmp_path: Path) -> None:
    spec = RunSpec.model_validate(content(tmp_path, transfer=True, unit="1/255", eps=[1, "3/255"]))
    with pytest.raises(ValidationError, match="frozen"):
        spec.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        spec.attacks[0].name = "pgd"  # type: ignore[misc]
    again = RunSpec.model_validate(yaml.safe_load(yaml.safe_dump(spec.model_dump(mode="json"))))
    assert again == spec


def test_a_train_spec_is_as_strict(tmp_path: Path) -> None:
    made = {"name": "t", "model": "unet", "data": {"train": "scenes"}, "lr": "1e-3", "epochs": 2}
    assert parts.read(TrainSpec, save_spec(tmp_path / "t.yaml", made)).lr == 0.001
    with pytest.raises(UserError, match=r"unknown key 'epoch' \(did you mean 'epochs'\?\)"):
        parts.read(TrainSpec, save_spec(tmp_path / "t.yaml", made | {"epoch": 3}))
    with pytest.raises(UserError, match=r"data: unknown key 'vall' \(did you mean 'val'\?\)"):
        parts.read(TrainSpec, save_spec(tmp_path / "t.yaml", made | {"data": {"train": "scenes", "vall": "scenes"}}))


def test_an_attack_without_a_name_is_told_so(tmp_path: Path) -> None:
    assert "name" in refusal(tmp_path, attacks=[{"steps": 3}])
    with pytest.raises(ValidationError, match="name"):
        AttackSpec.model_validate({"target": "next"})


def test_a_defense_is_never_tried_by_an_oblivious_attack_alone(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def same(model):\n    return model\n")
    asked = {"name": "x", "data": "scenes", "models": ["unet"], "attacks": ["fgsm"], "eps": ["1/255"]}
    asked |= {"defenses": ["none", f"{mine}:same"]}
    assert RunSpec.model_validate(asked | {"threats": ["adaptive"]}).threats == ["adaptive"]
    with pytest.raises(ValueError, match="never reported by an oblivious attack alone"):
        RunSpec.model_validate(asked | {"threats": ["oblivious"]})


@pytest.mark.parametrize("where", ["attacks", "models", "defenses", "data", "target"])
@pytest.mark.parametrize("wrong", [3, ["pgd"], True])
def test_a_part_in_another_form_is_told_how_it_is_written(where: str, wrong: Any) -> None:
    made = copy.deepcopy(BASE)
    if where == "target":
        made["attacks"] = [{"name": "pgd", "target": wrong}]
    else:
        made[where] = wrong if where == "data" else [wrong]
    with pytest.raises(ValidationError) as caught:
        RunSpec.model_validate(made)
    text = parts.faults(caught.value)
    form = "{key: value, ...}" if where == "models" else "a name, or {name: ..., and its arguments}"
    assert text.endswith(f": write {form}, not {wrong!r}")
    assert where in text.partition(":")[0]
