"""The page: its numbers, and that it stands alone whatever a run holds."""

from __future__ import annotations

import base64
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from plotly.offline import get_plotlyjs
from sklearn.metrics import accuracy_score, jaccard_score

from report_kit import PALETTE, Reader, cell, run, sample, scored, two_nets
from segaudit.report import summary
from segaudit.report.page import page
from segaudit.report.summary import summarise
from segaudit.report.tables import table
from segaudit.types import VOID, Picture, Results, Scene

EVIL = "<script>alert(1)</script>"


def test_rows_are_what_scikit_learn_makes_of_the_maps() -> None:
    made = two_nets()
    valid = made.truth != VOID
    truth = made.truth[valid]
    results = made.results()
    for (of, records), row in zip(results.cells, summarise(results), strict=True):
        guess = made.guesses[of][valid]
        assert row.miou == pytest.approx(jaccard_score(truth, guess, average="macro"), rel=1e-12)
        assert row.iou_by_class == pytest.approx(jaccard_score(truth, guess, average=None), rel=1e-12)
        assert row.accuracy == pytest.approx(accuracy_score(truth, guess), rel=1e-12)
        clean = made.guesses[cell(of.model)][valid]
        assert row.iou_ratio == pytest.approx(row.miou / jaccard_score(truth, clean, average="macro"), rel=1e-12)
        assert row.low <= row.miou <= row.high
        assert (row.images, row.forwards, row.backwards) == (5, 3.0, 4.0)
        assert row.linf == pytest.approx(float(made.deltas[of].abs().flatten(1).amax(1).mean()), rel=1e-5)
        assert row.share == pytest.approx(np.mean(records.norms.l0 / (12 * 16)))


def test_a_row_says_how_many_images_rounding_makes_clean_again() -> None:
    unchanged = {(row.model, row.eps): row.unchanged for row in summarise(two_nets().results())}
    assert unchanged["net", 0.25 / 255] == 1.0
    assert unchanged["net", 8 / 255] == 0.0


def test_a_page_sums_up_each_cell_once(monkeypatch: pytest.MonkeyPatch) -> None:
    own = [(cell(defense=defense, attack=attack, eps=eps, threat=threat), scored(miou, size=eps))
           for defense, attack, eps, threat, miou in (
               ("none", "none", 0, "", 0.6), ("none", "pgd", 8, "", 0.2), ("jpeg", "none", 0, "", 0.6),
               ("jpeg", "pgd", 8, "oblivious", 0.5), ("jpeg", "pgd", 8, "adaptive", 0.4))]  # fmt: skip
    made, row = [], summary._row
    monkeypatch.setattr(summary, "_row", lambda of, *rest: made.append(of) or row(of, *rest))
    text = Reader(page(run(own))).text
    assert "net + jpeg holds" in text
    assert made == [of for of, _ in own]


def test_what_is_measured_after_rounding_has_its_own_fields() -> None:
    row = summarise(run([(cell(attack="pgd", eps=2), scored(0.2, rounded=0.5, size=2, rounded_size=1))]))[0]
    assert (row.miou, row.miou_8bit) == pytest.approx((0.2, 0.5), abs=1e-3)
    assert (row.accuracy, row.accuracy_8bit) == pytest.approx((1 / 3, 2 / 3), abs=1e-3)
    assert (row.linf, row.linf_8bit, row.l2, row.l2_8bit) == pytest.approx((2 / 255, 1 / 255, 20 / 255, 10 / 255))
    assert (row.share, row.unchanged) == (0.5, 0.0)
    assert row.iou_by_size["large"] == pytest.approx(0.2, abs=1e-3)


def test_a_targeted_row_is_scored_against_its_goal() -> None:
    row = summarise(run([(cell(attack="pgd", eps=8), scored(0.2, goal=0.7))]))[0]
    assert (row.miou, row.goal_miou) == pytest.approx((0.2, 0.7), abs=1e-3)
    assert row.goal_accuracy > row.accuracy


def odd() -> dict[str, Results]:
    """Runs that lack something."""
    made = two_nets()
    void = scored(0.5)
    nothing = np.zeros_like(void.counts.target)
    empty = replace(void.counts, intersection=nothing, union=nothing, target=nothing)
    label = Scene("digit", np.zeros((8, 8, 1), np.uint8), np.array([[1]], np.uint8))
    one = [Picture("digit", np.full((1, 8, 8), 0.1, np.float16), np.array([[0]], np.uint8))]
    return {
        "only clean": run([(cell(), scored(0.6))]),
        "no clean": run([(cell(attack="pgd", eps=8), scored(0.2))]),
        "one budget": run([(cell(), scored(0.6)), (cell(attack="pgd", eps=8), scored(0.1))]),
        "one image": run([(cell(), scored(0.6, images=1)), (cell(attack="pgd", eps=8), scored(0.1, images=1))]),
        "own norm only": run([(cell(), scored(0.6)), (cell(attack="ddn", eps=None, norm="l2"), scored(0.1, size=3))]),
        "a norm of no axis": run([(cell(), scored(0.6)), (cell(attack="few", eps=None, norm="l0"), scored(0.1))]),
        "two norms": run([*sample().cells, (cell(attack="pgd(norm=l2)", eps=255, norm="l2"), scored(0.2))]),
        "all void": run([(cell(), replace(void, counts=empty, rounded=empty)),
                         (cell(attack="pgd", eps=8), replace(void, counts=empty, rounded=empty))]),
        "pictures without clean ones": made.results(pictures={
            key: value for key, value in made.results().pictures.items() if key.attack != "none"}),
        "pictures of the clean alone": made.results(pictures={
            key: value for key, value in made.results().pictures.items() if key.attack == "none"}),
        "a picture missing": made.results(pictures={
            key: value[:1] for key, value in made.results().pictures.items()}),
        "scenes alone": made.results(pictures={}),
        "a classifier": run([(cell(), scored(0.6)), (cell(attack="pgd", eps=8), scored(0.1))], scenes=[label],
                            pictures={cell(): one, cell(attack="pgd", eps=8): one}),
        "defended": run([(cell(), scored(0.6)), (cell(defense="jpeg"), scored(0.5)),
                         (cell(attack="pgd", eps=8, defense="jpeg", threat="oblivious"), scored(0.4)),
                         (cell(attack="pgd", eps=8, defense="jpeg", threat="adaptive"), scored(0.1))]),
        "an empty log and spec": run([(cell(), scored(0.6))], log={}, spec={}),
        "an odd log": run([(cell(), scored(0.6))], log={"sessions": [{}, {"started": None, "machine": ["a", 1]}]}),
    }  # fmt: skip


