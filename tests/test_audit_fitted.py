"""Attacks that are fitted on data, in a run: learnt once, on other images, and scored on all of the run's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from audit_kit import (
    CLASSES,
    assert_same,
    audit,
    by_name,
    content,
    save_spec,
    small,
    two_models,
    write_net,
    write_pictures,
)
from segaudit.attacks.universal import universal
from segaudit.audit import build
from segaudit.audit.execute import local
from segaudit.audit.one import attack_one
from segaudit.audit.parts import Part
from segaudit.audit.spec import RunSpec
from segaudit.audit.store import Store
from segaudit.metrics import confusion
from segaudit.metrics.perturbation import to_8bit
from segaudit.models.fast import Fast
from segaudit.registry import load
from segaudit.report.summary import summarise
from segaudit.rng import ImageStreams
from segaudit.types import VOID, Batch, Cell, Picture, UserError

pytestmark = pytest.mark.usefixtures("one_thread")

SCORED = [f"p{i:02d}" for i in range(6)]
FITTED = [f"p{i:02d}" for i in range(6, 14)]
UNIVERSAL = {"name": "universal", "steps": 24, "batch_size": 4}
PATCH = {"name": "patch", "steps": 10, "batch_size": 4, "size": [8, 10]}
CLEAN = ("net", "none", "none", "none", 0.0)
NOISE = """
def noise(model, images, labels, *, rng, eps):
    return (images + eps * rng.normal(images).sign()).clamp(0, 1)
