"""Transfer, defended cells, kept images, and the checks of what models and attacks give back."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audit_kit import assert_same_records, audit, by_name, small, two_models, write_net, write_pictures
from segaudit.audit import build
from segaudit.audit.cells.attacked import half
from segaudit.audit.execute import local
from segaudit.audit.keys import Contents
from segaudit.audit.plan import Job, plan
from segaudit.audit.run import run
from segaudit.audit.spec import RunSpec
from segaudit.audit.store import Store
from segaudit.metrics import confusion
from segaudit.metrics.perturbation import to_8bit
from segaudit.types import Counts, Results, UserError

pytestmark = pytest.mark.usefixtures("one_thread")

DEFENSE = """
import torch.nn.functional as F

from segaudit.types import Segmenter


class Blurred(Segmenter):
    def __init__(self, model, size):
        super().__init__()
        self.model, self.size, self.class_names = model, size, model.class_names

    def forward(self, images):
        side = self.size // 2
        return self.model(F.avg_pool2d(F.pad(images, (side,) * 4, mode="replicate"), self.size, 1))


def blur(model, size=3):
    return Blurred(model, size)
"""


def by_hand(spec: Any, out: Path, job: Any, source: str) -> tuple[Counts, Counts]:
    """The counts of a job's model on the images that were kept of another cell: clean + delta, nothing else."""
    data = build.dataset(spec.data)
    model = build.defended(build.model(job.model, data.class_names), job.defense)
    store = Store(str(out))
    plain, rounded = [], []
    for part in sorted(store.parts("images", source)):
        for picture in store.read_pictures(source, part):
            image, labels = data.sample(picture.id)
            adversarial = image[None] + torch.from_numpy(picture.delta.astype(np.float32))
            for into, images in ((plain, adversarial), (rounded, to_8bit(adversarial))):
                with torch.no_grad():
                    into.append(confusion.count(model(images).argmax(1), labels[None], model.num_classes))
    return confusion.join(plain), confusion.join(rounded)


def jobs_of(spec: RunSpec) -> tuple[Job, ...]:
    """The jobs that a run of the spec works through."""
    data = build.dataset(spec.data)
    digests = {model.title(): build.digest(build.model(model, data.class_names)) for model in spec.models}
    return plan(spec, data.ids, Contents(data.digest(), digests)).jobs


