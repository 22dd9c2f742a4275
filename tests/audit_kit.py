"""Small things to audit: a folder of pictures, a user's net in a file, a spec, and how two runs are compared."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from segaudit.audit.execute import Executor, local
from segaudit.audit.run import results, run
from segaudit.audit.spec import RunSpec
from segaudit.types import VOID, Counts, Norms, Records, Results

CLASSES = ["red", "green", "blue"]
NET = '''
import torch
from torch import nn


class Net(nn.Module):
    """The brightest channel, disturbed by random features: right on clean pictures, and easy to fool."""

    def __init__(self, seed):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
            self.head = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        return 12 * x + 4 * self.head(self.features(4 * x - 2))


def build(seed=0):
    return Net(seed)


def broken():
    net = Net(0)
    net.head.bias.data[0] = float("nan")
    return net
'''


def write_pictures(root: Path, count: int = 6, size: tuple[int, int] = (32, 40), suffix: str = ".png") -> Path:
    """`images/` and `masks/` of blocks in three noisy colours, with a void border; returns root."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        rng = np.random.default_rng(i)
        mask = rng.integers(0, 3, (size[0] // 8, size[1] // 8), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        image = 90 + 60 * (mask[..., None] == np.arange(3)) + rng.normal(0, 12, (*mask.shape, 3))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / f"p{i:02d}{suffix}")
        mask[:2] = VOID
        Image.fromarray(mask).save(root / "masks" / f"p{i:02d}.png")
    return root


def write_net(folder: Path) -> Path:
    """The user's file with the net."""
    path = folder / "user_net.py"
    path.write_text(NET)
    return path


def content(folder: Path, **over: Any) -> dict[str, Any]:
    """A spec on a folder in which pictures and net have been written, as its file would hold it."""
    made: dict[str, Any] = {
        "name": "small",
        "data": {"name": "folder", "root": str(folder), "classes": CLASSES},
        "models": [{"source": "python", "name": f"{folder}/user_net.py:build", "label": "net"}],
        "attacks": ["fgsm", {"name": "pgd", "steps": 3}],
        "eps": ["4/255", "16/255"],
        "pictures": {"images": 2, "eps": "16/255"},
        "precision": "fp32",
        "diagnostics": False,
    }
    return {key: value for key, value in (made | over).items() if value is not None}


def two_models(folder: Path) -> list[dict[str, Any]]:
    """Two nets of one file."""
    name = f"{folder}/user_net.py:build"
    return [{"source": "python", "name": name, "label": f"net{i}", "args": {"seed": i}} for i in range(2)]


def small(folder: Path, count: int = 6, **over: Any) -> RunSpec:
    """A spec with the pictures and the net that it asks for."""
    if not (folder / "images").exists():
        write_pictures(folder, count)
        write_net(folder)
    return RunSpec.model_validate(content(folder, **over))


def save_spec(path: Path, made: Mapping[str, Any]) -> Path:
    """A spec as a file."""
    path.write_text(yaml.safe_dump(dict(made), sort_keys=False))
    return path


def audit(spec: RunSpec, out: Path | str, executor: Executor | None = None) -> Results:
    """Run a spec and read the run back."""
    run(spec, str(out), executor or local(1), "a test")
    return results(str(out))


def by_name(found: Results) -> dict[tuple[str, str, str, str, float | None], Records]:
    """The records by (model, defense, threat, attack, eps)."""
    return {(c.model, c.defense, c.threat, c.attack, c.eps): records for c, records in found.cells}


def assert_same(first: Results, second: Results) -> None:
    """The same cells in the same order, and every column of their records but the seconds."""
    assert [cell for cell, _ in first.cells] == [cell for cell, _ in second.cells]
    for (cell, a), (_, b) in zip(first.cells, second.cells, strict=True):
        assert_same_records(a, b, str(cell))


def assert_same_records(
    a: Records, b: Records, where: str = "", skip: tuple[str, ...] = ("seconds", "scoring")
) -> None:
    """Every column but the skipped ones, exactly."""
    for field in fields(Records):
        if field.name in skip:
            continue
        one, other = getattr(a, field.name), getattr(b, field.name)
        assert type(one) is type(other), (where, field.name)
        if isinstance(one, (Counts, Norms)):
            for part in fields(one):
                _equal(getattr(one, part.name), getattr(other, part.name), f"{where} {field.name}.{part.name}")
        else:
            _equal(one, other, f"{where} {field.name}")


def _equal(one: Any, other: Any, where: str) -> None:
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype, where
    np.testing.assert_array_equal(one, other, err_msg=where)


def parts_of(out: Path) -> dict[str, tuple[int, int]]:
    """The finished parts of a run, with what changes when one is written again.

    Images are written before their records; a run killed between the two has not finished that part.
    """
    found = {}
    for path in sorted(out.glob("*/*/part-*.parquet")):
        if not (out / "cells" / path.parent.name / path.name).exists():
            continue
        stat = path.stat()
        found[str(path.relative_to(out))] = (stat.st_ino, stat.st_mtime_ns)
    return found


def run_in_process(spec: Path, out: Path, workers: int) -> list[str]:
    """The command that runs a spec without its page."""
    code = (
        "import sys\n"
        "from segaudit.audit import execute, parts, run, spec\n"
        "if __name__ == '__main__':\n"
        f"    run.run(parts.read(spec.RunSpec, {str(spec)!r}), {str(out)!r}, execute.local({workers}), 'a test')\n"
    )
    script = spec.with_suffix(f".{workers}.py")
    script.write_text(code)
    return [sys.executable, "-W", "error", str(script)]
