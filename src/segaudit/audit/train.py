"""`segaudit train`: a spec -> a trained network with its card."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError, model_validator

from segaudit import registry
from segaudit.audit import build, log, parts
from segaudit.audit.learning import Learning
from segaudit.audit.parts import ModelSpec, Part, Strict
from segaudit.data.base import Dataset
from segaudit.models import purifiers, weights
from segaudit.models.purifiers import Purifier
from segaudit.models.wrap import Wrapped
from segaudit.paths import expand
from segaudit.training import loop
from segaudit.types import UserError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "int8": torch.int8}
RESUMED = "resumed_with"
"""What a card, and a training's note, calls what it was resumed with besides what it began with."""
UNREADABLE = "the card's start, data or files are no digests; give the training's spec (YAML) in place of the weights"


class Sets(Strict):
    """The images to train on, and the ones to score on."""

    train: Part
    val: Part | None = None


class TrainSpec(Learning):
    """What `segaudit train` was asked for."""

    name: str
    model: ModelSpec
    data: Sets
    validate_every: int = Field(5, ge=1)
    workers: int = Field(0, ge=0)
    save_as: Literal["fp32", "fp16", "int8"] = "fp32"
    seed: int = 0

    @model_validator(mode="after")
    def _fits(self) -> TrainSpec:
        self.recipe.check()
        if self.recipe.purifies != (self.model.source == purifiers.SOURCE):
            what, mend = (
                ("a purifier", "model: {source: purifier, name: residual}")
                if self.recipe.purifies
                else ("no purifier", "recipe: {name: denoise, sigma: [0, 0.25]}")
            )
            raise ValueError(f"recipe {self.recipe.name!r} trains {what}: give `{mend}`")
        if self.recipe.purifies:
            registry.check_arguments("purifier", self.model.name, self.model.args, purifiers.HANDED)
        if self.recipe.trains and self.model.name in set(registry.names("purifier")).difference(self.recipe.trains):
            known = " or ".join(self.recipe.trains)
            raise ValueError(f"recipe {self.recipe.name!r} trains {known}, not {self.model.name!r}")
        return self


def read(path: Path) -> TrainSpec:
    """A training spec from its YAML file, or from the card of the weights (.safetensors) that it made."""
    if path.suffix != ".safetensors":
        return parts.read(TrainSpec, path)
    card = card_of(path)
    if "training" not in card:
        raise UserError(f"{path} has no card that says how it was trained; give the training's spec (YAML)")
    try:
        return TrainSpec.model_validate(card["training"])
    except ValidationError as error:
        raise UserError(f"{path}: its card holds a spec that is none: {parts.faults(error)}") from error
    except UserError as error:
        raise UserError(f"{path}: its card holds a spec that is none: {error}") from error


def card_of(path: Path) -> dict[str, Any]:
    """The card of weights (.safetensors); nothing of any other file."""
    return weights.read(path)[1] if path.suffix == ".safetensors" else {}


def train(
    spec: TrainSpec,
    folder: Path,
    tell: Callable[[loop.Progress], None] = lambda _: None,
    card: Mapping[str, Any] | None = None,
) -> tuple[Path, dict[str, float]]:
    """Train the network of a spec; returns the weights' path (`folder/model.safetensors`) and the held-out score.

    The score is that of the weights as they were saved and read again. The same call resumes from the last epoch;
    a folder that holds another spec's training is refused. card: of weights that are to be made again. One line is
    logged where images, code or weights at the start are not those of the card, or of the training that is resumed: the
    card that is written has the digests of what the training began with, and under `resumed_with` those of the others.
    """
    asked, note, kept = spec.model_dump(mode="json"), folder / "train.json", folder / "contents.json"
    before, noted = _noted(note), _noted(kept)
    old, of_card = _digests(noted or {}, _spoilt(kept)), _digests(card or {}, UNREADABLE)
    if before is not None and not _same(before, asked):
        raise UserError(f"{folder} holds the training of another spec; give another --out, or remove it")
    schedule = spec.schedule()
    samples = build.dataset(spec.data.train)
    held_out = build.dataset(spec.data.val) if spec.data.val else None
    model = _model(spec, samples)
    net, start = model.net if isinstance(model, Wrapped) else model, build.digest(model)
    recipe = spec.recipe.make(samples, samples.class_names)
    judge = spec.recipe.judge(recipe)
    contents = _contents(spec, start, samples, held_out)
    resumed = (folder / "checkpoint.pt").exists()  # without one the network has seen nothing of what is noted
    first, which = (old, "that this training began with") if resumed and noted else (of_card, "of the card")
    if others := _others(first, contents):
        logging.getLogger(__name__).warning(
            f"segaudit: {folder}: {', '.join(others)}: not those {which}, so the network or its score will be another"
        )
    began = _resumed(noted or {}, contents) if resumed else contents
    folder.mkdir(parents=True, exist_ok=True)
    _keep(note, asked)
    _keep(kept, began)
    loop.fit(model, samples, held_out, recipe, schedule, folder, tell, judge)
    seconds = round(sum(line["seconds"] for line in loop.history(folder)))
    made = began | _card(spec, model) | {"seconds": seconds} | spec.recipe.promise(recipe, samples.ids, schedule)
    path = folder / "model.safetensors"
    weights.write(net, path, made, DTYPES[spec.save_as])
    score: dict[str, float] = {}
    if held_out is not None:
        weights.fill(net, weights.read(path)[0], path)
        score = judge(model, held_out, spec.batch)
        weights.write(net, path, made | {"score": score, "images": len(held_out.ids)}, DTYPES[spec.save_as])
    return path, score


