"""Whether a defense against membership inference held, and a line for each victim."""

from __future__ import annotations

import math

from segaudit.metrics.membership import RATES, Hits, fall, rise
from segaudit.report.headline import with_sign
from segaudit.report.leaks import Leak, Standing, area, quality

KNOWS = {"none": "", "oblivious": " that does not know of the {}", "adaptive": " that knows of the {}"}
HELD, MAYBE, LESS = "holds", "may hold", "lowers the leak"
NOT, UNKNOWN = "does not hold", "cannot be judged"


def verdict(own: Standing) -> str:
    """Of a defense: `HELD`, `MAYBE`, `LESS`, `NOT`, `UNKNOWN`.

    It held where no attack is `telling`, and may have where one is by itself, but not as one of so many. It lowers the
    leak where its worst attack has a lower AUC than that on the network without it, beyond chance, and at no rate of
    false alarms more are found.
    """
    bare, worst = own.bare.worst if own.bare else None, own.worst
    if unjudged(own) or bare is None or worst is None:
        return UNKNOWN
    if not own.telling:
        return MAYBE if any(leak.measured.low > 0.5 for leak in own.leaks) else HELD
    left = [worst.measured, *(leak.measured.turned for leak in own.inverted)]
    lower = all(fall(bare.measured, one)[0] > 0 for one in left)
    return LESS if lower and risen(own) is None else NOT


def unjudged(own: Standing) -> str:
    """Why a defense cannot be judged; empty where it can."""
    bare = own.bare.worst if own.bare else None
    if not own.known:
        return "no attacker who knows of the defense was tried"
    if own.worst is None or own.bare is None or bare is None:
        return "no attack on the network without it is there to compare"
    if not own.bare.telling:
        return "the network gives nothing away without it, beyond chance"
    if not own.telling and not fall(bare.measured, own.worst.measured)[0] > 0:
        return "there are too few images to tell it from the network without it"
    return ""


def risen(own: Standing) -> tuple[Hits, Hits] | None:
    """The hits without a defense and with it, at the first of `RATES` at which it lets more be found, beyond chance."""
    for rate in range(len(RATES)):
        before, now = own.bare.sharpest(rate) if own.bare else None, own.sharpest(rate)
        if before and now:
            pair = before.measured.hits[rate], now.measured.hits[rate]
            if rise(*pair)[0] > 0:
                return pair
    return None


def line(own: Standing) -> str:
    """All that is to be said of a victim, in a sentence or two."""
    worst = own.worst
    if worst is None:
        return f"{own.title}: no attack on it was made."
    if own.defense == "none":
        return f"{own.title}: {_finds(own, worst)}.{_quality(own)}"
    return f"{own.title} {verdict(own)}{_why(own)}: {_finds(own, worst)}{_without(own)}.{_cost(own)}{_budget(own)}"


def _why(own: Standing) -> str:
    why, more = unjudged(own), risen(own)
    if not why and more and verdict(own) == NOT:
        rate = f"{100 * more[0].fpr:g} % false alarms" if more[0].fpr else "no false alarm"
        why = f"the hits at {rate} rose from {with_sign(more[0].tpr)} to {with_sign(more[1].tpr)}"
    return f", as {why}" if why else ""


def _finds(own: Standing, worst: Leak) -> str:
    """What the worst attack does, and the one that finds most at few false alarms."""
    knows = KNOWS.get(worst.of.threat, "").format("poison" if own.defense == "none" else "defense")
    who = f"an attacker{knows} ({worst.of.attack})"
    told = f"{who} tells members from others with an AUC of {area(worst)}"
    defended = own.defense != "none"
    if worst.measured.by_chance or (defended and worst not in own.telling):
        told += ", which may be chance" + ("" if worst.measured.by_chance else f" among {len(own.leaks)} attacks")
        if defended and own.telling:
            told += f" (beyond chance: {', '.join(leak.told for leak in own.telling)})"
    sharp = own.sharpest()
    if sharp is None:
        return f"{told}; what is found at 1 % false alarms is not resolvable with {worst.measured.others} others"
    return (
        f"{told}; {_hits(sharp, worst)}, with an interval of {100 * sharp.rare.low:.1f} to {with_sign(sharp.rare.high)}"
    )


def _without(own: Standing) -> str:
    """The same of the network without the defense."""
    bare = own.bare.worst if own.bare else None
    sharp = own.bare.sharpest() if own.bare else None
    told = f"; without the defense, {bare.told} has an AUC of {area(bare)}" if bare else ""
    return f"{told}, and {_hits(sharp, bare)}" if bare and sharp else told


def _hits(sharp: Leak, worst: Leak) -> str:
    by = "" if sharp is worst else f" ({sharp.told})"
    return f"at 1 % false alarms {with_sign(sharp.rare.tpr)} are found{by}"


def _quality(own: Standing) -> str:
    made = quality(own.victim)
    if math.isnan(made.miou):
        return ""
    return (
        f" It scores {with_sign(made.miou)} mIoU on members and {with_sign(made.miou_others)} on others "
        f"(Dice {with_sign(made.dice)} and {with_sign(made.dice_others)})."
    )


def _cost(own: Standing) -> str:
    """What a defense costs on images that neither network was trained on."""
    made, beside = quality(own.victim), quality(own.bare.victim if own.bare else None)
    miou, dice = beside.miou_others - made.miou_others, beside.dice_others - made.dice_others
    if math.isnan(miou):
        return _quality(own)
    word = "costs" if miou >= 0 else "gains"
    other = "" if (dice >= 0) == (miou >= 0) else "gains " if dice < 0 else "costs "
    also = "" if math.isnan(dice) else f" and {other}{100 * abs(dice):.1f} of Dice"
    return f" On others it {word} {100 * abs(miou):.1f} points of mIoU{also}."


def to_groups(own: Standing) -> bool:
    """Whether an epsilon is promised to whole groups."""
    facts = own.victim.facts if own.victim else {}
    return "private_groups" in facts or "unit=group" in own.defense


def _budget(own: Standing) -> str:
    """What a defense promises, and to what: an image, unless it notes that it is a group."""
    facts = own.victim.facts if own.victim else {}
    if "epsilon" not in facts:
        return ""
    each = "group" if to_groups(own) else "image"
    members = max((leak.measured.members for leak in own.leaks), default=0)
    count = facts.get(f"private_{each}s", 0 if to_groups(own) else members)
    told = f" It is private to an epsilon of {facts['epsilon']:.3g}"
    if "delta" not in facts:
        return f"{told} for each {each}."
    told += f" at a delta of {facts['delta']:.3g} for each {each}"
    if count and facts["delta"] * count > 1 - 1e-9:
        told += f"; a delta not below 1 / {count:.0f} may give one of these {count:.0f} away whole"
    return f"{told}."
