"""The tables of a membership experiment: attacks by defense, all measures, utility, classes, groups."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from segaudit.metrics.membership import RATES, Measured, by_class, by_unit
from segaudit.report.grid import Grid
from segaudit.report.leaks import Leak, Standing, area, baselines, confounded, quality, standings
from segaudit.report.masking import share
from segaudit.report.summary import DASH, Row, percent, unique
from segaudit.types import Results, UserError

NAMES = {0.01: "tpr_1", 0.001: "tpr_01", 0.0: "tpr_0"}
"""How a column or a condition calls the hits at a rate of false alarms."""
FIELDS = (
    "model", "defense", "poison", "threat", "attack", "images", "members", "others", "units", "auc", "auc_low",
    "auc_high", "balanced_accuracy", "attack_accuracy", "f1", "threshold", "tuned",
    *(f"{NAMES[rate]}{end}" for rate in RATES for end in ("", "_low", "_high")),
    "miou_members", "miou_others", "miou_gap", "dice_members", "dice_others", "dice_gap", "epsilon", "delta", "seconds",
)  # fmt: skip
"""The columns of the long form, a row a victim, threat and attack; the baseline's victim has no name."""
UNRESOLVED = "not resolvable"


def values(own: Standing | None, leak: Leak) -> dict[str, str | float]:
    """All of `FIELDS` of an attack on a victim (None: the baseline). Shares in [0, 1], nan where there is none."""
    of, made = leak.of, leak.measured
    hits = {
        f"{NAMES[hit.fpr]}{end}": value
        for hit in made.hits
        for end, value in (("", hit.tpr), ("_low", hit.low), ("_high", hit.high))
    }
    return {
        "model": of.model, "defense": of.defense, "poison": of.poison, "threat": of.threat, "attack": of.attack,
        "images": made.members + made.others, "members": made.members, "others": made.others, "units": made.units,
        "auc": made.auc, "auc_low": made.low, "auc_high": made.high, "balanced_accuracy": made.balanced_accuracy,
        "attack_accuracy": made.accuracy, "f1": made.f1, "threshold": made.threshold, "tuned": int(made.tuned), **hits,
        **worth(own), "seconds": of.seconds,
    }  # fmt: skip


def worth(own: Standing | None) -> dict[str, float]:
    """Those of `FIELDS` that are a victim's own, whatever the attack."""
    good, facts = quality(own.victim if own else None), own.victim.facts if own and own.victim else {}
    return {
        "miou_members": good.miou, "miou_others": good.miou_others, "miou_gap": good.gap, "dice_members": good.dice,
        "dice_others": good.dice_others, "dice_gap": good.dice_gap, "epsilon": facts.get("epsilon", math.nan),
        "delta": facts.get("delta", math.nan),
    }  # fmt: skip


def privacy(results: Results, rows: Sequence[Row], quantity: str, exact: bool) -> Grid:
    """Defense and threat x attack, AUC and hits at 1 %; exact: `FIELDS`, a row an attack. UserError without any."""
    found, blind = standings(results), baselines(results)
    return long(results, found, blind) if exact else pivot(results, found, blind)[0]


def long(results: Results, found: Sequence[Standing], blind: Sequence[Leak]) -> Grid:
    """A row an attack in full, the baselines first."""
    told = [values(None, leak) for leak in blind] + [values(own, leak) for own in found for leak in own.leaks]
    body = [[_plain(made[field]) for field in FIELDS] for made in told]
    return Grid(f"{results.name}: membership inference", FIELDS, body, 5)


def pivot(results: Results, found: Sequence[Standing], blind: Sequence[Leak]) -> tuple[Grid, list[list[float]]]:
    """Defense and threat x attack; and the AUC behind each number, nan where there is none."""
    leaks = [leak for own in found for leak in own.leaks]
    attacks, some = unique(leak.of.attack for leak in leaks), any(leak.rare.resolvable for leak in leaks)
    poisoned = any(own.poison != "none" for own in found)
    body, areas = [], []
    for own in found:
        for threat in unique(leak.of.threat for leak in own.leaks):
            at = {leak.of.attack: leak for leak in own.leaks if leak.of.threat == threat}
            words = [own.model, own.defense, *([own.poison] if poisoned else []), threat]
            body.append([*words, *(_pair(at.get(attack), some) for attack in attacks)])
            areas.append([at[attack].measured.auc if attack in at else math.nan for attack in attacks])
    head = ["model", "defense", *(["poison"] if poisoned else []), "threat"]
    hits = f"(hits in percent at {100 * RATES[0]:g} % false alarms)"
    hits = hits if some else f"(hits at {100 * RATES[0]:g} % false alarms: {UNRESOLVED})"
    title = f"{results.name}: AUC of each membership attack {hits}; adaptive: it knows of the defense{_warning(blind)}"
    return Grid(title, [*head, *attacks], body, len(head)), areas


