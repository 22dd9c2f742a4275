"""`segaudit membership`: flags of the study that the seven defenses are of, and the spec that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from segaudit import registry
from segaudit.types import UserError

SCENES = {"name": "scenes", "kind": "lesion", "split": "train"}
"""The images where none are given."""
TRAIN_SIZE = 100
"""How many of those are members, where that is not told."""
TRIGGER = ("line", 0.1, 1.0)
"""Trigger, size and value where none are given: nobody has asked for a poison by these."""


def spec_of(
    data: str,
    victim: str,
    shadow: str | None,
    train_size: int | None,
    defenses: Sequence[str],
    trigger: str,
    trigger_size: float,
    trigger_value: float,
    poison: float,
    size: int | None,
    epochs: int,
) -> dict[str, Any]:
    """The spec, as its file holds it; encoders are smp's, of U-Nets. Raises UserError for flags that make none.

    data: a name, or a mapping as a spec has it. An undefended victim, and one that is not poisoned, are always beside
    the others. trigger_size: pixels, or below 1 a share. trigger_value: of 0 to 255; up to 1, of 0 to 1.
    """
    try:
        part = yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise UserError(f"--data {data}: is not YAML; write a name, or {{name: kvasir, root: ...}}") from error
    part = {"name": part} if isinstance(part, str) else part
    if not isinstance(part, dict) or not isinstance(part.get("name"), str):
        raise UserError(f"--data {data}: write a name, or {{name: kvasir, root: ...}}")
    if part == {"name": "scenes"}:
        part, train_size = dict(SCENES), train_size or TRAIN_SIZE
        part["images"] = 5 * train_size
    if size is not None:
        part["size"] = [size, size]
    if not 0 <= poison <= 1:
        raise UserError(f"--poison must be a probability, from 0 to 1, not {poison:g}")
    if not 0 <= trigger_value <= 255:
        raise UserError(f"--triggerval must be from 0 to 255, not {trigger_value:g}")
    value = trigger_value / 255 if trigger_value > 1 else trigger_value
    whole = int(trigger_size) if trigger_size % 1 == 0 else trigger_size
    registry.load("trigger", trigger)
    poisons: list[Any] = ["none"]
    if not poison and (trigger, trigger_size, trigger_value) != TRIGGER:
        raise UserError("--triggertype, --triggersize and --triggerval are of a poison; give --poison too, such as 0.1")
    if poison:
        poisons.append({"trigger": trigger, "size": whole, "value": value, "probability": poison})
    block: dict[str, Any] = {
        "victim": [_unet(victim)],
        "shadow": _unet(shadow) if shadow and shadow != victim else None,
        "train_size": train_size,
        "references": 0,
        "training": {"recipe": {"name": "standard", "dice": 1.0}, "epochs": epochs},
        "attacks": ["type1", "type2", "global_loss"],
        "defenses": list(dict.fromkeys(["none", *defenses])),
        "poison": poisons,
    }
    name = f"membership-{part['name'].rpartition(':')[2]}-{victim}"
    return {"name": name, "data": part, "membership": {key: own for key, own in block.items() if own is not None}}


def write(made: dict[str, Any], out: str) -> Path:
    """Keep a spec beside the folder of its run (in this folder, where that is no folder here); returns its file.

    Raises UserError where there is a file already that is not the spec of an earlier time.
    """
    path = Path(f"{made['name']}.yaml" if "://" in out else f"{out.rstrip('/')}.yaml").expanduser()
    if path.exists() and f"name: {made['name']}" not in path.read_text(errors="replace").splitlines():
        raise UserError(f"{path} is the spec of something else, and stays as it is; give another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(made, sort_keys=False))
    return path


def _unet(encoder: str) -> dict[str, Any]:
    return {"source": "smp", "name": "Unet", "label": f"unet-{encoder}", "args": {"encoder_name": encoder}}
