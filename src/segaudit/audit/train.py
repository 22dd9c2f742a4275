"""`segaudit train`: a spec -> a trained network with its card."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from segaudit import __version__, registry
from segaudit.audit import build
from segaudit.audit.parts import ModelSpec, Part, Real, Strict, Tuned
from segaudit.models import weights
from segaudit.models.wrap import Wrapped
from segaudit.training import loop
from segaudit.types import UserError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


class Sets(Strict):
    """The images to train on, and the ones to score on."""

    train: Part
    val: Part | None = None


class TrainSpec(Strict):
    """What `segaudit train` was asked for; the meaning of each number is `training.loop.Schedule`'s."""

    name: str
    model: ModelSpec
    data: Sets
    recipe: Tuned = Tuned(name="standard")
    epochs: int = Field(60, ge=1)
    batch: int = Field(8, ge=1)
    lr: Real = 1e-3
    weight_decay: Real = 1e-2
    warmup: Real = 0.1
    clip: Real = 5.0
    validate_every: int = Field(5, ge=1)
    workers: int = Field(0, ge=0)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    augment: dict[str, Any] = Field(default_factory=dict)
    save_as: Literal["fp32", "fp16"] = "fp32"
    seed: int = 0


def train(
    spec: TrainSpec, folder: Path, tell: Callable[[loop.Progress], None] = lambda _: None
) -> tuple[Path, dict[str, float]]:
    """Train the network of a spec; returns the weights' path (`folder/model.safetensors`) and the held-out score.

    The score is that of the weights as they were saved and read again. The same call resumes from the last epoch;
    a folder that holds another spec's training is refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    asked = spec.model_dump(mode="json")
    note = folder / "train.json"
    if note.exists() and json.loads(note.read_text()) != asked:
        raise UserError(f"{folder} holds the training of another spec; give another --out, or remove it")
    note.write_text(json.dumps(asked, indent=1))
    registry.check_arguments("recipe", spec.recipe.name, spec.recipe.args, handed=("model", "batch", "rng"))
    samples = build.dataset(spec.data.train)
    held_out = build.dataset(spec.data.val) if spec.data.val else None
    model = build.model(spec.model, samples.class_names, spec.seed)
    recipe = partial(registry.load("recipe", spec.recipe.name), **spec.recipe.args)
    fields = loop.Schedule.__dataclass_fields__
    schedule = loop.Schedule(**{key: value for key, value in spec if key in fields})
    began = time.perf_counter()
    loop.fit(model, samples, held_out, recipe, schedule, folder, tell)
    if not isinstance(model, Wrapped):
        raise UserError(f"model {spec.model.name!r}: only a network that segaudit wraps can be saved with its card")
    preprocess: dict[str, Any] = {"mean": model.mean.flatten().tolist(), "std": model.std.flatten().tolist()}
    preprocess |= {"scale": model.scale, "order": model.order, "stride": model.stride}
    card: dict[str, Any] = {
        "model": asked["model"] | {"preprocess": preprocess, "weights": None},
        "class_names": list(model.class_names),
        "training": asked,
        "versions": {"segaudit": __version__, "torch": str(torch.__version__), "numpy": np.__version__},
        "device": str(next(model.parameters()).device),
        "seconds": round(time.perf_counter() - began),
    }
    path = folder / "model.safetensors"
    weights.write(model.net, path, card, DTYPES[spec.save_as])
    score: dict[str, float] = {}
    if held_out is not None:
        weights.fill(model.net, weights.read(path)[0], path)
        score = loop.evaluate(model, held_out, spec.batch)
        weights.write(model.net, path, card | {"score": score, "images": len(held_out.ids)}, DTYPES[spec.save_as])
    return path, score
