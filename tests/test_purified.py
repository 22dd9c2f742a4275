"""What a purifying defense makes of an image: kept beside the attacked one, shown on the page, counted and timed."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from audit_kit import audit, content, parts_of, small, write_pictures
from report_kit import Reader, cell, run, scored, two_nets
from segaudit import registry
from segaudit.audit.spec import RunSpec
from segaudit.audit.store import Store
from segaudit.defenses._filter import purified
from segaudit.models.purifiers import save_purifier
from segaudit.models.purifiers.residual import Residual
from segaudit.report.page import page
from segaudit.report.pictures import gallery
from segaudit.report.summary import summarise
from segaudit.report.tables import table
from segaudit.types import Picture, Results, Scene
from test_defenses import Mirror, behind, picture

pytestmark = pytest.mark.usefixtures("one_thread")

NOISY = """
import torch
from segaudit.defenses.purify import Purified
from segaudit.rng import streams_of


class Noise(torch.nn.Module):
    random = True

    def forward(self, images):
        return images + 0.3 * streams_of(images).normal(images.detach())


def noisy(model):
    return Purified(model, Noise(), "exact", 2, "noisy")
"""


DRAWS = """
from segaudit.rng import streams_of
from torch import nn


class Net(nn.Module):
    random = True

    def forward(self, x):
        return 3 * x + streams_of(x).normal(x.detach())


def build():
    return Net()
