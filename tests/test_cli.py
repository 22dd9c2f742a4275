"""The command line: what it prints, and one line with exit status 2 for whatever a person can mend."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from audit_kit import CLASSES, content, save_spec, write_net, write_pictures
from segaudit import __version__, cli, registry

Outcome = tuple[int, str, str]
Break = Callable[[Path], dict[str, Any]]


@pytest.fixture(autouse=True)
def _plain_arithmetic() -> Iterator[None]:
    """The commands flush denormals, as a process of their own may."""
    yield
    torch.set_flush_denormal(False)
    cli._debug.on = False


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Call the command line in an empty working folder: exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Outcome:
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit:
            cli.main(list(arguments))
        out, err = capfd.readouterr()
        code = exit.value.code
        return (code if isinstance(code, int) else 0), out, err

    return run


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A spec that would run, with its pictures and its net."""
    write_pictures(tmp_path)
    write_net(tmp_path)
    return save_spec(tmp_path / "spec.yaml", content(tmp_path))


def refused(outcome: Outcome, *said: str) -> None:
    code, out, err = outcome
    assert code == 2, err
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.endswith("\n")
    assert err.startswith("segaudit: ")
    assert "Traceback" not in err
    for text in said:
        assert text in err


def test_a_run_its_tables_and_its_page(call: Callable[..., Outcome], spec: Path, tmp_path: Path) -> None:
    code, out, err = call("run", str(spec), "--limit", "4", "--workers", "1")
    assert (code, err) == (0, "")
    assert out == "runs/small/report/index.html\n"
    page = tmp_path / "runs/small/report/index.html"
    text = page.read_text()
    assert "small" in text
    assert "pgd" in text
    page.unlink()
    assert call("report", "runs/small") == (0, "runs/small/report/index.html\n", "")
    assert page.read_text().count("\n") == text.count("\n")

    code, out, err = call("table", "runs/small")
    assert (code, err) == (0, "")
    assert "fgsm" in out.splitlines()[4]
    code, out, err = call("table", "runs/small", "--format", "csv")
    assert (code, err) == (0, "")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["attack"] for row in rows] == ["none", "fgsm", "fgsm", "pgd(steps=3)", "pgd(steps=3)"]
    assert {row["images"] for row in rows} == {"4"}
    assert float(rows[0]["miou"]) > float(rows[2]["miou"])
    for form in ("pivot", "long", "classes"):
        code, out, err = call("table", "runs/small", "--format", "latex", "--form", form)
        assert (code, err) == (0, "")
        assert "tabular" in out
    assert call("table", "runs/small", "--quantity", "accuracy")[1] != call("table", "runs/small")[1]


def test_the_same_command_resumes(call: Callable[..., Outcome], spec: Path, tmp_path: Path) -> None:
    arguments = ("run", str(spec), "--out", "out", "--workers", "1")
    assert call(*arguments)[0] == 0
    parts = sorted((tmp_path / "out" / "cells").glob("*/*"))
    stats = [path.stat().st_mtime_ns for path in parts]
    parts[2].unlink()
    assert call(*arguments)[0] == 0
    assert sorted((tmp_path / "out" / "cells").glob("*/*")) == parts
    changed = [path for path, before in zip(parts, stats, strict=True) if path.stat().st_mtime_ns != before]
    assert changed == [parts[2]]


def as_it_is(_: Path) -> dict[str, Any]:
    return {}


def mask_of_another_size(folder: Path) -> dict[str, Any]:
    Image.fromarray(np.zeros((32, 41), np.uint8)).save(folder / "masks" / "p02.png")
    return {}


def label_above_the_count(folder: Path) -> dict[str, Any]:
    mask = np.zeros((32, 40), np.uint8)
    mask[4, 4] = 3
    Image.fromarray(mask).save(folder / "masks" / "p03.png")
    return {}


def truncated_image(folder: Path) -> dict[str, Any]:
    path = folder / "images" / "p04.png"
    path.write_bytes(path.read_bytes()[:300])
    return {}


def no_root(folder: Path) -> dict[str, Any]:
    return {"data": {"name": "folder", "root": str(folder / "nowhere"), "classes": CLASSES}}


