"""Defenses that draw: anew in each pass, the same again from the same streams; their expectation; and audits."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from audit_kit import CLASSES, assert_same, assert_same_records, audit, by_name, parts_of, small
from nets import problem
from segaudit import registry
from segaudit.audit.keys import Contents, code_digest
from segaudit.audit.plan import plan
from segaudit.defenses.eot import EOT, draws_of
from segaudit.metrics import confusion
from segaudit.metrics.records import each_draw
from segaudit.models.fast import Fast
from segaudit.report.summary import summarise
from segaudit.rng import ImageStreams, drawing, is_random, streams_of
from segaudit.types import Segmenter, UserError
from test_defenses import Mirror, behind, noise, picture, streams

pytestmark = pytest.mark.usefixtures("one_thread")

ALONE: dict[str, Any] = {"scales": None, "blur": None, "noise": None, "quality": None, "bits": None}
"""Nothing at all: each is tried by itself."""
EACH = {
    "scales": [0.6, 1.3],
    "blur": [0.3, 1.5],
    "noise": [0.01, 0.05],
    "quality": [20, 60],
    "bits": [2, 4],
}
each = pytest.mark.parametrize("key", EACH)


def transformed(model: Segmenter, **own: Any) -> Segmenter:
    return behind(model, {"name": "random_transforms", **ALONE, **own})


@each
def test_each_transform_is_drawn_for_every_image_and_every_pass_and_the_seed_decides(key: str) -> None:
    model = transformed(Mirror(), **{key: EACH[key]})
    images = picture(1, 3, 60, 70).expand(3, -1, -1, -1)
    state = torch.get_rng_state()
    with drawing(streams(3)):
        first, second = model(images), model(images)
    with drawing(streams(3)):
        assert torch.equal(model(images), first)
        assert torch.equal(model(images), second)
    with drawing(streams(3, seed=1)):
        other = model(images)
    assert torch.equal(torch.get_rng_state(), state)
    apart = 1 if key == "bits" else 3  # of three levels, two may well be the same
    differ = [not torch.equal(one, two) for one, two in zip([*first, *first], [*second, *other], strict=True)]
    assert sum(differ[:3]) >= apart
    assert sum(differ[3:]) >= apart
    assert len({tuple(row.flatten().tolist()) for row in [*first, *second]}) >= 2 * apart


def test_what_is_drawn_keeps_to_its_range() -> None:
    images, rest = picture(1, 3, 24, 24).expand(40, -1, -1, -1), {}
    with drawing(streams(40)):
        rest = {key: transformed(Mirror(), **{key: EACH[key]})(images) for key in ("noise", "bits", "quality")}
    size = (rest["noise"] - images)[(images > 0.2) & (images < 0.8)].std()
    assert 0.02 < size < 0.04
    levels = {len((row * 255).round().unique()) for row in rest["bits"]}
    assert levels <= set(range(17))
    assert {4, 8, 16} <= {2 ** round(torch.tensor(float(n)).log2().ceil().item()) for n in levels}
    made = {tuple(row.flatten().tolist()) for row in rest["quality"]}
    known = {
        tuple(behind(Mirror(), {"name": "jpeg", "quality": q})(images[:1]).flatten().tolist()) for q in range(20, 61)
    }
    assert made <= known
    assert len(made) > 10


def test_a_map_is_led_back_to_where_its_image_was() -> None:
    images = F.interpolate(noise(6, 3, 4, 5), (40, 50), mode="bilinear")
    for scales in ([0.6, 0.9], [1.0, 1.4]):
        with drawing(streams(6)):
            found = transformed(Mirror(), scales=scales)(images)
        assert (found - images).abs().mean() < 0.01
        assert not torch.equal(found, images)


class Widest(Segmenter):
    """A classifier of one class that tells how much of its canvas is not black."""

    class_names = ("share",)

    def forward(self, images: Tensor) -> Tensor:
        return (images > 0).to(images).mean((1, 2, 3), keepdim=True)


def test_the_rest_of_the_canvas_is_black_and_a_classifier_s_answer_is_left_as_it_is() -> None:
    white = torch.ones(50, 3, 30, 30)
    with drawing(streams(50)):
        small_ones = transformed(Widest(), scales=[0.5, 0.9])(white).flatten()
    assert small_ones.min() >= 0.5**2
    assert small_ones.max() <= 0.9**2
    assert small_ones.min() < 0.4 < 0.65 < small_ones.max()
    with drawing(streams(50)):
        large = transformed(Widest(), scales=[1.0, 1.5])(white).flatten()
    assert large.min() < 0.6
    assert large.max() > 0.85  # the canvas is as large as the largest image


def test_streams_are_the_images_own_or_are_shared_out() -> None:
    images = torch.zeros(4, 1)
    one = ImageStreams(0, ("a",)).uniform(torch.zeros(1, 8)).flatten()
    two = ImageStreams(0, ("b",)).uniform(torch.zeros(1, 8)).flatten()
    with drawing(ImageStreams(0, ("a", "b"))):
        torch.testing.assert_close(
            streams_of(images).uniform(images).flatten(), torch.stack([one[0], one[1], two[0], two[1]])
        )
        torch.testing.assert_close(streams_of(images[:2]).uniform(images[:2]).flatten(), torch.stack([one[2], two[2]]))
        with pytest.raises(ValueError, match="3 images and 2 streams"):
            streams_of(images[:3])
        with drawing(ImageStreams(0, ("a",))):
            assert streams_of(images).uniform(images).flatten().tolist() == one[:4].tolist()
        assert streams_of(images[:2]).uniform(images[:2])[0, 0] == one[3]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        free = streams_of(images).uniform(images)
        assert not torch.equal(streams_of(images).uniform(images), free)
        torch.manual_seed(3)
        assert torch.equal(streams_of(images).uniform(images), free)
    assert len(free.unique()) == 4


def test_the_expectation_is_the_mean_of_single_passes() -> None:
    p = problem("segmentation")
    model = transformed(p.model, scales=[0.8, 1.0], noise=[0.0, 0.05])
    with drawing(streams(1)):
        mean = EOT(model, 5)(p.images[:1])
    with drawing(streams(1)):
        copies = model(p.images[:1].expand(5, -1, -1, -1))
    torch.testing.assert_close(mean, copies.mean(0, keepdim=True), rtol=0, atol=1e-12)
    assert copies.std(0).mean() > 0.01
    with drawing(streams(4)):
        batch = EOT(model, 5)(p.images)
    torch.testing.assert_close(batch[:1], mean, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="draws"):
        EOT(model, 0)


def test_more_draws_give_a_gradient_nearer_to_the_expected_one() -> None:
    p = problem("segmentation", torch.float32)
    model = transformed(p.model, scales=[0.7, 1.0], noise=[0.02, 0.08])

    def slope(draws: int, seed: int) -> Tensor:
        images = p.images.clone().requires_grad_()
        with drawing(streams(4, seed)):
            logits = EOT(model, draws)(images)
        return torch.autograd.grad(F.cross_entropy(logits, p.labels, ignore_index=255, reduction="sum"), images)[0]

    true = slope(100, 1)
    off = [1 - float(F.cosine_similarity(slope(n, 2).flatten(), true.flatten(), dim=0)) for n in (1, 4, 16)]
    assert off[0] > 2 * off[1] > 4 * off[2]


@pytest.mark.parametrize(
    "defense",
    [{"name": "multiscale"}, {"name": "random_transforms"}, {"name": "chain", "parts": ["random_transforms", "tv"]}],
    ids=lambda d: d["name"],
)
def test_the_cheap_copy_folds_what_is_asked_several_times_and_draws_as_the_model_does(defense: dict[str, Any]) -> None:
    p = problem("segmentation", torch.float32)
    model = behind(p.model, defense)
    fast = Fast(EOT(model, 3), "fp32", p.images[:1])
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.modules())
    assert is_random(fast) == is_random(model)
    with drawing(streams(4)):
        made = fast(p.images)
    with drawing(streams(4)):
        torch.testing.assert_close(made, EOT(copy.deepcopy(model), 3)(p.images), rtol=0, atol=1e-3)


RANDOM = {"name": "random_transforms", "scales": [0.8, 1.0], "noise": [0.0, 0.1]}


def test_an_audit_behind_scales_and_a_chain(tmp_path: Path) -> None:
    scales = {"name": "multiscale", "scales": [0.5, 1.0]}
    parts = [{"name": "bit_depth", "bits": 5}, {"name": "blur", "sigma": 1.0}]
    spec = small(tmp_path, defenses=["none", scales, {"name": "chain", "parts": parts}])
    found = by_name(audit(spec, tmp_path / "out"))
    labels = [defense.label() for defense in spec.defenses]
    assert len(set(labels)) == 3
    clean = [found["net", label, "none", "none", 0.0] for label in labels]
    assert len({confusion.miou(records.counts) for records in clean}) == 3
    for label in labels[1:]:
        blind, knowing = (found["net", label, t, "pgd(steps=3)", 16 / 255] for t in ("oblivious", "adaptive"))
        assert confusion.miou(knowing.counts) < confusion.miou(blind.counts)
        assert not blind.forwards.any()
        assert set(knowing.forwards) == set(knowing.backwards) == {3}


def test_a_random_defense_is_the_same_whatever_the_batches_and_workers_and_costs_its_draws(tmp_path: Path) -> None:
    attacks = [
        "fgsm",
        {"name": "apgd", "steps": 5, "target": "least_likely"},
        {"name": "universal", "steps": 2, "fit": {"only": ["p00", "p01", "p02"]}},
    ]
    data = {"name": "folder", "root": str(tmp_path), "classes": CLASSES, "only": ["p03", "p04", "p05", "p06", "p07"]}
    own = {"data": data, "attacks": attacks, "defenses": ["none", RANDOM | {"eot": 3}], "eps": ["16/255"], "count": 8}
    first = audit(small(tmp_path, **own, batch=4), tmp_path / "one")
    again = audit(small(tmp_path, **own, batch=1), tmp_path / "two")
    assert_same(first, again)
    found = by_name(first)
    label = next(d for _, d, *_ in found if d != "none")
    records = found["net", label, "adaptive", "fgsm", 16 / 255]
    assert set(records.forwards) == set(records.backwards) == {3}
    other = by_name(audit(small(tmp_path, **own, seed=1), tmp_path / "three"))
    clean = "net", label, "none", "none", 0.0
    assert (other[clean].counts.intersection != found[clean].counts.intersection).any()
    assert_same_records(other["net", "none", *clean[2:]], found["net", "none", *clean[2:]])


def test_a_random_defense_scored_several_times_resumes_to_the_same_rows(tmp_path: Path) -> None:
    own: dict[str, Any] = {"attacks": ["fgsm"], "eps": ["16/255"]}
    still = {"name": "chain", "parts": [{"name": "blur", "sigma": "1/2"}]}
    spec = small(tmp_path, 10, defenses=["none", RANDOM, still], draws=4, **own)
    whole = audit(spec, tmp_path / "out")
    once = by_name(audit(small(tmp_path, defenses=["none", RANDOM], **own), tmp_path / "once"))
    label, at = spec.defenses[1].label(), ("fgsm", 16 / 255)
    for key in (("net", label, "none", "none", 0.0), *(("net", label, t, *at) for t in ("oblivious", "adaptive"))):
        records = by_name(whole)[key]
        drawn = each_draw(records)
        assert len(drawn) == 4
        assert len({confusion.miou(counts) for counts in drawn}) > 1
        for name in ("intersection", "union", "target"):
            np.testing.assert_array_equal(getattr(drawn[0], name), getattr(records.counts, name))
            np.testing.assert_array_equal(getattr(drawn[0], name), getattr(once[key].counts, name))
        assert each_draw(once[key]) == [once[key].counts]
    assert by_name(whole)["net", "chain(parts=blur(sigma=0.5))", "none", "none", 0.0].redrawn is None
    for part in list(parts_of(tmp_path / "out"))[::2]:
        (tmp_path / "out" / part).unlink()
    assert_same(whole, audit(spec, tmp_path / "out"))


def test_draws_give_a_mean_and_a_spread_and_change_no_cell_that_does_not_draw(tmp_path: Path) -> None:
    own: dict[str, Any] = {"attacks": ["fgsm"], "eps": ["16/255"], "defenses": ["none", RANDOM, "blur"]}
    found = audit(small(tmp_path, **own, draws=4), tmp_path / "four")
    rows = {(row.defense, row.threat): row for row in summarise(found)}
    for (defense, threat), row in rows.items():
        (records,) = [r for c, r in found.cells if (c.defense, c.threat) == (defense, threat)]
        mious = [confusion.miou(counts) for counts in each_draw(records)]
        assert row.miou == pytest.approx(np.mean(mious))
        if defense in ("none", "blur"):
            assert math.isnan(row.spread)
        else:
            assert row.spread == pytest.approx(2 * np.std(mious, ddof=1))
            assert row.spread > 0
    keys = [{path.name for path in (tmp_path / run / "cells").iterdir()} for run in ("four",)]
    audit(small(tmp_path, **own), tmp_path / "once")
    keys.append({path.name for path in (tmp_path / "once" / "cells").iterdir()})
    random = sum(cell.defense not in ("none", "blur") for cell, _ in found.cells)
    assert len(keys[0] - keys[1]) == random


def test_a_lucky_draw_is_no_win_for_autopgd() -> None:
    images = torch.full((40, 3, 1, 1), 0.5, dtype=torch.float64)
    labels = torch.zeros(40, 1, 1, dtype=torch.int64)
    ids = [str(i) for i in range(40)]

    def right(name: str, **own: Any) -> float:
        view = EOT(Shaky(), 4)
        with drawing(ImageStreams(0, ids, "attack")):
            attack = registry.load("attack", name)
            made = attack(view, images, labels, rng=ImageStreams(0, ids), eps=0.1, steps=20, **own)
        with torch.no_grad(), drawing(ImageStreams(0, ids, "score")):
            hits = [(Shaky()(made).argmax(1) == labels).double().mean() for _ in range(20)]
        return float(torch.stack(hits).mean())

    assert right("apgd", loss="masked_ce") <= right("pgd") + 0.03


class Shaky(Segmenter):
    """A classifier of two classes whose answer is shifted anew for each image in each pass."""

    class_names, random = ("a", "b"), True

    def forward(self, images: Tensor) -> Tensor:
        shift = streams_of(images).normal(images[:, :1].detach())
        own = 20 * (images.mean((1, 2, 3), keepdim=True) - 0.45) + 2 * shift.to(images)
        return torch.cat([own, -own], 1)


def test_only_what_draws_has_an_expectation_and_a_whole_number_of_draws() -> None:
    plain, odd = Mirror(), Shaky()
    plain.eot = 49407  # a token of a network
    assert draws_of(plain) == 1
    odd.eot = torch.nn.Identity()
    assert draws_of(odd) == 1


def test_a_file_that_a_defense_reads_is_in_the_key(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def mine(model, weights):\n    return model\n")
    path = tmp_path / "w.pt"
    own = {"name": f"{tmp_path / 'mine.py'}:mine", "weights": str(path)}

    def keys(content: bytes, part: dict[str, Any]) -> set[str]:
        path.write_bytes(content)
        jobs = plan(small(tmp_path, defenses=[part]), ["p00"], Contents()).jobs
        return {job.key for job in jobs if job.cell.defense != "none"}

    for part in (own, {"name": "chain", "parts": [own]}):
        assert keys(b"1", part) == keys(b"1", part)
        assert not keys(b"1", part) & keys(b"2", part)


@pytest.mark.parametrize("wrong", [3, None])
def test_a_wrong_part_of_a_chain_beside_a_right_one_is_one_line(tmp_path: Path, wrong: Any) -> None:
    spec = small(tmp_path, defenses=["none", {"name": "chain", "parts": [{"name": "jpeg"}, wrong]}])
    assert "jpeg" in spec.defenses[1].label()
    with pytest.raises(UserError, match="defense 'chain': a part is a name"):
        audit(spec, tmp_path / "out")


def test_a_user_s_part_of_a_chain_makes_new_cells_when_it_is_edited(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    spec = small(tmp_path, defenses=[{"name": "chain", "parts": ["blur", {"name": f"{path}:mine"}]}])

    def keys(text: str) -> set[str]:
        path.write_text(text)
        code_digest.cache_clear()
        return {job.key for job in plan(spec, ["p00"], Contents()).jobs if job.cell.defense != "none"}

    text = "def mine(model):\n    return model\n"
    assert keys(text) == keys(text)
    assert not keys(text) & keys(text + "# edited\n")


def test_the_expectation_is_asked_for_in_a_spec_and_only_of_what_draws(tmp_path: Path) -> None:
    model = registry.load("defense", "random_transforms")(Mirror(), eot=10)
    assert draws_of(model) == 10
    with pytest.raises(UserError, match="defense 'blur' has no argument 'eot'"):
        small(tmp_path, defenses=["none", {"name": "blur", "eot": 4}])
