"""The cells of a run as its checks see them: one model's at a time, all on the same images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

from segaudit.metrics import confusion
from segaudit.metrics.records import only
from segaudit.report.headline import at_budget, with_sign
from segaudit.report.summary import Row, judged, tabulate, unique
from segaudit.types import RAISED, TWICE, Cell, Counts, Records, Results

ONE_STEP = ("fgsm", "fgsm_ll")
"""Attacks of one step, which may be several passes: the mean over a random defense's draws."""
FITTED = ("universal",)
"""Attacks with a budget that learn from other images: they may do less than one step on the image itself."""
INSIDE = ("on_manifold",)
"""Attacks that go by gradients of what is inside of a defense, which are no passes through the whole model."""
CONTROL = "noise"
"""The attack that the others must beat."""
DIRECT = ("white-box", "adaptive")
"""The threats under which the scored model was itself attacked."""


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """A cell with its row.

    own: whether its budget was given to it; an attack that finds its own norm is cut at each budget after the fact.
    fresh: whether it was not looked at before, on more images.
    """

    row: Row
    records: Records
    own: bool = True
    fresh: bool = True

    @property
    def counts(self) -> Counts:
        """Pixels by image and class, the mean over the draws of a random defense."""
        drawn = self.records.redrawn
        if drawn is None:
            return self.records.counts
        return Counts(*(getattr(drawn, field.name).mean(1) for field in fields(drawn)))

    @property
    def miou(self) -> float:
        """What it leaves."""
        return confusion.miou(self.counts)

    @property
    def at(self) -> tuple[str, float | None]:
        """Its norm and budget."""
        return self.row.norm, self.row.eps

    @property
    def bounded(self) -> bool:
        """Whether it has a budget that leaves pictures out of reach."""
        return bool(self.row.eps) and not (self.row.norm == "linf" and (self.row.eps or 0) >= 1)

    @property
    def told(self) -> str:
        """`pgd (adaptive) at Linf 8/255`."""
        return f"{self.row.label} at {at_budget(self.row)}"


Pair = tuple[Shot, Shot]
"""(what should be the weaker attack, what should be the stronger one)."""


class View:
    """The cells of one model on the same images.

    direct: attacks on the model itself, targeted ones too. white, black, noise: those of them that are to lower the
    mIoU, by gradients, by scores alone, and by chance. elsewhere: images made on the bare model, or on another one.
    """

    def __init__(self, shots: Sequence[Shot]) -> None:
        self.clean = next((shot for shot in shots if shot.row.clean), None)
        self.direct = [shot for shot in shots if shot.row.threat in DIRECT]
        free = [shot for shot in shots if shot.records.goal is None and not math.isnan(shot.miou)]
        own = [shot for shot in free if shot.row.threat in DIRECT]
        self.white = [shot for shot in own if shot.records.backwards.any() or inside(shot.row)]
        blind = [shot for shot in own if not shot.records.backwards.any() and not inside(shot.row)]
        self.noise = [shot for shot in blind if _name(shot.row) == CONTROL]
        self.black = [shot for shot in blind if _name(shot.row) != CONTROL]
        self.elsewhere = [shot for shot in free if shot.row.source or shot.row.threat == "oblivious"]


def worlds(results: Results, rows: Sequence[Row] | None = None) -> Iterator[list[Shot]]:
    """The cells of a run, on all images; then those of the diagnostics, with the others on the same few.

    What two of the others show is asked of all images alone: on a few it would show by chance. rows: see `shots`.
    """
    full, few = judged(results), list(results.diagnostics)
    yield shots(full, rows)
    if few:
        ids = unique(name for _, records in few for name in records.ids)
        shared = [(cell, records) for cell, records in ((cell, only(own, ids)) for cell, own in full) if len(records)]
        yield [replace(shot, fresh=i >= len(shared)) for i, shot in enumerate(shots([*shared, *few]))]


def shots(cells: Sequence[tuple[Cell, Records]], rows: Sequence[Row] | None = None) -> list[Shot]:
    """Cells with their rows. rows: what `tabulate` makes of them, where it is there already."""
    cut = {replace(cell, eps=0.0) for cell, _ in cells if cell.eps is None}
    told = zip(tabulate(cells) if rows is None else rows, cells, strict=True)
    return [Shot(row, records, own=replace(cell, eps=0.0) not in cut) for row, (cell, records) in told]


def best(weak: Sequence[Shot], strong: Sequence[Shot]) -> Iterator[Pair]:
    """At each budget that leaves pictures out of reach, the best of both kinds, where there are both.

    One of the strong ones must be iterated, for this budget, on these images: that one step, an attack which finds its
    own norm, or one that is fitted on other images does less shows nothing.
    """
    for at in unique(shot.at for shot in weak if shot.bounded):
        kinds = [[shot for shot in kind if shot.at == at] for kind in (weak, strong)]
        if kinds[0] and any(map(_thorough, kinds[1])):
            one, other = (min(kind, key=lambda shot: shot.miou) for kind in kinds)
            yield one, other


def paired(one: Shot, other: Shot) -> tuple[Counts, Counts]:
    """The counts of two cells on the images that both have."""
    first = Shot(one.row, only(one.records, other.records.ids))
    return first.counts, Shot(other.row, only(other.records, first.records.ids)).counts


def both(weak: Row, strong: Row, left: tuple[float, float], word: str = "but") -> str:
    """`On net, fgsm at Linf 8/255 leaves 10.0 % mIoU, but pgd at Linf 8/255 leaves 20.0 %`."""
    return (
        f"On {strong.name}, {weak.label} at {at_budget(weak)} leaves {with_sign(left[0])} mIoU, {word} {strong.label} "
        f"at {at_budget(strong)} leaves {with_sign(left[1])}"
    )


def shorter(attack: str) -> str:
    """The attack of the run that one of the diagnostics takes more steps or draws of; any other attack itself."""
    return attack.partition(TWICE)[0].partition(RAISED)[0]


def single(row: Row) -> bool:
    """Whether an attack takes one step along the gradient."""
    return 0 < row.backwards <= 1 or _name(row) in ONE_STEP


def inside(row: Row) -> bool:
    """Whether an attack goes by gradients that are no passes through the whole model."""
    return _name(row) in INSIDE


def _thorough(shot: Shot) -> bool:
    return shot.own and not single(shot.row) and _name(shot.row) not in FITTED


def _name(row: Row) -> str:
    return shorter(row.attack.partition("(")[0])