"""


def lively() -> Residual:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Residual(width=4)
        nn.init.normal_(net.head.weight, std=0.1)
    return net.eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunSpec, Results, Path]:
    """A net bare, behind a denoiser, behind noise that is drawn, and behind scales, which purify nothing."""
    folder = tmp_path_factory.mktemp("purified")
    save_purifier(lively(), folder / "net.safetensors")
    (folder / "noisy.py").write_text(NOISY)
    defenses: list[Any] = ["none", {"name": "denoise", "denoiser": str(folder / "net.safetensors")}]
    defenses += [{"name": f"{folder}/noisy.py:noisy"}, "multiscale"]
    spec = small(folder, 4, attacks=["fgsm"], eps=["16/255"], defenses=defenses)
    found = audit(spec, folder / "out")
    torch.set_flush_denormal(False)
    return spec, found, folder


def test_what_the_filters_before_a_model_make_is_told() -> None:
    images = picture(1, 3, 12, 14)
    blurred, both = behind(Mirror(), {"name": "blur"}), {"name": "chain", "parts": ["blur", "bit_depth"]}
    made = purified(blurred, images)
    assert made is not None
    torch.testing.assert_close(made, blurred(images))
    assert not torch.equal(made, images)
    made = purified(behind(Mirror(), both), images)
    assert made is not None
    assert torch.equal(made, behind(Mirror(), both)(images))
    for name in ("none", "multiscale", "smoothing"):
        assert purified(behind(Mirror(), {"name": name}), images) is None


def test_the_purified_picture_is_kept_with_what_the_bare_model_says(made: tuple[RunSpec, Results, Path]) -> None:
    spec, found, _ = made
    labels = [defense.label() for defense in spec.defenses]
    scenes = {scene.id: scene for scene in found.scenes}
    bare = {p.id: p for c, shown in found.pictures.items() for p in shown if c.defense == "none" and c.attack == "fgsm"}
    seen = 0
    for of, shown in found.pictures.items():
        for own in shown:
            if of.defense in (labels[0], labels[3]):
                assert own.purified is None
                assert own.bare is None
                continue
            assert own.purified is not None
            assert own.bare is not None
            assert own.bare.shape == own.prediction.shape
            image = torch.from_numpy(scenes[own.id].image.copy()).permute(2, 0, 1)[None].float() / 255
            image = image + torch.from_numpy(own.delta.astype(np.float32))
            if of.threat == "oblivious":
                np.testing.assert_array_equal(own.bare, bare[own.id].prediction)
            if of.defense == labels[1]:
                wanted = (lively()(image)[0].detach().permute(1, 2, 0) * 255).round().byte().numpy()
                np.testing.assert_allclose(own.purified.astype(int), wanted.astype(int), atol=1)
            seen += 1
    assert seen == 2 * 3 * 2  # images, cells and defenses


def test_of_a_random_defense_the_draw_that_was_scored_is_shown(made: tuple[RunSpec, Results, Path]) -> None:
    spec, found, folder = made
    label = spec.defenses[2].label()
    scenes = {scene.id: scene for scene in found.scenes}
    sizes: dict[str, Any] = {}
    net = registry.load("model", f"{folder}/user_net.py:build")().eval()
    for of, shown in found.pictures.items():
        for own in shown if of.defense == label else ():
            assert own.purified is not None
            pixels = torch.from_numpy(own.purified.copy()).permute(2, 0, 1)[None].float() / 255
            again = net(pixels).argmax(1)[0].numpy()
            sizes[f"{of} {own.id}"] = (again == own.prediction).mean()
            assert np.abs(own.purified.astype(float) - scenes[own.id].image).mean() > 20
    assert len(sizes) == 2 * 3
    assert min(sizes.values()) > 0.75  # but for what 8 bits and the ends of the range change


def test_a_bare_model_that_draws_is_shown_as_it_was_scored(tmp_path: Path) -> None:
    (write_pictures(tmp_path, 2) / "user_net.py").write_text(DRAWS)
    spec = small(tmp_path, attacks=["fgsm"], eps=["16/255"], defenses=["none", "blur"])
    found, bare = audit(spec, tmp_path / "out"), {}
    for of, shown in found.pictures.items():
        for own in shown if of.attack == "fgsm" else ():
            if of.defense == "none":
                bare[own.id] = own.prediction
            elif of.threat == "oblivious":
                assert own.bare is not None
                np.testing.assert_array_equal(own.bare, bare[own.id])
    assert len(bare) == 2


def test_the_page_shows_it_where_there_is_one(made: tuple[RunSpec, Results, Path]) -> None:
    spec, found, _ = made
    read = Reader(page(found))
    figures = [given.get("data-part") for tag, given in read.tags if tag == "img"]
    assert figures.count("purified") == figures.count("bare") == 2
    for shot in read.data()["pictures"]["shots"]:
        own = any(defense.label() in shot["model"] for defense in spec.defenses[1:3])
        assert all(("purified" in item) == ("bare" in item) == own for item in shot["items"])
    plain = Reader(page(two_nets().results()))
    assert "purified" not in [given.get("data-part") for _, given in plain.tags]


def test_a_classifier_says_its_class_without_the_defense_too() -> None:
    label = Scene("digit", np.zeros((8, 8, 1), np.uint8), np.array([[1]], np.uint8))
    clean, of = cell(defense="vae"), cell(attack="pgd", eps=8, defense="vae", threat="adaptive")
    one = np.array([[1]], np.uint8)
    kept = [Picture("digit", np.full((1, 8, 8), 0.1, np.float16), one, np.zeros((8, 8, 1), np.uint8), one * 0)]
    shown = {clean: [Picture("digit", np.zeros((1, 8, 8), np.float16), one)], of: kept}
    results = run([(clean, scored(0.6)), (of, scored(0.1))], scenes=[label], pictures=shown)
    found = gallery(results, summarise(results))
    assert found is not None
    told = found["shots"][0]["items"][0]["told"]
    assert told == "truth thing, predicted thing → thing, without the defense background"


def test_kept_pictures_come_back_with_and_without(tmp_path: Path) -> None:
    rng, store = np.random.default_rng(0), Store(str(tmp_path / "run"))
    delta, map_ = rng.normal(size=(3, 5, 7)).astype(np.float16), rng.integers(0, 9, (5, 7), dtype=np.uint8)
    colours = rng.integers(0, 255, (5, 7, 3), dtype=np.uint8)
    store.write_pictures("key", 0, [Picture("a", delta, map_, colours, map_ + 1), Picture("b", delta, map_)])
    with_, without = store.read_pictures("key", 0)
    np.testing.assert_array_equal(with_.purified, colours)
    np.testing.assert_array_equal(with_.bare, map_ + 1)
    assert without.purified is None
    assert without.bare is None


def test_the_table_of_defenses_has_seconds_and_parameters(made: tuple[RunSpec, Results, Path]) -> None:
    spec, found, _ = made
    lines = list(csv.DictReader(io.StringIO(table(found, "csv", form="defenses"))))
    assert [line["defense"] for line in lines] == [defense.label() for defense in spec.defenses[1:]]
    counts = [sum(p.numel() for p in lively().parameters()), 0, 0]
    assert [int(line["parameters"]) for line in lines] == counts
    assert all(float(line["seconds"]) > 0 and float(line["bare seconds"]) > 0 for line in lines)
    scored_ = {c.attack: r.scoring for c, r in found.cells}
    assert scored_["none"] is not None
    assert scored_["fgsm"] is None
    old = [(cell(), scored(0.6)), (cell(attack="pgd", eps=8), scored(0.2)), (cell(defense="jpeg"), scored(0.6))]
    old += [(cell(attack="pgd", eps=8, defense="jpeg", threat="adaptive"), scored(0.4))]
    (line,) = csv.DictReader(io.StringIO(table(run(old), "csv", form="defenses")))
    assert (line["seconds"], line["bare seconds"], line["parameters"]) == ("", "", "")


def test_a_run_that_began_without_the_times_goes_on(tmp_path: Path) -> None:
    spec = small(tmp_path, 10, attacks=["fgsm"], eps=["16/255"])
    found = audit(spec, tmp_path / "out")
    (clean,) = (r for c, r in found.cells if c.attack == "none")
    for part in sorted(part for part in parts_of(tmp_path / "out") if "cells" in part):
        columns = pq.read_table(tmp_path / "out" / part)
        if "scoring" in columns.column_names:
            pq.write_table(columns.drop_columns(["scoring"]), tmp_path / "out" / part)
            break
    torch.set_flush_denormal(False)
    again = audit(RunSpec.model_validate(content(tmp_path, attacks=["fgsm"], eps=["16/255"])), tmp_path / "out")
    (other,) = (r for c, r in again.cells if c.attack == "none")
    assert other.scoring is not None
    assert 0 < np.isnan(other.scoring).sum() < len(other)
    (row,) = (row for row in summarise(again) if row.clean)
    assert row.scoring == np.median(other.scoring[~np.isnan(other.scoring)])
    np.testing.assert_array_equal(other.counts.intersection, clean.counts.intersection)
