"""The pictures inside of the page."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from plotly.offline import get_plotlyjs

from report_kit import PALETTE, Maps, Reader, cell, run, scored, two_nets
from segaudit.metrics import confusion
from segaudit.report import pictures
from segaudit.report.page import page
from segaudit.report.pictures import gallery
from segaudit.report.summary import summarise
from segaudit.types import VOID, Picture, Results, Scene


def decode(uri: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def shown(results: Results, **own: Any) -> dict[str, Any]:
    found = gallery(results, summarise(results), **own)
    assert found is not None
    return found


def test_a_strip_shows_what_was_judged() -> None:
    made = two_nets()
    found = shown(made.results())
    of = cell("weak", "pgd", 8)
    shot = next(s for s in found["shots"] if (s["model"], s["eps"]) == ("weak", "8/255"))
    item = shot["items"][1]
    adversarial = (made.images + made.deltas[of])[1].permute(1, 2, 0).numpy() * 255
    assert np.abs(decode(item["image"]) - adversarial).mean() < 5  # lossy
    colours = np.array(PALETTE)
    assert (decode(item["after"]) == colours[made.guesses[of][1]]).all()
    assert (decode(found["before"]["weak"][1]) == colours[made.guesses[cell("weak")][1]]).all()
    scores = [
        confusion.image_miou(confusion.count(made.guesses[c][1:2], made.truth[1:2], 4)) for c in (cell("weak"), of)
    ]
    assert item["told"].startswith(f"mIoU of this image {100 * scores[0]:.1f} % → {100 * scores[1]:.1f} %, Linf ")


def test_void_is_hatched_and_the_rest_of_the_truth_exact() -> None:
    made = two_nets()
    truth = decode(shown(made.results())["scenes"][0]["truth"])
    void = (made.truth[0] == VOID).numpy()
    assert (truth[~void] == np.array(PALETTE)[made.truth[0][~void]]).all()
    greys = set(np.unique(truth[void]).tolist())
    assert greys == {pictures.HATCH, 255}


def test_the_perturbation_is_grey_centred_and_scaled_to_fit() -> None:
    delta = np.zeros((3, 6, 6), np.float16)
    delta[:, 0], delta[:, 1] = 8 / 255, -8 / 255
    scene = Scene("a", np.full((6, 6, 3), 128, np.uint8), np.zeros((6, 6), np.uint8))
    of = cell(attack="pgd", eps=8)
    kept = [Picture("a", delta, np.zeros((6, 6), np.uint8))]
    (shot,) = shown(run([(of, scored(0.1))], scenes=[scene], pictures={of: kept}))["shots"]
    assert shot["scale"] == 10
    seen = decode(shot["items"][0]["delta"])
    assert seen[3:] == pytest.approx(128)
    assert seen[0] == pytest.approx(round(255 * (0.5 + 80 / 255)), abs=1)
    assert seen[1] == pytest.approx(round(255 * (0.5 - 80 / 255)), abs=1)


def test_a_classifier_says_its_classes() -> None:
    label = Scene("digit", np.zeros((8, 8, 1), np.uint8), np.array([[1]], np.uint8))
    of = cell(attack="pgd", eps=8)
    kept = [Picture("digit", np.full((1, 8, 8), 0.1, np.float16), np.array([[0]], np.uint8))]
    (shot,) = shown(run([(cell(), scored(0.6)), (of, scored(0.1))], scenes=[label], pictures={cell(): kept, of: kept}))[
        "shots"
    ]
    assert shot["items"][0]["told"] == "truth thing, predicted background → background"


def test_large_pictures_are_reduced_and_their_labels_stay_labels() -> None:
    side = pictures.SIDE * 2
    labels = np.random.default_rng(0).integers(0, 2, (side, side // 2), dtype=np.uint8)
    scene = Scene("a", np.zeros((side, side // 2, 3), np.uint8), labels)
    of = cell(attack="pgd", eps=8)
    kept = [Picture("a", np.zeros((3, side, side // 2), np.float16), labels)]
    found = shown(run([(of, scored(0.1))], scenes=[scene], pictures={of: kept}))
    after = decode(found["shots"][0]["items"][0]["after"])
    assert after.shape == (pictures.SIDE, pictures.SIDE // 2, 3)
    assert {tuple(colour) for colour in after.reshape(-1, 3).tolist()} == set(PALETTE[:2])


def test_the_budget_keeps_the_middle_budgets_first_and_says_what_it_left_out() -> None:
    made = Maps()
    made.add(cell(), 0.9, 0)
    for eps in (1, 2, 4, 8, 16):
        made.add(cell(attack="pgd", eps=eps), 0.5, eps)
    results = made.results()
    everything = shown(results)
    assert [shot["eps"] for shot in everything["shots"]] == ["1/255", "2/255", "4/255", "8/255", "16/255"]
    size = sum(len(text) for shot in everything["shots"] for item in shot["items"] for text in item.values())
    some = shown(results, budget=size // 2)
    assert [shot["eps"] for shot in some["shots"]] == ["4/255", "16/255"]
    assert some["left_out"] == 3
    assert [shot["eps"] for shot in shown(results, budget=1)["shots"]] == ["4/255"]


def test_a_transfer_shares_its_images_with_its_source() -> None:
    made = two_nets()
    source, moved = cell("net", "pgd", 8), cell("weak", "pgd", 8, threat="transfer:net")
    made.add(moved, 0.5, 8)
    made.deltas[moved] = made.deltas[source]
    results = made.results()
    packed = Reader(page(results)).data()["pictures"]
    by_name = {(shot["model"], shot["attack"], shot["eps"]): shot["items"] for shot in packed["shots"]}
    for own, lent in zip(by_name["net", "pgd", "8/255"], by_name["weak", "pgd from net", "8/255"], strict=True):
        assert (own["image"], own["delta"]) == (lent["image"], lent["delta"])
        assert own["after"] != lent["after"]
    assert len(packed["files"]) == len(set(packed["files"]))
    first = by_name["net", "pgd", "8/255"][0]
    assert (decode(packed["files"][first["after"]]) == np.array(PALETTE)[made.guesses[source][0]]).all()


def test_the_page_stays_below_12_megabytes() -> None:
    assert pictures.BUDGET + len(get_plotlyjs()) < 11_500_000


def test_the_first_strip_is_of_the_strongest_attack() -> None:
    made = Maps()
    made.add(cell(), 0.9, 0)
    made.add(cell(attack="fgsm", eps=8), 0.6, 8)
    made.add(cell(attack="pgd", eps=8), 0.1, 8)
    found = shown(made.results())
    assert found["shots"][found["start"]]["attack"] == "pgd"
