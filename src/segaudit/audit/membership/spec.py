"""The `membership` block of a spec: what is to be found out of the images that networks were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from segaudit import registry
from segaudit.audit.learning import Learning
from segaudit.audit.membership.poison_spec import PoisonSpec
from segaudit.audit.parts import ModelSpec, Part, Strict, Tuned
from segaudit.privacy.defenses import named

NONE = Tuned(name="none")
"""No defense."""
LEAST_SIZE = 2
"""Members that there must be: some to learn from, and others to try."""
CLEAN = PoisonSpec(trigger="none")
"""No poison."""
ATTACK_HANDED = ("experiment", "rng", "members")
"""What a membership attack is handed beside its arguments; `members` only one that sees no network."""


class Training(Learning):
    """How every network of an experiment is trained, unless its defense says otherwise; as of `segaudit train`."""

    @model_validator(mode="after")
    def _fits(self) -> Training:
        self.recipe.check()
        if self.recipe.purifies:
            raise ValueError(f"recipe {self.recipe.name!r} trains a purifier; give one that trains a segmenter")
        self.schedule()
        return self


class Membership(Strict):
    """A membership experiment on the run's data set, the pool that is split.

    victim, shadow: what is trained; several victims are several experiments on one split; the shadows' and references'
    is the victim's own unless given. train_size: members, with as many others; by default a fifth of the pool, which
    leaves a fifth that no network is trained on. unit: what is in or out together: `image`, `group` (the default where
    groups have several images), or `order`, the order of the files, a split that leaks. clip: cuts each group into runs
    of so many consecutive images, which are then the units. shadows: networks on the attacker's own half of the data;
    references: on random halves of the candidates, as many for each threat. members: the images that the victims were
    trained on, elsewhere: a file of ids, or arguments of the data such as `{split: train}`; they are then taken with
    their weights, `train_size` says how many of these are asked about, and the attacker trains their architectures from
    the start unless shadow says otherwise. threats: whether shadows and references are defended and poisoned as the
    victim is. shuffled: the control, in which membership is drawn though the victim saw none of the candidates. seed:
    the run's.
    """

    victim: list[ModelSpec] = Field(min_length=1)
    shadow: ModelSpec | None = None
    train_size: int | None = Field(None, ge=LEAST_SIZE)
    unit: Literal["image", "group", "order"] | None = None
    clip: int | None = Field(None, ge=1)
    shadows: int = Field(1, ge=0)
    references: int = Field(16, ge=0)
    training: Training = Training()
    attacks: list[Tuned] | None = Field(None, min_length=1)
    defenses: list[Tuned] = Field([NONE], min_length=1)
    threats: list[Literal["oblivious", "adaptive"]] = Field(["oblivious", "adaptive"], min_length=1)
    poison: list[PoisonSpec] = Field([CLEAN], min_length=1)
    shuffled: bool = False
    members: str | dict[str, Any] | None = Field(None, min_length=1)
    seed: int | None = None

    @field_validator("victim", "poison", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return value if isinstance(value, list) else [value]

    @field_validator("defenses", mode="before")
    @classmethod
    def _numbered(cls, value: Any) -> Any:
        """A defense may be called by its number among the seven."""
        made = []
        for own in value if isinstance(value, list) else [value]:
            if isinstance(own, (int, str)) and not isinstance(own, bool):
                own = named(own)
            elif isinstance(own, Mapping) and isinstance(own.get("name"), int):
                own = {**own, "name": named(own["name"])}
            made.append(own)
        return made

    @model_validator(mode="after")
    def _sound(self) -> Membership:
        if self.references % 2:
            raise ValueError(f"references must be even, as each has its complement, not {self.references}")
        if self.clip is not None and self.unit not in (None, "group"):
            raise ValueError(f"clip cuts groups, and the unit is {self.unit!r}; leave one of them out")
        if self.shuffled and self.unit == "order":
            raise ValueError("shuffled draws who is a member, which unit `order` does not; leave one of them out")
        if self.members is not None:
            self._taken()
        for attack in self.attacks or ():
            registry.check_arguments("membership", attack.name, attack.args, ATTACK_HANDED)
            _own_check("membership", attack)
        for defense in self.defenses:
            if defense != NONE:
                registry.check_arguments("membership_defense", defense.name, defense.args, ("trainer",))
                _own_check("membership_defense", defense)
                taught = getattr(registry.load("membership_defense", defense.name), "check_recipe", None)
                if taught is not None:
                    taught(**self.training.recipe.args)
        if any(d != NONE for d in self.defenses) and "adaptive" not in self.threats:
            raise ValueError("threats: a defense is never reported by an oblivious attack alone; add adaptive")
        for what, labels, mend in (
            ("victim", [own.title() for own in self.victim], "give one of them a label of its own"),
            ("attacks", [own.label() for own in self.attacks or ()], "leave one of them out"),
            ("defenses", [own.label() for own in self.defenses], "leave one of them out"),
            ("poison", [own.label() for own in self.poison], "leave one of them out"),
        ):
            twice = [name for name in labels if labels.count(name) > 1]
            if twice:
                raise ValueError(f"{what}: {twice[0]!r} is there twice; {mend}")
        return self

    def _taken(self) -> None:
        """Refuse what cannot be with victims that were trained elsewhere."""
        if self.shuffled or self.unit == "order":
            raise ValueError("members says who is a member; leave out shuffled and unit `order`")
        if any(self.poison):
            raise ValueError("poison: the victims of `members` were trained elsewhere; leave one of them out")
        bare = next((own.title() for own in self.victim if own.weights is None), None)
        if bare is not None and self.shadow is None and (self.shadows or self.references):
            raise ValueError(
                f"victim {bare!r}: with `members` it is taken with its weights; give it some, or, where it brings its "
                "own, give a shadow that does not"
            )
        for defense in self.defenses:
            if defense != NONE and not getattr(registry.load("membership_defense", defense.name), "serves", False):
                raise ValueError(
                    f"defenses: {defense.name} trains the victim anew, and those of `members` were trained elsewhere; "
                    "leave one of them out"
                )

    @property
    def parts(self) -> int:
        """How many times `train_size` images there must be."""
        return 2 + self.shuffled + 2 * (self.shadows > 0)

    def of(self, count: int) -> Membership:
        """The same on so many images: with the usual train_size, where the one that was told takes more of them."""
        fits = self.train_size is None or self.parts * self.train_size <= count
        return self if fits else self.model_copy(update={"train_size": None})

    def asked(self) -> list[Tuned]:
        """The attacks: as told, or all that there are; those that see no network always."""
        known = [Tuned(name=name) for name in registry.names("membership")]
        if self.attacks is None:
            return known
        own = {registry.load("membership", attack.name) for attack in self.attacks}
        always = [part for part in known if baseline(part) and registry.load("membership", part.name) not in own]
        return always + self.attacks


def _own_check(kind: str, part: Part) -> None:
    """Ask a function that carries a `check` with the arguments as the spec has them. It raises UserError."""
    own = getattr(registry.load(kind, part.name), "check", None)
    if own is not None:
        own(**part.args)


def baseline(attack: Part) -> bool:
    """Whether an attack sees no network but who is a member: its function says so. It is run once for the split."""
    return bool(getattr(registry.load("membership", attack.name), "baseline", False))
