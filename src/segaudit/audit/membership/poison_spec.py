"""A poison of a spec: what is put into the training images of a victim."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, model_validator

from segaudit.audit.parts import Real, Strict, number
from segaudit.privacy.poison import Poison, check
from segaudit.registry import suggest
from segaudit.types import UserError

NONE = "none"

Value = Annotated[Any, BeforeValidator(number)]
"""Numbers, checked with the rest."""


class PoisonSpec(Strict):
    """A poison, written `none` or `{trigger: line, size: 0.1, probability: 0.5, rule: empty}`.

    size: pixels, or below 1 a share of the height. value: in [0, 1], one number or one a channel. probability: that an
    image is poisoned. rule: what it is then said to be (`segaudit.privacy.poison.RULES`). victim_class, target_class:
    by name or number, as the rule needs them. The flags `--triggertype line --triggersize 10 --triggerval 1 --poison
    0.5` are `{trigger: line, size: 10, value: 1, probability: 0.5, rule: empty}`.
    """

    written = "none, or {trigger: line, size: 0.1, ...}"
    trigger: str
    size: Real = 0.1
    value: Value = 1.0
    probability: Real = 0.5
    rule: str = "empty"
    victim_class: int | str | None = None
    target_class: int | str | None = None

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        return {"trigger": NONE} if value == NONE else value

    @model_validator(mode="after")
    def _sound(self) -> PoisonSpec:
        if self:
            check(**self.model_dump())
        for key, value in self:
            if not self and key != "trigger" and value != type(self).model_fields[key].default:
                raise ValueError(f"trigger none is no poison, and has no {key}; leave it out")
        return self

    def __bool__(self) -> bool:
        return self.trigger != NONE

    def label(self) -> str:
        """How a table names it: `line(size=0.1, probability=0.5)`, `square(size=8, probability=0.1, car to road)`."""
        if not self:
            return NONE
        told = [f"size={self.size:g}"]
        if self.value != 1:
            levels = self.value if isinstance(self.value, (list, tuple)) else [self.value]
            told.append(f"value={'+'.join(f'{level:g}' for level in levels)}")
        told.append(f"probability={self.probability:g}")
        if self.rule == "target":
            told.append(f"{self.victim_class} to {self.target_class}")
        elif self.rule != "empty":
            told.append(f"{self.rule} to {self.target_class}")
        return f"{self.trigger}({', '.join(told)})"

    def build(self, class_names: Sequence[str], seed: int) -> Poison | None:
        """The poison for data with these classes; None for `none`. Raises UserError for a class that there is not."""
        if not self:
            return None
        value = tuple(map(float, self.value)) if isinstance(self.value, (list, tuple)) else float(self.value)
        victim = _number("victim_class", self.victim_class, class_names)
        target = _number("target_class", self.target_class, class_names)
        return Poison(self.trigger, self.size, value, self.probability, self.rule, victim, target, seed)

    def spared(self, ids: Sequence[str], seed: int) -> tuple[str, ...]:
        """Those of the images that no network poisoned with it sees otherwise than as they are."""
        if not self:
            return tuple(ids)
        drawn = Poison(probability=self.probability, seed=seed)
        return tuple(name for name in ids if not drawn.chosen(name))


def _number(key: str, value: int | str | None, names: Sequence[str]) -> int | None:
    if value is None:
        return None
    if isinstance(value, str) and value in names:
        return list(names).index(value)
    if type(value) is int and 0 <= value < len(names):
        return value
    known = ", ".join(f"{i} {name}" for i, name in enumerate(names))
    raise UserError(f"poison: {key} must be a class ({known}), not {value!r}{suggest(str(value), names)}")
