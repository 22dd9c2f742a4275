"""What defenses are told, checked before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from segaudit.privacy.experiment import Trainer
from segaudit.types import UserError

LOSS = ("class_weights", "label_smoothing", "dice")
"""Arguments of the recipes that are of the loss alone."""


def whole(defense: str, key: str, value: Any, least: int) -> None:
    """Refuse what is no whole number of at least `least`. Raises UserError."""
    if type(value) is not int or value < least:
        raise UserError(f"defense {defense}: {key} must be a whole number of at least {least}, not {value!r}")


def share(defense: str, key: str, value: Any) -> None:
    """Refuse what is no share above 0. Raises UserError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise UserError(f"defense {defense}: {key} must be above 0 and at most 1, not {value!r}")


def above(defense: str, key: str, value: Any) -> None:
    """Refuse what is no number above 0. Raises UserError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise UserError(f"defense {defense}: {key} must be a number above 0, not {value!r}")


def flag(defense: str, key: str, value: Any) -> None:
    """Refuse what is neither true nor false. Raises UserError."""
    if type(value) is not bool:
        raise UserError(f"defense {defense}: {key} must be true or false, not {value!r}")


def reference(defense: str, trainer: Trainer) -> tuple[str, ...]:
    """The images of the reference set. Raises UserError where there are none, or where one of them is a member."""
    if not trainer.reference:
        raise UserError(
            f"defense {defense} needs a reference set, images beside all others, and the pool leaves none; give a "
            "smaller train_size"
        )
    both = set(trainer.reference).intersection(trainer.members)
    if both:
        raise UserError(f"defense {defense}: {min(both)} is a member, and cannot be in the reference set")
    return trainer.reference


def loss_of(trainer: Trainer) -> Mapping[str, Any]:
    """The arguments of the experiment's own recipe that are of the loss, for another recipe to have the same one."""
    return {key: value for key, value in trainer.args.items() if key in LOSS}