def assert_counts(one: Counts, other: Counts) -> None:
    for name in ("intersection", "union", "target"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_transfer_fills_source_by_target_without_attacking_again(tmp_path: Path) -> None:
    spec = small(tmp_path, models=two_models(tmp_path), transfer=True)
    found = by_name(audit(spec, tmp_path / "out"))
    jobs = jobs_of(spec)
    wanted = {(f"net{1 - i}", f"transfer:net{i}", eps) for i in range(2) for eps in spec.eps}
    for attack in ("fgsm", "pgd(steps=3)"):
        assert {(m, t, e) for m, _, t, a, e in found if a == attack and t != "white-box"} == wanted
    for job in jobs:
        records = found[job.cell.model, job.cell.defense, job.cell.threat, job.cell.attack, job.eps]
        steps = {"none": 0, "fgsm": 1, "pgd(steps=3)": 3}[job.cell.attack] if job.source is None else 0
        assert set(records.forwards) == set(records.backwards) == {steps}
        if job.source is None:
            continue
        source = next(lender for lender in jobs if lender.key == job.source)
        assert job.cell.threat == f"transfer:{source.cell.model}"
        plain, rounded = by_hand(spec, tmp_path / "out", job, job.source)
        assert_counts(records.counts, plain)
        assert_counts(records.rounded, rounded)
        lent = found[source.cell.model, "none", "white-box", job.cell.attack, job.eps]
        assert_counts(Counts(*[lent.counts.target] * 3), Counts(*[records.counts.target] * 3))
        for name in ("linf", "l2", "l0"):
            np.testing.assert_array_equal(getattr(lent.norms, name), getattr(records.norms, name))
        own = found[job.cell.model, "none", "white-box", job.cell.attack, job.eps]
        assert confusion.miou(own.counts) < confusion.miou(records.counts)


def test_what_is_kept_is_exactly_what_was_judged(tmp_path: Path) -> None:
    spec = small(tmp_path, keep=True, attacks=["fgsm", {"name": "pgd", "steps": 3, "norm": "l2"}], eps=["8/255", 0.7])
    found = by_name(audit(spec, tmp_path / "out"))
    jobs = [job for job in jobs_of(spec) if job.attack]
    assert len(jobs) == 4
    for job in jobs:
        records = found["net", "none", "white-box", job.cell.attack, job.eps]
        plain, rounded = by_hand(spec, tmp_path / "out", job, job.key)
        assert_counts(records.counts, plain)
        assert_counts(records.rounded, rounded)
        assert job.eps is not None
        assert (getattr(records.norms, job.cell.norm) <= job.eps * (1 + 1e-6)).all()
        assert (getattr(records.norms, job.cell.norm) > 0.5 * job.eps).all()


def test_oblivious_rows_borrow_the_bare_model_s_images_and_adaptive_ones_attack_the_defense(tmp_path: Path) -> None:
    (tmp_path / "my_defense.py").write_text(DEFENSE)
    name = f"{tmp_path}/my_defense.py:blur"
    spec = small(tmp_path, defenses=["none", {"name": name, "size": 5}])
    found = by_name(audit(spec, tmp_path / "out"))
    label = f"{name}(size=5)"
    bare, behind = found["net", "none", "none", "none", 0.0], found["net", label, "none", "none", 0.0]
    assert confusion.miou(bare.counts) != confusion.miou(behind.counts)
    jobs = jobs_of(spec)
    for job in (job for job in jobs if job.cell.threat == "oblivious"):
        assert job.source is not None
        records = found["net", label, "oblivious", job.cell.attack, job.eps]
        lent = found["net", "none", "white-box", job.cell.attack, job.eps]
        np.testing.assert_array_equal(records.norms.l2, lent.norms.l2)
        assert not records.forwards.any()
        plain, rounded = by_hand(spec, tmp_path / "out", job, job.source)
        assert_counts(records.counts, plain)
        assert_counts(records.rounded, rounded)
        adaptive = found["net", label, "adaptive", job.cell.attack, job.eps]
        assert adaptive.forwards.all()
        assert adaptive.backwards.all()
        if job.eps == 16 / 255:
            assert confusion.miou(adaptive.counts) < confusion.miou(records.counts)


def test_a_defense_without_its_bare_model_still_has_images_to_borrow(tmp_path: Path) -> None:
    (tmp_path / "my_defense.py").write_text(DEFENSE)
    name = f"{tmp_path}/my_defense.py:blur"
    both = by_name(audit(small(tmp_path, defenses=["none", name]), tmp_path / "both"))
    alone = by_name(audit(small(tmp_path, defenses=[name]), tmp_path / "alone"))
    assert both.keys() == alone.keys()
    adaptive = by_name(audit(small(tmp_path, defenses=[name], threats=["adaptive"]), tmp_path / "adaptive"))
    assert {key[2] for key in adaptive} == {"none", "adaptive"}
    for key, records in adaptive.items():
        assert_same_records(records, both[key])


def test_a_target_is_counted_against_and_reached_further_with_more_budget(tmp_path: Path) -> None:
    attack = {"name": "pgd", "steps": 8, "target": "next"}
    spec = small(tmp_path, attacks=[attack], eps=["8/255", "64/255"])
    found = by_name(audit(spec, tmp_path / "out"))
    near, far = (found["net", "none", "white-box", "pgd(steps=8) to next", eps] for eps in spec.eps)
    clean = found["net", "none", "none", "none", 0.0]
    assert clean.goal is None
    assert near.goal is not None
    assert far.goal is not None
    assert confusion.accuracy(near.goal) + 0.1 < confusion.accuracy(far.goal)
    data = build.dataset(spec.data)
    labels = torch.stack([data.sample(name)[1] for name in data.ids])
    wanted = [[int((row == k).sum()) for k in range(3)] for row in labels.roll(-1, 0)]
    np.testing.assert_array_equal(near.goal.target, wanted)


def test_a_target_s_image_is_found_by_its_id_and_missed_by_name(tmp_path: Path) -> None:
    def attack(name: str) -> list[dict[str, Any]]:
        return [{"name": "pgd", "steps": 2, "target": {"name": "image", "id": name}}]

    spec = small(tmp_path, attacks=attack("p03"))
    (records,) = [r for c, r in audit(spec, tmp_path / "out").cells if c.eps == spec.eps[0]]
    assert records.goal is not None
    assert (records.goal.target == records.counts.target[3]).all()
    with pytest.raises(UserError, match=r"there is no image with the id 'p003' \(did you mean 'p0\d'\?\)"):
        audit(small(tmp_path, attacks=attack("p003")), tmp_path / "other")


deltas = st.lists(
    st.floats(-1, 1, width=32)
    | st.sampled_from([2.0**-k for k in range(1, 31)])
    | st.floats(-(2.0**-23), 2.0**-23, width=32),
    min_size=1,
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(deltas, st.floats(0, 1, width=32))
def test_half_stays_in_the_ball_and_in_the_box_and_is_the_nearest_below(values: list[float], start: float) -> None:
    clean = torch.full((len(values),), start)
    delta = (clean + torch.tensor(values)).clamp(0, 1) - clean
    torch.set_flush_denormal(True)  # as the audit does
    try:
        kept = half(delta)
    finally:
        torch.set_flush_denormal(False)
    assert (kept.abs() <= delta.abs()).all()
    assert (kept * delta >= 0).all()
    assert kept.norm() <= delta.norm() * (1 + 1e-6)
    assert ((clean + kept >= 0) & (clean + kept <= 1)).all()
    stored = kept.numpy().astype(np.float16)
    assert torch.equal(torch.from_numpy(stored.astype(np.float32)), kept)
    further = np.nextafter(stored, np.copysign(np.float16(np.inf), delta.numpy()).astype(np.float16))
    assert (np.abs(further.astype(np.float64)) > delta.abs().numpy()).all()


def attack_by_file(folder: Path, body: str) -> list[str]:
    head = "import torch\n\n\ndef wrong(model, images, labels, *, rng, eps, norm='linf'):\n"
    (folder / "my_attack.py").write_text(head + f"    return {body}\n")
    return [f"{folder}/my_attack.py:wrong"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("(images + 2 * eps).clamp(0, 1)", r"left its linf ball: 0.031\d* with eps 0.0156"),
        ("images + 1", r"left the image range \[0, 1\]"),
        ("images * float('nan')", "returned NaN"),
        ("images[:, :, 1:]", r"returned images \(6, 3, 31, 40\) for \(6, 3, 32, 40\)"),
        ("images[:1]", r"returned images \(1, 3, 32, 40\)"),
        ("None", "returned a NoneType, not images"),
    ],
)
def test_an_attack_is_not_believed(tmp_path: Path, body: str, said: str) -> None:
    spec = small(tmp_path, attacks=attack_by_file(tmp_path, body), eps=["4/255"])
    with pytest.raises(UserError, match=said) as caught:
        audit(spec, tmp_path / "out")
    assert "my_attack.py:wrong" in str(caught.value)
    assert len(list((tmp_path / "out" / "cells").glob("*/*"))) == 1  # the clean cell alone


def test_an_attack_that_leaves_its_l2_ball_is_refused(tmp_path: Path) -> None:
    (name,) = attack_by_file(tmp_path, "(images + eps).clamp(0, 1)")
    spec = small(tmp_path, attacks=[{"name": name, "norm": "l2"}], eps=["4/255"])
    with pytest.raises(UserError, match="left its l2 ball"):
        audit(spec, tmp_path / "out")


def test_an_attack_inside_its_ball_is_taken_as_it_is(tmp_path: Path) -> None:
    spec = small(tmp_path, attacks=attack_by_file(tmp_path, "(images + eps).clamp(0, 1)"), eps=["4/255"])
    ((cell, records),) = [(c, r) for c, r in audit(spec, tmp_path / "out").cells if c.attack != "none"]
    assert cell.norm == "linf"
    np.testing.assert_allclose(records.norms.linf, 4 / 255, rtol=1e-3)
    assert (records.norms.linf <= 4 / 255).all()
    assert not records.forwards.any()


def test_logits_that_are_not_finite_are_named_with_model_and_image(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    write_net(tmp_path)
    model = {"source": "python", "name": f"{tmp_path}/user_net.py:broken", "label": "bad"}
    with pytest.raises(UserError, match="model 'bad' gives NaN or infinite logits on p00") as caught:
        audit(small(tmp_path, models=[model]), tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_a_defense_must_give_as_many_classes_and_pixels_as_its_model(tmp_path: Path) -> None:
    text = DEFENSE.replace('mode="replicate"), self.size, 1))', 'mode="replicate"), self.size, 1))[:, :2]')
    (tmp_path / "my_defense.py").write_text(text)
    spec = small(tmp_path, defenses=["none", f"{tmp_path}/my_defense.py:blur"])
    with pytest.raises(UserError, match=r"gives logits of \(2, 32, 40\), not \(3, 32, 40\)"):
        run(spec, str(tmp_path / "out"), local(1), "a test")


def test_images_of_several_sizes_are_audited_each_at_its_own(tmp_path: Path) -> None:
    write_pictures(tmp_path, 5)
    other = write_pictures(tmp_path / "other", 3, (40, 24))
    for kind, i in product(("images", "masks"), range(3)):
        (other / kind / f"p{i:02d}.png").rename(tmp_path / kind / f"q{i:02d}.png")
    write_net(tmp_path)
    found: Results = audit(small(tmp_path, keep=True), tmp_path / "out")
    for _, records in found.cells:
        assert sorted(records.ids) == sorted(build.dataset(small(tmp_path).data).ids)
        assert sorted(set(records.places)) == [24 * 40, 32 * 40]


def test_transferred_images_are_scored_on_the_masks_that_they_were_led_to(tmp_path: Path) -> None:
    attacks = [{"name": "pgd", "steps": 3, "target": "least_likely"}]
    spec = small(tmp_path, models=two_models(tmp_path), transfer=True, attacks=attacks, eps=["16/255"])
    found = by_name(audit(spec, tmp_path / "out"))
    label, eps = "pgd(steps=3) to least_likely", 16 / 255
    own = {name: found[name, "none", "white-box", label, eps].goal for name in ("net0", "net1")}
    moved = {name: found[name, "none", f"transfer:net{1 - i}", label, eps].goal for i, name in enumerate(own)}
    assert own["net0"] is not None and own["net1"] is not None  # noqa: PT018
    assert (own["net0"].target != own["net1"].target).any()
    for name, lender in (("net0", "net1"), ("net1", "net0")):
        goal, led = moved[name], own[lender]
        assert goal is not None and led is not None  # noqa: PT018
        np.testing.assert_array_equal(goal.target, led.target)
