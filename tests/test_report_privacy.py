"""What a page and its tables say of a membership experiment."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from plotly.offline import get_plotlyjs

from leak_kit import IMAGES, chance, experiment, inference, usual, victim
from report_kit import Reader, cell, run, sample, scored
from segaudit.metrics.chance import clopper_pearson
from segaudit.metrics.membership import measure
from segaudit.report import privacy
from segaudit.report.leaks import standings
from segaudit.report.page import page
from segaudit.report.privacy_tables import FIELDS
from segaudit.report.privacy_verdict import line, verdict
from segaudit.report.summary import DASH, summarise
from segaudit.report.tables import PRIVATE, table
from segaudit.types import Inference, Results, Scene, UserError

LEAKS = "The split itself leaks"


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without the megabytes that draw other curves."""
    monkeypatch.setattr("segaudit.report.page.get_plotlyjs", lambda: "")


def read(results: Results, form: str = "privacy") -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table(results, "csv", form=form))))


def body(results: Results, form: str) -> list[list[str]]:
    lines = [line for line in table(results, form=form).splitlines() if line.startswith("|")]
    return [[part.strip() for part in line.strip("|").split("|")] for line in lines]


def text(results: Results) -> str:
    return " ".join(Reader(page(results)).text.split())


def doubts(results: Results) -> list[str]:
    made = privacy.section(results, [])
    assert made is not None
    return list(made["doubts"])


def test_csv_has_a_row_a_victim_threat_and_attack() -> None:
    rows = read(usual())
    assert tuple(rows[0]) == FIELDS
    assert [(row["model"], row["defense"], row["threat"], row["attack"]) for row in rows] == [
        ("", "none", "none", "no_model"),
        ("unet", "none", "none", "global_loss"),
        ("unet", "none", "none", "lira"),
        ("unet", "dp", "oblivious", "global_loss"),
        ("unet", "dp", "adaptive", "lira"),
        ("unet", "argmax", "oblivious", "lira"),
        ("unet", "argmax", "adaptive", "lira"),
    ]
    loss = rows[1]
    assert [loss[key] for key in ("images", "members", "others", "units")] == ["400", "200", "200", "400"]
    assert float(loss["auc"]) == pytest.approx(0.9)
    assert float(loss["attack_accuracy"]) == float(loss["balanced_accuracy"]) == pytest.approx(0.95)
    assert float(loss["f1"]) == pytest.approx(2 * 180 / (2 * 180 + 20))
    assert (loss["threshold"], loss["tuned"], rows[2]["tuned"]) == ("1.5", "0", "1")
    assert float(loss["tpr_1"]) == float(loss["tpr_0"]) == pytest.approx(0.9)
    assert [float(loss[f"tpr_1_{end}"]) for end in ("low", "high")] == pytest.approx(clopper_pearson(0.9, 200))
    assert (loss["tpr_01"], loss["tpr_01_low"], loss["epsilon"]) == ("", "", "")  # 200 others do not resolve 0.1 %
    assert float(loss["miou_gap"]) == pytest.approx(0.3, abs=1e-3)
    assert (rows[4]["epsilon"], rows[4]["delta"], rows[4]["seconds"]) == ("8.5", "0.005", "1.5")
    assert table(usual(), "csv", form="privacy") == table(usual(), "csv", form="privacy")
    assert table(usual(), "csv") == table(usual(), "csv", form="privacy")  # there is nothing else in the run


def test_defenses_by_attack() -> None:
    head, _, *rows = body(usual(), "privacy")
    assert head == ["model", "defense", "threat", "global_loss", "lira"]
    assert rows == [
        ["unet", "none", "none", "0.900 (90.0)", "0.950 (95.0)"],
        ["unet", "dp", "oblivious", "0.500 (1.0)", DASH],
        ["unet", "dp", "adaptive", DASH, "0.500 (1.0)"],
        ["unet", "argmax", "oblivious", DASH, "0.600 (60.0)"],
        ["unet", "argmax", "adaptive", DASH, "0.940 (94.0)"],
    ]
    assert r"\toprule" in table(usual(), "latex", form="privacy")


