"""Attacks that find their own norm: thresholded at every budget, and the share of images that are won."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from report_kit import cell, run, scored
from segaudit.metrics import confusion
from segaudit.report.doubts import doubts
from segaudit.report.page import page
from segaudit.report.summary import summarise
from segaudit.report.tables import table
from segaudit.types import Counts, Records, Results

BUDGETS = [1 / 255, 4 / 255, 16 / 255]
SIZES = np.array([0.5, 1.0, 3.0, 4.0, 9.0, 40.0]) / 255
"""The Linf at which each of six images fell."""


def fallen() -> Records:
    """Six images without a right pixel, each with a norm of its own."""
    made = scored(0.0, images=6, size=1)
    return replace(made, norms=replace(made.norms, linf=SIZES))


@pytest.fixture
def own() -> Results:
    cells = [(cell(), scored(0.6, images=6, backwards=0)), (cell(attack="alma_prox", eps=None), fallen())]
    return run(cells, spec={"name": "a run", "data": {"name": "folder"}, "eps": BUDGETS})


def test_a_budget_counts_what_is_within_it_as_attacked_and_the_rest_as_clean(own: Results) -> None:
    rows = [row for row in summarise(own) if row.attack == "alma_prox"]
    assert [row.eps for row in rows] == [None, *BUDGETS]
    clean = own.cells[0][1].counts
    for row, within in zip(rows[1:], (2, 4, 5), strict=True):
        left = Counts(*(np.concatenate([0 * part[:within], part[within:]]) for part in (clean.intersection,) * 3))
        hit, target = left.intersection.sum(0), clean.target.sum(0)
        union = clean.union.sum(0) + (20000 - clean.union[0].sum()) * within // 2
        assert row.success == pytest.approx(within / 6)
        assert row.accuracy == pytest.approx(hit.sum() / target.sum())
        assert row.miou == pytest.approx(confusion.mean(hit / union))
        assert row.backwards == 20
        assert row.linf == pytest.approx(SIZES[:within].sum() / 6)
    assert rows[0].success == 1


def test_the_table_has_the_curve_and_the_own_norm(own: Results) -> None:
    text = table(own, quantity="success")
    line = [part.strip() for part in text.splitlines()[-1].strip("|").split("|")]
    assert line == [
        "net",
        "alma\\_prox" if "alma\\_prox" in text else "alma_prox",
        "0.0",
        "33.3",
        "66.7",
        "83.3",
        "100.0",
    ]
    assert not [doubt for doubt in doubts(own, summarise(own)) if "leaves its ball" in doubt or "masked" in doubt]
    assert "alma_prox" in page(own)


def test_targeted_attacks_and_other_images_get_no_curve(own: Results) -> None:
    clean, attacked = (records for _, records in own.cells)
    aimed = run([(cell(), clean), (cell(attack="asma to next", eps=None), replace(attacked, goal=attacked.counts))])
    assert [row.eps for row in summarise(aimed)] == [0, None]
    partial = run([(cell(), scored(0.6, images=5)), own.cells[1]], spec=own.spec)
    assert [row.eps for row in summarise(partial)] == [0, None]


@pytest.mark.parametrize(("right", "won"), [(1.0, 0), (0.011, 0), (0.01, 1), (0.0, 1)])
def test_an_image_is_won_at_99_percent_of_its_valid_pixels(right: float, won: float) -> None:
    target = np.array([[600, 400], [0, 0]])
    hit = (target * right).round().astype(int)
    counts = Counts(hit, target, target)
    assert confusion.success(counts) == won
    on_target = Counts(target - hit, target, target)
    assert confusion.success(on_target, targeted=True) == won
    assert math.isnan(confusion.success(Counts(*(0 * part for part in (hit, target, target)))))
