"""The pieces of a spec: strict models, parts written `name` or `{name, arguments}`, numbers as people write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, field_validator, model_validator

from segaudit import registry
from segaudit.registry import suggest
from segaudit.types import UserError

HANDED = ("model", "images", "labels", "rng", "eps", "targeted", "class_pixels", "fitted")
"""What the audit hands an attack itself; class_pixels: how many pixels each class has in the images of the run."""
FRACTION = re.compile(r"\s*-?\d+(\.\d+)?\s*/\s*\d+(\.\d+)?\s*")
SIZES = ("eps", "step_size")
"""Arguments that are counted in grey levels."""
POWER = re.compile(r"\s*[-+]?\d+(\.\d*)?[eE][-+]?\d+\s*")  # 1e-3, which YAML 1.1 reads as a string


class Strict(BaseModel):
    """Frozen; an unknown key is refused with a suggestion."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    written: ClassVar[str] = "{key: value, ...}"
    """How people write one."""

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            for key in value:
                if key not in cls.model_fields:
                    known = ", ".join(cls.model_fields)
                    raise ValueError(f"unknown key {key!r}{suggest(str(key), cls.model_fields)}; known: {known}")
        elif not isinstance(value, Strict):
            raise ValueError(f"write {cls.written}, not {value!r}")
        return value


class Part(Strict):
    """A registered thing with its arguments, written `pgd` or `{name: pgd, steps: 20}`."""

    written = "a name, or {name: ..., and its arguments}"
    name: str
    args: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, Mapping) and not set(value) <= {"name", "args"}:
            if "name" not in value:
                raise ValueError("give it a `name`")
            return {"name": value["name"], "args": {k: v for k, v in value.items() if k != "name"}}
        return value

    def label(self) -> str:
        """How a table names it: `pgd`, or `pgd(norm=l2)` where arguments tell it from another."""
        inside = ", ".join(f"{key}={_short(value, key in SIZES)}" for key, value in self.args.items())
        return f"{self.name}({inside})" if inside else self.name


class Tuned(Part):
    """A part whose arguments are numbers, written `2/255` too (an image's id may look like one, and is none)."""

    @field_validator("args")
    @classmethod
    def _numbers(cls, value: dict[str, Any]) -> dict[str, Any]:
        return {key: number(v) for key, v in value.items()}


class ModelSpec(Strict):
    """A model: where it comes from, its weights, and what stands between a picture and its logits."""

    source: str = "bundled"
    name: str
    label: str = ""
    args: dict[str, Any] = {}
    weights: str | None = None
    preprocess: dict[str, Any] = {}
    outputs: int | None = None
    class_map: dict[int, int | None] | None = None

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    def title(self) -> str:
        """The name in tables: the label, or the name."""
        return self.label or self.name


def held_out(data: Part, own: Mapping[str, Any] | None, what: str) -> Part:
    """Other images than a run's: its data set with the arguments of `own`, `{split: train, limit: 32}` by default.

    what: is fitted on them. Raises ValueError where the data set has no split, and `own` does not say which.
    """
    if not own and not registry.accepts("data", data.name, "split"):
        raise ValueError(
            f"{what} is fitted on other images than those that are scored, but data {data.name!r} has no split: say "
            "which with `fit: {only: [...]}`"
        )
    own = dict(own or {})
    usual = {"split": "train", "limit": 32} if "only" not in own else {}
    usual = {key: value for key, value in usual.items() if registry.accepts("data", data.name, key)}
    rest = {key: value for key, value in data.args.items() if key not in ("limit", "only")}
    return Part(name=data.name, args=rest | usual | own)


def number(value: Any) -> Any:
    """`"8/255"` -> 0.0313..., `"1e-3"` -> 0.001, in lists and mappings too; anything else as it is."""
    if isinstance(value, list):
        return [number(own) for own in value]
    if isinstance(value, Mapping):
        return {key: number(own) for key, own in value.items()}
    if isinstance(value, str) and POWER.fullmatch(value):
        return float(value)
    if isinstance(value, str) and FRACTION.fullmatch(value):
        above, below = value.split("/")
        if float(below) == 0:
            raise ValueError(f"{value!r} divides by zero")
        return float(Fraction(above.strip()) / Fraction(below.strip()))
    return value


def real(value: Any) -> Any:
    """A number, or a fraction. Raises ValueError for anything else."""
    value = number(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r} is not a number; write 8/255, 0.03, or 8 with `unit: 1/255`")
    return value


Real = Annotated[float, BeforeValidator(real)]
"""A number, or a fraction written `8/255`."""

Spec = TypeVar("Spec", bound=Strict)


def read(kind: type[Spec], path: str | Path) -> Spec:
    """A spec from a YAML file. Raises UserError with one line for each fault, naming the file and the key."""
    path = Path(path).expanduser()
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a mapping of keys to values, such as `name: my-audit`")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: {faults(error)}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def faults(error: ValidationError) -> str:
    """What pydantic found, in one line."""
    lines = []
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"])
        text = fault["msg"].removeprefix("Value error, ")
        lines.append(f"{where}: {text}" if where else text)
    return "; ".join(dict.fromkeys(lines))


def _short(value: Any, size: bool = False) -> str:
    if isinstance(value, float):
        in_255 = value * 255
        grey = size and 0 < value < 1 and abs(in_255 * 4 - round(in_255 * 4)) < 1e-9
        return f"{in_255:.4g}/255" if grey else f"{value:g}"
    if isinstance(value, list) and any(isinstance(own, str | Mapping) for own in value):  # of a chain
        return "+".join(
            Part.model_validate(own).label() if isinstance(own, Mapping) and "name" in own else str(own)
            for own in value
        )
    if isinstance(value, Mapping):
        return str(value.get("name", value)) if set(value) == {"name"} else "+".join(str(v) for v in value.values())
    return str(value)