def test_a_verdict_for_each_victim() -> None:
    plain, dp, argmax = standings(usual())
    assert [verdict(own) for own in (plain, dp, argmax)] == ["cannot be judged", "holds", "does not hold"]
    low, high = clopper_pearson(0.95, 200)
    assert line(plain).startswith("unet: an attacker (lira) tells members from others with an AUC of 0.950 (0.9")
    inside = f"{100 * low:.1f} to {100 * high:.1f}\u00a0%"
    assert f"at 1 % false alarms 95.0\u00a0% are found, with an interval of {inside}." in line(plain)
    assert "It scores 90.0\u00a0% mIoU on members and 60.0\u00a0% on others" in line(plain)
    assert line(dp).startswith("unet + dp holds: an attacker that ")
    assert "; without the defense, lira has an AUC of 0.950 (0.9" in line(dp)
    assert "), and at 1 % false alarms 95.0\u00a0% are found. On others it costs" in line(dp)
    assert "On others it costs 10.0 points of mIoU" in line(dp)
    promise = "It is private to an epsilon of 8.5 at a delta of 0.005 for each image"
    assert line(dp).endswith(f"{promise}; a delta not below 1 / 200 may give one of these 200 away whole.")
    assert line(argmax).startswith("unet + argmax does not hold: an attacker that knows of the defense (lira)")


def test_a_defense_that_lowers_the_leak() -> None:
    found = experiment([], [chance(), inference(0.95), inference(0.7, defense="crop", threat="adaptive")])
    assert verdict(standings(found)[1]) == "lowers the leak"
    few = [inference(0.9, images=20), inference(0.8, images=20, defense="crop", threat="adaptive")]
    assert verdict(standings(experiment([], few))[1]) == "does not hold"  # not by more than chance


def test_a_few_that_are_surely_found_are_no_defense_that_held() -> None:
    """An AUC of a guess may hide them: one in ten members above all others, the rest spread a little lower."""
    of = chance("lira", model="unet", defense="dp", threat="adaptive")
    of.scores[:20] = 5.0
    of.scores[20:200] -= 0.05
    found = experiment([], [chance(), inference(0.95), of])
    assert standings(found)[1].worst.measured.by_chance
    assert verdict(standings(found)[1]) == "lowers the leak"


def test_nor_those_found_without_a_false_alarm_where_that_is_all_that_is_resolvable() -> None:
    of = chance("lira", model="unet", defense="dp", threat="adaptive", images=80)
    of.scores[:12] = 5.0
    of.scores[12:80] -= 0.1
    made = standings(experiment([], [chance(images=80), inference(0.95, images=80), of]))[1]
    assert made.worst is not None
    assert made.worst.measured.by_chance
    assert not made.worst.rare.resolvable
    assert verdict(made) == "lowers the leak"


@pytest.mark.parametrize("inverted", [False, True])
def test_no_defense_held_of_which_any_attack_is_beyond_chance(inverted: bool) -> None:
    """The worst attack by its AUC is known least well; or one tells others from members, which is as good."""
    wide = chance("wide", model="unet", defense="dp", threat="adaptive")
    sure = replace(wide, attack="sure", scores=wide.scores.copy())
    sure.scores[:60] += 0.35  # the members that scored lowest: nothing is found at few false alarms
    if inverted:
        sure = replace(sure, scores=-sure.scores)
    else:
        scores = np.repeat([1.0, 3.0, 6.0, 7.0, 0.0, 2.0, 4.0, 5.0], 50)
        wide = replace(wide, scores=scores, units=tuple(np.repeat(list("abcdefgh"), 50)))
    made = standings(experiment([], [chance(), inference(0.9), wide, sure]))[1]
    assert made.worst is not None
    assert made.worst.of.attack == "wide"
    assert made.worst.measured.by_chance
    assert verdict(made) == ("lowers the leak" if inverted else "does not hold")
    assert "which may be chance (beyond chance: sure (adaptive));" in line(made)


