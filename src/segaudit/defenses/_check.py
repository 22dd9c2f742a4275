"""What defenses and detectors refuse, in one line that names them (kind: what they are) and the argument."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from segaudit.registry import suggest
from segaudit.types import UserError


def whole(name: str, key: str, value: Any, low: int, high: int | None = None, *, kind: str = "defense") -> int:
    """A whole number from low to high."""
    if type(value) is not int or value < low or (high is not None and value > high):
        wanted = f"from {low} to {high}" if high is not None else f"of at least {low}"
        raise UserError(f"{kind} {name!r}: {key} must be a whole number {wanted}, not {value!r}")
    return value


def odd(name: str, key: str, value: Any, *, kind: str = "defense") -> int:
    """An odd whole number of at least 1: the side of a window around a pixel."""
    if type(value) is not int or value < 1 or value % 2 == 0:
        raise UserError(f"{kind} {name!r}: {key} must be an odd whole number of at least 1, not {value!r}")
    return value


def real(
    name: str, key: str, value: Any, kind: str = "defense", /, *, above: float = -math.inf, least: float = -math.inf
) -> float:
    """A finite number, above one or at least another."""
    if type(value) not in (int, float) or not (above < value < math.inf) or value < least:
        wanted = f"above {above:g}" if above > -math.inf else f"of at least {least:g}"
        raise UserError(f"{kind} {name!r}: {key} must be a number {wanted}, not {value!r}")
    return float(value)


def choice(name: str, key: str, value: Any, options: Sequence[str], *, kind: str = "defense") -> str:
    """One of some words."""
    if value not in options:
        near = suggest(str(value), options)
        raise UserError(f"{kind} {name!r}: {key} must be {' or '.join(options)}, not {value!r}{near}")
    return str(value)


def remade(name: str, made: Tensor, images: Tensor, *, kind: str = "defense") -> Tensor:
    """What a network made of images, where it is of their shape."""
    if made.shape != images.shape:
        raise UserError(
            f"{kind} {name!r}: its network gives {tuple(made.shape)} for images {tuple(images.shape)}; give one that "
            "gives images back, such as a `residual` or an `autoencoder`"
        )
    return made
