"""Workers, batches and seeds: what changes a result, and what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audit_kit import NET, assert_same, audit, by_name, parts_of, save_spec, small, two_models
from segaudit.audit import build
from segaudit.audit.execute import default_workers, local
from segaudit.audit.run import run
from segaudit.registry import load
from segaudit.rng import ImageStreams
from segaudit.types import Batch, Segmenter, UserError

pytestmark = pytest.mark.usefixtures("one_thread")

ATTACKS: list[tuple[str, dict[str, Any]]] = [
    ("fgsm", {}),
    ("fgsm_ll", {"norm": "l2"}),
    ("ifgsm", {"label": "prediction"}),
    ("ifgsm_ll", {}),
    ("pgd", {"steps": 6}),
    ("pgd", {"steps": 6, "norm": "l2", "restarts": 2}),
]


def test_one_and_two_workers_give_identical_records(tmp_path: Path) -> None:
    attacks = ["fgsm_ll", {"name": "pgd", "steps": 5, "restarts": 2}, {"name": "pgd", "steps": 5, "target": "next"}]
    spec = small(tmp_path, 20, models=two_models(tmp_path), attacks=attacks, transfer=True)
    told: list[tuple[int, int]] = []
    run(spec, str(tmp_path / "two"), local(2), "2 workers", lambda done, total: told.append((done, total)))
    two = audit(spec, tmp_path / "two", local(2))
    one = audit(spec, tmp_path / "one", local(1))
    assert_same(one, two)
    assert parts_of(tmp_path / "one").keys() == parts_of(tmp_path / "two").keys()
    assert told == [(done, told[-1][1]) for done in range(len(told))]
    assert told[-1][0] == told[-1][1]
    for cell, pictures in one.pictures.items():
        for mine, other in zip(pictures, two.pictures[cell], strict=True):
            assert mine.delta.tobytes() == other.delta.tobytes()


def test_what_a_worker_finds_wrong_is_said_as_it_is(tmp_path: Path) -> None:
    spec = small(tmp_path, 20)
    (tmp_path / "images" / "p19.png").write_bytes((tmp_path / "images" / "p19.png").read_bytes()[:200])
    for workers in (1, 2):
        with pytest.raises(UserError, match=r"p19\.png: this picture cannot be read"):
            audit(spec, tmp_path / f"out{workers}", local(workers))
    assert len(parts_of(tmp_path / "out1")) > 0


def test_a_worker_that_dies_is_a_line_that_says_what_to_do(tmp_path: Path) -> None:
    spec = small(tmp_path, 20)
    dies = "import multiprocessing as m, os\n    if m.parent_process():\n        os._exit(9)\n    return Net(seed)"
    (tmp_path / "user_net.py").write_text(NET.replace("return Net(seed)", dies))
    with pytest.raises(UserError, match=r"a worker process died.*fewer --workers") as caught:
        audit(spec, tmp_path / "out", local(2))
    assert "\n" not in str(caught.value)


def test_work_in_this_process_leaves_its_threads_and_its_arithmetic_as_they_were(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        audit(small(tmp_path), tmp_path / "out", local(1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert (torch.tensor([1e-310], dtype=torch.float64) / 2).item() > 0
    assert default_workers() >= 1


def double(tmp_path: Path) -> tuple[Segmenter, Batch]:
    spec = small(tmp_path, 8)
    data = build.dataset(spec.data)
    batch = data.batch(data.ids)
    model = build.model(spec.models[0], data.class_names).double()
    return model, Batch(batch.images.double(), batch.labels, batch.ids)


@pytest.mark.parametrize(("name", "own"), ATTACKS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(ATTACKS)])
def test_in_float64_a_batch_of_8_gives_the_images_of_8_batches_of_1(
    tmp_path: Path, name: str, own: dict[str, Any]
) -> None:
    model, batch = double(tmp_path)

    def attacked(part: Batch, seed: int = 0) -> Tensor:
        rng = ImageStreams(seed, part.ids, name)
        made: Tensor = load("attack", name)(model, part.images, part.labels, rng=rng, eps=8 / 255, **own)
        return made

    whole = attacked(batch)
    alone = torch.cat([attacked(batch[i : i + 1]) for i in range(8)])
    assert whole.dtype == torch.float64
    if own.get("norm") == "l2":  # a step is a quotient of sums, whose order a processor may choose by the shape
        torch.testing.assert_close(whole, alone, rtol=0, atol=1e-12)
    else:
        assert torch.equal(whole, alone)
    assert (whole - batch.images).abs().amax() > 1e-3
    assert name != "pgd" or not torch.equal(attacked(batch, seed=1), whole)


def test_in_float32_the_batch_size_moves_less_than_1_percent_of_the_pixels(tmp_path: Path) -> None:
    over: dict[str, Any] = {"attacks": ["fgsm", {"name": "pgd", "steps": 10}], "keep": True}
    one = by_name(audit(small(tmp_path, 10, batch=1, **over), tmp_path / "one"))
    eight = by_name(audit(small(tmp_path, 10, batch=8, **over), tmp_path / "eight"))
    assert one.keys() == eight.keys()
    for name, records in one.items():
        moved = np.abs(records.counts.intersection - eight[name].counts.intersection).sum()
        assert moved < 0.01 * records.counts.target.sum(), name
        np.testing.assert_array_equal(records.forwards, eight[name].forwards)


def test_the_seed_changes_what_is_random_and_nothing_else(tmp_path: Path) -> None:
    zero = by_name(audit(small(tmp_path), tmp_path / "zero"))
    one = by_name(audit(small(tmp_path, seed=1), tmp_path / "one"))
    for name, records in zero.items():
        same = np.array_equal(records.norms.l2, one[name].norms.l2)
        assert same == (not name[3].startswith("pgd")), name


def test_an_image_s_result_does_not_hang_on_the_others_of_its_set(tmp_path: Path) -> None:
    spec = small(tmp_path, 12, attacks=[{"name": "pgd", "steps": 4}])
    few = {**spec.data.model_dump()["args"], "only": ["p03", "p07", "p11"]}
    part = audit(small(tmp_path, attacks=spec.attacks, data={"name": "folder", **few}), tmp_path / "part")
    whole = by_name(audit(spec, tmp_path / "whole"))
    for name, records in by_name(part).items():
        rows = [whole[name].ids.index(own) for own in records.ids]
        np.testing.assert_allclose(records.norms.l2, whole[name].norms.l2[rows], rtol=1e-3)
        np.testing.assert_allclose(records.loss, whole[name].loss[rows], rtol=1e-3)


def test_a_spec_in_a_file_and_in_memory_are_the_same_run(tmp_path: Path) -> None:
    from segaudit.audit import parts
    from segaudit.audit.spec import RunSpec

    spec = small(tmp_path)
    again = parts.read(RunSpec, save_spec(tmp_path / "spec.yaml", spec.model_dump(mode="json")))
    first = audit(spec, tmp_path / "out")
    before = parts_of(tmp_path / "out")
    assert_same(audit(again, tmp_path / "out"), first)
    assert parts_of(tmp_path / "out") == before
