"""Whether a defense held: its worst case over all attacks and threat models, beside the bare model's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from segaudit.metrics import bootstrap
from segaudit.report.grid import Grid
from segaudit.report.headline import norms, with_sign
from segaudit.report.masking import diagnose, share
from segaudit.report.shots import Shot, paired, shots
from segaudit.report.signs import FEWEST, MARGIN, Diagnostic
from segaudit.report.summary import DASH, Row, judged, levels, show_eps, summarise, unique
from segaudit.types import Results, UserError

WORDS = {True: "holds", False: "does not hold", None: "cannot be judged"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """A defense in one norm, at the budget at which it gains most: its best case of budgets, its worst of attacks.

    The cells of the diagnostics are of a few images, so that they are not among the attacks: they speak by their flags.

    clean, oblivious, adaptive, worst, bare: the mIoU without an attack, under the best attack of each threat, under
    the best of all (`by`), and that of the bare model under the best attack on it; each attack of up to this budget,
    nan where there is none. held: whether the worst is above the bare model's by more than `MARGIN` and by more than
    chance; None without an attack on the bare model or an adaptive one, and of fewer than `FEWEST` images. budgets: at
    how many of how many it is. flags: the diagnostics that are raised; lacking: those that were not run.
    seconds, bare_seconds: what the defended and the bare model take for an image. parameters: of the networks that the
    defense brings with it, None where that was not noted.
    """

    model: str
    defense: str
    norm: str
    eps: float
    clean: float
    oblivious: float
    adaptive: float
    worst: float
    bare: float
    by: str
    held: bool | None
    flags: tuple[str, ...]
    lacking: tuple[str, ...]
    budgets: tuple[int, int] = (0, 0)
    seconds: float = math.nan
    bare_seconds: float = math.nan
    parameters: int | None = None

    @property
    def word(self) -> str:
        """`holds`, `seems to hold` where a flag is raised, `does not hold` or `cannot be judged`."""
        return "seems to hold" if self.held and self.flags else WORDS[self.held]

    @property
    def line(self) -> str:
        """All of it in one line."""
        count, total = self.budgets
        where = f" at {count} of {total} budgets" if count else ""
        beside = f"clean {with_sign(self.clean)}, oblivious {with_sign(self.oblivious)}, adaptive "
        bare = "no attack on the bare model is beside it"
        if not math.isnan(self.bare):
            bare = f"the bare model is left {with_sign(self.bare)}"
        return (
            f"{self.model} + {self.defense} {self.word}{where}: at {self.norm.capitalize()} "
            f"{show_eps(self.eps, self.norm)} the worst of all that was run, {self.by}, leaves it "
            f"{with_sign(self.worst)} mIoU, and {bare} "
            f"({beside}{with_sign(self.adaptive)}). {self._signs}."
        )

    @property
    def _signs(self) -> str:
        lacking = f"; not run: {', '.join(self.lacking)}" if self.lacking else ""
        if self.flags:
            return f"Signs of masked gradients, so do not rely on it: {', '.join(self.flags)}{lacking}"
        return f"No sign of masked gradients{lacking}"


def verdicts(results: Results, found: Sequence[Diagnostic], rows: Sequence[Row] | None = None) -> list[Verdict]:
    """One for each defended model and norm, in the order of the plan. found: the diagnostics of the run.

    rows: of the whole run (`summary.summarise`), where they are there already.
    """
    every = shots(judged(results), rows)
    made = []
    for model, defense in unique((s.row.model, s.row.defense) for s in every if s.row.defense != "none"):
        own = [s for s in every if (s.row.model, s.row.defense) == (model, defense)]
        bare = [s for s in every if (s.row.model, s.row.defense) == (model, "none")]
        mine = [d for d in found if (d.model, d.defense) == (model, defense)]
        flags = tuple(d.name for d in mine if d.raised)
        lacking = tuple(d.name for d in mine if d.raised is None)
        for norm in norms([s.row for s in own]):
            tries = [_at(own, bare, norm, eps, flags, lacking) for eps in levels([s.row for s in own], norm)]
            told = [verdict for verdict in tries if not math.isnan(verdict.worst)]
            if told:
                most = max(told, key=lambda v: (bool(v.held), -math.inf if v.held is None else v.worst - v.bare))
                budgets, count = (sum(bool(v.held) for v in told), len(told)), results.parameters.get(defense)
                made.append(replace(most, budgets=budgets, parameters=count))
    return made


def table(results: Results, rows: Sequence[Row], quantity: str, exact: bool) -> Grid:
    """A line a defense and norm; exact: numbers in full, for CSV. Raises UserError for a run without a defense."""
    every = summarise(results)  # rows may be a few of them
    made = verdicts(results, diagnose(results, every), every)
    if not made:
        raise UserError(f"table: {results.name} holds no attack on a defended model; put one among its defenses")
    body = [
        [
            v.model,
            v.defense,
            v.word,
            ", ".join(v.flags) or "none",
            v.by,
            v.norm,
            repr(v.eps) if exact else show_eps(v.eps, v.norm),
            *(share(left, exact) for left in (v.clean, v.oblivious, v.adaptive, v.worst, v.bare)),
            *(_seconds(spent, exact) for spent in (v.seconds, v.bare_seconds)),
            ("" if exact else DASH) if v.parameters is None else str(v.parameters),
        ]
        for v in made
    ]
    title = f"{results.name}: mIoU in percent of each defense at the budget where it gains most, under the worst attack"
    head = ["model", "defense", "verdict", "flags", "worst attack", "norm", "eps", "clean", "oblivious", "adaptive"]
    return Grid(title, [*head, "worst", "bare", "seconds", "bare seconds", "parameters"], body, 6)


def _at(
    own: Sequence[Shot],
    bare: Sequence[Shot],
    norm: str,
    eps: float,
    flags: tuple[str, ...],
    lacking: tuple[str, ...],
) -> Verdict:
    clean, first = (next((shot for shot in made if shot.row.clean), None) for made in (own, bare))
    worst, beside = _lowest(own, norm, eps), _lowest(bare, norm, eps)
    adaptive, held = _lowest(own, norm, eps, "adaptive"), None
    if worst and beside and adaptive:
        both = paired(worst, beside)
        if len(both[0].target) >= FEWEST:
            held = worst.row.miou - beside.row.miou > MARGIN and bootstrap.difference(*both)[0] > 0
    return Verdict(
        own[0].row.model,
        own[0].row.defense,
        norm,
        eps,
        clean=_miou(clean),
        oblivious=_miou(_lowest(own, norm, eps, "oblivious")),
        adaptive=_miou(adaptive),
        worst=_miou(worst),
        bare=_miou(beside),
        by=worst.row.label if worst else "",
        held=held,
        flags=flags,
        lacking=lacking,
        seconds=clean.row.scoring if clean else math.nan,
        bare_seconds=first.row.scoring if first else math.nan,
    )


def _lowest(shots: Sequence[Shot], norm: str, eps: float, threat: str | None = None) -> Shot | None:
    """The attack of up to this budget, under this threat or any, that leaves the lowest mIoU."""
    within = [s for s in shots if not s.row.clean and s.row.norm == norm and s.row.eps is not None and s.row.eps <= eps]
    told = [s for s in within if threat in (None, s.row.threat) and not math.isnan(s.row.miou)]
    return min(told, key=lambda shot: shot.row.miou, default=None)


def _seconds(value: float, exact: bool) -> str:
    if math.isnan(value):
        return "" if exact else DASH
    return repr(value) if exact else f"{value:.3g}"


def _miou(shot: Shot | None) -> float:
    return shot.row.miou if shot else math.nan
