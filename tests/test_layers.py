"""The rooms import as the design says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """import-linter with the contracts of a folder's pyproject.toml on the package in its src."""
    paths = os.pathsep.join([str(folder / "src"), *(p for p in sys.path if p)])
    return subprocess.run(
        [sys.executable, "-c", LINT, "--no-cache"],
        cwd=folder, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_contracts_are_kept() -> None:
    found = lint(ROOT)
    assert found.returncode == 0, found.stdout
    assert "2 kept, 0 broken" in found.stdout


def test_a_broken_contract_is_seen(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "src" / "segaudit" / "attacks" / "pgd.py").open("a") as file:
        file.write("\nfrom segaudit.models import wrap\n")
    with (tmp_path / "src" / "segaudit" / "types" / "rows.py").open("a") as file:
        file.write("\nfrom segaudit import registry\n")
    found = lint(tmp_path)
    assert found.returncode == 1
    assert "0 kept, 2 broken" in found.stdout
    assert "segaudit.attacks is not allowed to import segaudit.models" in found.stdout
    assert "segaudit.types is not allowed to import segaudit.registry" in found.stdout
