"""The tables: what a paper prints, and what a script reads back."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace

import pytest

from report_kit import Maps, cell, run, sample, scored, two_nets
from segaudit.report import sheets
from segaudit.report.summary import DASH, FIELDS, show_eps, summarise
from segaudit.report.tables import table
from segaudit.types import Results, UserError


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def body(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[part.strip() for part in line.strip("|").split("|")] for line in lines]


@pytest.fixture
def maps() -> Results:
    maps = Maps()
    maps.add(cell(), 0.8, 0)
    for eps, right in ((0.25, 0.6), (8, 0.1)):
        maps.add(cell(attack="pgd", eps=eps), right, eps)
    return maps.results()


def test_csv_is_the_long_form_in_the_order_of_the_plan(maps: Results) -> None:
    text = table(maps, "csv")
    assert text.splitlines()[0] == (
        "model,defense,threat,attack,norm,eps,images,miou,image_miou,accuracy,iou_ratio,miou_8bit,linf,l2,forwards,"
        "backwards,seconds"
    )
    rows, lines = summarise(maps), read(text)
    assert len(lines) == len(rows) == 3
    for row, line in zip(rows, lines, strict=True):
        for field in FIELDS:
            value = getattr(row, field)
            assert line[field] == value if isinstance(value, str) else float(line[field]) == value


def test_csv_is_the_same_each_time(maps: Results) -> None:
    assert table(maps, "csv") == table(maps, "csv")


def test_csv_leaves_empty_what_is_missing() -> None:
    own = run([(cell(attack="ddn", eps=None), scored(0.2))])
    (line,) = read(table(own, "csv"))
    assert (line["eps"], line["iou_ratio"]) == ("", "")
    assert float(line["miou"]) == pytest.approx(0.2, abs=1e-4)


def test_names_with_commas_quotes_and_lines_read_back() -> None:
    name = 'a "net", of\ntwo lines'
    (line,) = read(table(run([(cell(name), scored(0.5))]), "csv"))
    assert line["model"] == name


def test_pivot_has_a_line_a_model_and_attack_and_a_column_a_budget() -> None:
    header, _, *lines = body(table(sample()))
    assert header == ["model", "attack", "clean", "0.5/255", "2/255", "8/255"]
    assert lines == [
        ["net", "fgsm", "60.0", "50.0", "40.0", "30.0"],
        ["net", "pgd", "60.0", "40.0", "10.0", "2.0"],
        ["fpn", "fgsm", "65.0", "60.0", "50.0", "40.0"],
        ["fpn", "pgd", "65.0", "50.0", "35.0", "10.0"],
    ]


def test_pivot_of_the_ratio_is_the_share_of_the_clean_miou() -> None:
    lines = body(table(sample(), quantity="iou_ratio"))[2:]
    assert lines[1] == ["net", "pgd", "100.0", "66.7", "16.7", "3.3"]


def test_pivot_as_csv_keeps_full_precision() -> None:
    results = sample()
    line = read(table(results, "csv", form="pivot"))[1]
    row = next(row for row in summarise(results) if row.attack == "pgd" and row.eps == 8 / 255)
    assert float(line["8/255"]) == row.miou


def test_pivot_tells_defenses_threats_and_norms_apart_only_where_there_are_several() -> None:
    cells = [
        (cell(), scored(0.6)),
        (cell(attack="pgd", eps=8), scored(0.1)),
        (cell(defense="jpeg"), scored(0.5)),
        (cell(attack="pgd", eps=8, defense="jpeg", threat="oblivious"), scored(0.4)),
        (cell(attack="pgd", eps=8, defense="jpeg", threat="adaptive"), scored(0.2)),
        (cell(attack="pgd(norm=l2)", eps=510, norm="l2"), scored(0.3)),
        (cell(attack="ddn", eps=None, norm="l2"), scored(0.05)),
    ]
    text = table(run(cells))
    header, _, *lines = body(text)
    assert header == ["model", "defense", "threat", "attack", "clean", "linf 8/255", "l2 2", "l2 own"]
    assert ["net", "jpeg", "adaptive", "pgd", "50.0", "20.0", DASH, DASH] in lines
    assert ["net", "none", "white-box", "ddn", "60.0", DASH, DASH, "5.0"] in lines
    assert "own: the attack finds its own norm" in text


def test_a_model_that_was_not_attacked_still_has_a_line() -> None:
    assert body(table(run([(cell("alone"), scored(0.7))])))[2:] == [["alone", "none", "70.0"]]


def test_long_form_for_people_writes_percent_and_255ths() -> None:
    header, _, *lines = body(table(sample(), form="long"))
    assert header == list(FIELDS)
    line = dict(zip(header, lines[4], strict=True))
    assert (line["eps"], line["miou"], line["linf"], line["seconds"]) == ("0.5/255", "40.0", "0.5/255", "0.5")


def test_transfer_is_source_by_target_with_the_own_attack_on_the_diagonal() -> None:
    header, _, *lines = body(table(sample(), form="transfer", attack="pgd", eps=8 / 255))
    assert header == ["attack", "eps", "source", "net", "fpn"]
    assert lines == [["pgd", "8/255", "net", "2.0", "52.0"], ["pgd", "8/255", "fpn", "52.0", "10.0"]]


def test_transfer_holds_every_attack_and_budget_unless_one_is_chosen() -> None:
    lines = body(table(sample(), form="transfer"))[2:]
    assert [line[:3] for line in lines[:4]] == [
        ["fgsm", "0.5/255", "net"],
        ["fgsm", "0.5/255", "fpn"],
        ["fgsm", "2/255", "net"],
        ["fgsm", "2/255", "fpn"],
    ]
    assert len(lines) == 2 * 3 * 2


def test_classes_are_the_iou_of_each_class(maps: Results) -> None:
    lines = read(table(maps, "csv", form="classes"))
    for row, line in zip(summarise(maps), lines, strict=True):
        assert [float(line[name]) for name in maps.class_names] == list(row.iou_by_class)


def test_classes_tell_the_threats_of_a_defended_model_apart() -> None:
    made = [(cell(defense="jpeg"), scored(0.6))]
    made += [(cell(attack="pgd", eps=8, defense="jpeg", threat=t), scored(0.2)) for t in ("oblivious", "adaptive")]
    lines = read(table(run(made), "csv", form="classes"))
    assert [line["attack"] for line in lines] == ["none", "pgd (oblivious)", "pgd (adaptive)"]


def test_latex_uses_booktabs_and_escapes() -> None:
    name = r"a_b & 50% #1 {x} $y$ ~ ^ \cmd <i>|"
    text = table(run([(cell(name), scored(0.5)), (cell(name, "pgd", 8), scored(0.1))]), "latex")
    escaped = (
        r"a\_b \& 50\% \#1 \{x\} \$y\$ \textasciitilde{} \textasciicircum{} \textbackslash{}cmd "
        r"\textless{}i\textgreater{}\textbar{}"
    )
    assert f"{escaped} & pgd & 50.0 & 10.0 \\\\" in text
    assert r"\begin{tabular}{llrr}" in text
    for rule in ("toprule", "midrule", "bottomrule"):
        assert f"\\{rule}" in text


def test_latex_names_a_model_once_and_rules_models_off() -> None:
    lines = table(sample(), "latex").splitlines()
    first = lines.index(r"net & fgsm & 60.0 & 50.0 & 40.0 & 30.0 \\")
    assert lines[first + 1] == r" & pgd & 60.0 & 40.0 & 10.0 & 2.0 \\"
    assert lines[first + 2] == r"\midrule"
    assert lines[first + 3].startswith("fpn & fgsm")


def test_markdown_keeps_names_inside_of_their_column() -> None:
    (line,) = [x for x in table(run([(cell("a|b\n<b>*"), scored(0.5))])).splitlines() if "a\\|b" in x]
    assert line.startswith(r"| a\|b \<b\>\* | none ")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"format": "latx"}, "no format is called 'latx' (did you mean 'latex'?)"),
        ({"form": "pivto"}, "no form is called 'pivto' (did you mean 'pivot'?)"),
        ({"quantity": "mious"}, "no quantity is called 'mious' (did you mean 'miou'?)"),
        ({"attack": "pgdd"}, "no attack is called 'pgdd' (did you mean 'pgd'?)"),
        ({"eps": 1.0}, "no attack was run at eps 1; there are: 0.5/255, 2/255, 8/255"),
        ({"form": "long", "quantity": "miou"}, "form 'long' takes no quantity"),
    ],
)
def test_words_that_it_does_not_know_are_one_line(given: dict[str, object], told: str) -> None:
    with pytest.raises(UserError) as caught:
        table(sample(), **given)  # type: ignore[arg-type]
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_transfer_without_transfers_says_how_to_get_them() -> None:
    with pytest.raises(UserError, match="set `transfer: true`"):
        table(run([(cell(), scored(0.5)), (cell(attack="pgd", eps=8), scored(0.1))]), form="transfer")


def test_choosing_an_attack_keeps_the_clean_rows() -> None:
    lines = read(table(sample(), "csv", attack="pgd", eps=2 / 255))
    assert {line["attack"] for line in lines} == {"none", "pgd"}
    assert {line["eps"] for line in lines} == {"0.0", repr(2 / 255)}


@pytest.mark.parametrize(
    ("eps", "norm", "shown"),
    [
        (8 / 255, "linf", "8/255"),
        (0.25 / 255, "linf", "0.25/255"),
        (0.1, "linf", "25.5/255"),
        (0.5, "l2", "0.5"),
        (128 / 255, "l2", "128/255"),
        (3.0, "l2", "3"),
        (0.0, "linf", "0"),
        (None, "l2", "own"),
    ],
)
def test_budgets_are_shown_as_people_write_them(eps: float | None, norm: str, shown: str) -> None:
    assert show_eps(eps, norm) == shown


def test_nan_is_a_dash_and_never_a_word() -> None:
    text = table(run([(cell(attack="pgd", eps=8), scored(0.2))]), quantity="iou_ratio")
    assert body(text)[2] == ["net", "pgd", DASH, DASH]
    assert math.isnan(summarise(run([(cell(attack="pgd", eps=8), scored(0.2))]))[0].iou_ratio)


def test_dice_of_two_classes_is_that_of_the_second() -> None:
    results = run([(cell(), scored(0.6)), (cell(attack="pgd", eps=8), scored(0.2))])
    (line,) = body(table(results, quantity="dice"))[2:]
    assert [float(value) for value in line[2:]] == pytest.approx([200 * m / (1 + m) for m in (0.6, 0.2)], abs=0.05)
    sheet = sheets.glance(summarise(results))
    assert sheet is not None
    assert sheet.rows[0][list(sheet.head).index("clean Dice")].text == "75.0"
    several = sheets.glance(summarise(two_nets().results()))
    assert several is not None
    assert "clean Dice" not in several.head


def test_passes_that_are_not_through_the_whole_model_are_a_dash() -> None:
    attacks = [(cell(attack=name, eps=8), scored(0.2, backwards=0)) for name in ("noise", "on_manifold(steps=3)")]
    attacks += [(cell(attack="on_manifold", eps=8), scored(0.2, backwards=4))]
    none = [(key, replace(rows, forwards=rows.backwards)) for key, rows in attacks]
    sheet = sheets.cost(summarise(run(none)))
    assert sheet is not None
    assert [[box.text for box in row[3:5]] for row in sheet.rows] == [["0.0", "0.0"], [DASH, DASH], ["4.0", "4.0"]]


def test_every_quantity_is_there_again_after_rounding_and_for_small_things(maps: Results) -> None:
    for quantity in ("miou", "image_miou", "accuracy", "iou_ratio"):
        plain, rounded = (body(table(maps, quantity=f"{quantity}{end}"))[2] for end in ("", "_8bit"))
        row = summarise(maps)[1]
        assert float(plain[3]) == pytest.approx(100 * getattr(row, quantity), abs=0.05)
        assert float(rounded[3]) == pytest.approx(100 * getattr(row, f"{quantity}_8bit"), abs=0.05)
    head, _, *lines = body(table(maps, form="sizes"))
    assert head[3:] == ["small", "medium", "large", "small_8bit", "medium_8bit", "large_8bit"]
    assert len(lines) == 3
    for line, row in zip(lines, summarise(maps), strict=True):
        shares = [*row.iou_by_size.values(), *row.iou_by_size_8bit.values()]
        assert line[3:] == [DASH if math.isnan(share) else f"{100 * share:.1f}" for share in shares]


def test_how_near_targeted_attacks_came_to_their_goal() -> None:
    results = run([(cell(), scored(0.6)), (cell(attack="pgd", eps=8), scored(0.3)),
                   (cell(attack="pgd to next", eps=8), scored(0.2, goal=0.8))])  # fmt: skip
    lines = table(results, quantity="goal_miou").splitlines()
    assert [line.split("|")[-2].strip() for line in lines if "pgd" in line] == [DASH, "80.0"]
    assert "mIoU with the target in percent" in lines[0]
    exact = table(results, format="csv", form="pivot", quantity="goal_accuracy")
    share = float(exact.splitlines()[-1].rpartition(",")[2])
    assert share == pytest.approx(1.6 / 1.8, abs=1e-3)
