"""Several defenses, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from segaudit import registry
from segaudit.defenses._check import whole
from segaudit.rng import is_random
from segaudit.types import Segmenter, UserError

Given = str | Mapping[str, Any]
"""A defense as a spec has it: `jpeg`, or `{name: jpeg, quality: 50}`."""


def chain(model: Segmenter, *, parts: Sequence[Given], eot: int | None = None) -> Segmenter:
    """Chain: several defenses, in the order in which the image meets them.

    parts: each written as it is on its own, `jpeg` or `{name: jpeg, quality: 50}`. eot: draws that an attack takes
    the mean gradient of, for a chain with a random part; null: those that the part asks for.
    Source: of our own; the idea of stacking transformations is that of Raff et al. 2019.
    """
    if not isinstance(parts, (list, tuple)) or not parts:
        raise UserError(
            f"defense 'chain': parts must be a list such as [jpeg, {{name: blur, sigma: 2}}], not {parts!r}"
        )
    made = model
    for part in reversed(parts):  # the first is the outermost
        name, own = _read(part)
        registry.check_arguments("defense", name, own, handed=("model",))
        made = registry.load("defense", name)(made, **own)
        if not isinstance(made, Segmenter):
            raise UserError(f"defense {name!r} gave a {type(made).__name__}, not a Segmenter")
    if eot is not None and whole("chain", "eot", eot, 1) > 1 and not is_random(made):
        raise UserError(f"defense 'chain': eot {eot} is for a chain with a random part; leave it out")
    return Chained(made, eot)


class Chained(Segmenter):
    """A model behind several defenses."""

    def __init__(self, model: Segmenter, eot: int | None) -> None:
        super().__init__()
        self.model, self.eot, self.class_names = model, eot, model.class_names

    def forward(self, images: Tensor) -> Tensor:
        """Logits N x K x H x W."""
        logits: Tensor = self.model(images)
        return logits

    def purified(self, images: Tensor) -> Tensor:
        """The images themselves: its parts are filters, or not."""
        return images


def _read(part: Given) -> tuple[str, dict[str, Any]]:
    if isinstance(part, str):
        return part, {}
    if not isinstance(part, Mapping) or not isinstance(part.get("name"), str):
        raise UserError(f"defense 'chain': a part is a name, or {{name: ..., and its arguments}}, not {part!r}")
    own = {key: value for key, value in part.items() if key != "name"}
    return part["name"], dict(own["args"]) if set(own) == {"args"} else own
