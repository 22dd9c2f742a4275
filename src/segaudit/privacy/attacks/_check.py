"""What membership attacks refuse, in one line that names the attack and the argument."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from segaudit.registry import suggest
from segaudit.types import UserError


def whole(attack: str, key: str, value: Any, least: int) -> None:
    """A whole number of at least some."""
    if type(value) is not int or value < least:
        raise UserError(
            f"membership attack {attack!r}: {key} must be a whole number of at least {least}, not {value!r}"
        )


def real(attack: str, key: str, value: Any, least: float, most: float = math.inf, *, above: bool = False) -> None:
    """A finite number from one to another; with `above`, not the lower end itself."""
    if (
        type(value) not in (int, float)
        or not (least <= value <= most)
        or math.isinf(value)
        or (above and value == least)
    ):
        wanted = f"above {least:g}" if above else f"of at least {least:g}"
        wanted = f"from {least:g} to {most:g}" if most < math.inf else wanted
        raise UserError(f"membership attack {attack!r}: {key} must be a number {wanted}, not {value!r}")


def choice(attack: str, key: str, value: Any, options: Sequence[str]) -> None:
    """One of some words."""
    if value not in options:
        near = suggest(str(value), options)
        raise UserError(f"membership attack {attack!r}: {key} must be {' or '.join(options)}, not {value!r}{near}")


def flag(attack: str, key: str, value: Any) -> None:
    """True or false."""
    if type(value) is not bool:
        raise UserError(f"membership attack {attack!r}: {key} must be true or false, not {value!r}")


def learner(attack: str, *, width: Any, epochs: Any, batch: Any, lr: Any, side: Any) -> None:
    """The numbers of an attack network and of its training."""
    for key, value, least in (("width", width, 1), ("epochs", epochs, 1), ("batch", batch, 2), ("side", side, 1)):
        whole(attack, key, value, least)
    real(attack, "lr", lr, 0, above=True)
