"""From what a spec says of a model to a Segmenter."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from segaudit import registry
from segaudit.models import weights as files
from segaudit.models.wrap import Wrapped
from segaudit.types import Segmenter, UserError

PREPROCESS = ("mean", "std", "scale", "order", "stride")
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""The statistics that nearly all published networks were trained with, RGB in [0, 1]."""


@dataclass(frozen=True)
class Network:
    """What a model source gives: the network, and the preprocessing that belongs to its weights, where known.

    unused: the beginnings of keys that a weights file may hold though the network has no use for them.
    """

    net: nn.Module
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()


def build(
    source: str,
    name: str,
    class_names: Sequence[str],
    *,
    args: Mapping[str, Any] | None = None,
    weights: str | None = None,
    preprocess: Mapping[str, Any] | None = None,
    outputs: int | None = None,
    class_map: Mapping[int, int | None] | None = None,
    seed: int = 0,
) -> Segmenter:
    """The Segmenter of a model spec for data with these classes, frozen and in eval mode.

    source: a name of the registry's models. weights: a file for the network that the source builds; preprocessing
    that the spec leaves out is taken from the weights' card. seed: of the weights that are not loaded. Raises
    UserError for all that does not fit together.
    """
    args = args or {}
    registry.check_arguments("model", source, args, handed=("name", "outputs"))
    make = registry.load("model", source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # a network without weights is the same one in every process
        made = make(name, len(class_names) if outputs is None else outputs, **args)
    if isinstance(made, Segmenter):
        idle = {"weights": weights, "preprocess": preprocess or None, "outputs": outputs, "class_map": class_map}
        given = [key for key, value in idle.items() if value is not None]
        if given:
            raise UserError(f"model {name!r} is a Segmenter, which has its own {given[0]}; leave `{given[0]}` out")
        count = len(getattr(made, "class_names", ()))
        if count != len(class_names):
            raise UserError(f"model {name!r} has {count} class_names, but the data have {len(class_names)} classes")
        return made.eval().requires_grad_(False)
    if not isinstance(made, Network):
        raise UserError(f"model {name!r}: {source} gave a {type(made).__name__}, not a torch.nn.Module")
    known = dict(made.preprocess)
    if weights is not None:
        tensors, card = files.read(weights)
        files.fill(made.net, tensors, weights, made.unused)
        trained_on = tuple(card.get("class_names", class_names))
        if outputs is None and trained_on != tuple(class_names):
            raise UserError(
                f"weights: {weights} was trained for the classes {', '.join(trained_on)}, and the data have "
                f"{', '.join(class_names)}; give the model `outputs: {len(trained_on)}` and a class_map"
            )
        known |= card.get("model", {}).get("preprocess") or {}
    known |= preprocess or {}
    for key in known:
        if key not in PREPROCESS:
            raise UserError(f"model {name!r}: preprocess has no {key!r}{registry.suggest(str(key), PREPROCESS)}")
    return Wrapped(made.net, class_names, outputs=outputs, class_map=class_map, **known)


def reason(error: BaseException) -> str:
    """What another library's exception says, in one short line."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    line = text.partition("\n")[0]
    return f"{type(error).__name__}: {line[:300]}" if line else type(error).__name__


def where(function: Any, error: Exception) -> str:
    """file:line of the last step of an exception in the function's own file."""
    frames = traceback.extract_tb(error.__traceback__)
    file = getattr(inspect.getmodule(function), "__file__", None)
    inside = [frame for frame in frames if frame.filename == file] or frames
    return f"{inside[-1].filename}:{inside[-1].lineno}"
