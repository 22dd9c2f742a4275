"""The key of what is computed: a digest of all that decides it, and of nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from segaudit import registry
from segaudit.audit.parts import ModelSpec, Part
from segaudit.audit.spec import RunSpec
from segaudit.paths import expand

VICTIM = "segaudit.audit.membership.joint:victim"
"""The source of a model that a membership experiment has trained."""


@dataclass(frozen=True)
class Contents:
    """Digests of what a spec only points at: the chosen images with their masks, each model's tensors by title, and
    the images that attacks are fitted on by the attack's label. opaque: the titles of models without a gradient.
    random: the labels of defenses that draw anew in every pass."""

    data: str = ""
    models: Mapping[str, str] = field(default_factory=dict)
    fits: Mapping[str, str] = field(default_factory=dict)
    opaque: frozenset[str] = frozenset()
    random: frozenset[str] = frozenset()


def key_of(
    spec: RunSpec, ids: Sequence[str], contents: Contents, model: ModelSpec, defense: Part, own: Mapping[str, Any]
) -> str:
    """The key of what is computed of a model behind a defense on these images; own: all else that decides it."""
    content = {
        "data": data_content(spec.data) | {"content": contents.data},
        "ids": digest(list(ids)),
        "seed": spec.seed,
        "model": model_content(model, contents),
        "defense": part_content("defense", defense),
    }
    return shortened({**content, **own})


def shortened(content: Any) -> str:
    """The digest of a content as keys have it, 20 characters long."""
    return digest(content)[:20]


def digest(content: Any) -> str:
    """Of what JSON can hold, the same in whatever order its keys are written."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def part_content(kind: str, part: Part) -> dict[str, Any]:
    """A part with the content of a user's own file and of those that its arguments name, so that an edit makes a new
    cell."""
    path = registry.source_file(part.name)
    inside = (
        [part_content(kind, Part.model_validate(own)) for own in part.args["parts"]] if part.name == "chain" else []
    )
    named = _named(part.args) if kind != "data" else []
    return (
        part.model_dump(mode="json")
        | ({"file": code_digest(path)} if path else {})
        | ({"parts": inside} if inside else {})
        | ({"files": named} if named else {})
    )


def data_content(part: Part) -> dict[str, Any]:
    """A data set without its root: where the images lie decides nothing."""
    made = part_content("data", part)
    made["args"].pop("root", None)
    return made


def model_content(model: ModelSpec, contents: Contents) -> dict[str, Any]:
    """A model without its label and where its weights lie, with its tensors, the code of a user's own file and the
    content of the files that its arguments name."""
    code = [registry.source_file(name) for name in (model.source, model.name)]
    digests = [code_digest(path) for path in code if path is not None]
    digests += _named(model.args)
    own = {"files": digests, "content": contents.models.get(model.title())}
    made = model.model_dump(mode="json", exclude={"label", "weights"}) | own
    if model.source == VICTIM:
        made["args"] = {key: value for key, value in made["args"].items() if key != "store"}
    return made


@lru_cache(maxsize=64)
def code_digest(path: Path) -> str:
    """Of a file of code, once a process: that is how often it is imported."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"  # said when it is loaded


def _named(args: Mapping[str, Any]) -> list[str]:
    """The digests of the files that arguments name."""
    named = [expand(value) for value in args.values() if isinstance(value, str) and value]
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in named if path.is_file()]