def unset_variable(folder: Path) -> dict[str, Any]:
    return {"data": {"name": "folder", "root": "$SEGAUDIT_NOT_SET/x", "classes": CLASSES}}


def model(folder: Path, **over: Any) -> dict[str, Any]:
    return {"models": [{**content(folder)["models"][0], **over}]}


def weights_of_another_net(folder: Path) -> dict[str, Any]:
    save_file({"features.0.weight": torch.zeros(8, 3, 5, 5), "tail.bias": torch.zeros(3)}, folder / "w.safetensors")
    return model(folder, weights=str(folder / "w.safetensors"))


def pickle(folder: Path) -> dict[str, Any]:
    torch.save({"state_dict": {"a": torch.zeros(1)}, "net": torch.nn.ReLU()}, folder / "w.pt")
    return model(folder, weights=str(folder / "w.pt"))


def half_a_file(folder: Path) -> dict[str, Any]:
    save_file({"a": torch.zeros(100)}, folder / "w.safetensors")
    (folder / "w.safetensors").write_bytes((folder / "w.safetensors").read_bytes()[:-9])
    return model(folder, weights=str(folder / "w.safetensors"))


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (no_root, ["there is no folder", "nowhere"]),
        (unset_variable, ["$SEGAUDIT_NOT_SET"]),
        (mask_of_another_size, ["p02.png", "the mask is 32 x 41 but the image 32 x 40"]),
        (label_above_the_count, ["p03.png", "3"]),
        (truncated_image, ["p04.png", "cannot be read"]),
        (
            weights_of_another_net,
            ["w.safetensors is of another network", "tail.bias", "features.0.weight is (8, 3, 5, 5)"],
        ),
        (pickle, ["w.pt holds more than tensors", "ReLU"]),
        (half_a_file, ["w.safetensors is not a whole safetensors file"]),
        (
            lambda folder: model(folder, weights=str(folder / "none.safetensors")),
            ["there is no file", "none.safetensors"],
        ),
        (lambda folder: model(folder, name=f"{folder}/user_net.py:built"), ["has no function 'built'", "'build'"]),
        (lambda folder: model(folder, args={"sed": 1}), ["has no argument 'sed' (did you mean 'seed'?)"]),
        (lambda folder: model(folder, outputs=4), ["4 outputs for 3 classes need a class_map"]),
        (lambda _: {"modles": []}, ["spec.yaml", "unknown key 'modles' (did you mean 'models'?)"]),
        (lambda _: {"attacks": ["pgdd"]}, ["no attack is called 'pgdd' (did you mean 'pgd'?)"]),
        (lambda _: {"eps": ["8/0"]}, ["spec.yaml: eps.0: '8/0' divides by zero"]),
        (lambda _: {"eps": [8]}, ["did you mean unit: 1/255?"]),
        (lambda _: {"eps": None}, ["spec.yaml: eps"]),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    call: Callable[..., Outcome], spec: Path, tmp_path: Path, broken: Break, said: list[str]
) -> None:
    made = {key: value for key, value in (content(tmp_path) | broken(tmp_path)).items() if value is not None}
    refused(call("run", str(save_spec(spec, made)), "--workers", "1"), *said)


def test_the_output_folder_of_another_spec_is_refused(call: Callable[..., Outcome], spec: Path, tmp_path: Path) -> None:
    assert call("run", str(spec), "--out", "out", "--limit", "2", "--workers", "1")[0] == 0
    other = save_spec(tmp_path / "other.yaml", content(tmp_path, name="other"))
    refused(call("run", str(other), "--out", "out"), "out holds the run of another spec ('small', not 'other')")
    refused(call("run", str(spec), "--out", "images"), "images is not empty and holds no run of segaudit")


