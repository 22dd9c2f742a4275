"""A trainer for membership defenses: tiny nets, two epochs, a note of all that it was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from nets import KINDS
from segaudit import registry
from segaudit.audit.recipe import Recipe
from segaudit.training import loop
from segaudit.training.schedule import Schedule
from segaudit.types import Segmenter
from train_kit import Drawn, net, schedule


class Seen:
    """Samples with ids that note which images were read."""

    def __init__(self, samples: Any, ids: Sequence[str], log: list[str]) -> None:
        self.samples, self.ids, self.log = samples, tuple(ids), log

    def sample(self, image_id: str) -> tuple[Tensor, Tensor]:
        self.log.append(image_id)
        found: tuple[Tensor, Tensor] = self.samples.sample(image_id)
        return found


class FakeTrainer:
    """As `privacy.experiment.Trainer`: 16 members, 8 units of two each, and a reference of 8 others."""

    def __init__(
        self, folder: Path, kind: str = "segmentation", *, reference: int = 8, args: Mapping[str, Any] | None = None
    ) -> None:
        self.kind, self.folder, self.classes = kind, folder, KINDS[kind]
        self.samples = Drawn(kind, 30, 1)
        ids = self.samples.ids
        self.members, self.reference, self.outside = ids[:16], ids[16 : 16 + reference], ids[24:]
        self.units = {name: f"unit {row // 2}" for row, name in enumerate(ids)}
        self.schedule = schedule(epochs=2, batch=8, augment={"flip": False})
        self.args = dict(args or {})
        self.calls: list[dict[str, Any]] = []
        self.read: list[list[str]] = []
        self.facts: dict[str, float] = {}

    def fit(
        self,
        ids: Sequence[str],
        *,
        recipe: str | None = None,
        args: Mapping[str, Any] | None = None,
        given: Mapping[str, Any] | None = None,
        adapt: str | None = None,
        samples: Any = None,
        **own: Any,
    ) -> Segmenter:
        self.calls.append(
            {"ids": tuple(ids), "recipe": recipe, "args": args, "given": given, "samples": samples, **own}
        )
        self.read.append([])
        model: Segmenter = net(self.kind)
        if adapt is not None:
            model = registry.load("membership_defense", adapt)(model)
        images = Seen(samples or self.samples, ids, self.read[-1])
        asked = Recipe(name=recipe or "standard", args=dict(self.args if args is None else args))
        registry.check_arguments("recipe", asked.name, asked.args, ("model", "batch", "rng", *(given or {})))
        made = partial(asked.make(images, model.class_names), **given or {})
        when = Schedule(**{**vars(self.schedule), **own})
        loop.fit(model, images, None, made, when, self.folder / str(len(self.calls)))
        return model

    def note(self, **facts: float) -> None:
        self.facts |= facts
