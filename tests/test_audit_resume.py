"""A run that is killed, or asked for more, goes on from what is finished."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import save_file

from audit_kit import (
    assert_same,
    audit,
    content,
    parts_of,
    run_in_process,
    save_spec,
    small,
    two_models,
)
from segaudit.audit.run import results
from segaudit.audit.store import Store
from segaudit.metrics.confusion import miou
from segaudit.registry import load
from segaudit.types import UserError

SLOW = [{"name": "pgd", "steps": 80, "norm": "l2"}]
"""Slow enough to be killed in."""


OWN = """
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn


class Shifted(nn.Module):
    def __init__(self):
        super().__init__()
        path = Path(__file__).with_suffix(".safetensors")
        self.shift = nn.Parameter(load_file(path)["shift"])

    def forward(self, x):
        return 12 * x + self.shift.view(3, 1, 1)


def build():
    return Shifted()
"""
"""A user's net that opens its weights by itself."""


def cells(out: Path) -> int:
    """The number of finished parts."""
    return len(list((out / "cells").glob("*/part-*.parquet")))


def killed(spec: Path, out: Path, workers: int, after: int, whole_group: bool = True) -> list[psutil.Process]:
    """Run a spec in processes of its own and SIGKILL them once so many parts are finished.

    Returns the workers that have not ended a minute later; by then they have, by force.
    """
    process = subprocess.Popen(run_in_process(spec, out, workers), start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while cells(out) < after:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(random.random() * 0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        if whole_group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    finally:
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert len(children) >= workers - 1
    _, alive = psutil.wait_procs(children, timeout=60)
    for child in alive:
        child.kill()
    return alive


def computed(out: Path) -> list[int]:
    """What each session says that it computed."""
    return [session["computed"] for session in json.loads((out / "log.json").read_text())["sessions"]]


def test_a_run_killed_at_any_moment_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    over: dict[str, Any] = {"models": two_models(tmp_path), "attacks": SLOW, "transfer": True}
    spec = small(tmp_path, 20, **over)
    whole = audit(spec, tmp_path / "whole")
    total = cells(tmp_path / "whole")
    assert total == 3 * (2 * 3 + 2 * 2)
    assert computed(tmp_path / "whole") == [total]

    path, out = save_spec(tmp_path / "spec.yaml", content(tmp_path, **over)), tmp_path / "out"
    finished: dict[str, tuple[int, int]] = {}
    for workers, after in ((1, 3), (2, 8), (2, 13)):
        killed(path, out, workers, after)
        now = parts_of(out)
        assert now.items() >= finished.items(), "a finished part was written again"
        finished = now
    done = cells(out)
    assert 13 <= done < total
    found = audit(spec, out)

    assert parts_of(out).items() >= finished.items(), "a finished part was written again"
    assert computed(out)[-1] == total - done
    assert len(computed(out)) == 4
    assert sum(computed(out)) <= total + 1 + 2 + 2
    assert_same(found, whole)
    assert [miou(r.counts) for _, r in found.cells] == [miou(r.counts) for _, r in whole.cells]
    assert found.pictures.keys() == whole.pictures.keys()
    for cell, kept in found.pictures.items():
        for one, other in zip(kept, whole.pictures[cell], strict=True):
            assert one.id == other.id
            assert one.delta.tobytes() == other.delta.tobytes()
            assert one.prediction.tobytes() == other.prediction.tobytes()


def test_no_worker_outlives_a_run_that_was_killed(tmp_path: Path) -> None:
    small(tmp_path, 20)
    path = save_spec(tmp_path / "spec.yaml", content(tmp_path, attacks=[{"name": "pgd", "steps": 2000}]))
    assert killed(path, tmp_path / "out", 2, 1, whole_group=False) == []


@pytest.mark.parametrize("method", ["write_pictures", "write_records"])
def test_a_crash_around_the_write_of_a_part_leaves_nothing_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    spec = small(tmp_path, models=two_models(tmp_path), transfer=True)
    whole = audit(spec, tmp_path / "whole")
    write, calls = getattr(Store, method), []

    def crash(self: Store, *args: Any) -> None:
        calls.append(args)
        if len(calls) == 3:
            raise UserError("the disk is full")
        write(self, *args)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Store, method, crash)
        with pytest.raises(UserError, match="the disk is full"):
            audit(spec, out)
    before, done = parts_of(out), cells(out)
    assert 0 < done < cells(tmp_path / "whole")
    assert computed(out) == [done]
    assert json.loads((out / "log.json").read_text())["sessions"][0]["finished"] is None
    partial = results(str(out))
    assert len(partial.cells) == done
    assert partial.lacking == cells(tmp_path / "whole") - done
    assert_same(audit(spec, out), whole)
    assert parts_of(out).keys() >= before.keys()
    assert results(str(out)).lacking == 0
    assert computed(out) == [done, cells(out) - done]


def test_an_added_eps_computes_only_its_own_cells(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = audit(small(tmp_path, 20), out)
    before, done = parts_of(out), cells(out)
    more = audit(small(tmp_path, eps=["4/255", "8/255", "16/255"]), out)
    assert parts_of(out).items() >= before.items()
    assert computed(out) == [done, 2 * 3]
    assert [cell for cell, _ in more.cells if cell.eps != 8 / 255] == [cell for cell, _ in first.cells]
    again = audit(small(tmp_path, eps=["4/255", "8/255", "16/255"]), out)
    assert_same(again, more)
    assert computed(out) == [done, 2 * 3, 0]
    assert_same(audit(small(tmp_path), out), first)
    assert computed(out)[-1] == 0


def test_pictures_asked_for_later_are_made_for_the_cells_that_lack_them(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = audit(small(tmp_path, 20), out)
    before = parts_of(out)
    moved = audit(small(tmp_path, pictures={"images": 3, "eps": "4/255"}), out)
    assert_same(moved, first)
    assert {cell.eps for cell in first.pictures} == {0.0, 16 / 255}
    assert {cell.eps for cell in moved.pictures} == {0.0, 4 / 255}
    assert {len(kept) for kept in moved.pictures.values()} == {3}
    at_16 = {cell.eps: key for key, cell in _keys(out).items()}[16 / 255]
    now = parts_of(out)
    assert {name: stat for name, stat in before.items() if at_16 in name}.items() <= now.items()


def test_weights_that_changed_within_a_process_are_read_again(tmp_path: Path) -> None:
    small(tmp_path)
    weights = tmp_path / "net.safetensors"
    models = [{**two_models(tmp_path)[0], "label": "net", "weights": str(weights)}]
    build = load("model", two_models(tmp_path)[0]["name"])
    found = []
    for seed in (0, 1):
        save_file(build(seed).state_dict(), weights)
        found.append(audit(small(tmp_path, models=models), tmp_path / "out"))
    assert_same(found[1], audit(small(tmp_path, models=models), tmp_path / "fresh"))
    first, second = (miou(results.cells[0][1].counts) for results in found)
    assert first != second


def test_pictures_and_weights_replaced_under_their_names_are_computed_anew(tmp_path: Path) -> None:
    spec, out = small(tmp_path), tmp_path / "out"
    (tmp_path / "own.py").write_text(OWN)
    save_file({"shift": torch.zeros(3)}, tmp_path / "own.safetensors")
    spec = small(tmp_path, models=[{"source": "python", "name": f"{tmp_path}/own.py:build"}])
    total = 5
    audit(spec, out)
    assert computed(out) == [total]
    save_file({"shift": torch.tensor([9.0, 0, 0])}, tmp_path / "own.safetensors")
    audit(spec, out)
    assert computed(out)[-1] == total
    (tmp_path / "images" / "p00.png").write_bytes((tmp_path / "images" / "p01.png").read_bytes())
    assert_same(audit(spec, out), audit(spec, tmp_path / "fresh"))
    assert computed(out)[-1] == total
    moved = tmp_path / "moved"
    moved.mkdir()
    for folder in ("images", "masks"):
        (tmp_path / folder).rename(moved / folder)
    data = spec.data.model_copy(update={"args": spec.data.args | {"root": str(moved)}})
    audit(spec.model_copy(update={"data": data}), out)
    assert computed(out)[-1] == 0


FUNCTION = """
from pathlib import Path

import numpy as np


def build(path):
    weight = float(Path(path).read_text())
    return lambda images: (weight * (images - 0.5)).astype(np.float32)
"""
"""A user's function with a parameter in a file that an argument names."""


def test_a_file_that_an_argument_of_a_model_names_is_in_the_key(tmp_path: Path) -> None:
    small(tmp_path)
    (tmp_path / "own.py").write_text(FUNCTION)
    (tmp_path / "weight.txt").write_text("12")
    model = {"source": "python", "name": f"{tmp_path}/own.py:build", "args": {"path": str(tmp_path / "weight.txt")}}
    spec, out = small(tmp_path, models=[model], attacks=[{"name": "square", "steps": 2}]), tmp_path / "out"
    audit(spec, out)
    audit(spec, out)
    (tmp_path / "weight.txt").write_text("-12")
    audit(spec, out)
    assert computed(out) == [3, 0, 3]


def test_transfer_asked_for_later_gives_what_it_would_have_given_at_once(tmp_path: Path) -> None:
    models = two_models(tmp_path)
    audit(small(tmp_path, models=models), tmp_path / "out")
    later = audit(small(tmp_path, models=models, transfer=True), tmp_path / "out")
    assert_same(later, audit(small(tmp_path, models=models, transfer=True), tmp_path / "at-once"))


def test_a_limit_is_another_set_of_images_in_the_same_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    spec = small(tmp_path, 20)
    fewer = spec.model_copy(update={"data": spec.data.model_copy(update={"args": spec.data.args | {"limit": 4}})})
    assert {len(records) for _, records in audit(fewer, out).cells} == {4}
    assert {len(records) for _, records in audit(spec, out).cells} == {20}
    assert computed(out) == [5, 15]


def _keys(out: Path) -> dict[str, Any]:
    from segaudit.types import Cell

    return {job["key"]: Cell(**job["cell"]) for job in json.loads((out / "plan.json").read_text())["jobs"]}