@pytest.mark.parametrize("name", odd())
def test_a_run_that_lacks_something_still_makes_a_page(name: str) -> None:
    results = odd()[name]
    html = Reader(page(results))
    html.data()
    assert not re.search(r"\bnan\b", html.text, re.IGNORECASE)
    for of, _ in results.cells:
        assert of.model in html.text
        assert of.attack == "none" or of.attack in html.text


def test_the_page_loads_nothing() -> None:
    html = page(two_nets().results())
    read = Reader(html)
    for tag, given in read.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for key in ("src", "href", "srcset", "data", "action", "poster"):
            assert (given.get(key) or "#").startswith(("#", "data:")), (tag, key)
    policy = [
        given["content"] or "" for tag, given in read.tags if given.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy[0].startswith("default-src 'none';")
    assert "http" not in policy[0]
    own = html.replace(get_plotlyjs(), "")
    assert len(html) - len(own) == len(get_plotlyjs())  # inlined once
    for word in ("http://", "https://", "@import", "url("):
        assert word not in own


def test_names_from_a_spec_are_text() -> None:
    made = two_nets()
    results = made.results()
    cells = [(replace(of, model=EVIL + of.model, attack=of.attack if of.attack == "none" else EVIL), records)
             for of, records in results.cells]  # fmt: skip
    kept = {new: results.pictures[old] for (old, _), (new, _) in zip(results.cells, cells, strict=True)}
    evil = Results(
        name=EVIL, spec={EVIL: EVIL}, log={EVIL: EVIL}, class_names=(EVIL,) * 4, palette=PALETTE, cells=cells,
        scenes=[replace(scene, id=EVIL) for scene in results.scenes],
        pictures={key: [replace(picture, id=EVIL) for picture in value] for key, value in kept.items()},
    )  # fmt: skip
    html = page(evil)
    assert EVIL not in html
    assert sum(tag == "script" for tag, _ in Reader(html).tags) == 3
    assert Reader(html).text.count(EVIL) > 10


def test_the_page_tells_what_was_run() -> None:
    log = {
        "parts": 9,
        "sessions": [
            {"started": "2026-01-01T09:00:00+00:00", "finished": None, "computed": 4, "seconds": 30.2,
             "machine": "first"},
            {"started": "2026-01-02T09:00:00+00:00", "finished": "2026-01-02T09:01:00+00:00", "computed": 5,
             "seconds": 60.4, "machine": "x86", "packages": {"torch": "2.8.0"}},
        ],
    }  # fmt: skip
    text = " ".join(Reader(page(sample(log=log))).text.split())
    for told in (
        "from 2026-01-01 09:00:00 UTC to a time that was not noted; 4 parts in 30 s",
        "from 2026-01-02 09:00:00 UTC to 2026-01-02 09:01:00 UTC; 5 parts in 60 s",
        "x86",
        "torch 2.8.0",
        "0.5/255, 2/255, 8/255",
        "26, 12 of them transfers",
        "seed: 3",
        "size: [4, 6]",
    ):
        assert told in text
    assert "machinefirst" not in text


def test_the_csv_behind_the_link_is_the_long_form() -> None:
    results = sample()
    (link,) = [given for tag, given in Reader(page(results)).tags if tag == "a" and "download" in given]
    content = base64.b64decode((link["href"] or "").removeprefix("data:text/csv;base64,"))
    assert content.decode() == table(results, "csv")


def test_curves_start_clean_and_end_at_the_largest_budget() -> None:
    drawn = Reader(page(sample())).data()["curves"]
    assert drawn["models"] == ["net", "fpn"]
    assert drawn["axes"][0]["text"] == ["clean", "0.5", "2", "8"]
    steps = np.diff(drawn["axes"][0]["at"])
    assert steps == pytest.approx([1, 2, 2])
    line = next(s for s in drawn["series"] if (s["model"], s["attack"]) == (1, 1))
    assert [point["miou"] for point in line["points"]] == pytest.approx([65, 50, 35, 10], abs=0.02)
    assert [point["x"] for point in line["points"]] == drawn["axes"][0]["at"]
    assert len(drawn["series"]) == 4


def test_an_attack_with_its_own_norm_stands_at_its_mean_size() -> None:
    cells = [*sample().cells, (cell(attack="alma", eps=None), scored(0.1, size=4))]
    drawn = Reader(page(run(cells))).data()["curves"]
    (own,) = [s["own"] for s in drawn["series"] if s["own"]]
    assert own[0]["x"] == pytest.approx(math.log2(4 / 255))


def test_colour_deepens_with_what_is_lost() -> None:
    html = page(run([(cell(), scored(0.6)), (cell(attack="pgd", eps=8), scored(0.15))]))
    assert "/ 0.45)" in html  # three quarters lost, of a strength of 0.6
