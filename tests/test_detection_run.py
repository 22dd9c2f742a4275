"""Detectors in a run: what is scored, fitted, evaded and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audit_kit import audit, by_name, parts_of, small
from detect_kit import watching
from segaudit.audit import build
from segaudit.audit.keys import Contents
from segaudit.audit.plan import members, plan
from segaudit.audit.spec import AttackSpec
from segaudit.audit.store import Store
from segaudit.defenses.detectors.squeezing import squeezing
from segaudit.metrics import confusion
from segaudit.models.purifiers import save_purifier
from segaudit.models.purifiers.residual import Bottleneck
from segaudit.report import detection
from segaudit.types import EVADING

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run_scores_its_cells_and_those_that_evade(tmp_path: Path) -> None:
    found = audit(watching(tmp_path), tmp_path / "run")
    words = [(own.detector, own.cell.threat, own.cell.attack, own.cell.eps) for own in found.detection]
    radii = (4 / 255, 16 / 255)
    assert words == [
        own
        for name in ("entropy_map", "squeezing")
        for own in (
            (name, "none", "none", 0.0),
            *((name, "white-box", attack, eps) for attack in ("fgsm", "pgd(steps=3)") for eps in radii),
            *((name, EVADING, f"evading(steps=8) {name}", eps) for eps in radii),
        )
    ]
    cells = by_name(found)
    for own in found.detection:
        assert own.records.ids == ("p00", "p01", "p02", "p03")
        assert own.scores.shape == (4,)
        if own.cell.threat != EVADING:
            kept = cells["net", "none", own.cell.threat, own.cell.attack, own.cell.eps]
            np.testing.assert_array_equal(own.records.counts.intersection, kept.counts.intersection)
    rows, found_clean = detection.noticed(found), confusion.miou(found.cells[0][1].counts)
    for name in ("entropy_map", "squeezing"):
        evaded = [own for own in rows if (own.detector, own.cell.threat) == (name, EVADING)]
        assert all(own.tpr == 0 for own in evaded)
        assert evaded[-1].miou < found_clean - 0.03
    assert max(own.auc for own in rows if own.cell.threat == "white-box") > 0.7
    assert not found.lacking


def test_the_scores_are_those_of_the_images_that_were_judged(tmp_path: Path) -> None:
    found = audit(watching(tmp_path, block={"detectors": ["squeezing"], "fit": None}, keep=True), tmp_path / "run")
    spec = watching(tmp_path, block={"detectors": ["squeezing"], "fit": None})
    data, store = build.dataset(spec.data), Store(str(tmp_path / "run"))
    model, images = build.model(spec.models[0], data.class_names), data.batch(data.ids).images
    jobs = {tuple(job["cell"].values()): job["key"] for job in store.read_json("plan.json")["jobs"]}
    own = next(w for w in found.detection if (w.cell.attack, w.cell.eps) == ("fgsm", 16 / 255))
    key = next(key for words, key in jobs.items() if "fgsm" in words and 16 / 255 in words)
    kept = {p.id: p.delta for p in store.read_pictures(key, 0)}
    attacked = images + torch.from_numpy(np.stack([kept[name] for name in data.ids])).float()
    with torch.no_grad():
        np.testing.assert_allclose(own.scores, squeezing(model, attacked).numpy(), rtol=1e-5)
        clean = next(w for w in found.detection if w.cell.attack == "none")
        np.testing.assert_allclose(clean.scores, squeezing(model, images).numpy(), rtol=1e-5)


def test_a_run_resumes_and_another_detector_leaves_the_rest_as_it_is(tmp_path: Path) -> None:
    out = tmp_path / "run"
    plain = watching(tmp_path, block={"detectors": ["squeezing"], "fit": None})
    first = audit(plain, out)
    before = parts_of(out)
    lost = sorted(out.glob("cells/*/part-0000.parquet"))[::3]
    for path in lost:
        path.unlink()
    again = audit(plain, out)
    after = parts_of(out)
    assert {name for name in before if before[name] != after[name]} >= {str(path.relative_to(out)) for path in lost}
    kept = [name for name in before if name.startswith("cells") and out / name not in lost]
    assert all(before[name] == after[name] for name in kept)
    for own, other in zip(first.detection, again.detection, strict=True):
        np.testing.assert_array_equal(own.scores, other.scores)
    more = audit(watching(tmp_path), out)
    assert {own.detector for own in more.detection} == {"squeezing", "entropy_map"}
    assert {name: parts_of(out)[name] for name in after} == after


def test_the_keys_of_cells_know_nothing_of_detectors(tmp_path: Path) -> None:
    watched, plain = watching(tmp_path), small(tmp_path, transfer=False)
    ids, contents = ("a", "b"), Contents()
    over = {"data": watched.data}
    with_one, without = (plan(spec.model_copy(update=over), ids, contents).jobs for spec in (watched, plain))
    assert [job.key for job in with_one] == [job.key for job in without]
    assert [job.keep for job in with_one] == [job.attack is not None for job in with_one]
    assert not any(job.keep for job in without)


def test_a_denoiser_is_read_from_its_weights_and_transfers_are_scored(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_purifier(Bottleneck(width=2), tmp_path / "net.safetensors")
    path = str(tmp_path / "net.safetensors")
    detectors = [{"name": name, "denoiser": path} for name in ("reconstruction", "divergence")]
    name = f"{tmp_path}/user_net.py:build"
    models = [{"source": "python", "name": name, "label": f"net{i}", "args": {"seed": i}} for i in range(2)]
    block = {"detectors": detectors, "fit": None, "attacks": ["fgsm"], "evading": {"steps": 2}}
    found = audit(watching(tmp_path, block=block, models=models, transfer=True, eps=["16/255"]), tmp_path / "run")
    words = [(own.cell.model, own.detector.partition("(")[0], own.cell.threat) for own in found.detection]
    assert words == [
        (f"net{i}", kind, threat)
        for i in range(2)
        for kind in ("reconstruction", "divergence")
        for threat in ("none", "white-box", f"transfer:net{1 - i}", EVADING)
    ]
    moved = [own.scores for own in found.detection if own.detector.startswith("reconstruction")]
    np.testing.assert_array_equal(moved[1], moved[6])  # the images of the one are scored for the other
    np.testing.assert_array_equal(moved[2], moved[5])


def test_only_the_images_that_detectors_score_are_kept(tmp_path: Path) -> None:
    def kept(attacks: list[Any], asked: list[str] | None) -> set[str]:
        spec = watching(tmp_path, block={"detectors": ["squeezing"], "fit": None, "attacks": asked}, attacks=attacks)
        return {job.cell.attack for job in plan(spec, ("a", "b"), Contents()).jobs if job.keep}

    both: list[Any] = ["fgsm", {"name": "sea", "steps": 10}]
    parts = {part.label() for part in members(AttackSpec(name="sea", args={"steps": 10}))}
    assert len(parts) > 1
    assert kept(both, ["fgsm"]) == {"fgsm"}
    assert kept(both, ["sea(steps=10)"]) == parts
    assert kept(both, None) == {"fgsm", *parts}


def test_passes_of_patches_are_counted_by_their_share_of_the_image(tmp_path: Path) -> None:
    block = {"detectors": [{"name": "spatial_consistency", "pairs": 2}], "fit": None, "evading": {"steps": 3}}
    found = audit(watching(tmp_path, block=block, attacks=["fgsm"], eps=["16/255"]), tmp_path / "run")
    made = found.detection[-1]
    assert made.cell.threat == EVADING
    assert set(made.records.forwards) == {4 * (1 + 2 * 2 * 0.25)}  # the last of them judges the third step
    assert set(made.records.backwards) == {3 * (1 + 2 * 2 * 0.25)}


def test_what_evades_is_handed_the_threshold_at_few_false_positives(tmp_path: Path) -> None:
    block = {"detectors": ["squeezing"], "fit": None}
    out, spec = tmp_path / "run", watching(tmp_path, block=block, attacks=["fgsm"], eps=["16/255"])
    found = audit(spec, out)
    clean, _, made = found.detection
    (kept,) = (out / "fits").iterdir()
    allowed = float(Store(str(out)).read_fit(kept.stem)[0])
    assert allowed == clean.scores.max()  # of four images none may be a false positive
    assert (made.scores > clean.scores + 1e-3).any()
    assert (made.scores <= allowed + 1e-3).all()
    told = block | {"evading": {"steps": 8, "threshold": 0.0}}
    strict = audit(watching(tmp_path, block=told, attacks=["fgsm"], eps=["16/255"]), out).detection[-1]
    assert (strict.scores <= clean.scores + 1e-3).all()
    kept.unlink()
    again = audit(spec, out)
    np.testing.assert_array_equal(again.detection[-1].scores, made.scores)
    assert not kept.exists()  # nothing needs it again


RANDOM = """
import torch
from segaudit.rng import streams_of
from torch import nn


class Net(nn.Module):
    random = True

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(9.0))

    def forward(self, x):
        return self.gain * (x + 0.2 * streams_of(x).normal(x))


def build():
    return Net()
"""


def test_what_a_detector_says_of_a_random_model_knows_nothing_of_the_batch(tmp_path: Path) -> None:
    (tmp_path / "random_net.py").write_text(RANDOM)
    model = {"source": "python", "name": f"{tmp_path}/random_net.py:build", "label": "net"}
    block = {"detectors": ["entropy_map", "spatial_consistency", "squeezing"], "evading": {"steps": 1}}
    one, other = (
        audit(
            watching(tmp_path, block=dict(block), models=[model], attacks=["fgsm"], eps=["16/255"], batch=batch),
            tmp_path / f"run{batch}",
        ).detection
        for batch in (1, 4)
    )
    assert len(one) == 9
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.scores, b.scores)