def among(seed: int, attacks: int = 4, images: int = 100) -> Results:
    """A defense that leaves nothing to so many attacks of two kinds of attackers, whose scores are independent."""
    rng, names = np.random.default_rng(seed), [f"attack{i}" for i in range(attacks)]
    every = [inference(0.5, name, defense="dp", threat=threat, images=images) for name in names
             for threat in ("oblivious", "adaptive")]  # fmt: skip
    drawn = [replace(of, scores=rng.normal(size=2 * images)) for of in every]
    return experiment([], [inference(0.95, images=images), *drawn])


def test_many_attacks_do_not_deny_a_defense_by_luck() -> None:
    """With the printed intervals each attack has its own 5 %, and of eight about one in three cases has one outside."""
    made = [standings(among(seed))[1] for seed in range(60)]
    outside = sum(any(leak.measured.beyond_chance for leak in own.leaks) for own in made)
    assert outside >= 14
    told = [verdict(own) for own in made]
    assert {"holds", "may hold"} <= set(told)
    assert sum(word not in ("holds", "may hold") for word in told) <= 8
    lucky = next(own for own in made if verdict(own) == "may hold" and own.worst and not own.worst.measured.by_chance)
    assert ", which may be chance among 8 attacks; at 1 % false alarms" in line(lucky)


def scored_by(found: float, high: float, **other: str) -> Inference:
    """An AUC of about this with this share of the members above all others, the rest not above the last few."""
    of = chance("lira", model="unet", **other)
    top, middle = round(high * IMAGES), (found - high) / (1 - high)
    half = min(middle, 0.98 - middle)
    of.scores[:top] = 5.0
    of.scores[top:IMAGES] = np.linspace(middle - half, middle + half, IMAGES - top)
    return of


def test_a_defense_that_lets_more_be_found_is_none_that_lowers_the_leak() -> None:
    """However much the AUC falls: what counts is who is found with hardly a false alarm."""
    bare = scored_by(0.9, 0.0)
    found = experiment([], [chance(), bare, scored_by(0.75, 0.47, defense="dp", threat="adaptive")])
    made = standings(found)[1]
    assert made.worst is not None
    assert made.bare is not None
    assert made.bare.worst is not None
    assert made.worst.measured.high < made.bare.worst.measured.low
    assert verdict(made) == "does not hold"
    told = line(made).replace("\u00a0", " ")
    assert told.startswith(
        "unet + dp does not hold, as the hits at 1 % false alarms rose from 0.0 % to 47.0 %: an attacker that knows"
    )
    assert told.endswith("and at 1 % false alarms 0.0 % are found.")
    fewer = experiment([], [chance(), bare, scored_by(0.75, 0.01, defense="dp", threat="adaptive")])
    assert verdict(standings(fewer)[1]) == "lowers the leak"  # 1 % is within what may be chance


def test_a_leak_that_is_turned_round_is_not_lowered() -> None:
    of = inference(0.95, defense="selena", threat="adaptive")
    found = experiment([], [chance(), inference(0.95), replace(of, scores=-of.scores)])
    assert verdict(standings(found)[1]) == "does not hold"
    (told,) = doubts(found)
    assert told.startswith("lira (adaptive) on unet + selena does worse than a guess, with an AUC of 0.050 (0.0")


def test_too_few_images_are_no_defense_that_held() -> None:
    few = chance("lira", model="unet", defense="crop", threat="adaptive", images=8)
    few.scores[:8] += 0.1
    made = standings(experiment([], [chance(images=8), inference(0.9, images=8), few]))[1]
    assert not made.telling
    assert line(made).startswith("unet + crop cannot be judged, as there are too few images to tell it from the ")


