"""The sentences: who stands best, and what throws doubt on the numbers."""

from __future__ import annotations

from typing import Any

import pytest

from report_kit import cell, run, sample, scored
from segaudit.report.doubts import doubts, unfinished
from segaudit.report.headline import headline, notes
from segaudit.report.summary import summarise


def test_the_headline_names_the_best_the_first_to_fall_and_what_is_left() -> None:
    told = " ".join(headline(summarise(sample()))).replace("\u00a0", " ")
    assert told == (
        "fpn stands best of 2. The smallest tested budget that halves its mIoU is Linf 8/255: pgd takes it from 65.0 % "
        "to 10.0 %. net falls first, at Linf 2/255: pgd takes it from 60.0 % to 10.0 %. At Linf 8/255 no model keeps "
        "more than 10.0 % mIoU."
    )


def test_the_headline_of_one_model_that_nothing_halves() -> None:
    cells = [(cell(), scored(0.6)), (cell(attack="pgd", eps=1), scored(0.5)), (cell(attack="pgd", eps=2), scored(0.31))]
    told = " ".join(headline(summarise(run(cells)))).replace("\u00a0", " ")
    assert told == (
        "net scores 60.0 % mIoU on 24 clean images. No attack up to Linf 2/255 halves its mIoU: there, pgd takes it "
        "from 60.0 % to 31.0 %."
    )


def test_without_an_attack_the_headline_is_the_clean_score() -> None:
    assert headline(summarise(run([(cell(), scored(0.6))]))) == ["net scores 60.0\u00a0% mIoU on 24 clean images."]


def test_a_run_without_clean_scores_says_so() -> None:
    told = headline(summarise(run([(cell(attack="pgd", eps=8), scored(0.2))])))
    assert told == ["No model is scored on the clean images yet."]


def test_equal_budgets_are_told_apart_by_what_is_left() -> None:
    cells = [
        pair
        for model, left in (("a", 0.1), ("b", 0.29))
        for pair in ((cell(model), scored(0.6)), (cell(model, "pgd", 8), scored(left)))
    ]
    told = headline(summarise(run(cells)))
    assert told[0].startswith("b stands best of 2.")
    assert told[1] == "All fall below half there; a keeps the least: pgd takes it from 60.0\u00a0% to 10.0\u00a0%."


def test_a_model_with_a_flag_is_not_called_the_best() -> None:
    cells = [
        pair
        for model, left in (("a", 0.1), ("b", 0.2), ("masked", 0.5))
        for pair in ((cell(model), scored(0.6)), (cell(model, "pgd", 8), scored(left)))
    ]
    rows = summarise(run(cells))

    def told(*flagged: str) -> list[str]:
        return [text.replace("\u00a0", " ") for text in headline(rows, flagged)]

    assert told()[0].startswith("masked stands best of 3. ")
    first, second, *_, last = told("masked")
    assert first == (
        "masked seems to stand better than b, but do not rely on it: there are signs that the attacks on it fall short "
        "(below)."
    )
    assert second.startswith("Of those without one, b stands best. ")
    assert last == "At Linf 8/255 no other model keeps more than 20.0 % mIoU."
    assert told("masked", "b", "a")[0].startswith("masked stands best of 3. ")
    assert "Do not rely on it: there are signs" in told("masked", "b", "a")[0]
    only = told("masked", "b")
    assert only[0].startswith("masked, b seem to stand better than a, but")
    assert only[1].startswith("Of those without one, a stands best. ")
    assert len(only) == 2


def test_notes_tell_of_targets_and_of_attacks_with_their_own_norm() -> None:
    cells = [
        (cell(), scored(0.6)),
        (cell(attack="ddn", eps=None, norm="l2"), scored(0.01, size=2)),
        (cell(attack="pgd to next", eps=2), scored(0.4, goal=0.3)),
        (cell(attack="pgd to next", eps=8), scored(0.2, goal=0.8)),
    ]
    own, aimed = (text.replace("\u00a0", " ") for text in notes(summarise(run(cells))))
    assert own == (
        "ddn, which finds its own norm, brings net to 1.0 % mIoU with a mean Linf of 2/255 and a mean L2 of 0.0784."
    )
    assert aimed == (
        "Targeted: at Linf 8/255, pgd to next makes net give 88.9 % of the pixels the target's class (mIoU with the "
        "target 80.0 %; 46.2 % at Linf 2/255)."
    )


