"""Networks for an experiment, each trained once: what is in the store under the key of what it is trained on is it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from segaudit import registry
from segaudit.audit import build
from segaudit.audit.keys import Contents, code_digest, model_content, part_content, shortened
from segaudit.audit.membership.images import Chosen
from segaudit.audit.membership.kept import MEND
from segaudit.audit.membership.spec import Training
from segaudit.audit.parts import ModelSpec
from segaudit.audit.recipe import Recipe
from segaudit.audit.store import Store
from segaudit.models import weights
from segaudit.models.wrap import Wrapped
from segaudit.nn.precision import default_device, resolve
from segaudit.paths import expand
from segaudit.privacy.experiment import Samples
from segaudit.training import loop
from segaudit.types import Segmenter, UserError

VERSION = 1
"""Raised by hand when the code trains something else for the same key."""
AGAIN = "mend that and give the same command again: what is finished is kept"


class NetTrainer:
    """The `Trainer` of `privacy.experiment`, with a run's store behind it.

    facts: what defenses have noted. keys: of the networks that were asked for, one a call. seconds: of their trainings
    by key, wherever and whenever they were trained. known: the keys of an earlier time, which are then not worked out
    again: a key may hang on what a teacher answers, and that on the machine's arithmetic.
    """

    def __init__(
        self,
        store: Store,
        model: ModelSpec,
        class_names: tuple[str, ...],
        training: Training,
        seed: int,
        samples: Samples,
        members: tuple[str, ...],
        reference: tuple[str, ...],
        units: Mapping[str, str],
        known: Sequence[str] = (),
    ) -> None:
        self.samples, self.members, self.reference, self.units = samples, members, reference, units
        self.classes, self.args = len(class_names), training.recipe.args
        self.schedule = training.schedule(seed=seed, precision=resolve(training.precision, default_device()))
        self.facts: dict[str, float] = {}
        self.keys: list[str] = []
        self.seconds: dict[str, float] = {}
        self._store, self._model, self._class_names = store, model, class_names
        self._training, self._known = training, tuple(known)
        self._keys: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()

    def fit(
        self,
        ids: Sequence[str],
        *,
        recipe: str | None = None,
        args: Mapping[str, Any] | None = None,
        given: Mapping[str, Any] | None = None,
        adapt: str | None = None,
        samples: Samples | None = None,
        **schedule: Any,
    ) -> Segmenter:
        """The network that is named by all of this, frozen: from the store, or trained and kept there.

        A training that was ended goes on from its last epoch. Raises UserError for what does not fit together.
        """
        own = self._recipe(recipe, args, given or {})
        asked = self._training.schedule(**{"seed": self.schedule.seed, "precision": self.schedule.precision} | schedule)
        images = Chosen(self.samples if samples is None else samples, ids)
        model = self._fresh(adapt, asked.seed)
        key = self._found()
        if key is None:
            content = {
                "version": VERSION,
                "images": images.digest(),
                "model": model_content(self._model, Contents(models={self._model.title(): build.digest(model)})),
                "recipe": recipe_content(own),
                "schedule": asdict(asked),
                "adapt": _code(adapt),
                "given": {name: self._named(value, images) for name, value in (given or {}).items()},
            }
            key = shortened(content)
            with self._turn(key) as folder:
                if folder is not None:
                    made = partial(own.make(images, self._class_names), **given or {})
                    loop.fit(model, images, None, made, asked, folder)
                    self._keep(model, key, content, folder)
        card = self._fill(model, key)
        self._keys[model] = key
        self.keys.append(key)
        self.seconds[key] = float(card.get("seconds", 0.0))
        return model

    def note(self, **facts: float) -> None:
        """Numbers that a table prints beside the victim."""
        self.facts |= {name: float(value) for name, value in facts.items()}

    def _recipe(self, name: str | None, args: Mapping[str, Any] | None, given: Mapping[str, Any]) -> Recipe:
        own = self._training.recipe
        if name is None and args is None:
            return own
        changed = Recipe(name=name or own.name, args=dict(args or {}))
        changed.check(given)
        return changed

    def _fresh(self, adapt: str | None, seed: int) -> Segmenter:
        """The network before its training."""
        model = build.model(self._model, self._class_names, seed)
        return model if adapt is None else registry.load("membership_defense", adapt)(model)

    def _named(self, value: Any, images: Chosen) -> Any:
        """What decides a thing that a recipe is handed: a network by its key, and an id by itself and its image."""
        if isinstance(value, nn.Module):
            return self._keys.get(value) or build.digest(value)
        if isinstance(value, (tuple, list)):
            if value and all(isinstance(own, str) for own in value) and set(value) <= set(self.units):
                return [list(value), Chosen(images.samples, value).digest()]
            return [self._named(own, images) for own in value]
        return value

    def _found(self) -> str | None:
        """The key of an earlier time of this call's network, if that is still kept."""
        place = len(self.keys)
        key = self._known[place] if place < len(self._known) else None
        return key if key is not None and self._store.has(_place(key)) else None

    @contextlib.contextmanager
    def _turn(self, key: str) -> Iterator[Path | None]:
        """The folder to train a network in, on this machine, until it is kept; None where it is kept already.

        Whoever comes second waits for the first, where the system can lock files.
        """
        if self._store.has(_place(key)):
            yield None
            return
        local = "file" in self._store.files.protocol
        folder = Path(self._store.root, "nets") if local else _own_place()
        folder /= f"{key}.training"
        with _room(folder), _alone(folder / "lock"):
            yield None if self._store.has(_place(key)) else folder
            shutil.rmtree(folder, ignore_errors=True)

    def _keep(self, model: Segmenter, key: str, content: Mapping[str, Any], folder: Path) -> None:
        spec = self._model.model_dump(mode="json") | {"weights": None}
        if isinstance(model, Wrapped):
            own = {"mean": model.mean.flatten().tolist(), "std": model.std.flatten().tolist()}
            spec["preprocess"] = own | {"scale": model.scale, "order": model.order, "stride": model.stride}
        seconds = round(sum(line["seconds"] for line in loop.history(folder)), 1)
        card = {"model": spec, "class_names": list(self._class_names), "trained": content, "seconds": seconds}
        path = folder / "kept.safetensors"
        weights.write(_net(model), path, card)
        self._store.write(_place(key), path.read_bytes())

    def _fill(self, model: Segmenter, key: str) -> dict[str, Any]:
        """The kept weights into a network, so that one is the same whether it was trained here or not; its card."""
        with tempfile.TemporaryDirectory() as folder:
            path, place = Path(folder) / f"{key}.safetensors", f"{self._store.path}/{_place(key)}"
            path.write_bytes(self._store.read(_place(key)))
            try:
                tensors, card = weights.read(path)
            except UserError as error:
                raise UserError(f"{str(error).replace(str(path), place)}; {MEND}") from error
            weights.fill(_net(model), tensors, place)
        model.eval().requires_grad_(False)
        model.to(default_device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
        return card


def _place(key: str) -> str:
    return f"nets/{key}.safetensors"


@contextlib.contextmanager
def _room(folder: Path) -> Iterator[None]:
    """Make a folder to train in. Raises UserError where nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.filename is not None and not str(error.filename).startswith(str(folder)):
            raise  # of another file
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}); {AGAIN}") from error
    except RuntimeError as error:
        if "inline_container" not in str(error) or "Reader" in str(error):
            raise
        raise UserError(f"{folder}: a checkpoint cannot be written (no room is left?); {AGAIN}") from error


def _own_place() -> Path:
    """Where a user's networks are trained whose store is elsewhere: others on this machine have places of their own."""
    folder = Path(tempfile.gettempdir(), f"segaudit-{os.getuid() if hasattr(os, 'getuid') else 'nets'}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _net(model: Segmenter) -> nn.Module:
    return model.net if isinstance(model, Wrapped) else model


def recipe_content(recipe: Recipe) -> dict[str, Any]:
    """A recipe with its arguments, and the code and weights of the parts among them."""
    named = [part.weights for part in recipe.parts() if isinstance(part, ModelSpec) and part.weights is not None]
    files = [hashlib.sha256(path.read_bytes()).hexdigest() for path in map(expand, named) if path.is_file()]
    names = [name for part in recipe.parts() for name in (getattr(part, "source", None), part.name) if name is not None]
    code = [code_digest(path) for path in map(registry.source_file, names) if path is not None]
    own = {key: found for key, found in (("weights", files), ("code", code)) if found}
    return part_content("recipe", recipe) | own


def _code(name: str | None) -> Any:
    path = registry.source_file(name) if name else None
    return [name, code_digest(path)] if path else name


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock file, where the system can."""
    with contextlib.ExitStack() as stack:
        try:
            import fcntl
        except ImportError:  # not on Windows
            yield
            return
        file = stack.enter_context(path.open("w"))
        with contextlib.suppress(OSError):  # not on every network share
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
