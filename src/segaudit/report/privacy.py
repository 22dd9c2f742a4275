"""What a page says of the privacy of the training images: verdicts, doubts, tables, curves, the most exposed images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from segaudit.metrics.chance import effective, placement
from segaudit.metrics.membership import fall, measure
from segaudit.report import privacy_beside as beside
from segaudit.report import privacy_tables as tables
from segaudit.report import rocs
from segaudit.report.grid import Grid, comma
from segaudit.report.headline import with_sign
from segaudit.report.leaks import Leak, Standing, area, asked, baselines, confounded, standings
from segaudit.report.pictures import thumbnails
from segaudit.report.privacy_verdict import line, to_groups
from segaudit.report.sheets import Box, Sheet
from segaudit.report.summary import Row, unique
from segaudit.types import Inference, Results, UserError

FEW = 10
"""Units on a side; with fewer, what sees no network is tried on too little."""
EXPOSED = 5
"""Training images shown as the most exposed."""
SPLIT = {
    "unit": "in or out together", "units": "such units", "members": "members", "others": "others like them",
    "shadow_members": "members of a shadow", "reference": "images for defenses alone",
    "population": "images that no network saw", "shadows": "shadows",
    "references": "references", "victims": "victims",
}  # fmt: skip


def section(results: Results, rows: Sequence[Row]) -> dict[str, Any] | None:
    """What the page shows; None for a run without a membership experiment."""
    if results.privacy is None or not asked(results):
        return None
    found, blind = standings(results), baselines(results)
    optional = {key: _grid(ask, results, rows) for key, ask in ASKED.items()}
    return {
        "lead": [line(own) for own in found if own.defense == "none" and own.poison == "none"] or [line(found[0])],
        "lines": [line(own) for own in found],
        "poisoned": [line for own in found if own.clean for line in _poisoned(own)],
        "doubts": list(doubts(results, found, blind)),
        "blind": list(_blind(blind)),
        "split": [
            (text, str(results.privacy.split[key])) for key, text in SPLIT.items() if key in results.privacy.split
        ],
        "pivot": _coloured(*tables.pivot(results, found, blind)),
        "utility": tables.utility(results, found),
        "measures": tables.measures(results, found, blind),
        "rocs": figures(found, blind),
        "exposed": exposed(results, found),
        "csv": comma(tables.long(results, found, blind)),
        **optional,
    }


def doubts(results: Results, found: Sequence[Standing], blind: Sequence[Leak]) -> Iterator[str]:
    """What throws doubt on a membership experiment, a sentence each, the gravest first."""
    split: Mapping[str, Any] = results.privacy.split if results.privacy else {}
    if leak := confounded(blind):
        who = f"{leak.of.attack}, which sees no network,"
        if leak.measured.inverted:
            yield (
                f"The check of the split is not sound: {who} does worse than a guess, with an AUC of {area(leak)}. "
                "Few units come to that, as each is told by what the rest of them are: cut smaller ones (`clip`), or "
                "take more images, and look again."
            )
        else:
            yield (
                f"The split itself leaks: {who} tells members from others with an AUC of {area(leak)}, so no figure "
                "above it counts as a leak of a network alone. Draw at random what is in and out, whole units together "
                "(`unit: group`)."
            )
    elif not blind:
        yield "No attack without a network was run (`no_model`), so whether the split itself leaks is not known."
    units = min((_sides(leak.of) for leak in blind), default=FEW)
    if units < FEW:
        yield f"The check of the split rests on {units:.3g} units on a side at most: its interval is a rough one."
    if left := split.get("left_out"):
        yield f"Left out: {left}."
    if split.get("unit") == "order":
        yield "Members are the first images of the folder (`unit: order`): such a split is for showing that it leaks."
    if controlled(results):
        yield (
            "A control: membership was drawn at random (`shuffled`), so no figure here speaks of what a network gives "
            "away."
        )
        leaks = [leak for own in found for leak in own.leaks]
        off = unique(leak.told for leak in leaks if leak.measured.beyond_chance)
        if off:
            yield (
                "Though membership was drawn at random, an interval of these attacks does not hold 0.5, as one in "
                f"twenty may by chance: {', '.join(off)}."
            )
    for own in found:
        facts = own.victim.facts if own.victim else {}
        if split.get("unit") == "group" and "epsilon" in facts and not to_groups(own):
            yield (
                f"{own.title} is private for each image, but whole groups are in or out here, and to a group it "
                "promises less than its epsilon says. `{name: dp, unit: group}` makes the promise to groups."
            )
        if own.leaks and not own.known:
            yield f"No attacker who knows of the defense was tried on {own.title}: do not rely on it."
        for leak in own.inverted:
            yield (
                f"{leak.told} on {own.title} does worse than a guess, with an AUC of {area(leak)}: whoever turns its "
                "scores round finds more than the attacks do."
            )
    others = min((leak.measured.others for own in found for leak in own.leaks), default=0)
    if 0 < others < 100:
        yield f"{others} images that are no members resolve no rate of false alarms under {100 / others:.3g} %."


def _sides(of: Inference) -> float:
    """As how many units of like size the side counts that has fewer."""
    return min(effective(np.array(of.units)[of.member == own]) for own in (True, False))


def controlled(results: Results) -> bool:
    """Whether membership was drawn at random, though the victim saw none of the images."""
    asked = results.spec.get("membership")
    return bool(isinstance(asked, Mapping) and asked.get("shuffled"))


def figures(found: Sequence[Standing], blind: Sequence[Leak]) -> list[dict[str, Any]]:
    """The worst attack on each victim together, if there are several; then all attacks on each, of those that know."""
    worst = [(f"{own.title}, {own.worst.told}", own.worst) for own in found if own.worst]
    made = [rocs.figure("The worst attack on each", worst, blind)] if len(worst) > 1 else []
    for own in found:
        knowing = [leak for leak in own.leaks if leak.of.threat != "oblivious"] or list(own.leaks)
        if knowing:
            made.append(rocs.figure(own.title, [(leak.told, leak) for leak in knowing], blind))
    return made


def exposed(results: Results, found: Sequence[Standing]) -> list[dict[str, Any]]:
    """The training images of each victim without defense and poison that stand out most, by LiRA or the worst attack.

    Those whose picture the run keeps come with it.
    """
    made = []
    for own in found if not controlled(results) else ():
        lira = [leak for leak in own.leaks if leak.of.attack.startswith("lira") and not math.isnan(leak.measured.auc)]
        leak = max(lira, key=lambda leak: leak.measured.auc, default=own.worst)
        if own.defense != "none" or own.poison != "none" or leak is None:
            continue
        of = leak.of
        members = sorted((i for i, member in enumerate(of.member) if member), key=lambda i: -of.scores[i])[:EXPOSED]
        above = placement(of.scores[~of.member], of.scores[members])
        kept = thumbnails(results, [of.ids[i] for i in members])
        told = [f"scores above {with_sign(float(share))} of the others" for share in above]
        items = [kept.get(of.ids[i], {}) | {"id": of.ids[i], "told": told[n]} for n, i in enumerate(members)]
        made.append({"title": f"{own.title}, {leak.told}", "items": items})
    return made


ASKED = {"classes": tables.classes, "groups": tables.groups, "poison": beside.poison, "joint": beside.joint}


def _grid(ask: Any, results: Results, rows: Sequence[Row]) -> Grid | None:
    """A table that not every experiment has."""
    try:
        made: Grid = ask(results, rows, "", False)
    except UserError:
        return None
    return made if made.rows else None


def _blind(blind: Sequence[Leak]) -> Iterator[str]:
    for leak in blind:
        told = "the interval holds 0.5, as it must"
        if not leak.measured.by_chance:
            told = "whether the split itself leaks is not known"
        if leak.measured.beyond_chance:
            told = "the interval does not hold 0.5: the split itself leaks"
        if leak.measured.inverted:
            told = "worse than a guess, so whether the split itself leaks is not known"
        yield f"{leak.of.attack}, which sees no network, has an AUC of {area(leak)}: {told}."


def _poisoned(own: Standing) -> Iterator[str]:
    """What a poisoned victim does at the trigger, and whether it leaks more than the clean one."""
    clean = own.clean
    if clean is None:
        return
    mine, theirs = (beside.at_trigger(each, own.poison) for each in (own, clean))
    told = []
    for word in ("success", "benign_accuracy", "outside_accuracy"):
        clear = f" (without the poison {with_sign(theirs[word])})" if word in theirs else ""
        told += [f"{word.replace('_', ' ')} {with_sign(mine[word])}{clear}"] if word in mine else []
    if told:
        yield f"{own.title}: {', '.join(told)}."
    same = replace(clean, leaks=_among(clean.leaks, own.worst.of.ids)).worst if own.worst else None
    if own.worst and same:
        low, high = fall(own.worst.measured, same.measured)
        word = "more than" if low > 0 else "less than" if high < 0 else "no more, beyond chance, than"
        yield (
            f"{own.title} gives away {word} the one without the poison: an AUC of {area(own.worst)} by "
            f"{own.worst.told} against {area(same)} by {same.told}, of the images that the poison spares."
        )


def _among(leaks: Sequence[Leak], ids: Sequence[str]) -> tuple[Leak, ...]:
    """What attacks say of these images alone."""
    made, asked = list[Leak](), set(ids)
    for of in (leak.of for leak in leaks):
        rows = [row for row, name in enumerate(of.ids) if name in asked]
        names, units = (tuple(own[row] for row in rows) for own in (of.ids, of.units))
        arrays = {key: getattr(of, key)[rows] for key in ("member", "scores", "target")}
        less = replace(of, ids=names, units=units, **arrays)
        made.append(Leak(less, measure(less)))
    return tuple(made)


def _coloured(grid: Grid, areas: Sequence[Sequence[float]]) -> Sheet:
    """The deeper, the further the AUC is above 0.5."""
    body = [
        [*map(Box, row[: grid.words]), *(Box(text, _depth(a)) for text, a in zip(row[grid.words :], own, strict=True))]
        for row, own in zip(grid.rows, areas, strict=True)
    ]
    return Sheet(grid.title, grid.header, body, grid.words)


def _depth(auc: float) -> float | None:
    return None if math.isnan(auc) else max(0.0, 2 * auc - 1)