def test_what_is_no_run_or_has_no_result_yet_is_refused(
    call: Callable[..., Outcome], spec: Path, tmp_path: Path
) -> None:
    refused(call("run", "nowhere.yaml"), "nowhere.yaml: cannot be read (No such file or directory)")
    refused(call("run", str(tmp_path)), "cannot be read (Is a directory)")
    truncated_image(tmp_path)
    refused(call("run", str(spec), "--out", "out", "--workers", "1"), "p04.png")
    for command in ("report", "table"):
        refused(call(command, "nowhere"), "nowhere: there is no plan.json; is it a run of segaudit?")
        refused(call(command, "images"), "images: there is no plan.json")
        refused(call(command, "out"), "out: no part of this run is finished yet; give `segaudit run` again")


def test_words_that_a_table_does_not_know_are_refused(call: Callable[..., Outcome], spec: Path) -> None:
    assert call("run", str(spec), "--out", "out", "--limit", "2", "--workers", "1")[0] == 0
    refused(call("table", "out", "--format", "markdwon"), "'markdwon'", "did you mean 'markdown'?", "csv")
    refused(call("table", "out", "--form", "pivto"), "'pivto'", "did you mean 'pivot'?")
    refused(call("table", "out", "--quantity", "miuo"), "'miuo'", "did you mean 'miou'?")


@pytest.mark.parametrize("kind", list(cli.KINDS))
def test_list_prints_every_registered_name(call: Callable[..., Outcome], kind: str) -> None:
    code, out, err = call("list", kind)
    assert (code, err) == (0, "")
    first = [line.split(" ")[0] for line in out.splitlines()]
    assert first[0] == kind
    names = [word for word in first[1:] if word]
    assert names == registry.names(cli.KINDS[kind])
    for _, line, source in registry.describe(cli.KINDS[kind]):
        assert line
        assert not source or source.split()[0] in out


def test_an_unknown_list_is_refused(call: Callable[..., Outcome]) -> None:
    refused(call("list", "atacks"), "there is no list of 'atacks' (did you mean 'attacks'?)")


def test_version_and_usage(call: Callable[..., Outcome], spec: Path) -> None:
    assert call("--version") == (0, f"{__version__}\n", "")
    assert metadata.version("segaudit") == __version__
    for wrong in (["runn"], ["run"], ["run", str(spec), "--limit", "0"], ["run", str(spec), "--limt", "3"]):
        code, out, err = call(*wrong)
        assert code == 2
        assert out == ""
        assert "Usage" in err


def test_debug_shows_where(call: Callable[..., Outcome], spec: Path) -> None:
    code, _, err = call("--debug", "run", "nowhere.yaml")
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("segaudit: nowhere.yaml: cannot be read")


def test_a_fault_of_ours_is_one_line_and_status_1(
    call: Callable[..., Outcome], spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: Any) -> None:
        raise KeyError("first line\nsecond line")

    monkeypatch.setattr("segaudit.audit.run.claim", fault)
    code, out, err = call("run", str(spec))
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert err.startswith("segaudit: KeyError: ")
    assert "--debug" in err


def test_attack_writes_four_pictures_and_a_curve(call: Callable[..., Outcome], spec: Path, tmp_path: Path) -> None:
    code, out, err = call("attack", "images/p01.png", "--spec", str(spec), "--eps", "16/255")
    assert (code, err) == (0, "")
    names = ["adversarial.png", "after.png", "before.png", "curve.csv", "perturbation.png"]
    assert sorted(path.name for path in (tmp_path / "attack").iterdir()) == names
    assert sorted(out.splitlines()[-5:]) == [f"attack/{name}" for name in names]
    refused(call("attack", "images/p01.png", "--spec", str(spec), "--eps", "8"), "did you mean unit: 1/255?")
    refused(call("attack", "images/p99.png", "--spec", str(spec)), "images/p99.png: there is no such file")


def test_as_a_process_of_its_own_with_two_workers(spec: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", "-m", "segaudit.cli", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    (entry,) = metadata.entry_points(group="console_scripts", name="segaudit")
    assert entry.load() is cli.main
    write_pictures(tmp_path, 10)
    done = run("run", "spec.yaml", "--workers", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "runs/small/report/index.html\n"
    truncated_image(tmp_path)
    wrong = run("run", "spec.yaml", "--workers", "1", "--out", "other")
    refused((wrong.returncode, wrong.stdout, wrong.stderr), "p04.png: this picture cannot be read")
