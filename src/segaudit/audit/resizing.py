"""The `scaling` block of a spec: whose resizers are attacked, what guards them, and what is to notice."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError, model_validator

from segaudit import registry
from segaudit.audit.parts import Real, Strict, Tuned, faults
from segaudit.types import EVADING, UserError

NONE = Tuned(name="none")
BLENDED = "blended_scaling"
"""The attack that knows of a detector."""


class Scaling(Strict):
    """Image scaling attacks on the resizer before every model of the run: in each picture the next one is hidden.

    library: pil, opencv or torch. methods: some of it, all that there are unless given. factor: how much larger than
    the data's size the pictures are made; without it they have their own. eps: how far a resized picture may be from
    the hidden one. guards: what stands before the resizer; each but `none` is attacked by one that knows of it and by
    one that does not. detectors: scored on the pictures before and after the attack. evading: without a guard each
    detector is met by an attack that knows of it, too.
    """

    library: str = "pil"
    methods: list[str] | None = Field(None, min_length=1)
    factor: Real | None = None
    eps: Real = 2 / 255
    guards: list[Tuned] = Field([NONE], min_length=1)
    detectors: list[Tuned] = Field([])
    evading: bool = False

    @model_validator(mode="after")
    def _sound(self) -> Scaling:
        for guard in self.guards:
            registry.check_arguments("guard", guard.name, guard.args, ("resizer", "rng"))
            adaptive(guard)
        for detector in self.detectors:
            handed = ("pictures", "resizer", "size")
            registry.check_arguments("scaling_detector", detector.name, detector.args, handed)
        for what, labels in (
            ("methods", self.methods or []),
            ("guards", [guard.label() for guard in self.guards]),
            ("detectors", [detector.label() for detector in self.detectors]),
        ):
            twice = [label for label in labels if labels.count(label) > 1]
            if twice:
                raise ValueError(f"{what}: {twice[0]!r} is there twice; leave one of them out")
        if self.evading and not self.detectors:
            raise ValueError("evading: there is nothing to evade; give detectors, or leave it out")
        if not 0 <= self.eps < 1:
            raise ValueError(f"eps {self.eps:g} must be from 0 to below 1: write 2/255")
        return self

    def tries(self) -> list[tuple[Tuned, str]]:
        """Each guard with what the attacks on it know: nothing of it, or that it is there; and detectors to evade."""
        tries = [
            (guard, threat)
            for guard in self.guards
            for threat in (["white-box"] if guard == NONE else ["oblivious", "adaptive"])
        ]
        return tries + [(NONE, evades(detector)) for detector in self.detectors if self.evading]


def evades(detector: Tuned) -> str:
    """The threat of an attack that knows of a detector."""
    return f"{EVADING} {detector.label()}"


def adaptive(guard: Tuned) -> str:
    """The name of the scaling attack that knows of a guard. Raises ValueError for a guard that names none.

    Raises UserError for an attack that there is not.
    """
    name = getattr(registry.load("guard", guard.name), "adaptive", None)
    if not isinstance(name, str):
        raise ValueError(
            f"guard {guard.name!r} names no attack that knows of it; give its function an `adaptive`, such as "
            "'image_scaling'"
        )
    registry.load("scaling", name)
    return name


def changed(block: Scaling | None, **given: Any) -> Scaling:
    """The block of a spec, or the usual one, with what is given (not None) in place of its own.

    Raises UserError for what cannot be.
    """
    own = block.model_dump() if block else {}
    try:
        return Scaling.model_validate(own | {key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        raise UserError(faults(error)) from error
