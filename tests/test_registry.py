"""Names to parts: what is registered, what is a user's own, and what people write wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from segaudit import registry
from segaudit.types import UserError

KINDS = ["attack", "scaling", "guard", "scaling_detector", "detector", "data", "model", "recipe", "target", "defense"]
KINDS += ["purifier", "membership", "membership_defense", "trigger"]


def said(error: pytest.ExceptionInfo[UserError], *parts: str) -> None:
    """One line that holds every part."""
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_loads_and_says_in_one_line_what_it_is_and_where_it_is_from(kind: str) -> None:
    rows = registry.describe(kind)
    assert [row[0] for row in rows] == registry.names(kind)
    assert rows
    for name, line, source in rows:
        assert callable(registry.load(kind, name))
        assert line.endswith("."), name
        assert 15 < len(line) <= 120, name
        assert source.endswith(".") or (kind, name) == ("defense", "none"), name


def test_every_table_is_listed_here() -> None:
    assert set(KINDS) == set(registry.TABLES)


def test_every_attack_has_the_shape_of_one() -> None:
    usual = {"eps", "steps", "step_size", "restarts", "norm", "targeted"}
    for name in registry.names("attack"):
        registry.check_arguments("attack", name, {}, handed=("model", "images", "labels", "rng", "eps"))
        own = {key for key in usual if registry.accepts("attack", name, key)}
        assert "steps" in own or not own & {"step_size", "restarts"}, name
        with pytest.raises(UserError, match=r"has no argument 'epsilon'"):
            registry.check_arguments("attack", name, {"epsilon": 1}, handed=("model", "images", "labels", "rng"))


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError) as error:
        registry.load("attack", "igfsm")
    said(error, "no attack is called 'igfsm' (did you mean 'ifgsm'?); there are: fgsm, ")
    with pytest.raises(UserError) as error:
        registry.load("data", "zzzzz")
    said(error, "no data is called 'zzzzz'; there are: scenes, camvid")


def test_arguments_are_checked_before_anything_runs() -> None:
    handed = ("model", "images", "labels", "rng", "eps")
    registry.check_arguments("attack", "pgd", {"steps": 3}, handed)
    with pytest.raises(UserError) as error:
        registry.check_arguments("attack", "pgd", {"stepsize": 3}, handed)
    said(error, "attack 'pgd' has no argument 'stepsize' (did you mean 'step_size'?); its arguments: steps, ")
    with pytest.raises(UserError) as error:
        registry.check_arguments("attack", "pgd", {"eps": 3}, handed)
    said(error, "attack 'pgd' has no argument 'eps'")
    with pytest.raises(UserError) as error:
        registry.check_arguments("attack", "pgd", {}, handed[:-1])
    said(error, "attack 'pgd' needs the argument 'eps'")
    with pytest.raises(UserError) as error:
        registry.check_arguments("defense", "none", {"x": 1}, ("model",))
    said(error, "defense 'none' has no argument 'x'; its arguments: none")
    registry.check_arguments("model", "smp", {"encoder_name": "resnet18"}, ("name", "outputs"))  # takes any


def test_a_part_of_a_users_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "import beside\nprint_ = print\n\n\ndef attack(model, *, eps, power=beside.POWER):\n"
        "    return eps**power\n\n\nif __name__ == '__main__':\n    raise SystemExit\n"
    )
    (tmp_path / "beside.py").write_text("POWER = 3\n")
    monkeypatch.setattr(sys, "path", sys.path.copy())
    name = f"{tmp_path}/mine.py:attack"
    assert registry.load("attack", name)(None, eps=2) == 8
    assert registry.load("attack", name) is registry.load("attack", name)
    assert registry.accepts("attack", name, "power")
    with pytest.raises(UserError) as error:
        registry.check_arguments("attack", name, {"pover": 1}, ("model", "eps"))
    said(error, "has no argument 'pover' (did you mean 'power'?)")
    with pytest.raises(UserError) as error:
        registry.load("attack", f"{tmp_path}/mine.py:atack")
    said(error, "mine.py has no function 'atack' (did you mean 'attack'?)")
    monkeypatch.setenv("MINE", str(tmp_path))
    assert registry.load("attack", "$MINE/mine.py:attack") is registry.load("attack", name)
    assert registry.source_file("$MINE/mine.py:attack") == tmp_path / "mine.py"
    assert registry.source_file("package.module:function") is None
    assert registry.source_file("pgd") is None


def test_files_of_the_same_name_are_two(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "mine.py").write_text(f"def number():\n    return {number}\n")
    assert [registry.load("data", f"{tmp_path}/{i}/mine.py:number")() for i in (1, 2)] == [1, 2]


def test_a_part_of_any_package() -> None:
    from segaudit.attacks.pgd import pgd

    assert registry.load("attack", "segaudit.attacks.pgd:pgd") is pgd


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("def attack(:\n", "SyntaxError"),
        ("import no_such_package_of_anyone\n", "ModuleNotFoundError: No module named 'no_such_package_of_anyone'"),
        ("raise ValueError('first line\\nsecond line')\n", "ValueError: first line second line"),
        ("import sys\nsys.exit('usage: mine.py')\n", "SystemExit: usage: mine.py"),
        ("attack = 3\n", "has no function 'attack'"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, fault: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    for _ in range(2):  # a file that failed is not taken for one that is loaded
        with pytest.raises(UserError) as error:
            registry.load("attack", f"{path}:attack")
        said(error, str(path), fault)


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(UserError) as error:
        registry.load("attack", "/no/such/file.py:attack")
    said(error, "attack: there is no file /no/such/file.py")
    with pytest.raises(UserError) as error:
        registry.load("attack", "no_such_package.module:attack")
    said(error, "attack: no_such_package.module does not import: ModuleNotFoundError")
    with pytest.raises(UserError) as error:
        registry.load("attack", "$NO_SUCH_VARIABLE/file.py:attack")
    said(error, "names an environment variable that is not set")
