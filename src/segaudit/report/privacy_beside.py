"""What stands beside leakage: what a poison does, and robustness, of the same networks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from segaudit.report.grid import Grid
from segaudit.report.headline import norms
from segaudit.report.leaks import Standing, area, quality, standings
from segaudit.report.masking import share
from segaudit.report.privacy_tables import UNRESOLVED, words
from segaudit.report.summary import DASH, Row, levels, show_eps, strongest, unique
from segaudit.types import Results, UserError

TRIGGERED = ("success", "untriggered_success", "benign_accuracy", "outside_accuracy", "benign_miou", "benign_dice")
"""What is known of a trigger, in the order of a table; of a clean victim, behind the poison's name if there are
several."""
LEAKAGE = ("AUC", "TPR at 1 %", "by")


def poison(results: Results, rows: Sequence[Row], quantity: str, exact: bool) -> Grid:
    """What the trigger does, and the leakage of poisoned and clean victims. Raises UserError without a poisoned one."""
    found = standings(results)
    beside = {own.clean.title for own in found if own.clean}
    shown = [own for own in found if own.poison != "none" or own.title in beside]
    if all(own.poison == "none" for own in shown):
        raise UserError(f"table: {results.name} poisons no victim; ask for it with `poison: [none, {{trigger: line}}]`")
    poisons = unique(own.poison for own in shown if own.poison != "none")
    told = [(own, trigger, at_trigger(own, trigger)) for own in shown for trigger in poisons
            if own.poison in ("none", trigger)]  # fmt: skip
    names = sorted(unique(name for _, _, shares in told for name in shares), key=_place)
    body = []
    for own, trigger, shares in told:
        made = quality(own.victim)
        every = [*(shares.get(name, math.nan) for name in names), made.miou_others, made.dice_others]
        named = [own.model, own.defense, own.poison, *([trigger] if len(poisons) > 1 else [])]
        body.append([*named, *(share(one, exact) for one in every), *_worst_of(own, exact)])
    first = ["model", "defense", "poison", *(["trigger"] if len(poisons) > 1 else [])]
    head = [*first, *map(words, names), "mIoU on others", "Dice on others", *LEAKAGE]
    title = f"{results.name}: poisoned victims beside clean ones; shares in percent, leakage by the worst attack (of "
    title += "poisoned ones on the images that the poison spares)"
    return Grid(title, head, body, len(first))


def at_trigger(own: Standing, poison: str) -> dict[str, float]:
    """What is known of a victim, poisoned or clean, at the trigger of a poison: name -> share; nothing that is nan."""
    told = own.victim.triggered if own.victim else {}
    found = {name: told.get(f"{poison} {name}", told.get(name, math.nan)) for name in map(_word, told)}
    return {name: share for name, share in found.items() if not math.isnan(share)}


def joint(results: Results, rows: Sequence[Row], quantity: str, exact: bool) -> Grid:
    """Robustness and leakage of the same networks. Raises UserError where no victim was attacked with a budget."""
    budgets = [(norm, eps) for norm in norms(rows) for eps in levels(rows, norm)]
    body = []
    for own in standings(results):
        row = next((row for row in rows if row.clean and attacked(own, row)), None)
        hit = [strongest(rows, row.name, norm, eps) if row else None for norm, eps in budgets]
        if row and any(hit):
            left = [row.miou, *(one.miou if one else math.nan for one in hit)]
            body.append([own.title, *(share(miou, exact) for miou in left), *_worst_of(own, exact)])
    if not body:
        raise UserError(
            f"table: {results.name} attacks no victim of its membership experiment with a budget; give its spec "
            "`attacks` and `eps` beside `membership`"
        )
    several = len({norm for norm, _ in budgets}) > 1
    heads = [f"{norm} {show_eps(eps, norm)}" if several else show_eps(eps, norm) for norm, eps in budgets]
    title = (
        f"{results.name}: the same networks under attack and under membership inference; mIoU in percent under the "
        "strongest attack of each budget, leakage by the worst attack"
    )
    return Grid(title, ["model", "clean", *heads, *LEAKAGE], body, 1)


def attacked(own: Standing, row: Row) -> bool:
    """Whether a row is of this victim: by its title, or by the words that it is made of."""
    return own.title in (row.name, row.model) and row.defense in ("none", own.defense)


def _worst_of(own: Standing, exact: bool) -> list[str]:
    """AUC and hits at 1 % of the worst attack, and which it is."""
    worst = own.worst
    if worst is None:
        return ["" if exact else DASH] * 2 + [""]
    hits = UNRESOLVED if not worst.rare.resolvable and not exact else share(worst.rare.tpr, exact)
    return [repr(worst.measured.auc) if exact else area(worst), hits, worst.told]


def _place(name: str) -> int:
    """What the trigger does stands before what is left of the rest."""
    return TRIGGERED.index(name) if name in TRIGGERED else len(TRIGGERED)


def _word(name: str) -> str:
    """What a share is of, without a poison's name."""
    return name.rpartition(" ")[2]