"""


def spec_of(folder: Path, **over: Any) -> RunSpec:
    """A spec on a folder with six pictures to score and eight others to fit on."""
    if not (folder / "val").exists():
        write_pictures(folder / "val", 6)
        write_pictures(folder / "train", 14)
        for kind in ("images", "masks"):
            for name in SCORED:
                (folder / "train" / kind / f"{name}.png").unlink()
        write_net(folder)
    data = {"name": "folder", "root": str(folder), "classes": CLASSES, "split": "val"}
    return RunSpec.model_validate(content(folder, **{"data": data, "attacks": [UNIVERSAL], "eps": ["16/255"]} | over))


def cell_keys(out: Path) -> dict[tuple[str, str, str], str]:
    """The key of each cell by model, threat and attack (one eps)."""
    jobs = json.loads((out / "plan.json").read_text())["jobs"]
    cells = [(Cell(**job["cell"]), job["key"]) for job in jobs]
    return {(cell.model, cell.threat, cell.attack): key for cell, key in cells}


def computed(out: Path) -> list[int]:
    return [session["computed"] for session in json.loads((out / "log.json").read_text())["sessions"]]


def pictures(out: Path, key: str) -> list[Picture]:
    store = Store(str(out))
    return [p for part in sorted(store.parts("images", key)) for p in store.read_pictures(key, part)]


def label(attack: dict[str, Any]) -> str:
    return (
        RunSpec.model_validate(
            {"name": "x", "data": "scenes", "models": ["unet"], "attacks": [attack], "eps": ["1/255"]}
        )
        .attacks[0]
        .label()
    )


def test_what_is_learnt_on_one_split_is_scored_on_the_other(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(NOISE)
    noise, name, out = f"{tmp_path}/mine.py:noise", label(UNIVERSAL), tmp_path / "out"
    spec = spec_of(tmp_path, attacks=[UNIVERSAL, noise], keep=True)
    found = by_name(audit(spec, out))
    assert all(list(records.ids) == SCORED for records in found.values())
    mine = found["net", "none", "white-box", name, 16 / 255]
    for other in (found[CLEAN], found["net", "none", "white-box", noise, 16 / 255]):
        assert confusion.miou(mine.counts) < confusion.miou(other.counts) - 0.05
    assert (mine.forwards == 24 * 4 / 6).all()
    assert (mine.backwards == 24 * 4 / 6).all()
    assert (mine.seconds > 0).all()

    data = build.dataset(spec.data.model_copy(update={"args": spec.data.args | {"split": "train"}}))
    assert list(data.ids) == FITTED
    view = Fast(build.model(spec.models[0], data.class_names), "fp32", data.sample("p06")[0][None])
    batch = data.batch(FITTED)
    batch = Batch(batch.images.contiguous(memory_format=torch.channels_last), batch.labels, batch.ids)
    own: dict[str, Any] = {"eps": 16 / 255, "steps": 24, "batch_size": 4}
    by_hand = universal.fit(view, [batch], rng=ImageStreams(0, FITTED, "universal/fit"), **own)
    learnt, _ = Store(str(out)).read_fit(cell_keys(out)["net", "white-box", name])
    torch.testing.assert_close(learnt, by_hand, rtol=0, atol=1e-6)
    assert learnt.abs().max() == np.float32(16 / 255)
    run = build.dataset(spec.data)
    for picture in pictures(out, cell_keys(out)["net", "white-box", name]):
        image, _ = run.sample(picture.id)
        delta = (image + learnt[0]).clamp(0, 1) - image
        np.testing.assert_allclose(picture.delta.astype(np.float32), delta.numpy(), atol=1e-4)


@pytest.mark.parametrize("place", ["center", "random"])
def test_only_the_pixels_outside_of_a_patch_are_scored_also_by_who_borrows_it(tmp_path: Path, place: str) -> None:
    attack, out = {**PATCH, "place": place}, tmp_path / "out"
    spec = spec_of(tmp_path, attacks=[attack], models=two_models(tmp_path), transfer=True, keep=True)
    run = audit(spec, out)
    found, data, checked = by_name(run), build.dataset(spec.data), 0
    for model in spec.models:
        net = build.model(model, data.class_names)
        for threat in ("white-box", "transfer:net0", "transfer:net1"):
            records = found.get((model.title(), "none", threat, label(attack), None))
            if records is None:
                continue
            source = threat.partition(":")[2] or model.title()
            for row, picture in enumerate(pictures(out, cell_keys(out)[source, "white-box", label(attack)])):
                image, labels = data.sample(picture.id)
                delta = torch.from_numpy(picture.delta.astype(np.float32))
                covered = (delta != 0).any(0)
                ys, xs = covered.nonzero(as_tuple=True)
                box = covered[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
                assert box.shape == (8, 10)
                assert box.double().mean() > 0.95
                assert (int(ys.min()), int(xs.min())) == (12, 15) or place == "random"
                labels = labels.where(~covered, VOID)
                for counts, images in ((records.counts, image + delta), (records.rounded, to_8bit(image + delta))):
                    with torch.no_grad():
                        expected = confusion.count(net(images[None]).argmax(1), labels[None], 3)
                    for part in ("intersection", "union", "target"):
                        np.testing.assert_array_equal(getattr(counts, part)[row], getattr(expected, part)[0])
                checked += 1
            clean = found[(model.title(), *CLEAN[1:])]
            fewer = clean.counts.target.sum(1) - records.counts.target.sum(1)
            assert (fewer > 0).all()
            assert (fewer <= 80).all()
            assert (records.norms.l0 <= 80).all()
            assert (records.places == 32 * 40).all()
    assert checked == 4 * 6
    assert {cell.norm for cell, _ in run.cells if cell.attack == label(attack)} == {"l0"}
    assert {row.eps for row in summarise(run) if row.attack == label(attack)} == {None}  # it is not within any Linf


def test_a_target_is_learnt_from_the_images_of_the_fit_and_looked_up_among_those_of_the_run(tmp_path: Path) -> None:
    attack = {**UNIVERSAL, "target": {"name": "image", "id": "p03"}}
    spec = spec_of(tmp_path, attacks=[attack, {**UNIVERSAL, "target": "next"}], eps=["64/255"])
    found = audit(spec, tmp_path / "out")
    goals = {cell.attack: records.goal for cell, records in found.cells}
    reached = goals[label(attack)]
    assert reached is not None
    data = build.dataset(spec.data)
    net = build.model(spec.models[0], data.class_names)
    batch = data.batch(SCORED)
    mask = batch.labels[3:4].expand_as(batch.labels).where(batch.labels != VOID, VOID)
    with torch.no_grad():
        before = confusion.count(net(batch.images).argmax(1), mask, 3)
    assert confusion.accuracy(reached) > confusion.accuracy(before) + 0.2


def test_one_and_two_workers_learn_the_same(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def same(model):\n    return model\n")
    over: dict[str, Any] = {"attacks": [UNIVERSAL, PATCH, "fgsm"], "eps": ["8/255", "16/255"]}
    spec = spec_of(tmp_path, defenses=["none", f"{tmp_path}/mine.py:same"], **over)
    one, two = (audit(spec, tmp_path / f"out{workers}", local(workers)) for workers in (1, 2))
    assert_same(one, two)
    stores = [Store(str(tmp_path / f"out{workers}")) for workers in (1, 2)]
    names = [sorted(path.stem for path in (tmp_path / f"out{i}" / "fits").glob("*")) for i in (1, 2)]
    assert names[0] == names[1]
    assert len(names[0]) == 2 * 3  # the patch and two eps: on the bare model and through the defense, not for oblivious
    for key in names[0]:
        (mine, cost), (other, other_cost) = (store.read_fit(key) for store in stores)
        assert torch.equal(mine, other)
        assert cost[:2] == other_cost[:2]


def test_what_is_learnt_is_never_learnt_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(tmp_path, attacks=[UNIVERSAL, PATCH])
    whole, out, learnt = audit(spec, tmp_path / "whole"), tmp_path / "out", []
    write, write_fit = Store.write_records, Store.write_fit
    monkeypatch.setattr(Store, "write_fit", lambda self, key, *a: learnt.append(key) or write_fit(self, key, *a))

    def crash(self: Store, key: str, *args: Any) -> None:
        if key in learnt:
            raise UserError("the disk is full")
        write(self, key, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_records", crash)
        with pytest.raises(UserError, match="the disk is full"):
            audit(spec, out)
    assert len(learnt) == len(set(learnt)) == 2
    assert computed(out) == [3]  # both fits and the clean cell
    files = {path: (path.stat().st_ino, path.read_bytes()) for path in (out / "fits").iterdir()}
    assert len(files) == 2
    assert_same(audit(spec, out), whole)
    assert computed(out)[1:] == [2]
    for part in (out / "cells" / learnt[0]).iterdir():
        part.unlink()
    assert_same(audit(spec, out), whole)
    assert computed(out)[2:] == [1]
    (out / "fits" / f"{learnt[1]}.safetensors").unlink()  # nothing asks for it: its cell is finished
    audit(spec, out)
    assert computed(out)[3:] == [0]
    assert len(learnt) == 2
    assert {path: (path.stat().st_ino, path.read_bytes()) for path in (out / "fits").iterdir()}.items() <= files.items()


def test_the_images_of_the_fit_are_in_the_key_of_its_cells_alone(tmp_path: Path) -> None:
    out, attacks = tmp_path / "out", [UNIVERSAL, "fgsm"]
    audit(spec_of(tmp_path, attacks=attacks), out)
    before = cell_keys(out)

    def changed(**over: Any) -> set[str]:
        audit(spec_of(tmp_path, **{"attacks": attacks} | over), out)
        now = cell_keys(out)
        return {attack for (_, _, attack), key in now.items() if key not in before.values()}

    assert changed() == set()
    fewer = {**UNIVERSAL, "fit": {"split": "train", "limit": 4}}
    assert changed(attacks=[fewer, "fgsm"]) == {"universal(steps=24, batch_size=4, fit=train+4)"}
    assert changed(attacks=[{**UNIVERSAL, "fit": {"limit": 32}}, "fgsm"]) == set()  # as it is by default
    assert changed(seed=1) == {label(UNIVERSAL), "fgsm", "none"}
    path = tmp_path / "train" / "images" / "p09.png"
    path.write_bytes((tmp_path / "train" / "images" / "p10.png").read_bytes())
    assert changed() == {label(UNIVERSAL)}


def test_an_image_is_never_both_learnt_from_and_scored(tmp_path: Path) -> None:
    def refused(**over: Any) -> str:
        with pytest.raises(UserError) as caught:
            audit(spec_of(tmp_path, **over), tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    spec = spec_of(tmp_path)
    train = {"name": "folder", "args": spec.data.args | {"split": "train"}}
    said = (
        "attack 'universal(steps=24, batch_size=4{})' would be fitted on {}, which is scored too; say which with `fit: "
    )
    assert refused(data=train).startswith(said.format("", "p06"))
    one = {**UNIVERSAL, "fit": {"only": ["p02"]}}
    assert "would be fitted on p02, which is scored too" in refused(attacks=[one])
    larger = {**UNIVERSAL, "fit": {"only": ["p02"], "size": [16, 20]}}
    assert "would be fitted on p02, which is scored too" in refused(attacks=[larger])
    nowhere = {**UNIVERSAL, "fit": {"split": "tset"}}
    assert "is fitted on images of its own, which cannot be had (" in refused(attacks=[nowhere])
    misspelt = {**UNIVERSAL, "fit": {"limitt": 3}}
    assert "(did you mean 'limit'?)" in refused(attacks=[misspelt])
    other = {**UNIVERSAL, "fit": {"classes": ["a", "b", "c"]}}
    assert "are of other classes than those that are scored" in refused(attacks=[other])
    for kind in ("images", "masks"):  # the same id for another image is none of that
        (tmp_path / "train" / kind / "p06.png").rename(tmp_path / "train" / kind / "p00.png")
    assert len(audit(spec, tmp_path / "out").cells) == 2


def test_without_splits_the_images_to_learn_from_are_named(tmp_path: Path) -> None:
    spec = small(tmp_path, 8)
    data = {"name": "folder", "args": spec.data.args | {"only": SCORED}}
    attack = {**UNIVERSAL, "fit": {"only": ["p06", "p07"]}}
    found = audit(small(tmp_path, data=data, attacks=[attack], eps=["16/255"]), tmp_path / "out")
    assert [records.ids for _, records in found.cells] == [tuple(SCORED)] * 2
    with pytest.raises(UserError, match=r"cannot be had \(.*train.*\); say which with `fit: {split: ...}` or `fit: {o"):
        audit(small(tmp_path, data=data, attacks=[UNIVERSAL]), tmp_path / "other")
    (tmp_path / "mine.py").write_text("def data(only=None):\n    pass\n")
    mine = f"{tmp_path}/mine.py:data"
    with pytest.raises(ValidationError, match=r"has no split: say which with `fit: {only: \[...\]}`"):
        small(tmp_path, data={"name": mine}, attacks=["universal"])
    only = small(tmp_path, data={"name": mine}, attacks=[{"name": "universal", "fit": {"only": ["a"]}}])
    assert only.attacks[0].fit_data(only.data) == Part(name=mine, args={"only": ["a"]})


def test_what_is_not_fitted_takes_no_fit(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="attack 'pgd' is not fitted on data; leave out its fit"):
        spec_of(tmp_path, attacks=[{"name": "pgd", "fit": {"limit": 3}}])
    with pytest.raises(UserError, match="attack 'universal' has no argument 'fitted'"):
        spec_of(tmp_path, attacks=[{"name": "universal", "fitted": 3}])
    with pytest.raises(UserError, match=r"has no argument 'stepz' \(did you mean 'steps'\?\)"):
        spec_of(tmp_path, attacks=[{"name": "universal", "stepz": 3}])
    again = RunSpec.model_validate(
        spec_of(tmp_path, attacks=[{**UNIVERSAL, "fit": {"limit": 3}}]).model_dump(mode="json")
    )
    assert again.attacks[0].fit == {"limit": 3}


def test_images_of_several_sizes_are_not_fitted_on(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    other = write_pictures(tmp_path / "other", 1, (40, 24))
    for kind in ("images", "masks"):
        (other / kind / "p00.png").rename(tmp_path / "train" / kind / "q00.png")
    with pytest.raises(
        UserError, match=r"must be of one size \(give data a `size: \[H, W\]`\), not 32 x 40 and 40 x 24"
    ):
        audit(spec, tmp_path / "out")


def test_an_attack_that_learns_nan_is_named(tmp_path: Path) -> None:
    attack = tmp_path / "mine.py"
    attack.write_text(
        "def own(model, images, labels, *, rng, fitted, eps):\n    return images\n\n\n"
        "def fit(model, batches, *, rng, eps):\n    return batches[0].images * float('nan')\n\n\nown.fit = fit\n"
    )
    spec = spec_of(tmp_path, attacks=[f"{attack}:own"])
    with pytest.raises(UserError, match=r"mine.py:own' on model 'net' learnt NaN, or no tensor") as caught:
        audit(spec, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "fits").exists()
    assert load("attack", f"{attack}:own").fit  # type: ignore[attr-defined]


def test_one_image_alone_is_not_enough_for_a_fitted_attack(tmp_path: Path) -> None:
    path = save_spec(tmp_path / "spec.yaml", spec_of(tmp_path).model_dump(mode="json"))
    picture = tmp_path / "val" / "images" / "p00.png"
    with pytest.raises(UserError, match="attack 'universal' is fitted on many images first"):
        list(attack_one(picture, path, "universal", "8/255", None, None, tmp_path / "pictures"))


def test_counts_of_a_patch_leave_out_what_it_covers_and_the_clean_ones_do_not(tmp_path: Path) -> None:
    """The IoU ratio of a patch compares the pixels outside of it with the whole clean image."""
    spec = spec_of(tmp_path, attacks=[{**PATCH, "size": [1.0, 1.0], "scale": [1, 1]}])
    found = by_name(audit(spec, tmp_path / "out"))
    ((_, covered),) = [(name, records) for name, records in found.items() if name != CLEAN]
    assert covered.counts.target.sum() <= 0.01 * found[CLEAN].counts.target.sum()
