"""SELENA: what is asked has learnt of each member only what networks say that have not seen it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from segaudit.privacy.defenses import _check as check
from segaudit.privacy.experiment import Trainer
from segaudit.training.course import generator
from segaudit.types import Segmenter, UserError


def selena(trainer: Trainer, *, models: int = 5, held_out: int = 2, temperature: float = 1.0) -> Segmenter:
    """A student of several networks, each trained on its own part of the members, by those that did not see the image.

    models: how many networks; held_out: how many of them each unit (image, patient) is held out of, drawn at random.
    temperature: as recipe `selena` has it. The source has 25 and 10 on far larger sets. Raises UserError for numbers
    that leave a network without an image.
    Source: Tang et al. 2022 (SELENA: Split-AI and Self-Distillation).
    """
    _checked(models=models, held_out=held_out, temperature=temperature)
    parts = split(
        trainer.members, [trainer.units[name] for name in trainer.members], models, held_out, trainer.schedule.seed
    )
    if not all(parts):
        raise UserError(f"defense selena: too few members for {models} models; give it fewer")
    teachers = tuple(trainer.fit(part) for part in parts)
    given = {"teachers": teachers, "trained_on": parts}
    return trainer.fit(trainer.members, recipe="selena", args={"temperature": temperature}, given=given)


def split(
    members: Sequence[str], units: Sequence[str], models: int, held_out: int, seed: int
) -> tuple[tuple[str, ...], ...]:
    """The images that each of the models is trained on: every unit is held out of `held_out` of them, whole.

    units: of each member. The draw is from the seed, the same number of units for each model as near as may be.
    """
    own = list(dict.fromkeys(units))
    order = torch.randperm(len(own), generator=generator(seed, "selena")).tolist()
    away = {own[unit]: {(place + k) % models for k in range(held_out)} for place, unit in enumerate(order)}
    return tuple(
        tuple(name for name, unit in zip(members, units, strict=True) if model not in away[unit])
        for model in range(models)
    )


def _checked(*, models: Any = 5, held_out: Any = 2, temperature: Any = 1.0, **_: Any) -> None:
    """Refuse what cannot be. Raises UserError."""
    check.whole("selena", "models", models, 2)
    check.whole("selena", "held_out", held_out, 1)
    check.above("selena", "temperature", temperature)
    if held_out >= models:
        raise UserError(f"defense selena: held_out must be below models ({models}), not {held_out}")


selena.check = _checked  # type: ignore[attr-defined]  # of what a spec says, before anything is trained
