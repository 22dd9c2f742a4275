"""The cells that the masking diagnostics plan for themselves, and what they cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audit_kit import assert_same, audit, by_name, parts_of, small, two_models
from masking_kit import EPS, spec_of, write_folder
from segaudit import registry
from segaudit.attacks.noise import noise
from segaudit.audit import diagnostics
from segaudit.audit.keys import Contents
from segaudit.audit.plan import plan
from segaudit.audit.run import results
from segaudit.audit.spec import RunSpec
from segaudit.metrics.records import only
from segaudit.rng import ImageStreams
from segaudit.types import Segmenter

pytestmark = pytest.mark.usefixtures("one_thread")

IDS, NOTHING = [f"p{i:02d}" for i in range(40)], Contents()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("masking"))


def few_jobs(spec: RunSpec, ids: list[str], contents: Contents = NOTHING) -> list[tuple[str, str, str, float | None]]:
    made = diagnostics.plan(plan(spec, ids, contents), spec, ids, contents)
    return [(job.cell.defense, job.cell.threat, job.cell.attack, job.eps) for job in made.jobs]


def test_the_cells_of_a_spec_with_a_defense_and_of_one_without(folder: Path) -> None:
    def spec(**over: Any) -> RunSpec:
        return spec_of(folder, **({"diagnostics": None} | over))

    assert few_jobs(spec(), IDS) == []
    assert few_jobs(spec(defenses=["none", "jpeg"], diagnostics=False), IDS) == []
    own = [
        (defense, threat, attack, eps)
        for defense, threat in (("none", "white-box"), ("jpeg", "adaptive"))
        for attack, eps in (("noise", EPS), ("square(steps=200)", EPS), ("pgd(steps=10) with twice the steps", EPS),
                            ("pgd(steps=40, start=False)", 1.0))
    ]  # fmt: skip
    assert sorted(few_jobs(spec(defenses=["none", "jpeg"]), IDS)) == sorted(own)
    assert sorted(few_jobs(spec(diagnostics=True), IDS)) == sorted(own)[4:]
    found = few_jobs(spec(defenses=["jpeg"], threats=["adaptive"], attacks=["dag"]), IDS)
    assert {attack for _, _, attack, _ in found} == {
        "noise", "square(steps=200)", "fgsm", "pgd(steps=20)", "pgd(steps=20) with twice the steps",
        "pgd(steps=40, start=False)",
    }  # fmt: skip
    assert {eps for *_, eps in found} == {8 / 255, 1.0}
    assert {eps for *_, eps in few_jobs(spec(diagnostics=True, eps=["4/255", 1.0]), IDS)} == {4 / 255, 1.0}
    found = few_jobs(spec(diagnostics=True, attacks=["square"]), IDS, Contents(opaque=frozenset(["net"])))
    assert [attack for _, _, attack, _ in found] == ["noise", "square(steps=200)"]


def test_a_long_attack_is_raised_to_the_most_steps_and_no_further(folder: Path) -> None:
    def more(steps: int, **asked: int) -> set[str]:
        attacks = [{"name": "pgd", "steps": steps}, {"name": "pgd", "steps": 5}]
        found = few_jobs(spec_of(folder, attacks=attacks, defenses=["none", "jpeg"], diagnostics=asked), IDS)
        assert {attack for _, _, attack, _ in found} >= {"noise", "fgsm", "square(steps=200)"}
        return {attack for _, _, attack, _ in found if "twice" in attack or "raised" in attack}

    assert more(100) == {"pgd(steps=100) with twice the steps"}
    assert more(101) == {"pgd(steps=101) raised to 200 steps"}
    assert more(101, max_steps=202) == {"pgd(steps=101) with twice the steps"}
    assert more(6, max_steps=7) == {"pgd(steps=6) raised to 7 steps"}
    assert more(6, max_steps=6) == more(200) == more(300) == set()


def test_a_raised_attack_has_so_many_steps_and_on_a_random_defense_its_own_draws(folder: Path) -> None:
    spec = spec_of(folder, defenses=["none", "jpeg"], diagnostics={"max_steps": 13})
    random = Contents(random=frozenset(["jpeg"]))
    made = diagnostics.plan(plan(spec, IDS, random), spec, IDS, random)
    raised = [job for job in made.jobs if job.cell.attack == "pgd(steps=10) raised to 13 steps"]
    assert [(job.defense.name, job.attack and job.attack.args["steps"], job.eot) for job in raised] == [
        ("none", 13, 1),
        ("jpeg", 13, 1),
    ]
    assert not any("twice" in job.cell.attack for job in made.jobs)


def test_the_keys_of_the_other_cells_are_as_they_were(folder: Path) -> None:
    over = {"defenses": ["none", "jpeg"]}
    made = [plan(spec_of(folder, diagnostics=d, **over), IDS, NOTHING).jobs for d in (None, False, {"limit": 3})]
    assert made[0] == made[1] == made[2]
    spec = spec_of(folder, diagnostics={"limit": 3}, **over)
    checked = diagnostics.plan(plan(spec, IDS, Contents()), spec, IDS, Contents())
    assert checked.shards == (("p00", "p13", "p26"),)
    assert not {job.key for job in checked.jobs} & {job.key for job in made[0]}
    assert len({job.key for job in checked.jobs}) == len(checked.jobs)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [("yes", "write true, false, or {limit: 8}"), ({"limits": 3}, "did you mean 'limit'?"), ({"limit": -1}, "limit")],
)
def test_a_wrong_block_is_refused(folder: Path, wrong: Any, said: str) -> None:
    with pytest.raises(ValueError) as error:
        spec_of(folder, diagnostics=wrong)
    assert said in str(error.value)


def test_a_random_defense_is_attacked_in_expectation_over_twice_the_draws(tmp_path: Path) -> None:
    random = {"name": "random_transforms", "scales": None, "blur": None, "noise": [0.0, 0.05], "quality": None}
    random |= {"bits": None, "eot": 3}
    own: dict[str, Any] = {"attacks": [{"name": "pgd", "steps": 2}], "eps": ["16/255"], "defenses": ["none", random]}
    spec = small(tmp_path, 3, **own, diagnostics={"limit": 2, "queries": 3})
    found = audit(spec, tmp_path / "out")
    cells = {(c.defense == "none", c.attack): r for c, r in found.diagnostics}
    twice = cells[False, "pgd(steps=2) with twice the draws"]
    assert set(twice.forwards) == set(twice.backwards) == {2 * 2 * 3}
    assert set(cells[True, "pgd(steps=2) with twice the steps"].backwards) == {4}
    assert (False, "pgd(steps=2) with twice the steps") not in cells
    assert {len(r) for r in cells.values()} == {2}
    label = spec.defenses[1].label()
    whole = by_name(found)["net", label, "adaptive", "pgd(steps=2)", 16 / 255]
    assert set(whole.forwards) == {2 * 3}
    assert twice.loss.tolist() != only(whole, twice.ids).loss.tolist()

    before = parts_of(tmp_path / "out")
    gone = sorted(before)[::3]
    for part in gone:
        (tmp_path / "out" / part).unlink()
    assert results(str(tmp_path / "out")).lacking == sum(part.startswith("cells") for part in gone)
    again = audit(spec, tmp_path / "out")
    assert_same(replace(found, cells=found.diagnostics), replace(again, cells=again.diagnostics))
    assert again.lacking == 0


def test_what_a_few_images_cost_is_what_all_would(folder: Path, tmp_path: Path) -> None:
    """A row hangs on its image alone: on a few images it is the one of the cell on all."""
    attacks = [{"name": "pgd", "steps": 40, "start": False}, "noise"]
    over: dict[str, Any] = {"models": two_models(folder)[:1], "batch": 1}
    full = by_name(audit(spec_of(folder, **over, attacks=attacks, eps=[1.0], diagnostics=False), tmp_path / "full"))
    asked = {"limit": 3, "queries": 1}
    few = audit(spec_of(folder, **over, attacks=["fgsm"], eps=["8/255"], diagnostics=asked), tmp_path / "few")
    (free,) = [r for c, r in few.diagnostics if c.eps == 1.0]
    same = only(full["net0", "none", "white-box", "pgd(steps=40, start=False)", 1.0], free.ids)
    np.testing.assert_array_equal(same.counts.intersection, free.counts.intersection)
    assert free.ids == ("p16", "p18", "p21")


def test_noise_is_of_its_size_and_more_draws_leave_no_more_right() -> None:
    class Bright(Segmenter):
        class_names = ("dark", "bright")

        def forward(self, images: Tensor) -> Tensor:
            light = images.mean(1, keepdim=True)
            return torch.cat([0.5 - light, light - 0.5], 1)

    images = torch.rand(3, 3, 12, 14, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2
    labels = (images.mean(1) > 0.5).long()
    left = []
    for steps in (1, 10):
        made = noise(Bright(), images, labels, rng=ImageStreams(0, ("a", "b", "c")), eps=0.1, steps=steps)
        torch.testing.assert_close((made - images).abs(), torch.full_like(images, 0.1))
        left.append((Bright()(made).argmax(1) == labels).flatten(1).sum(1))
    assert (left[1] <= left[0]).all()
    assert (left[1] < left[0]).any()
    assert registry.gradient_free("noise")
