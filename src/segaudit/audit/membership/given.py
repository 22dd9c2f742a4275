"""Victims that were trained elsewhere: which images they were trained on, and networks that are taken as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from segaudit.audit import build
from segaudit.audit.membership.split import Known
from segaudit.audit.membership.trainer import NetTrainer
from segaudit.audit.parts import ModelSpec, Part
from segaudit.data.base import Dataset
from segaudit.models import weights
from segaudit.nn.precision import default_device
from segaudit.paths import expand
from segaudit.registry import suggest
from segaudit.types import Segmenter, UserError

CUT = ("limit", "only")
"""Arguments of a data set that leave images out."""


def members(data: Dataset, part: Part, told: str | Mapping[str, Any]) -> Known:
    """The images of a data set that the victims were trained on, in its order, and the groups of all of them.

    told: a text file of ids, one a line (`#` begins a comment), or the arguments with which the same data set holds
    them, such as `{split: train}`. Raises UserError for ids that the data set does not have, unless it was cut, and
    where none is left.
    """
    where = told if isinstance(told, str) else " ".join(f"{key}: {value}" for key, value in told.items())
    ids = _listed(told) if isinstance(told, str) else _held(part, told)
    own, asked = set(data.ids), set(ids)
    strange = next((name for name in ids if name not in own), None)
    if strange is not None and not any(part.args.get(key) for key in CUT):
        near = suggest(strange, data.ids)
        raise UserError(
            f"membership: members ({where}) has the image {strange!r}{near}, and the pool, data {part.name!r}, has "
            "none of that id; the pool must hold members and others, as with `split: all`"
        )
    found = tuple(name for name in data.ids if name in asked)
    if not found:
        raise UserError(f"membership: members ({where}) has no image of the pool, data {part.name!r}; give its ids")
    whole = data if strange is None else build.dataset(Part(name=part.name, args=_uncut(part)))
    return Known(found, frozenset(group for group, names in whole.groups().items() if not asked.isdisjoint(names)))


def untrained(model: ModelSpec) -> ModelSpec:
    """The same architecture before its training, with the preprocessing that belongs to the weights."""
    card = {} if model.weights is None else weights.read(model.weights)[1]
    known = card.get("model", {}).get("preprocess") or {}
    return model.model_copy(update={"weights": None, "preprocess": known | model.preprocess})


def check(model: ModelSpec, class_names: Sequence[str]) -> None:
    """Raise UserError for a victim that has never been trained: it is another one with every seed."""
    one, other = (build.digest(build.model(model, class_names, seed)) for seed in (0, 1))
    if one != other:
        raise UserError(f"membership: victim {model.title()!r} has no weights; with `members` it is taken with its own")


class Taken(NetTrainer):
    """For a victim that is there already: a defense gets that where it asks for one that is trained as usual."""

    def fit(self, ids: Sequence[str], **changed: Any) -> Segmenter:
        """The victim, frozen. Raises UserError where a defense would have it trained otherwise."""
        if tuple(ids) != self.members or any(value is not None for value in changed.values()):
            raise UserError(
                "membership: a defense that trains the victim anew cannot be tried on one that was trained elsewhere; "
                "leave out the defense, or `members`"
            )
        model = self._fresh(None, seed=0).eval().requires_grad_(False)
        model.to(default_device())
        return model


def _listed(path: str) -> list[str]:
    try:
        lines = expand(path).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"membership: members: {path} cannot be read ({getattr(error, 'strerror', None) or error}); "
            "give a text file with an id a line, or arguments of the data such as {split: train}"
        ) from error
    return [name for line in lines if (name := line.partition("#")[0].strip())]


def _held(part: Part, told: Mapping[str, Any]) -> tuple[str, ...]:
    return build.dataset(Part(name=part.name, args=_uncut(part) | dict(told))).ids


def _uncut(part: Part) -> dict[str, Any]:
    return {key: value for key, value in part.args.items() if key not in CUT}
