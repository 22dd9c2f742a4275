"""Weights in and out: safetensors, or a checkpoint of plain tensors; never a pickle."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from segaudit.models._squeeze import squeezed, unfolded
from segaudit.paths import expand
from segaudit.types import UserError

CARD = "segaudit"
"""The key of the model card in a safetensors header."""
SHAPES = "squeezed"
"""The key of the shapes of squeezed tensors there."""
CONTAINERS = ("state_dict", "model", "model_state_dict", "net")
"""Where training scripts put the state_dict in a checkpoint."""
SCALE = "@scale"
"""Ends the key of what the 8-bit integers of a key are to be multiplied by."""


def read(where: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a weights file and its model card ({} where it has none).

    Raises UserError for a file that is missing, damaged, or holds more than tensors.
    """
    path = expand(where)
    if not path.is_file():
        raise UserError(f"weights: there is no file {path}")
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                card = json.loads((file.metadata() or {}).get(CARD, "{}"))
                if not isinstance(card, dict):
                    raise ValueError("its model card is not a mapping")
                shapes = json.loads((file.metadata() or {}).get(SHAPES, "{}"))
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                return _unpacked(unfolded(tensors, shapes)), card
        except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
            raise UserError(f"weights: {path} is not a whole safetensors file ({error})") from error
    try:
        with warnings.catch_warnings():  # torch warns of formats that it then refuses
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader raises whatever a damaged file drives it to
        found = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if found:
            raise UserError(
                f"weights: {path} holds more than tensors ({found[1]}), and loading it could run code; "
                "save the state_dict alone, best as safetensors"
            ) from error
        raise UserError(
            f"weights: {path} is not a checkpoint that torch can read; it is damaged, or of another format: "
            "save the state_dict again, best as safetensors"
        ) from error
    return _state(content, path), {}


def fill(net: nn.Module, tensors: Mapping[str, Tensor], path: str | Path, unused: Collection[str] = ()) -> None:
    """Load tensors into a network, every key and shape of it. Raises UserError that lists what does not match.

    unused: the beginnings of keys that may be in the file though the network lacks them.
    """
    own = net.state_dict()
    tensors = matched(net, tensors, path, unused)
    for key, value in tensors.items():
        if own[key].is_floating_point() and not value.is_floating_point():
            raise UserError(f"weights: {path}: {key} holds whole numbers without their scales")
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"weights: {path}: {key} holds NaN or infinite values; the training diverged")
    net.load_state_dict({key: value.to(own[key].dtype) for key, value in tensors.items()}, strict=False)


def matched(
    net: nn.Module, tensors: Mapping[str, Tensor], path: str | Path, unused: Collection[str] = ()
) -> dict[str, Tensor]:
    """Tensors by a network's own keys, of its shapes; it may be on the device `meta`. Raises UserError as `fill` does.

    What wrappers put before every key (`module.`, `model.`, `_orig_mod.`) is taken away.
    """
    own = net.state_dict()
    start = len(_wrapper(tensors, own))
    tensors = {key[start:]: value for key, value in tensors.items()}
    tensors = {key: value for key, value in tensors.items() if key in own or not key.startswith(tuple(unused))}
    missing = [key for key in own if key not in tensors and not key.endswith("num_batches_tracked")]
    extra = [key for key in tensors if key not in own]
    shapes = [
        f"{key} is {tuple(tensors[key].shape)}, not {tuple(own[key].shape)}"
        for key in own
        if key in tensors and tensors[key].shape != own[key].shape
    ]
    if missing or extra or shapes:
        faults = [_some("lacks", missing), _some("has besides", extra), _some("shapes:", shapes)]
        raise UserError(f"weights: {path} is of another network: {'; '.join(f for f in faults if f)}")
    return tensors


def write(net: nn.Module, path: Path, card: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> None:
    """Save a network as safetensors with its model card; floating-point tensors in `dtype`.

    int8: with a scale for each row of the first dimension; what has one dimension at most stays as it is. float16 and
    int8 are squeezed without loss, by a seventh and a tenth or so.
    """
    tensors: dict[str, Tensor] = {}
    for key, value in net.state_dict().items():
        value = value.detach().cpu()
        if not value.is_floating_point():
            tensors[key] = value
        elif dtype != torch.int8:
            tensors[key] = value.to(dtype)
        elif value.ndim < 2 or not value.numel():
            tensors[key] = value
        else:
            tensors[key], tensors[key + SCALE] = _packed(value.float())
    # cloned, as safetensors refuses two keys of one storage (tied weights)
    tensors, shapes = squeezed({key: value.contiguous().clone() for key, value in tensors.items()})
    facts = {CARD: json.dumps(card, sort_keys=True), "format": "pt"}
    facts |= {SHAPES: json.dumps(shapes, sort_keys=True)} if shapes else {}
    path.write_bytes(_ordered(save(tensors, metadata=facts)))


def _ordered(file: bytes) -> bytes:
    """The same safetensors file, its header in order of the keys: the library's is another one in every call."""
    start = 8 + int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + file[start:]


def _packed(value: Tensor) -> tuple[Tensor, Tensor]:
    """(integers, scales) of a tensor, a scale a row.

    A bfloat16 has so few bits that the products are exact in float32: what was read is packed the same again.
    """
    scale = (value.flatten(1).abs().amax(1) / 127).bfloat16()
    rows = scale.float().clamp_min(torch.finfo(torch.float32).tiny).view(-1, *[1] * (value.ndim - 1))
    return (value / rows).round().clamp(-127, 127).to(torch.int8), scale


def _unpacked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the integers that have scales multiplied by them."""
    scales = {key.removesuffix(SCALE): value.float() for key, value in tensors.items() if key.endswith(SCALE)}
    found = {key: value for key, value in tensors.items() if not key.endswith(SCALE)}
    for key, scale in scales.items():
        if key not in found or found[key].dtype != torch.int8 or found[key].shape[:1] != scale.shape:
            raise ValueError(f"the scales of {key} fit nothing in it")
        found[key] = found[key].float() * scale.view(-1, *[1] * (found[key].ndim - 1))
    return found


def _state(content: Any, path: Path) -> dict[str, Tensor]:
    for key in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"weights: {path} is not a state_dict (a mapping of names to tensors)")
    return dict(content)


def _wrapper(keys: Collection[str], own: Collection[str]) -> str:
    """What stands before every key, as far as taking it away makes the most keys the network's own."""
    first = next(iter(keys), "")
    starts = [first[: dot + 1] for dot in range(-1, len(first)) if dot < 0 or first[dot] == "."]
    shared = [start for start in starts if all(key.startswith(start) for key in keys)]
    return max(shared, key=lambda start: sum(key[len(start) :] in own for key in keys))


def _some(what: str, items: list[str]) -> str:
    shown = ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")
    return f"{what} {shown}" if items else ""