def _model(spec: TrainSpec, samples: Dataset) -> Wrapped | Purifier:
    """What is trained, with its weights at the start."""
    if spec.recipe.purifies:
        shape = samples.sample(samples.ids[0])[0].shape
        return build.purifier(spec.model, shape, len(samples.class_names), spec.seed)
    model = build.model(spec.model, samples.class_names, spec.seed)
    if not isinstance(model, Wrapped):
        raise UserError(f"model {spec.model.name!r}: only a network that segaudit wraps can be saved with its card")
    return model


def _own(spec: TrainSpec, model: Wrapped | Purifier) -> dict[str, Any]:
    """What it takes to build the network again."""
    if isinstance(model, Purifier):
        return {"model": purifiers.card_of(model)}
    preprocess: dict[str, Any] = {"mean": model.mean.flatten().tolist(), "std": model.std.flatten().tolist()}
    preprocess |= {"scale": model.scale, "order": model.order, "stride": model.stride}
    asked = spec.model.model_dump(mode="json") | {"preprocess": preprocess, "weights": None}
    return {"model": asked, "class_names": list(model.class_names)}


def _card(spec: TrainSpec, model: Wrapped | Purifier) -> dict[str, Any]:
    """What it takes to build the network again, and to train it again: a spec, and where it was trained."""
    session = log.session("train", spec.precision)
    return _own(spec, model) | {
        "training": spec.model_dump(mode="json"),
        "versions": session.packages,
        "device": session.device,
        "machine": session.machine,
        "precision": session.precision,
        "threads": torch.get_num_threads(),
    }


def _contents(spec: TrainSpec, start: str, samples: Dataset, held_out: Dataset | None) -> dict[str, Any]:
    """Digests of all that a spec only names. start: that of the weights at the start."""
    sets = {"train": samples} | ({"val": held_out} if held_out else {})
    data = {key: {"images": len(one.ids), "digest": one.digest()} for key, one in sets.items()}
    return {"start": start, "data": data, "files": _files(spec)}


def _resumed(noted: Mapping[str, Any], contents: Mapping[str, Any]) -> dict[str, Any]:
    """What is noted of a training, and what else than it began with it is resumed with, once each."""
    began = {key: value for key, value in noted.items() if key != RESUMED}
    others = noted.get(RESUMED, [])
    if contents not in (began, *others):
        others = [*others, contents]
    return began | ({RESUMED: others} if others else {})


def _digests(contents: Mapping[str, Any], fault: str) -> dict[str, str]:
    """The digest of each thing in `_contents`, by what it is called. Raises UserError(fault) for another shape."""
    start, data, files = contents.get("start"), contents.get("data", {}), contents.get("files", {})
    whole = isinstance(data, Mapping) and isinstance(files, Mapping) and isinstance(contents.get(RESUMED, []), list)
    if not whole or not all(isinstance(one, Mapping) for one in data.values()):
        raise UserError(fault)
    made = {} if start is None else {"weights at the start": start}
    made |= {f"images of data.{key}": one.get("digest") for key, one in data.items()} | dict(files)
    if not all(isinstance(digest, str) for digest in made.values()):
        raise UserError(fault)
    return made


def _others(before: Mapping[str, str], contents: Mapping[str, Any]) -> list[str]:
    """What has another digest now than before, of what has one in both."""
    return [name for name, digest in _digests(contents, "").items() if before.get(name) not in (None, digest)]


def _files(spec: TrainSpec) -> dict[str, str]:
    """The digest of each file of a user's own code that the spec names, and of the weights of a recipe's parts."""
    named = [spec.model.source, spec.model.name, spec.recipe.name, spec.data.train.name]
    own = spec.recipe.parts()
    named += [part.name for part in (spec.data.val, *own) if isinstance(part, Part)]
    others = [part for part in own if isinstance(part, ModelSpec)]
    named += [name for other in others for name in (other.source, other.name)]
    paths = {name: registry.source_file(name) for name in named}
    paths |= {other.weights: expand(other.weights) for other in others if other.weights is not None}
    given = [part.args.get(key) for part in own if isinstance(part, Part) for key in build.WEIGHTS]
    paths |= {path: expand(path) for path in given if isinstance(path, str)}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items() if path is not None}


def _noted(path: Path) -> dict[str, Any] | None:
    """A note in the folder of a training, None without it. Raises UserError for one that is no mapping."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(_spoilt(path)) from error
    if not isinstance(content, dict):
        raise UserError(_spoilt(path))
    return content


def _spoilt(path: Path) -> str:
    return f"{path} is no note of a training that is whole; give another --out, or remove the folder"


def _keep(path: Path, content: Mapping[str, Any]) -> None:
    """Write a note, which a kill leaves as it was."""
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(content, indent=1))
    os.replace(aside, path)


def _same(note: Mapping[str, Any], asked: dict[str, Any]) -> bool:
    """Whether a folder's note asks for the same; a key that the note is too old for has its default."""
    try:
        return TrainSpec.model_validate(note).model_dump(mode="json") == asked
    except (ValidationError, UserError):
        return False
