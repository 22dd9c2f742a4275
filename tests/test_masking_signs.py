"""The signs of masked gradients on records made up for them: what raises each flag, and what must not."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from report_kit import cell, pair, run, scored
from segaudit.metrics import bootstrap, confusion
from segaudit.metrics.records import only
from segaudit.report.masking import diagnose
from segaudit.report.signs import CHECKS, Diagnostic
from segaudit.report.tables import table
from segaudit.report.verdict import verdicts
from segaudit.types import Cell, Counts, Records, UserError


def uneven(mious: list[float]) -> Records:
    """Records of images with each its own mIoU."""
    made = scored(0.5, images=len(mious), size=8)
    rows = [pair(miou, 1) for miou in mious]
    parts = (np.concatenate([getattr(row, name) for row in rows]) for name in ("intersection", "union", "target"))
    return replace(made, counts=Counts(*parts))


def test_a_difference_within_the_noise_of_the_images_is_no_flag() -> None:
    fgsm, pgd_, steady = uneven([0.1, 0.5] * 6), uneven([0.4, 0.3] * 6), uneven([0.14, 0.54] * 6)
    one, other = confusion.miou(fgsm.counts), confusion.miou(pgd_.counts)
    assert other - one > 0.02

    def check(strong: Records) -> Diagnostic:
        cells = [(cell(), scored(0.6, images=12)), (cell(attack="fgsm", eps=8), replace(fgsm, backwards=np.ones(12)))]
        found = diagnose(run([*cells, (cell(attack="pgd", eps=8), strong)]))
        return next(d for d in found if d.name == "one step")

    assert check(pgd_).raised is False
    assert check(pgd_).numbers == (one, other)
    assert check(steady).raised is True
    low, high = bootstrap.difference(steady.counts, fgsm.counts)
    assert 0 < low <= confusion.miou(steady.counts) - one <= high
    assert bootstrap.difference(pgd_.counts, fgsm.counts)[0] < 0


def test_the_paired_interval_is_that_of_a_loop() -> None:
    one, other = uneven([0.1, 0.5, 0.3, 0.7]).counts, uneven([0.2, 0.4, 0.3, 0.1]).counts
    rng, gains = np.random.default_rng(0), []
    for _ in range(1000):
        rows = np.array([0, 1, 2, 3])[rng.integers(4, size=4)]
        drawn = [Counts(c.intersection[rows], c.union[rows], c.target[rows]) for c in (one, other)]
        gains.append(confusion.miou(drawn[0]) - confusion.miou(drawn[1]))
    assert bootstrap.difference(one, other) == pytest.approx(np.quantile(gains, [0.025, 0.975]))
    assert all(map(math.isnan, bootstrap.difference(uneven([0.1]).counts, uneven([0.3]).counts)))


SOUND: list[tuple[Cell, Records]] = [
    (cell(), scored(0.6, backwards=0)),
    (cell(attack="fgsm", eps=8), scored(0.4, size=8, backwards=1)),
    (cell(attack="pgd", eps=2), scored(0.5, size=2)),
    (cell(attack="pgd", eps=8), scored(0.2, size=8)),
]
FEW: list[tuple[Cell, Records]] = [
    (cell(attack="noise", eps=8), scored(0.55, images=6, size=8, backwards=0)),
    (cell(attack="square(steps=200)", eps=8), scored(0.45, images=6, size=8, backwards=0)),
    (cell(attack="pgd with twice the steps", eps=8), scored(0.19, images=6, size=8)),
    (cell(attack="pgd(steps=40)", eps=255), scored(0.03, images=6, size=255)),
]


def flags(few: list[tuple[Cell, Records]], cells: list[tuple[Cell, Records]] = SOUND) -> dict[str, bool | None]:
    return {d.name: d.raised for d in diagnose(run(cells, diagnostics=few))}


@pytest.mark.parametrize(
    ("place", "left", "flag"),
    [(0, 0.19, "noise"), (1, 0.1, "black box"), (2, 0.15, "convergence"), (3, 0.1, "unbounded")],
)
def test_each_cell_of_the_diagnostics_has_its_flag(place: int, left: float, flag: str) -> None:
    quiet = flags(FEW)
    assert {name for name, raised in quiet.items() if raised is None} == {"steps", "transfer"}
    assert not any(quiet.values())
    changed = list(FEW)
    changed[place] = FEW[place][0], replace(FEW[place][1], counts=pair(left, 6))
    made = flags(changed)
    assert {name for name, raised in made.items() if raised} == {flag}


def test_an_attack_with_a_few_more_steps_is_told_by_its_name() -> None:
    raised = [*FEW[:2], (cell(attack="pgd raised to 13 steps", eps=8), scored(0.1, images=6, size=8)), FEW[3]]
    (d,) = [d for d in diagnose(run(SOUND, diagnostics=raised)) if d.name == "convergence"]
    assert d.raised
    assert d.of == ("pgd raised to 13 steps at Linf 8/255", "pgd at Linf 8/255")
    grid = table(run(SOUND, diagnostics=raised), form="masking")
    assert "pgd raised to 13 steps" in grid


def test_few_images_are_compared_with_the_same_ones_of_the_others() -> None:
    pgd_ = uneven([0.05] * 6 + [0.7] * 18)
    cells = [*SOUND[:3], (SOUND[3][0], pgd_)]
    (d,) = [d for d in diagnose(run(cells, diagnostics=FEW)) if d.name == "black box"]
    assert confusion.miou(pgd_.counts) > 0.45  # on all images, Square would seem the better
    assert d.numbers[1] == pytest.approx(confusion.miou(pair(0.05, 6)))
    assert (d.raised, d.images) == (False, 6)


def test_what_shows_on_a_few_of_the_images_alone_is_no_flag() -> None:
    pgd_ = uneven([0.6] * 6 + [0.1] * 18)
    steady = replace(pgd_, loss=np.where(np.arange(24) < 1, 1.0, 2.0))
    cells = [*SOUND[:3], (SOUND[3][0], steady)]
    made = {d.name: d for d in diagnose(run(cells, diagnostics=[FEW[3]]))}
    assert confusion.miou(only(pgd_, FEW[3][1].ids).counts) > 0.4 + 0.02  # what one step leaves
    assert (made["one step"].raised, made["one step"].images) == (False, 24)
    assert (made["zero gradient"].raised, made["zero gradient"].numbers) == (False, (0.1, 1 / 24))


def test_an_attack_that_is_not_made_for_the_budget_is_no_measure() -> None:
    """One that finds its own norm is cut at each budget, and one fitted on other images may do less than one step."""
    spec = {"name": "a run", "data": {"name": "folder"}, "eps": [8 / 255]}
    black = (cell(attack="square", eps=8), scored(0.3, size=8, backwards=0))
    weak = [
        (cell(attack="fmn(steps=50)", eps=None, norm="linf"), scored(0.1, size=20)),
        (cell(attack="fmn(steps=500)", eps=None, norm="linf"), scored(0.2, size=19)),
        (cell(attack="universal", eps=8), scored(0.55, size=8)),
    ]
    made = {d.name: d.raised for d in diagnose(run([*SOUND[:2], black, *weak], spec=spec))}
    assert {made[name] for name in ("one step", "black box", "steps")} == {None}
    made = {d.name: d.raised for d in diagnose(run([*SOUND, black, *weak], spec=spec))}
    assert (made["one step"], made["black box"]) == (False, False)


def test_gradients_of_what_is_inside_of_a_defense_are_no_scores_alone() -> None:
    inside = cell(attack="on_manifold(steps=40)", eps=8), scored(0.1, size=8, backwards=0)
    black = cell(attack="square", eps=8), scored(0.15, size=8, backwards=0)
    (d,) = [d for d in diagnose(run([*SOUND, inside, black])) if d.name == "black box"]
    assert not d.raised
    assert d.of == ("square at Linf 8/255", "on_manifold(steps=40) at Linf 8/255")


def test_a_target_that_is_reached_leaves_nothing_to_be_moved() -> None:
    def check(goal: float) -> Diagnostic:
        cells = [(cell(), scored(0.6)), (cell(attack="pgd to next", eps=8), scored(0.6, goal=goal))]
        return next(d for d in diagnose(run(cells)) if d.name == "zero gradient")

    assert check(1.0).raised is None
    assert (check(0.5).raised, check(0.5).numbers) == (True, (0.1, 1.0))


def test_that_a_weaker_attack_goes_on_is_no_flag() -> None:
    going = [*FEW[:2], (FEW[2][0], scored(0.15, images=6, size=8)), FEW[3]]
    assert flags(going)["convergence"]
    assert not flags(going, [*SOUND, (cell(attack="apgd", eps=8), scored(0.14, size=8))])["convergence"]


def test_few_images_do_not_tell_an_attack_from_noise() -> None:
    def check(by_chance: Records, by_gradient: Records) -> Diagnostic:
        own = [(cell(attack="noise", eps=8), replace(by_chance, backwards=0 * by_chance.loss))]
        cells = [(cell(), scored(0.6, images=12)), *own, (cell(attack="pgd", eps=8), by_gradient)]
        return next(d for d in diagnose(run(cells)) if d.name == "noise")

    wide = check(uneven([0.2, 0.5] * 6), uneven([0.4, 0.1] * 6))
    assert wide.numbers[0] - wide.numbers[1] > 0.02
    assert (wide.raised, wide.line) == (None, "not run: 12 images are too few to tell attacks from noise")
    assert check(uneven([0.2, 0.5] * 6), uneven([0.1, 0.3] * 6)).raised is False
    assert check(uneven([0.2, 0.5] * 6), uneven([0.3, 0.4] * 6)).raised is True


def test_five_images_may_agree_by_chance() -> None:
    def check(images: int) -> bool | None:
        one, many = scored(0.1, images=images, backwards=1), scored(0.2, images=images)
        cells = [(cell(attack="fgsm", eps=8), one), (cell(attack="pgd", eps=8), many)]
        return next(d.raised for d in diagnose(run(cells)) if d.name == "one step")

    assert [check(images) for images in (1, 5, 6)] == [None, None, True]


def test_a_check_without_its_cells_says_so_and_one_without_power_too() -> None:
    made = diagnose(run([(cell(), scored(0.6)), (cell(defense="jpeg"), scored(0.6))]))
    assert {d.name for d in made if d.defense == "none"} == set(CHECKS) - {"oblivious"}
    assert {d.name for d in made if d.defense == "jpeg"} == set(CHECKS) - {"transfer"}
    assert all(d.raised is None and d.line.startswith("not run: no ") for d in made)
    still = [(SOUND[0][0], SOUND[0][1]), (cell(attack="pgd", eps=8), scored(0.59, size=8))]
    noisy = [(cell(attack="noise", eps=8), scored(0.59, images=6, size=8, backwards=0))]
    (d,) = [d for d in diagnose(run(still, diagnostics=noisy)) if d.name == "noise"]
    assert (d.raised, d.line) == (None, "not run: Linf 8/255 is too little for noise and attacks alike")
    alone = [(c, scored(0.2 + 0.1 * i, images=1, size=8)) for i, (c, _) in enumerate(SOUND)]
    assert {d.line for d in diagnose(run(alone)) if d.name in ("budget",)} == {"not run: fewer than 6 images"}


def test_a_gradient_that_is_zero_on_some_images_is_told_with_their_number() -> None:
    after, half = scored(0.2, size=8), np.arange(24) < 6
    hits = np.where(half[:, None], scored(0.6).counts.intersection, after.counts.intersection)
    cells = [SOUND[0], (cell(attack="pgd", eps=8), replace(after, counts=replace(after.counts, intersection=hits)))]
    (d,) = [d for d in diagnose(run(cells)) if d.name == "zero gradient"]
    assert d.raised
    assert d.numbers == (0.1, 0.25)
    assert "changes nothing on 6 of 24 images" in d.line


def test_a_defense_holds_where_its_worst_case_is_above_the_bare_model_s() -> None:
    def verdict(*left: float, few: list[tuple[Cell, Records]] | None = None) -> Any:
        threats = [("oblivious", left[0]), ("adaptive", left[1])]
        own = [(cell(attack="pgd", eps=8, defense="jpeg", threat=t), scored(miou, size=8)) for t, miou in threats]
        found = run([*SOUND, (cell(defense="jpeg"), scored(0.58)), *own], diagnostics=few or [])
        (made,) = verdicts(found, diagnose(found))
        return made

    assert (verdict(0.5, 0.4).word, verdict(0.5, 0.21).word) == ("holds", "does not hold")
    assert verdict(0.3, 0.4).word == "seems to hold"
    assert verdict(0.3, 0.4).flags == ("oblivious",)
    line = verdict(0.5, 0.4).line.replace("\u00a0", " ")
    assert line.startswith(
        "net + jpeg holds at 1 of 1 budgets: at Linf 8/255 the worst of all that was run, pgd (adaptive), leaves it "
        "40.0 % mIoU, and the bare model is left 20.0 % (clean 58.0 %, oblivious 50.0 %, adaptive 40.0 %). No sign of "
        "masked gradients; not run: "
    )
    own = cell(attack="pgd", eps=8, defense="jpeg", threat="adaptive")
    bare = run([(cell(defense="jpeg"), scored(0.58)), (own, scored(0.4))])
    assert [v.word for v in verdicts(bare, diagnose(bare))] == ["cannot be judged"]
    assert "no attack on the bare model is beside it" in verdicts(bare, [])[0].line
    blind = run([*SOUND, (cell(defense="jpeg"), scored(0.58)), (replace(own, threat="oblivious"), scored(0.4))])
    assert [v.word for v in verdicts(blind, [])] == ["cannot be judged"]
    alone = [(SOUND[3][0], scored(0.2, images=1)), (own, scored(0.4, images=1))]
    assert [v.word for v in verdicts(run(alone), [])] == ["cannot be judged"]


def test_the_tables_hold_every_check_and_every_defense() -> None:
    own = [(cell(attack="pgd", eps=8, defense="a_b", threat="adaptive"), scored(0.4, size=8))]
    found = run([*SOUND, (cell(defense="a_b"), scored(0.58)), *own], diagnostics=FEW)
    for format in ("markdown", "latex", "csv"):
        text = table(found, format, form="masking")
        assert text.count("black box") >= 2
        assert "no random noise beside an iterated attack" in text
    lines = table(found, "csv", form="masking").splitlines()
    assert len(lines) == 1 + 2 * (len(CHECKS) - 1)
    line = next(line for line in lines if line.startswith("net,none,black box"))
    assert line.split(",")[3] == "quiet"
    assert [float(x) for x in line.split(",")[-3:-1]] == [confusion.miou(pair(0.45, 6)), confusion.miou(pair(0.19, 6))]
    (line,) = table(found, "csv", form="defenses").splitlines()[1:]
    assert line.startswith(f"net,a_b,holds,none,pgd (adaptive),linf,{8 / 255!r},")
    assert "| linf | 8/255 |" in table(found, form="defenses")
    with pytest.raises(UserError, match="no attack on a defended model"):
        table(run(SOUND), form="defenses")
