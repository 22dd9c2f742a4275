"""Paths as people write them."""

from __future__ import annotations

import os
from pathlib import Path

from segaudit.types import UserError


def expand(path: str | Path) -> Path:
    """`~` and `$VARIABLES` filled in. Raises UserError for a variable that is not set."""
    full = os.path.expandvars(path)
    if "$" in full:
        raise UserError(f"{path} names an environment variable that is not set")
    return Path(full).expanduser()
