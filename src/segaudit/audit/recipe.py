"""The recipe of a training spec: its arguments, some of which are parts themselves, and the thing that they make."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from pydantic import ValidationError, field_validator
from torch import Tensor

from segaudit import registry
from segaudit.audit import build
from segaudit.audit.parts import HANDED, ModelSpec, Strict, Tuned, faults
from segaudit.training import balance, loop
from segaudit.training.schedule import Samples, Schedule
from segaudit.types import UserError

PARTS: dict[str, type[Tuned | ModelSpec]] = {
    "attack": Tuned, "attacks": Tuned, "segmenter": ModelSpec, "teacher": ModelSpec, "classifier": ModelSpec,
}  # fmt: skip
"""The arguments of a recipe that are parts themselves, and what they are: an attack, or a model of a run's spec."""
LISTS = ("attacks",)
"""Those that are one part or a list of them, and reach the recipe as a list."""


class Recipe(Tuned):
    """A recipe; an argument named in `PARTS` is a part too, and reaches the recipe as a function or a model."""

    @field_validator("args")
    @classmethod
    def _parts(cls, value: dict[str, Any]) -> dict[str, Any]:
        return {key: _read(key, inner) if key in PARTS else inner for key, inner in value.items()}

    def parts(self) -> list[Tuned | ModelSpec]:
        """The parts among its arguments."""
        found = [one for value in self.args.values() for one in (value if isinstance(value, list) else [value])]
        return [one for one in found if isinstance(one, (Tuned, ModelSpec))]

    def check(self, given: Iterable[str] = ()) -> None:
        """Refuse arguments that the recipe, or one of its parts, does not have, and numbers that it cannot use.

        A recipe's function that carries a `check` is asked with the arguments as a spec has them. given: arguments that
        it is handed beside these. Raises UserError.
        """
        registry.check_arguments("recipe", self.name, self.args, handed=("model", "batch", "rng", *given))
        for part in self.parts():
            if isinstance(part, Tuned):
                _check_attack(part)
        own: Any = registry.load("recipe", self.name)
        if hasattr(own, "check"):
            own.check(**self.args)

    @property
    def purifies(self) -> bool:
        """Whether it trains a purifier, and no segmenter: its function then has a `judge` of its own."""
        return hasattr(registry.load("recipe", self.name), "judge")

    @property
    def trains(self) -> tuple[str, ...]:
        """The purifiers that it is for: its function's `trains`; none where any will do."""
        return tuple(getattr(registry.load("recipe", self.name), "trains", ()))

    def judge(self, made: partial[Tensor]) -> loop.Judge:
        """What scores the network that it trains; made: what `make` gave."""
        own: Any = registry.load("recipe", self.name)
        return own.judge(**made.keywords) if self.purifies else loop.evaluate

    def make(self, samples: Samples, class_names: tuple[str, ...]) -> partial[Tensor]:
        """The recipe with its arguments, for training on these images."""
        args = {key: _made(value, class_names) for key, value in self.args.items()}
        if args.get("class_weights") is not None:
            args["class_weights"] = balance.class_weights(args["class_weights"], samples, class_names)
        return partial(registry.load("recipe", self.name), **args)

    def promise(self, made: partial[Tensor], ids: Sequence[str], schedule: Schedule) -> dict[str, Any]:
        """What a card says that the training gives away at most, where the recipe's function knows: its `promise`."""
        own: Any = registry.load("recipe", self.name)
        return {"promise": own.promise(ids, schedule, **made.keywords)} if hasattr(own, "promise") else {}


def _read(key: str, value: Any) -> Any:
    """What a spec gives for an argument that is a part, or one of `LISTS`."""
    if key not in LISTS:
        return _part(key, value)
    given = value if isinstance(value, (list, tuple)) else [value]
    if not given:
        raise ValueError(f"{key} must be a part or a list of them, such as [{{name: fgsm, eps: 8/255}}], not {value!r}")
    return [_part(key, one) for one in given]


def _part(kind: str, value: Any) -> Strict:
    if isinstance(value, PARTS[kind]):
        return value
    if not isinstance(value, (str, Mapping)):
        raise ValueError(f"{kind} must be a name, or {{name: ..., and its arguments}}, not {value!r}")
    try:
        return PARTS[kind].model_validate(value)
    except ValidationError as error:
        raise ValueError(f"{kind}: {faults(error)}") from error


def _made(value: Any, class_names: tuple[str, ...]) -> Any:
    if isinstance(value, ModelSpec):
        model = build.model(value, class_names)
        model.title = value.title()  # type: ignore[assignment]  # what a score that is made with it is called by
        return model
    if isinstance(value, list):
        return [_made(one, class_names) for one in value]
    if not isinstance(value, Tuned):
        return value
    return partial(registry.load("attack", value.name), **build.handed(value.name, value.args))


def _check_attack(attack: Tuned) -> None:
    handed = [key for key in HANDED if key != "eps"]  # no run that would hand it one
    registry.check_arguments("attack", attack.name, attack.args, handed)
    if registry.load("attack", attack.name) is registry.load("attack", "evading"):
        raise UserError(f"recipe: attack {attack.name!r} evades a detector, and there is none; train with another")
    if hasattr(registry.load("attack", attack.name), "fit"):
        raise UserError(f"recipe: attack {attack.name!r} is fitted on a set of images; train with one that is not")
    norm = attack.args.get("norm") or registry.default("attack", attack.name, "norm") or "linf"
    for key in ("eps", "step_size"):
        size = attack.args.get(key)
        if key not in attack.args or (key == "step_size" and size is None):
            continue
        if isinstance(size, bool) or not isinstance(size, (int, float)) or size <= 0 or (norm == "linf" and size > 1):
            raise UserError(
                f"recipe: {key} {size!r} of attack {attack.name!r} must be above 0 and within the images' 0 to 1: 4/255"
            )
