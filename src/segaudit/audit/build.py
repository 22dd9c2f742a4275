"""From the parts of a spec to the things themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from segaudit import registry
from segaudit.audit.parts import ModelSpec, Part
from segaudit.data.base import Dataset
from segaudit.models import build as models
from segaudit.models import purifiers
from segaudit.models.wrap import Wrapped
from segaudit.types import Segmenter, UserError

WEIGHTS = ("denoiser", "purifier", "generator", "siamese")
"""The arguments of a defense, a detector or an attack that are a trained purifier; a spec has its weights' path."""


def dataset(part: Part) -> Dataset:
    """The data set of a part. Raises UserError for a wrong argument or a missing tree."""
    registry.check_arguments("data", part.name, part.args)
    made = registry.load("data", part.name)(**part.args)
    if not isinstance(made, Dataset):
        raise UserError(f"data {part.name!r} gave a {type(made).__name__}, not a segaudit.data.base.Dataset")
    return made


def model(spec: ModelSpec, class_names: Sequence[str], seed: int = 0) -> Segmenter:
    """The Segmenter of a spec for these classes; seed: of the weights that are not loaded."""
    return models.build(
        spec.source,
        spec.name,
        class_names,
        args=spec.args,
        weights=spec.weights,
        preprocess=spec.preprocess,
        outputs=spec.outputs,
        class_map=spec.class_map,
        seed=seed,
    )


def defended(model: Segmenter, defense: Part) -> Segmenter:
    """The model behind a defense."""
    registry.check_arguments("defense", defense.name, defense.args, handed=("model",))
    made = registry.load("defense", defense.name)(model, **handed(defense.name, defense.args))
    if not isinstance(made, Segmenter):
        raise UserError(f"defense {defense.name!r} gave a {type(made).__name__}, not a Segmenter")
    return made


def handed(name: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """A part's arguments, with the network itself where a spec has the path of its weights (`WEIGHTS`), in a chain too.

    A part of a user's own gets what was written. Raises UserError for weights that are not a purifier's.
    """
    made = dict(args)
    for key in WEIGHTS:
        if ":" not in name and isinstance(made.get(key), str):
            made[key] = purifiers.load_purifier(made[key])
    if name == "chain" and isinstance(made.get("parts"), list):
        made["parts"] = [_inside(part) for part in made["parts"]]
    return made


def _inside(part: Any) -> Any:
    if not isinstance(part, Mapping) or not isinstance(part.get("name"), str):
        return part  # which the chain refuses, unless it is a plain name
    own = Part.model_validate(part)
    return {"name": own.name, "args": handed(own.name, own.args)}


def purifier(spec: ModelSpec, shape: Sequence[int], classes: int, seed: int = 0) -> purifiers.Purifier:
    """The purifier of a training spec for images of a shape C x H x W in so many classes.

    seed: of the weights that are not loaded. Raises UserError for what does not fit, and for what only a segmenter has.
    """
    for key in ("preprocess", "outputs", "class_map"):
        if getattr(spec, key):
            raise UserError(f"model: a purifier has no {key}; leave it out")
    return purifiers.build(spec.name, shape, classes, spec.args, spec.weights, seed)


def digest(model: nn.Module) -> str:
    """Of a model's tensors and preprocessing, wherever they were read from; what it keeps elsewhere is not in it."""
    made = hashlib.sha256()
    for module in model.modules():
        if isinstance(module, Wrapped):
            made.update(module.extra_repr().encode())
    for name, tensor in [*model.state_dict().items(), *model.named_buffers()]:
        if not isinstance(tensor, torch.Tensor):  # a module's own extra state
            made.update(f"{name} {tensor!r}".encode())
            continue
        made.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        made.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return made.hexdigest()
