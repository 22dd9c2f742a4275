"""Write docs/reference.md: every registered part with its arguments and its source."""

from __future__ import annotations

import inspect
from pathlib import Path

from segaudit import registry

HANDED = {"model", "images", "labels", "rng", "targeted", "batch", "outputs", "ids", "look_up"}
"""What most kinds of parts are handed beside the arguments of a spec; other kinds, something else."""
OTHERS: dict[str, set[str]] = {
    "data": set(),
    "guard": {"resizer", "rng"},
    "membership": {"experiment", "members", "rng"},
    "membership_defense": {"trainer"},
    "scaling": {"source", "target", "resizer", "noticed"},
    "scaling_detector": {"pictures", "resizer", "size"},
    "trigger": {"image", "labels", "rng", "victim"},
}


def reference() -> str:
    """The reference as markdown, from the docstrings and signatures of the registry."""
    lines = ["# Reference", "", "Made by `make docs` from the docstrings; do not edit.", ""]
    for kind, table in registry.TABLES.items():
        if not table:
            continue
        lines += [f"## {kind}", ""]
        for name in table:
            function = registry.load(kind, name)
            own = [
                f"{key}" if p.default is p.empty else f"{key}={p.default!r}"
                for key, p in inspect.signature(function).parameters.items()
                if key not in OTHERS.get(kind, HANDED) and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
            ]
            lines += [f"### {name}", "", f"`{name}({', '.join(own)})`", "", inspect.getdoc(function) or "", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    path = Path(__file__).parent / "reference.md"
    path.write_text(reference())
    print(path)
