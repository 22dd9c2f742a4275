"""What each victim of a membership experiment gives away: its attacks, the worst of them, those beyond chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from segaudit.metrics import confusion
from segaudit.metrics.membership import Hits, Measured, measure
from segaudit.report.summary import unique
from segaudit.types import AWARE, Inference, Results, UserError, Victim

DIGITS = 3
"""Of an AUC in a text."""


@dataclass(frozen=True, slots=True, eq=False)
class Leak:
    """One attack with its measures."""

    of: Inference
    measured: Measured

    @property
    def told(self) -> str:
        """`lira (adaptive)`."""
        return self.of.attack if self.of.threat == "none" else f"{self.of.attack} ({self.of.threat})"

    @property
    def rare(self) -> Hits:
        """The hits at 1 % false alarms."""
        return self.measured.hits[0]


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """One victim, all attacks on it, and the one beside it that neither defense nor poison sets apart.

    victim: None where it is not noted. bare: the same network without the defense; clean: without the poison; None for
    one that is so itself, or where there is none.
    """

    model: str
    defense: str
    poison: str
    victim: Victim | None
    leaks: tuple[Leak, ...]
    bare: Standing | None
    clean: Standing | None

    @property
    def title(self) -> str:
        """`unet + dp, poisoned with line`."""
        return title(self.model, self.defense, self.poison)

    @property
    def worst(self) -> Leak | None:
        """The attack with the largest AUC, of all threats; of equal ones one that knows of the defense."""
        told = [leak for leak in self.leaks if not math.isnan(leak.measured.auc)]
        return max(told, key=lambda leak: (leak.measured.auc, leak.of.threat == AWARE), default=None)

    def sharpest(self, rate: int = 0) -> Leak | None:
        """The attack that finds most at one of `RATES`, at first 1 % false alarms; None where it is not resolvable."""
        told = [leak for leak in self.leaks if leak.measured.hits[rate].resolvable]
        return max(told, key=lambda leak: leak.measured.hits[rate].tpr, default=None)

    @property
    def known(self) -> bool:
        """Whether an attacker who knows of the defense was tried, or there is none to know of."""
        return self.defense == "none" or any(leak.of.threat == AWARE for leak in self.leaks)

    @property
    def telling(self) -> list[Leak]:
        """The attacks that do better than a guess, or worse, which is as telling."""
        tried = len({leak.of.scores.tobytes() for leak in self.leaks})
        return [leak for leak in self.leaks if leak.measured.telling(tried)]

    @property
    def inverted(self) -> list[Leak]:
        """The attacks that tell others from members so well that, turned round, they do more than the worst."""
        worst = self.worst
        return [leak for leak in self.leaks if worst and leak.measured.turned.low > worst.measured.auc]


@dataclass(frozen=True, slots=True)
class Quality:
    """Shares in [0, 1] on the images that a victim was trained on, and on others; nan where none are noted."""

    miou: float
    miou_others: float
    dice: float
    dice_others: float

    @property
    def gap(self) -> float:
        """How much larger the mIoU is on the images of the training."""
        return self.miou - self.miou_others

    @property
    def dice_gap(self) -> float:
        """The same of the Dice coefficient."""
        return self.dice - self.dice_others


def title(model: str, defense: str, poison: str) -> str:
    """How a victim is called."""
    told = model if defense == "none" else f"{model} + {defense}"
    return told if poison == "none" else f"{told}, poisoned with {poison}"


def quality(victim: Victim | None) -> Quality:
    """Of a victim, from its counts."""
    if victim is None:
        return Quality(math.nan, math.nan, math.nan, math.nan)
    each = (score(counts) for score in (confusion.miou, confusion.dice) for counts in (victim.members, victim.others))
    return Quality(*each)


def standings(results: Results) -> list[Standing]:
    """One for each victim, in the order of the results. Raises UserError for a run without any."""
    privacy = results.privacy
    if privacy is None or not asked(results):
        raise UserError(
            f"table: {results.name} holds no membership experiment; ask for one in its spec with "
            "`membership: {victim: {source: smp, name: Unet}, train_size: 200}`"
        )
    victims = {(own.model, own.defense, own.poison): own for own in privacy.victims}
    attacks: dict[tuple[str, str, str], list[Leak]] = {}
    for of in privacy.inferences:
        if of.model:
            attacks.setdefault((of.model, of.defense, of.poison), []).append(Leak(of, measure(of)))
    made: dict[tuple[str, str, str], Standing] = {}
    keys = unique([*victims, *attacks])
    for key in sorted(keys, key=lambda key: (key[1] != "none") + (key[2] != "none")):  # those beside others first
        model, defense, poison = key
        made[key] = Standing(
            *key,
            victims.get(key),
            tuple(attacks.get(key, ())),
            bare=made.get((model, "none", poison)) if defense != "none" else None,
            clean=made.get((model, defense, "none")) if poison != "none" else None,
        )
    return [made[key] for key in keys]


def asked(results: Results) -> bool:
    """Whether a run holds anything of a membership experiment."""
    return results.privacy is not None and bool(results.privacy.victims or results.privacy.inferences)


def baselines(results: Results) -> list[Leak]:
    """The attacks that see no network: what they find, the split gives away."""
    return [Leak(of, measure(of)) for of in (results.privacy.inferences if results.privacy else ()) if not of.model]


def confounded(found: Sequence[Leak]) -> Leak | None:
    """The baseline that is furthest from chance, of those whose interval does not hold 0.5."""
    told = [leak for leak in found if leak.measured.beyond_chance]
    return max(told, key=lambda leak: abs(leak.measured.auc - 0.5), default=None)


def area(leak: Leak) -> str:
    """`0.953 (0.930 to 0.976)`."""
    made = leak.measured
    inside = "" if math.isnan(made.low) else f" ({made.low:.{DIGITS}f} to {made.high:.{DIGITS}f})"
    return f"{made.auc:.{DIGITS}f}{inside}"