def test_no_defense_is_judged_by_who_does_not_know_of_it() -> None:
    found = experiment([], [chance(), inference(0.95), chance("lira", model="unet", defense="dp", threat="oblivious")])
    assert "unet + dp cannot be judged, as no attacker who knows of the defense was tried" in line(standings(found)[1])
    assert doubts(found) == ["No attacker who knows of the defense was tried on unet + dp: do not rely on it."]
    assert doubts(usual()) == []


def test_nor_beside_a_network_that_gives_nothing_away() -> None:
    bare = chance("lira", model="unet")
    found = experiment([], [chance(), bare, replace(bare, defense="dp", threat="adaptive")])
    assert "cannot be judged, as the network gives nothing away without it" in line(standings(found)[1])
    found = experiment([], [chance(), replace(bare, defense="dp", threat="adaptive")])
    assert "cannot be judged, as no attack on the network without it" in line(standings(found)[0])


def test_a_split_that_leaks_is_told_wherever_its_figures_stand() -> None:
    sound, leaking = usual(), experiment([victim()], [inference(0.7, "no_model", model=""), inference(0.95)])
    assert LEAKS in doubts(leaking)[0]
    assert "AUC of 0.700 (0." in doubts(leaking)[0]
    assert LEAKS in text(leaking)
    assert LEAKS not in text(sound)
    assert "the interval holds 0.5, as it must" in text(sound)
    assert "the split itself leaks" in table(leaking, form="privacy").splitlines()[0]
    assert "leaks" not in table(sound, form="privacy").splitlines()[0]
    single = replace(inference(0.7, "no_model", model=""), units=tuple(np.repeat(["in", "out"], 200)))
    unsure = experiment([], [single, inference(0.95)])  # one unit on a side has no interval
    assert "AUC of 0.700: whether the split itself leaks is not known" in text(unsure)
    assert LEAKS not in text(unsure)
    below = chance("no_model")  # worse than a guess is no guess either
    below = replace(below, scores=np.where(below.member, -1.0, 1.0))
    inverted = experiment([], [below, inference(0.9)])
    assert doubts(inverted)[0].startswith("The check of the split is not sound: no_model, which sees no network, does")
    assert LEAKS not in text(inverted)
    assert "worse than a guess, so whether the split itself leaks is not known" in text(inverted)
    assert "no_model has an AUC of 0.000" in table(inverted, form="privacy").splitlines()[0]
    assert "worse than a guess" not in text(leaking)
    few = replace(
        chance("no_model"), units=tuple(f"{i % 7}" for i in range(200)) + tuple(f"o{i % 9}" for i in range(200))
    )
    assert "rests on 7 units on a side at most" in " ".join(doubts(experiment([], [few, inference(0.9)])))
    assert "rests on" not in text(sound)
    assert "was run (`no_model`)" in doubts(experiment([], [inference(0.9)]))[0]


def test_a_split_by_order_and_a_control_are_told() -> None:
    ordered = usual(split={"unit": "order"})
    assert any("`unit: order`" in line for line in doubts(ordered))
    spec = {"name": "a run", "membership": {"shuffled": True}}
    (off,) = [told for told in doubts(usual(spec=spec)) if "one in twenty" in told]
    assert "global_loss, lira, lira (oblivious), lira (adaptive)" in off
    (told,) = doubts(experiment([], [chance(), chance("lira", model="unet")], spec=spec))
    assert told.startswith("A control: membership was drawn at random (`shuffled`)")


def test_a_promise_to_images_where_groups_are_in_or_out_is_told() -> None:
    spent = {"epsilon": 8.5, "delta": 0.25}
    leaks = [chance(), inference(0.95), chance("lira", model="unet", defense="dp", threat="adaptive")]
    for split, facts, doubted, promise in (
        ("group", spent, True, "for each image; a delta not below 1 / 200 may give one of these 200 away whole."),
        ("group", spent | {"private_groups": 4.0}, False, "for each group; a delta not below 1 / 4 may give one of"),
        ("group", spent | {"private_groups": 3.0}, False, "at a delta of 0.25 for each group."),
        ("image", spent | {"delta": 1e-5}, False, "at a delta of 1e-05 for each image."),
    ):
        found = experiment([victim(), victim("dp", facts=facts)], leaks, split={"unit": split})
        assert promise in line(standings(found)[1])
        assert any(told.startswith("unet + dp is private for each image, but") for told in doubts(found)) == doubted


