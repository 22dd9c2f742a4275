"""What a network that is trained by a spec is trained with, whichever spec that is."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal

from pydantic import Field

from segaudit.audit.parts import Real, Strict
from segaudit.audit.recipe import Recipe
from segaudit.training.schedule import Schedule


class Learning(Strict):
    """The recipe of a training and its numbers, whose meaning is `training.schedule.Schedule`'s."""

    recipe: Recipe = Recipe(name="standard")
    epochs: int = Field(default=60, ge=1)
    batch: int = Field(default=8, ge=1)
    lr: Real = 1e-3
    weight_decay: Real = 1e-2
    betas: tuple[Real, Real] = (0.9, 0.999)
    lr_schedule: Literal["one_cycle", "poly"] = "one_cycle"
    warmup: Real = 0.1
    clip: Real = 5.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    augment: dict[str, Any] = Field(default_factory=dict)

    def schedule(self, **other: Any) -> Schedule:
        """What the training loop is told, with the fields of `other` in place of these."""
        known = {field.name for field in fields(Schedule)}
        return Schedule(**{key: value for key, value in self if key in known} | other)
