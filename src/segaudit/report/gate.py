"""A gate for a user's own tests: whether a run meets conditions, and which rows of it do not."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from segaudit.registry import suggest
from segaudit.report import doubts as told
from segaudit.report.leaks import asked, baselines, standings
from segaudit.report.privacy import doubts
from segaudit.report.privacy_tables import FIELDS, values, worth
from segaudit.report.summary import Row, show_eps, summarise, unique
from segaudit.types import Results, UserError

OF_CELLS = ("miou", "image_miou", "accuracy", "iou_ratio", "miou_8bit", "dice")
"""Of each model: on the clean images, or `@EPS` under every attack of that budget."""
OF_PRIVACY = tuple(name for name in FIELDS[FIELDS.index("auc") :] if name not in ("threshold", "tuned", "seconds"))
"""Of each membership attack on each victim, the fields of the long form."""
WRITTEN = re.compile(r"\s*(\w+)\s*(?:\[(.*)\])?\s*(?:@\s*([\d./e-]+))?\s*(<=|>=|<|>)\s*([-+\d.e]+)\s*")
OF_VICTIMS = OF_PRIVACY[OF_PRIVACY.index("miou_members") :]
"""Those of them that no attack changes."""
CLAIMED = ("epsilon", "delta")
"""Those that only some defenses have: a victim that claims none is not asked for it, unless by name."""
COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Condition:
    """`QUANTITY[MODEL]@EPS < NUMBER`. model: a name, empty for all of them. eps: in [0, 1], None for none."""

    text: str
    quantity: str
    model: str
    eps: float | None
    sign: str
    bound: float


@dataclass(frozen=True, slots=True)
class Found:
    """One number that a condition is about. names: what its model answers to. lacking: why it cannot be relied on."""

    told: str
    names: tuple[str, ...]
    value: float
    lacking: str = ""


def read(text: str) -> Condition:
    """A condition such as `auc<0.6`, `tpr_1[unet + dp]<=0.05` or `miou@8/255>0.3`. Raises UserError for another."""
    match = WRITTEN.fullmatch(text)
    if match is None:
        usual = "'auc<0.6', 'tpr_1[net + dp]<0.05' or 'miou@8/255>0.3'"
        raise UserError(f"check: {text!r} is no condition; write one like {usual}")
    quantity, model, eps, sign, bound = match.groups()
    known = (*OF_CELLS, *OF_PRIVACY)
    if quantity not in known:
        raise UserError(
            f"check: no quantity is called {quantity!r}{suggest(quantity, known)}; there are: {', '.join(known)}"
        )
    if eps is not None and quantity not in OF_CELLS:
        raise UserError(f"check: {text!r}: {quantity} has no budget; leave out @{eps}")
    return Condition(text, quantity, (model or "").strip(), None if eps is None else _number(text, eps), sign,
                     _number(text, bound))  # fmt: skip


def check(results: Results, conditions: Sequence[str]) -> list[str]:
    """Why a run falls short of conditions, a line each; nothing where it meets them all.

    Each must hold for all that it is about: every attack and threat, of the model that it names or of all. A number
    that is missing or not resolvable falls short, and so do a run that is not finished, and a defended victim that no
    attacker who knows of the defense was tried on. Raises UserError for a condition that is not about this run.
    """
    wanted, rows = [read(text) for text in conditions], summarise(results)
    short = list(told.unfinished(results))
    for one in wanted:
        found = list(_cells(one, rows) if one.quantity in OF_CELLS else _leaks(results, one))
        chosen = [own for own in found if one.model in ("", *own.names)]
        if found and not chosen:
            names = unique(name for own in found for name in own.names)
            raise UserError(
                f"check: {one.text!r}: no model is called {one.model!r}{suggest(one.model, names)}; "
                f"there are: {', '.join(names)}"
            )
        if not chosen:
            raise UserError(f"check: {one.text!r}: {results.name} measures no {one.quantity}{_at(one)}")
        short += [line for own in chosen for line in _short(one, own)]
    return unique(short)


def warnings(results: Results) -> list[str]:
    """What throws doubt on the membership experiment of a run."""
    return list(doubts(results, standings(results), baselines(results))) if asked(results) else []


def _cells(one: Condition, rows: Sequence[Row]) -> Iterator[Found]:
    """The clean rows, or the direct attacks of the condition's budget."""
    for row in rows:
        if one.eps is None and row.clean:
            yield Found(row.name, (row.name,), getattr(row, one.quantity))
        elif one.eps and row.eps and row.direct and math.isclose(row.eps, one.eps, rel_tol=1e-6):
            where = f"{row.label} on {row.name} at {row.norm.capitalize()} {show_eps(row.eps, row.norm)}"
            yield Found(where, (row.name,), getattr(row, one.quantity))


def _leaks(results: Results, one: Condition) -> Iterator[Found]:
    """Every attack on every victim; what no attack changes only once."""
    hits = one.quantity.startswith("tpr")
    for own in standings(results) if asked(results) else ():
        names = (own.title, own.defense)
        if one.quantity in OF_VICTIMS:
            value = worth(own)[one.quantity]
            if one.quantity not in CLAIMED or not math.isnan(value) or one.model in names:
                yield Found(own.title, names, value)
            continue
        if not own.leaks:
            yield Found(own.title, names, math.nan, "no attack on it was made")
        for leak in own.leaks:
            value = float(values(own, leak)[one.quantity])
            lacking = "" if own.known else "no attacker who knows of the defense was tried"
            if math.isnan(value):
                lacking = f"not resolvable with {leak.measured.others} others" if hits else "not known"
            yield Found(f"{leak.told} on {own.title}", names, value, lacking)


def _short(one: Condition, own: Found) -> Iterator[str]:
    if own.lacking:
        yield f"{one.text}: {one.quantity} of {own.told}: {own.lacking}"
    elif not COMPARE[one.sign](own.value, one.bound):
        shown = "not known" if math.isnan(own.value) else f"{own.value:.4g}"
        yield f"{one.text}: {one.quantity} of {own.told} is {shown}"


def _at(one: Condition) -> str:
    return "" if one.eps is None else f" at {show_eps(one.eps, 'linf')}"


def _number(text: str, written: str) -> float:
    """`8/255`, or a plain number."""
    over, _, under = written.partition("/")
    try:
        return float(over) / float(under or 1)
    except (ValueError, ZeroDivisionError):
        raise UserError(f"check: {text!r}: {written!r} is no number; write 0.03 or 8/255") from None