def test_what_is_not_resolvable_says_so() -> None:
    few = experiment([victim()], [chance(images=50), inference(0.9, images=50)])
    assert body(few, "privacy")[2] == ["unet", "none", "none", "0.900"]
    assert "hits at 1 % false alarms: not resolvable" in table(few, form="privacy")
    assert "what is found at 1 % false alarms is not resolvable with 50 others" in line(standings(few)[0])
    assert doubts(few) == ["50 images that are no members resolve no rate of false alarms under 2 %."]
    made = privacy.section(few, [])
    assert made is not None
    assert [row[-3:-1] for row in made["measures"].rows] == [["not resolvable"] * 2] * 2
    assert "not resolvable" in text(few)
    (last,) = [row for row in read(few) if row["model"]]
    assert last["tpr_1"] == ""
    assert float(last["tpr_0"]) == pytest.approx(0.9)


def test_several_poisons_are_each_told_of_their_own_trigger() -> None:
    """A poisoned victim is asked of its own trigger alone, the clean one of each."""
    shares = {"square success": 0.4, "line success": 0.9, "line benign_dice": math.nan}
    victims = [victim(triggered=shares), victim(poison="line", triggered={"success": 0.95}),
               victim(poison="square", triggered={"success": 0.85})]  # fmt: skip
    found = experiment(victims, [inference(0.9)])
    rows = [[row[key] for key in ("poison", "trigger", "success")] for row in read(found, "poison")]
    assert rows == [["none", "line", "0.9"], ["none", "square", "0.4"], ["line", "line", "0.95"],
                    ["square", "square", "0.85"]]  # fmt: skip
    made = privacy.section(found, [])
    assert made is not None
    assert made["poisoned"] == [
        "unet, poisoned with line: success 95.0\u00a0% (without the poison 90.0\u00a0%).",
        "unet, poisoned with square: success 85.0\u00a0% (without the poison 40.0\u00a0%).",
    ]


def test_of_equal_attacks_the_worst_is_one_that_knows() -> None:
    made = [inference(0.9, defense="crop", threat=threat) for threat in ("oblivious", "adaptive")]
    (own,) = standings(experiment([], made))
    assert own.worst is not None
    assert own.worst.of.threat == "adaptive"


def test_classes_of_the_worst_attack() -> None:
    rows = read(usual(), "privacy_classes")
    assert [(row["victim"], row["attack"], row["class"]) for row in rows[:3]] == [
        ("unet", "lira", "background"),
        ("unet", "lira", "thing"),
        ("unet + dp", "lira (adaptive)", "background"),
    ]
    assert (rows[0]["members"], rows[1]["members"], rows[1]["others"]) == ("200", "100", "100")
    assert float(rows[0]["AUC"]) == pytest.approx(0.95)


def test_groups_of_the_worst_attack() -> None:
    with pytest.raises(UserError, match="splits single images, not groups"):
        table(usual(), form="privacy_groups")
    found = experiment([], [chance(), inference(0.5, images=100, group=25, threshold=0.9)])
    rows = read(found, "privacy_groups")
    assert [row["group"] for row in rows] == [f"{side}{i}" for side in ("in", "out") for i in range(4)]
    assert [row["is"] for row in rows] == ["member"] * 4 + ["other"] * 4
    assert [float(row["exposure"]) for row in rows[:4]] == [1, 1, 0, 0]
    assert "By group" in text(found)
    assert "By group" not in text(usual())


