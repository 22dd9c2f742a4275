"""The `detection` block of a spec: what is to notice attacked images, and how it is evaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field, field_validator, model_validator

from segaudit import registry
from segaudit.audit.parts import Part, Strict, Tuned, held_out, number

ATTACK = "evading"
"""The attack that a detector is evaded by."""
HANDED = ("model", "images", "labels", "rng", "eps", "targeted", "detector")
"""What it is handed beside its arguments."""


class Detection(Strict):
    """Detectors, each scored on the clean images and on every attacked cell of the run without a defense.

    attacks: on the cells of these alone, as the tables name them. evading: arguments of the attack that knows of a
    detector (`{steps: 100}`); each detector with a gradient (one of zeros is none) is met by it at every eps, on every
    model with one. Its `threshold` is that of 5 % false positives, unless it or a `weight` is told. fit: for those that
    are fitted on clean images, what is different about these: arguments of the run's data set,
    `{split: train, limit: 32}` unless `only` is among them.
    """

    detectors: list[Tuned] = Field(min_length=1)
    attacks: list[str] | None = Field(None, min_length=1)
    evading: dict[str, Any] = Field(default_factory=dict)
    fit: dict[str, Any] | None = None

    @field_validator("evading")
    @classmethod
    def _numbers(cls, value: dict[str, Any]) -> dict[str, Any]:
        return {key: number(own) for key, own in value.items()}

    @model_validator(mode="after")
    def _sound(self) -> Detection:
        for detector in self.detectors:
            registry.check_arguments("detector", detector.name, detector.args, ("model", "images"))
        registry.check_arguments("attack", ATTACK, self.evading, HANDED)
        steps, norm = self.evading.get("steps", 1), self.norm()
        if type(steps) is not int or steps < 1:
            raise ValueError(f"evading: steps must be a whole number of at least 1, not {steps!r}")
        if norm not in ("linf", "l2"):
            raise ValueError(f"evading: norm must be linf or l2, not {norm!r}{registry.suggest(norm, ('linf', 'l2'))}")
        for key, least in (("threshold", -math.inf), ("weight", 0.0)):
            value = self.evading.get(key, 0.0)
            if type(value) not in (int, float) or not least <= value < math.inf:
                wanted = " of at least 0" if least == 0 else ""
                raise ValueError(f"evading: {key} must be a number{wanted}, not {value!r}")
        labels = [detector.label() for detector in self.detectors]
        twice = [label for label in labels if labels.count(label) > 1]
        if twice:
            raise ValueError(f"detectors: {twice[0]!r} is there twice; leave one of them out")
        if self.fit is not None and not any(map(fitted, self.detectors)):
            raise ValueError(f"fit: none of {', '.join(labels)} is fitted on clean images; leave it out")
        return self

    def check(self, data: Part, eps: Sequence[float], attacks: Sequence[str]) -> None:
        """Refuse what the rest of the spec cannot hold; attacks: the labels of its attacks. Raises ValueError."""
        for label in self.attacks or ():
            if label not in attacks:
                near = registry.suggest(label, attacks)
                raise ValueError(f"detection: the run has no attack {label!r}{near}; it has: {', '.join(attacks)}")
        self.fit_data(data)
        if self.norm() == "linf" and max(eps) > 1:
            raise ValueError(
                f"detection: eps {max(eps):g} is larger than the image range; write `evading: {{norm: l2}}`, or "
                "`unit: 1/255` if that is meant"
            )

    def norm(self) -> str:
        """The norm in which detectors are evaded."""
        return str(self.evading.get("norm", "linf"))

    def fit_data(self, data: Part) -> Part | None:
        """The clean images that detectors are fitted on; None if none is. Raises ValueError where that is not said."""
        needy = [detector for detector in self.detectors if fitted(detector)]
        if not needy:
            return None
        return held_out(data, self.fit, f"detector {needy[0].label()!r} of detection")


@dataclass(frozen=True)
class Watch:
    """What a job of a plan has to do with a detector: its attack evades it, or it scores the images of a cell.

    fit, reference: the clean images that the detector is fitted on, and the key of that; None and "" where it is not.
    allowed: the key of the score that it must allow; "" where the attack does not ask for it. of: the key of the cell
    whose images are scored; "" for one that evades.
    """

    detector: Tuned
    fit: Part | None = None
    reference: str = ""
    allowed: str = ""
    of: str = ""

    @property
    def learnt(self) -> str:
        """The key of the last thing that is learnt of the detector before it is met."""
        return self.allowed or self.reference


def fitted(detector: Part) -> bool:
    """Whether a detector gives features, which are compared with those of clean images: its function says so."""
    return bool(getattr(registry.load("detector", detector.name), "fitted", False))
