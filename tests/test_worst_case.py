"""The worst case over attacks: the greedy choice beside brute force, and as cells of a run."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audit_kit import audit, by_name, small
from segaudit.audit.run import results
from segaudit.audit.store import Store
from segaudit.metrics import confusion
from segaudit.metrics.records import pick
from segaudit.metrics.worst_case import by_accuracy, by_miou
from segaudit.types import Counts, Records


def counted(predictions: np.ndarray, labels: np.ndarray, classes: int) -> list[Counts]:
    """The counts of attacks x images x H x W predictions."""
    truth = torch.from_numpy(labels)
    return [confusion.count(torch.from_numpy(one), truth, classes) for one in predictions]


def chosen(attacks: list[Counts], choice: np.ndarray) -> Counts:
    rows = np.arange(len(choice))
    names = ("intersection", "union", "target")
    return Counts(*(np.stack([getattr(c, name) for c in attacks])[choice, rows] for name in names))


def brute(attacks: list[Counts]) -> float:
    """The lowest mIoU of all assignments of attacks to images."""
    images = len(attacks[0].target)
    choices = itertools.product(range(len(attacks)), repeat=images)
    return min(confusion.miou(chosen(attacks, np.array(choice))) for choice in choices)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 3), st.integers(2, 5), st.integers(2, 4))
def test_greedy_is_a_local_optimum_at_or_below_every_single_attack(
    seed: int, attacks: int, images: int, classes: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, (images, 3, 4))
    labels[rng.random(labels.shape) < 0.2] = 255
    counts = counted(rng.integers(0, classes, (attacks, *labels.shape)), labels, classes)
    choice = by_miou(counts)
    found = confusion.miou(chosen(counts, choice))
    if np.isnan(found):
        return
    assert found <= min(confusion.miou(c) for c in counts) + 1e-12
    assert found <= confusion.miou(chosen(counts, by_accuracy(counts))) + 1e-12
    assert found >= brute(counts) - 1e-12
    for i, k in itertools.product(range(images), range(attacks)):
        other = choice.copy()
        other[i] = k
        assert confusion.miou(chosen(counts, other)) >= found - 1e-9


def test_greedy_finds_the_brute_force_optimum_of_two_pixel_images() -> None:
    hits, gaps = 0, []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 2, (6, 1, 2))
        counts = counted(rng.integers(0, 2, (3, 6, 1, 2)), labels, 2)
        gap = confusion.miou(chosen(counts, by_miou(counts))) - brute(counts)
        hits += gap < 1e-12
        gaps.append(gap)
    assert hits >= 54
    assert max(gaps) < 0.03


def test_the_set_s_miou_is_refreshed_at_every_switch() -> None:
    """With a stale mIoU the last gain would win, not the best: here the third attack is best for the only image."""
    counts = [Counts(np.array([[hit, 4]]), np.array([[8, 8]]), np.array([[4, 4]])) for hit in (4, 3, 0, 2)]
    assert by_miou(counts).tolist() == [2]


def test_the_accuracy_rule_takes_each_image_s_lowest_by_its_own_row() -> None:
    """A last, smaller batch must not shift the rows: images are compared by their place in the whole set."""
    hits = np.array([[5, 1, 7, 3, 2], [4, 2, 8, 3, 0]])
    counts = [Counts(row[:, None], np.full((5, 1), 9), np.full((5, 1), 9)) for row in hits]
    assert by_accuracy(counts).tolist() == [1, 0, 0, 0, 1]


def test_a_set_without_truth_has_a_worst_case_too() -> None:
    counts = counted(np.zeros((2, 3, 2, 2), dtype=np.int64), np.full((3, 2, 2), 255), 2)
    assert by_miou(counts).tolist() == [0, 0, 0]


ENSEMBLE = """
from segaudit.registry import load


def strong(model, images, labels, *, rng, eps, steps=3):
    return load("attack", "pgd")(model, images, labels, rng=rng, eps=eps, steps=steps)


def members(own):
    return [("pgd", {"steps": own.get("steps", 3)}), ("fgsm", {}), ("fgsm_ll", {})]


strong.members = members
"""


def test_an_ensemble_is_run_as_its_members_and_their_worst_cases(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(ENSEMBLE)
    name = f"{tmp_path}/own.py:strong"
    spec = small(tmp_path, 20, attacks=["fgsm", {"name": name, "steps": 2}])
    out = tmp_path / "out"
    found = by_name(audit(spec, out))
    parts = ["pgd(steps=2)", "fgsm", "fgsm_ll"]
    label = f"{name}(steps=2)"
    assert {attack for *_, attack, _ in found} == {"none", *parts, f"{label} by accuracy", f"{label} by mIoU"}
    for eps in spec.eps:
        own = [found["net", "none", "white-box", part, eps] for part in parts]
        for rule, choose in (("accuracy", by_accuracy), ("mIoU", by_miou)):
            worst = found["net", "none", "white-box", f"{label} by {rule}", eps]
            assert worst.choice is not None
            assert worst.choice.tolist() == choose([records.counts for records in own]).tolist()
            assert len(set(worst.choice.tolist())) > 1
            score = confusion.miou if rule == "mIoU" else confusion.accuracy
            assert score(worst.counts) < min(score(records.counts) for records in own)
            assert worst.forwards.tolist() == sum(records.forwards for records in own).tolist()
    before = results(str(out))
    assert before.lacking == 0
    stat = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/*")}
    audit(spec, out)
    assert stat == {path: path.stat().st_mtime_ns for path in out.glob("cells/*/*")}
    assert Store(str(out)).read_json("log.json")["sessions"][-1]["computed"] == 0


def test_records_are_picked_row_by_row_at_the_cost_of_all(tmp_path: Path) -> None:
    found = by_name(audit(small(tmp_path), tmp_path / "out"))
    one, two = (found["net", "none", "white-box", name, 16 / 255] for name in ("fgsm", "pgd(steps=3)"))
    choice = np.array([0, 1, 1, 0, 1, 0])
    made = pick([one, two], choice)
    for i, k in enumerate(choice):
        source: Records = (one, two)[k]
        assert made.counts.union[i].tolist() == source.counts.union[i].tolist()
        assert made.norms_rounded.l2[i] == source.norms_rounded.l2[i]
        assert made.loss[i] == source.loss[i]
    assert made.backwards.tolist() == [4] * 6
    assert made.goal is None
    with pytest.raises(ValueError, match="shape"):
        pick([one, replace(two, loss=two.loss[:3])], choice)