def poisoned(leak: float = 0.95) -> Results:
    own = {"benign_accuracy": 0.91, "success": 0.98}
    return experiment(
        [victim(triggered={"success": 0.02, "benign_accuracy": 0.92}), victim(poison="line", triggered=own),
         victim("dp", inside=0.5, outside=0.5)],
        [chance(), inference(0.8), inference(leak, poison="line", threat="adaptive"),
         inference(0.6, defense="dp", threat="adaptive")],
    )  # fmt: skip


def test_poisoned_beside_clean_victims() -> None:
    rows = read(poisoned(), "poison")
    assert [row["poison"] for row in rows] == ["none", "line"]  # not the clean one behind dp
    assert [row["success"] for row in rows] == ["0.02", "0.98"]
    assert list(rows[0])[3:5] == ["success", "benign accuracy"]
    assert [float(row["AUC"]) for row in rows] == pytest.approx([0.8, 0.95])
    sharp = replace(scored_by(0.6, 0.5), attack="sharp")
    worst = scored_by(0.9, 0.1, poison="line", threat="adaptive")
    both = experiment(poisoned().privacy.victims, [worst, replace(sharp, poison="line", threat="adaptive")])
    (last,) = [row for row in read(both, "poison") if row["poison"] == "line"]
    assert (float(last["TPR at 1 %"]), last["by"]) == (pytest.approx(0.1), "lira (adaptive)")  # its own, not of `sharp`
    told = text(poisoned())
    assert "unet, poisoned with line: success 98.0 % (without the poison 2.0 %)" in told
    assert "unet, poisoned with line gives away more than the one without the poison" in told
    assert "gives away no more, beyond chance, than the one" in text(poisoned(0.81))
    with pytest.raises(UserError, match="poisons no victim"):
        table(usual(), form="poison")


def test_a_poisoned_victim_is_compared_on_the_images_that_the_poison_spares() -> None:
    whole = inference(0.8)
    rows = np.r_[50:200, 200:350]
    spared = replace(
        whole, poison="line", threat="adaptive", ids=tuple(whole.ids[i] for i in rows), member=whole.member[rows],
        units=tuple(whole.units[i] for i in rows), scores=whole.scores[rows], target=whole.target[rows],
    )  # fmt: skip
    told = text(experiment([victim(), victim(poison="line")], [chance(), whole, spared]))
    same = measure(spared).auc
    assert measure(whole).auc > same + 0.03
    assert f"against {same:.3f}" in told
    assert "of the images that the poison spares" in told
    assert "gives away no more, beyond chance" in told


def test_robustness_and_privacy_of_the_same_networks() -> None:
    cells = [
        (cell("unet"), scored(0.6)),
        (cell("unet", "fgsm", 8), scored(0.3, size=8)),
        (cell("unet", "pgd", 8), scored(0.1, size=8)),
        (cell("unet + dp"), scored(0.5)),
        (cell("unet + dp", "pgd", 8), scored(0.05, size=8)),
        (cell("stranger"), scored(0.9)),
        (cell("stranger", "pgd", 8), scored(0.9, size=8)),
    ]
    both = usual(cells=cells)
    rows = read(both, "joint")
    assert [row["model"] for row in rows] == ["unet", "unet + dp"]
    assert [float(row["8/255"]) for row in rows] == pytest.approx([0.1, 0.05], abs=1e-3)
    assert [float(row["AUC"]) for row in rows] == pytest.approx([0.95, 0.5])
    made = text(both)
    assert "Robustness and privacy of the same networks" in made
    assert "Quality by budget" in made
    lead = made.partition("The spec, to run it again")[0]
    assert "stranger" in lead
    assert "unet: an attacker (lira) tells members" in lead
    with pytest.raises(UserError, match="attacks no victim of its membership experiment"):
        table(usual(), form="joint")