SOUND = [
    (cell(), scored(0.6, backwards=0)),
    (cell(attack="fgsm", eps=2), scored(0.5, size=2, backwards=1)),
    (cell(attack="fgsm", eps=8), scored(0.4, size=8, backwards=1)),
    (cell(attack="pgd(steps=5)", eps=8), scored(0.2, size=8)),
    (cell(attack="pgd(steps=20)", eps=8), scored(0.1, size=8)),
]


def test_a_sound_run_raises_no_doubt() -> None:
    results = run(SOUND)
    assert doubts(results, summarise(results)) == []
    assert doubts(sample(), summarise(sample())) == []


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        ([(cell(attack="fgsm", eps=16), scored(0.55, backwards=1))], "at Linf 16/255 leaves 55.0 %: one long step"),
        ([(cell(attack="pgd(steps=5)", eps=16), scored(0.3))], "the larger budget holds the smaller one, so this is a"),
        ([(cell(attack="pgd(steps=50)", eps=8), scored(0.3))], "more steps do worse, a sign of masked gradients"),
        ([(cell(attack="one", eps=8), scored(0.05, backwards=1))], "one step beats every iterated attack"),
        ([(cell(attack="pgd", eps=8, threat="transfer:fpn"), scored(0.05))], "images made on fpn do more than its own"),
        (
            [
                (cell(attack="pgd", eps=8, defense="jpeg", threat="oblivious"), scored(0.2)),
                (cell(attack="pgd", eps=8, defense="jpeg", threat="adaptive"), scored(0.3)),
            ],
            "pgd (oblivious) at Linf 8/255 leaves 20.0 % mIoU, but pgd (adaptive) at Linf 8/255 leaves 30.0 %: knowing",
        ),
        ([(cell(attack="far", eps=8), scored(0.1, size=9))], "leaves its ball: a mean of 9/255 at a budget of 8/255"),
        (
            [(cell(attack="pgd(steps=5)", eps=0.25), scored(0.3, rounded=0.58, size=0.25))],
            "undoes attacks at eps 0.25/255: pgd(steps=5) on net goes from 30.0 % back to 58.0 % mIoU",
        ),
        ([(cell("dead"), scored(0.3))], "dead gets 46.2 % of the clean pixels right, no more than calling"),
        ([(cell("half"), scored(0.6, images=8))], "The run is not finished: its cells hold 8 to 24 images"),
        ([(cell("half"), scored(0.6, images=8))], "The audit saw only 8 images"),
    ],
)  # fmt: skip
def test_each_fault_raises_its_doubt(cells: list[Any], told: str) -> None:
    results = run([*SOUND, *cells])
    found = [text.replace("\u00a0", " ") for text in doubts(results, summarise(results))]
    assert sum(told in text for text in found) == 1, found


def test_an_unfinished_run_says_how_many_images_its_cells_hold() -> None:
    (told,) = unfinished(run(SOUND, lacking=3))
    assert told == (
        "The run is not finished: its cells hold 24 images and cannot be compared (3 parts are missing). "
        "Give `segaudit run` again."
    )
    assert list(unfinished(run(SOUND))) == []


def test_a_targeted_attack_is_no_sign_of_masking() -> None:
    results = run([*SOUND, (cell(attack="pgd to next", eps=2), scored(0.3, goal=0.3)),
                   (cell(attack="pgd to next", eps=8), scored(0.5, goal=0.5))])  # fmt: skip
    assert doubts(results, summarise(results)) == []


def test_a_patch_is_told_by_what_it_covers() -> None:
    patched = (cell(attack="patch", eps=None, norm="l0"), scored(0.25, size=200))
    (told,) = [text.replace("\u00a0", " ") for text in notes(summarise(run([*SOUND, patched])))]
    assert told == "patch brings net to 25.0 % mIoU on the other pixels, and covers 50.0 % of an image."
