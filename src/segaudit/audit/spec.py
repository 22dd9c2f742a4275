"""What `segaudit run` was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_core import PydanticKnownError

from segaudit import registry
from segaudit.audit.certification import Certification
from segaudit.audit.detection import ATTACK, Detection
from segaudit.audit.membership.spec import Membership
from segaudit.audit.parts import HANDED, ModelSpec, Part, Real, Strict, Tuned, held_out, number, real
from segaudit.audit.resizing import Scaling

ATTACKED = ("models", "attacks", "eps")
"""What a spec needs unless it has a membership block."""


MISSING = object()
"""Stands for a key that a spec needs and does not have."""


def _there(value: Any) -> Any:
    if value is MISSING:
        raise PydanticKnownError("missing")
    return value


Own = TypeVar("Own")
Needed = Annotated[Own, BeforeValidator(_there)]
"""A key that only some specs may leave out."""


class AttackSpec(Tuned):
    """An attack: its name, its own arguments, and for a targeted one the mask to reach.

    fit: for one that is fitted on data, what is different about the images that it learns from: arguments of the
    run's data set (`{split: train, limit: 32}` unless `only` is among them).
    """

    target: Part | None = None
    fit: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, Mapping) and not set(value) <= {"name", "args", "target", "fit"}:
            own = {key: v for key, v in value.items() if key not in ("name", "target", "fit")}
            return {"name": value.get("name", ""), "args": own} | {k: value.get(k) for k in ("target", "fit")}
        return value

    def label(self) -> str:
        """How a table names it: `pgd`, `pgd(steps=40)`, `pgd to next`."""
        told = Part(name=self.name, args=self.args | ({"fit": self.fit} if self.fit else {}))
        return told.label() + (f" to {self.target.label()}" if self.target else "")

    def norm(self) -> str:
        """The norm it works in: as told, or its own default, or Linf; L0 for a patch, of any values in few places."""
        usual = "l0" if getattr(registry.load("attack", self.name), "outside", False) else "linf"
        return str(self.args.get("norm") or registry.default("attack", self.name, "norm") or usual)

    def fit_data(self, data: Part) -> Part | None:
        """The images that it is fitted on; None for an attack that is not. Raises ValueError where that is not said."""
        if not hasattr(registry.load("attack", self.name), "fit"):
            if self.fit is not None:
                raise ValueError(f"attack {self.name!r} is not fitted on data; leave out its fit")
            return None
        return held_out(data, self.fit, f"attack {self.name!r}")


class Pictures(Strict):
    """Which images the page shows, and at which eps (the middle one of the run unless given)."""

    images: int = Field(4, ge=0)
    eps: Real | None = None


class Transfer(Strict):
    """Whose images a model is tried on besides its own; `true` is `{each: true}`, and a mapping has `each` on.

    each: those made on each other model alone. ensemble: those made on all the other models together.
    """

    each: bool = True
    ensemble: bool = False

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        if not isinstance(value, (bool, Mapping, Transfer)):
            raise ValueError("write true, or {ensemble: true}")
        return {"each": value} if isinstance(value, bool) else value

    def __bool__(self) -> bool:
        return self.each or self.ensemble


class Diagnostics(Strict):
    """What the masking diagnostics compute for themselves; `true` is `{limit: 8}`, and `false` `{limit: 0}`: nothing.

    limit: on so many of the run's images, evenly spread. queries: of the black-box attack on an image. max_steps: the
    attack that is run with twice its steps or draws has no more steps than these; where it has them already, it is not.
    """

    limit: int = Field(default=8, ge=0)
    queries: int = Field(default=200, ge=1)
    max_steps: int = Field(default=200, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        if not isinstance(value, (bool, Mapping, Diagnostics)):
            raise ValueError("write true, false, or {limit: 8}")
        return {"limit": 8 * value} if isinstance(value, bool) else value

    def images(self, ids: Sequence[str]) -> tuple[str, ...]:
        """The images that they are computed on."""
        count = min(self.limit, len(ids))
        return tuple(ids[i * len(ids) // count] for i in range(count))


class RunSpec(Strict):
    """One audit. eps: radii in [0, 1], written `8/255`, or plain numbers in multiples of `unit`, as is an
    attack's step_size.

    threats: how a defended model is attacked: `adaptive` (through the defense), `oblivious` (made on the bare
    model). transfer: score every model on the images made on every other; `{ensemble: true}`: and on those made on
    all others together. keep: keep all adversarial images.
    batch: images attacked at once; it changes no result but for rounding. draws: how often a random defense is scored.
    certification: certificates by randomised smoothing, of every model.
    scaling: image scaling attacks on the resizer before every model.
    detection: detectors of attacked images, and attacks that evade them; the adversarial images on the bare models
    that it asks for are kept.
    diagnostics: cells on a few images that tell robustness from masked gradients; unless told, if there is a defense.
    membership: what networks give away of their training images. With it models, attacks and eps may be left out; with
    attacks and eps, but no models, its victims are what is attacked, on images that they were not trained on.
    """

    name: str = Field(pattern=r"^[\w.-]+$")
    data: Part
    models: Needed[list[ModelSpec]] = Field([], min_length=1)
    attacks: Needed[list[AttackSpec]] = Field([], min_length=1)
    unit: Real = 1.0
    eps: Needed[list[Real]] = Field([], min_length=1)
    defenses: list[Tuned] = Field(default=[Tuned(name="none")], min_length=1)
    threats: list[Literal["oblivious", "adaptive"]] = Field(default=["oblivious", "adaptive"], min_length=1)
    transfer: Transfer = Transfer(each=False)
    keep: bool = False
    pictures: Pictures = Pictures(images=4)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    batch: int = Field(8, ge=1)
    draws: int = Field(1, ge=1)
    certification: Certification | None = None
    scaling: Scaling | None = None
    detection: Detection | None = None
    diagnostics: Diagnostics | None = None
    membership: Membership | None = None
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _lacking(cls, value: Any) -> Any:
        """What may be left out is left out; what may not is said to be missing."""
        if not isinstance(value, Mapping):
            return value
        if value.get("membership") is not None:
            return {key: own for key, own in value.items() if key not in ATTACKED or own != []}
        return dict.fromkeys((key for key in ATTACKED if key not in value), MISSING) | dict(value)

    @model_validator(mode="before")
    @classmethod
    def _units(cls, value: Any) -> Any:
        """Plain numbers of `eps`, the page's too, and `step_size` are multiples of `unit`; fractions are themselves."""
        if not isinstance(value, Mapping) or "unit" not in value:
            return value
        try:
            unit = real(value["unit"])
        except ValueError as error:
            raise ValueError(f"unit: {error}") from None
        made = {**value, "unit": 1.0}
        if isinstance(value.get("attacks"), list):
            made["attacks"] = [_in_units(attack, unit) for attack in value["attacks"]]
        if isinstance(value.get("eps"), list):
            made["eps"] = [_times(eps, unit) for eps in value["eps"]]
        pictures = value.get("pictures")
        if isinstance(pictures, Mapping) and "eps" in pictures:
            made["pictures"] = {**pictures, "eps": _times(pictures["eps"], unit)}
        scaling = value.get("scaling")
        if isinstance(scaling, Mapping) and "eps" in scaling:
            made["scaling"] = {**scaling, "eps": _times(scaling["eps"], unit)}
        detection = value.get("detection")
        if isinstance(detection, Mapping) and isinstance(detection.get("evading"), Mapping):
            made["detection"] = {**detection, "evading": _in_units(detection["evading"], unit)}
        return made

    @field_validator("eps")
    @classmethod
    def _radii(cls, value: list[float]) -> list[float]:
        for eps in value:
            if not 0 < eps <= 1000:
                raise ValueError(f"eps {eps:g} must be above 0; images are in [0, 1], so write 8/255 or 0.03")
        return sorted(set(value))

    @model_validator(mode="after")
    def _parts(self) -> RunSpec:
        self._attacked()
        for attack in self.attacks:
            if registry.load("attack", attack.name) is registry.load("attack", ATTACK):
                raise ValueError(f"attack {attack.name!r} is run by the block `detection`; leave it out")
            registry.check_arguments("attack", attack.name, attack.args, HANDED)
            attack.fit_data(self.data)
            if attack.norm() == "linf" and max(self.eps) > 1 and registry.accepts("attack", attack.name, "eps"):
                raise ValueError(f"eps {max(self.eps):g} is larger than the image range; did you mean unit: 1/255?")
            _check_step(attack)
            if attack.target is not None:
                handed = ("model", "images", "labels", "ids", "look_up")
                registry.check_arguments("target", attack.target.name, attack.target.args, handed)
                if not registry.accepts("attack", attack.name, "targeted"):
                    raise ValueError(f"attack {attack.name!r} has no targeted form; leave out its target")
        for defense in self.defenses:
            registry.check_arguments("defense", defense.name, defense.args, ("model",))
        if self.defenses != [Tuned(name="none")] and "adaptive" not in self.threats:
            raise ValueError("threats: a defense is never reported by an oblivious attack alone; add adaptive")
        if self.transfer.ensemble and len(self.models) < 3:
            raise ValueError("transfer: an ensemble of the other models takes three models or more")
        if self.transfer.ensemble and "ensemble" in (model.title() for model in self.models):
            raise ValueError("models: 'ensemble' is what the other models together are called; give another label")
        if self.transfer and Tuned(name="none") not in self.defenses:
            raise ValueError("transfer is between bare models: put none among the defenses, or leave transfer out")
        if self.detection is not None:
            self.detection.check(self.data, self.eps, [attack.label() for attack in self.attacks])
            _check_step(AttackSpec(name=ATTACK, args=self.detection.evading))
            if Tuned(name="none") not in self.defenses:
                raise ValueError("detection is of attacks on bare models: put none among the defenses, or leave it out")
        for what, labels, mend in (
            ("models", [model.title() for model in self.models], "give one of them a label of its own"),
            ("attacks", [attack.label() for attack in self.attacks], "leave one of them out"),
            ("defenses", [defense.label() for defense in self.defenses], "leave one of them out"),
        ):
            twice = [name for name in labels if labels.count(name) > 1]
            if twice:
                raise ValueError(f"{what}: {twice[0]!r} is there twice; {mend}")
        return self

    def _attacked(self) -> None:
        """Refuse what there is nothing to attack for, or nothing to attack with."""
        if self.membership is None:
            return
        if bool(self.attacks) != bool(self.eps) or (self.models and not self.attacks):
            raise ValueError("attacks and eps go together, and models need both; leave them out, or give what lacks")
        for key in ("certification", "scaling", "detection") if not self.attacks else ():
            if getattr(self, key) is not None:
                raise ValueError(f"{key} is of models that are attacked: give models, attacks and eps beside it")
        if not self.models and self.transfer:
            raise ValueError("transfer is between models that are given; leave it out, or give models")

    def diagnosed(self) -> Diagnostics:
        """What the masking diagnostics compute: as told, or as usual where there is a defense, or nothing."""
        usual = Diagnostics() if self.defenses != [Tuned(name="none")] else Diagnostics(limit=0)
        return usual if self.diagnostics is None else self.diagnostics

    def shown_eps(self) -> float:
        """The eps at which pictures are kept for the page."""
        wanted = self.pictures.eps
        middle = self.eps[len(self.eps) // 2]
        return middle if wanted is None else min(self.eps, key=lambda eps: abs(eps - wanted))


def _check_step(attack: AttackSpec) -> None:
    step = attack.args.get("step_size", 1)
    if type(step) not in (int, float) or not step > 0 or (attack.norm() == "linf" and step > 1):
        raise ValueError(f"step_size {step!r} of {attack.name} must be above 0 and within the images' 0 to 1: 2/255")


def _in_units(attack: Any, unit: float) -> Any:
    """An attack as it was written, its step size times the unit."""
    if not isinstance(attack, Mapping):
        return attack
    made = {key: _times(value, unit) if key == "step_size" else value for key, value in attack.items()}
    if isinstance(made.get("args"), Mapping):
        made["args"] = _in_units(made["args"], unit)
    return made


def _times(eps: Any, unit: float) -> Any:
    plain = eps if isinstance(eps, str) and "/" in eps else number(eps)
    return plain * unit if isinstance(plain, (int, float)) and not isinstance(plain, bool) else eps