def test_a_page_of_a_membership_experiment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segaudit.report.page.get_plotlyjs", get_plotlyjs)
    html = page(usual())
    made = Reader(html)
    assert made.data()["curves"]["series"] == []
    told = " ".join(made.text.split())
    lead = told.partition("The spec, to run it again")[0]
    assert "unet: an attacker (lira) tells members from others" in lead
    assert "Before you rely on this" not in lead
    for gone in ("Quality by budget", "Every cell as CSV", "Robustness and privacy", "Poison"):
        assert gone not in told
    assert "in or out together" in told
    assert len([tag for tag, _ in made.tags if tag == "polyline"]) == 4 + (3 + 2 + 2)  # with the baseline in each
    links = [attrs["href"] or "" for tag, attrs in made.tags if tag == "a" and "download" in attrs]
    (sheet,) = [base64.b64decode(link.partition(",")[2]).decode() for link in links]
    assert sheet == table(usual(), "csv", form="privacy")
    ids = {attrs["id"] for _, attrs in made.tags if "id" in attrs}
    anchors = [attrs["href"] or "" for tag, attrs in made.tags if tag == "a" and "download" not in attrs]
    assert {anchor.removeprefix("#") for anchor in anchors} <= ids


def test_no_more_to_see_than_thresholds_reach() -> None:
    """Steps on log axes: one false alarm among 100 others is one decade from the middle of the axis, 1 % of two."""
    found = experiment([], [chance(images=100), inference(0.5, images=100)])
    (figure,) = privacy.figures(standings(found), [])
    assert [text for _, text in figure["x"]] == ["1", "10", "100"]
    (line,) = figure["lines"]
    points = [tuple(map(float, point.split(","))) for point in line["points"].split()]
    left, right, bottom = figure["left"], figure["right"], figure["bottom"]
    assert points[0] == (left, bottom)
    assert points[-1][0] == right
    half = bottom - (bottom - points[-1][1]) * (1 + math.log10(0.5) / 2)
    assert (left, pytest.approx(half, abs=0.2)) in points  # half of the members without a false alarm
    assert all(a[0] == b[0] or a[1] == b[1] for a, b in itertools.pairwise(points))


def test_the_most_exposed_training_images() -> None:
    of = inference(0.9)
    of.scores[[7, 3]] = 9.0, 8.0
    kept = Scene("in0003", np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8))
    found = experiment([victim()], [chance(), of, inference(0.95, "type2")], scenes=(kept,))
    (one,) = privacy.exposed(found, standings(found))
    assert one["title"] == "unet, lira"
    assert [item["id"] for item in one["items"]][:2] == ["in0007", "in0003"]
    assert len(one["items"]) == 5
    assert [("image" in item) for item in one["items"]] == [False, True, False, False, False]
    assert one["items"][0]["told"] == "scores above 100.0\u00a0% of the others"
    made = Reader(page(found))
    assert len([attrs for tag, attrs in made.tags if tag == "img" and "training image" in (attrs["alt"] or "")]) == 1


def test_a_run_without_an_experiment_says_how_to_ask_for_one() -> None:
    plain = run([(cell(), scored(0.6))])
    for form in PRIVATE:
        with pytest.raises(UserError, match="holds no membership experiment; ask for one in its spec with `membership"):
            table(plain, form=form)
    assert "Privacy" not in Reader(page(sample())).text
    assert privacy.section(plain, summarise(plain)) is None
    with pytest.raises(UserError, match="holds a membership experiment alone; its forms are privacy, privacy_classes"):
        table(usual(), form="pivot")


def test_an_experiment_that_is_not_finished_has_a_page() -> None:
    found = experiment([victim(), victim("dp")], [inference(0.9)], lacking=3)
    assert "3 parts are missing" in text(found)
    assert "unet + dp: no attack on it was made." in text(found)


def test_names_are_not_html() -> None:
    name = "<b>net</b>\"'&"
    html = page(experiment([], [chance(), inference(0.9, model=name), inference(0.9, f"{name}2", model=name)]))
    assert f"{name}2" in Reader(html).text
    assert "<b>net" not in html