def measures(results: Results, found: Sequence[Standing], blind: Sequence[Leak]) -> Grid:
    """A row an attack with its intervals, as a page shows them; the baseline first."""
    body = []
    titled = [("no network", "", leak) for leak in blind]
    titled += [(own.title, leak.of.threat, leak) for own in found for leak in own.leaks]
    for title, threat, leak in titled:
        made = leak.measured
        shares = (made.balanced_accuracy, made.accuracy, made.f1)
        body.append(
            [
                title,
                threat,
                leak.of.attack,
                f"{made.auc:.3f}" if not math.isnan(made.auc) else DASH,
                _range(made),
                *map(percent, shares),
                "best" if made.tuned else "own",
                *(
                    f"{percent(hit.tpr)} ({100 * hit.low:.1f} to {100 * hit.high:.1f})"
                    if hit.resolvable
                    else UNRESOLVED
                    for hit in made.hits
                ),
            ]
        )
    head = ["victim", "threat", "attack", "AUC", "95 % interval", "balanced accuracy", "accuracy", "F1", "threshold"]
    caption = (
        f"{results.name}: membership attacks, shares in percent; threshold: the attack's own, or where it has none the "
        f"best on these images; hits with 95 % intervals{_warning(blind)}"
    )
    return Grid(caption, [*head, *(f"hits at {100 * rate:g} %" for rate in RATES)], body, 3)


def utility(results: Results, found: Sequence[Standing]) -> Grid:
    """What each victim is worth on members and others, and what its defense says of itself."""
    facts = unique(name for own in found if own.victim for name in own.victim.facts)
    facts.sort(key=lambda name: ("epsilon", "delta", name).index(name))
    body = []
    for own in found:
        made, told = quality(own.victim), own.victim.facts if own.victim else {}
        shares = (made.miou, made.miou_others, made.gap, made.dice, made.dice_others, made.dice_gap)
        numbers = (told.get(name, math.nan) for name in facts)
        body.append([own.title, *map(percent, shares), *(_fact(number) for number in numbers)])
    head = ["victim", "mIoU on members", "on others", "gap", "Dice on members", "on others", "gap", *facts]
    return Grid(f"{results.name}: the victims' worth in percent", [head[0], *map(words, head[1:])], body, 1)


def classes(results: Results, rows: Sequence[Row], quantity: str, exact: bool) -> Grid:
    """The worst attack on each victim, on the images in which a class occurs."""
    names, body = results.class_names, []
    for own, worst in _worst(standings(results)):
        for k, made in enumerate(by_class(worst.of)):
            name = names[k] if k < len(names) else str(k)
            body.append([own.title, worst.told, name, str(made.members), str(made.others), *_figures(made, exact)])
    title = f"{results.name}: the worst attack on each victim, on the images in which a class occurs; TPR at 1 % FPR"
    return Grid(f"{title}{'' if exact else ' in percent'}", ["victim", "attack", "class", *_HEAD], body, 3)


def groups(results: Results, rows: Sequence[Row], quantity: str, exact: bool) -> Grid:
    """The worst attack on each victim, by unit. Raises UserError where each image is one of its own."""
    kinds, body = {True: "member", False: "other", None: "both"}, []
    for own, worst in _worst(standings(results)):
        if worst.measured.units < len(worst.of.ids):
            for unit in by_unit(worst.of):
                shares = (share(unit.exposure, exact), share(unit.called, exact))
                body.append([own.title, worst.told, unit.name, kinds[unit.member], str(unit.images), *shares])
    if not body:
        raise UserError(f"table: {results.name} splits single images, not groups; `unit: group` asks for groups")
    title = (
        f"{results.name}: the worst attack on each victim, by group; exposure: the share of the other groups' "
        "non-members that score lower, 50 % by chance; called: the images that it calls members"
    )
    return Grid(title, ["victim", "attack", "group", "is", "images", "exposure", "called"], body, 4)


_HEAD = ("members", "others", "AUC", "low", "high", "TPR")


def _worst(found: Sequence[Standing]) -> Iterator[tuple[Standing, Leak]]:
    for own in found:
        if worst := own.worst:
            yield own, worst


def _figures(made: Measured, exact: bool) -> list[str]:
    """AUC with its interval, and the hits at 1 %."""
    rare = made.hits[0].tpr
    unresolved = DASH if math.isnan(made.auc) else UNRESOLVED
    hits = unresolved if math.isnan(rare) and not exact else share(rare, exact)
    return [*(_number(number, exact, "{:.3f}") for number in (made.auc, made.low, made.high)), hits]


def _pair(leak: Leak | None, hits: bool) -> str:
    if leak is None or math.isnan(leak.measured.auc):
        return DASH
    told = f"{leak.measured.auc:.3f}"
    return f"{told} ({percent(leak.rare.tpr) if leak.rare.resolvable else UNRESOLVED})" if hits else told


def _range(made: Measured) -> str:
    return DASH if math.isnan(made.low) else f"{made.low:.3f} to {made.high:.3f}"


def _warning(blind: Sequence[Leak]) -> str:
    leak = confounded(blind)
    if leak is None:
        return ""
    if leak.measured.inverted:
        return f"; the check of the split is not sound: {leak.of.attack} has an AUC of {area(leak)}, worse than a guess"
    return f"; the split itself leaks: {leak.of.attack} has an AUC of {area(leak)}"


def _plain(value: str | float) -> str:
    if isinstance(value, str | int):
        return str(value)
    return "" if math.isnan(value) else repr(float(value))


def _number(value: float, exact: bool, text: str) -> str:
    if math.isnan(value):
        return "" if exact else DASH
    return _plain(float(value)) if exact else text.format(value)


def _fact(value: float) -> str:
    """Whole numbers whole, others in four digits."""
    return str(int(value)) if float(value).is_integer() else _number(value, False, "{:.4g}")


def words(name: str) -> str:
    """A name as a column shows it."""
    return name.replace("_", " ").replace("miou", "mIoU").replace("dice", "Dice")
