"""What a cell's key depends on, and what it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from audit_kit import NET, small, two_models, write_net
from segaudit.audit import build
from segaudit.audit import plan as planning
from segaudit.audit.keys import Contents, code_digest
from segaudit.audit.plan import Job, plan
from segaudit.audit.spec import RunSpec
from segaudit.models.wrap import Wrapped
from segaudit.types import UserError

NOTHING = Contents()
IDS = [f"p{i:02d}" for i in range(20)]
Name = tuple[str, str, str, str, float | None]


def jobs(spec: RunSpec, ids: list[str] = IDS, contents: Contents = NOTHING) -> dict[Name, Job]:
    """The jobs of a spec as a new process would plan them."""
    code_digest.cache_clear()
    made = {}
    for job in plan(spec, ids, contents).jobs:
        cell = job.cell
        made[cell.model, cell.defense, cell.threat, cell.attack, cell.eps] = job
    return made


def keys(spec: RunSpec, ids: list[str] = IDS, contents: Contents = NOTHING) -> dict[Name, str]:
    return {name: job.key for name, job in jobs(spec, ids, contents).items()}


def all_new(before: dict[Name, str], after: dict[Name, str]) -> bool:
    return not set(before.values()) & set(after.values())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    write_net(tmp_path)
    return tmp_path


def defense(folder: Path, text: str = "def same(model):\n    return model\n") -> str:
    (folder / "my_defense.py").write_text(text)
    return f"{folder}/my_defense.py:same"


def test_the_cells_of_a_spec_are_all_there_once(folder: Path) -> None:
    made = jobs(small(folder, models=two_models(folder), transfer=True, defenses=["none", defense(folder)]))
    tries = 4  # two attacks at two eps
    count = 2 * (1 + tries + 1 + 2 * tries) + 2 * tries
    assert len(made) == len({job.key for job in made.values()}) == count
    threats = {name[2] for name in made}
    assert threats == {"none", "white-box", "oblivious", "adaptive", "transfer:net0", "transfer:net1"}


def test_a_cell_comes_after_the_one_it_borrows_from(folder: Path) -> None:
    made = jobs(small(folder, models=two_models(folder), transfer=True, defenses=["none", defense(folder)]))
    seen: dict[str, Job] = {}
    borrowing = 0
    for (model, _, threat, attack, eps), job in made.items():
        if job.source is not None:
            borrowing += 1
            lender = seen[job.source]
            assert lender.keep
            assert (lender.cell.attack, lender.cell.eps) == (attack, eps)
            assert lender.cell.model == (threat.partition(":")[2] or model)
        seen[job.key] = job
    assert borrowing == 2 * 4 + 2 * 4


@pytest.mark.parametrize(
    ("over", "ids"),
    [
        ({"seed": 1}, IDS),
        ({}, IDS[:-1]),
        ({}, IDS[::-1]),
        ({"data": {"name": "folder", "root": "x", "classes": ["a"], "limit": 5}}, IDS),
    ],
)
def test_seed_and_images_are_in_every_key(folder: Path, over: dict[str, Any], ids: list[str]) -> None:
    assert all_new(keys(small(folder)), keys(small(folder, **over), ids))


def test_an_attack_s_arguments_precision_and_target_are_in_its_keys_alone(folder: Path) -> None:
    base = keys(small(folder, attacks=[{"name": "pgd", "steps": 3}]))
    clean = ("net", "none", "none", "none", 0.0)
    for over in (
        {"attacks": [{"name": "pgd", "steps": 4}]},
        {"attacks": [{"name": "pgd", "steps": 3, "target": "next"}]},
        {"attacks": [{"name": "pgd", "steps": 3, "target": {"name": "image", "id": "p00"}}]},
        {"attacks": [{"name": "ifgsm", "steps": 3}]},
        {"attacks": [{"name": "pgd", "steps": 3}], "precision": "bf16"},
    ):
        changed = keys(small(folder, **over))
        assert changed.pop(clean) == base[clean]
        assert all_new(base, changed)


def test_labels_batch_order_threats_and_what_is_shown_are_in_no_key(folder: Path) -> None:
    base = keys(small(folder))
    (model,) = small(folder).models
    renamed = model.model_copy(update={"label": "another"})
    assert set(keys(small(folder, models=[renamed.model_dump()])).values()) == set(base.values())
    for over in (
        {"batch": 3},
        {"attacks": [{"name": "pgd", "steps": 3}, "fgsm"]},
        {"eps": ["16/255", "4/255"]},
        {"pictures": {"images": 1, "eps": "4/255"}},
        {"keep": True},
        {"name": "other"},
        {"threats": ["adaptive"]},
    ):
        assert keys(small(folder, **over)) == base


def test_an_added_attack_eps_model_or_defense_leaves_the_other_keys(folder: Path) -> None:
    base = keys(small(folder))
    for over, new in (
        ({"attacks": ["fgsm", {"name": "pgd", "steps": 3}, "fgsm_ll"]}, 2),
        ({"eps": ["4/255", "8/255", "16/255"]}, 2),
        ({"models": [{**small(folder).models[0].model_dump(), "label": "net"}, two_models(folder)[1]]}, 5),
        ({"defenses": ["none", defense(folder)]}, 9),
    ):
        more = keys(small(folder, **over))
        assert more.items() >= base.items()
        assert len(more) == len(base) + new


def test_the_user_s_files_are_in_the_keys(folder: Path) -> None:
    attack, data = folder / "my_attack.py", folder / "my_data.py"
    attack.write_text("def same(model, images, labels, *, rng, eps):\n    return images\n")
    data.write_text("def data():\n    pass\n")
    model = {"source": "python", "name": f"{folder}/user_net.py:build", "label": "net"}
    attacks, defenses = ["fgsm", f"{attack}:same"], ["none", defense(folder)]
    spec = small(folder, data={"name": f"{data}:data"}, models=[model], attacks=attacks, defenses=defenses)

    def after(change: Any) -> set[Name]:
        before = keys(spec)
        change()
        now = keys(spec)
        assert before.keys() == now.keys()
        return {name for name, key in now.items() if key != before[name]}

    everything = set(keys(spec))
    assert after(lambda: None) == set()
    assert after(lambda: data.write_text("def data():\n    return 1\n")) == everything
    assert after(lambda: (folder / "user_net.py").write_text(NET + "# changed\n")) == everything
    own = {name for name in everything if name[3] == f"{attack}:same"}
    assert after(lambda: attack.write_text(attack.read_text() + "# changed\n")) == own
    behind = {name for name in everything if name[1] != "none"}
    assert after(lambda: defense(folder, "def same(model):\n    return model.eval()\n")) == behind


def test_the_images_and_each_model_s_tensors_are_in_the_keys_and_where_they_lie_is_not(folder: Path) -> None:
    spec = small(folder, models=two_models(folder))
    base = keys(spec)
    assert all_new(base, keys(spec, contents=Contents(data="other images")))
    second = keys(spec, contents=Contents(models={"net1": "other weights"}))
    assert {name for name, key in second.items() if key != base[name]} == {n for n in base if n[0] == "net1"}
    args = {**spec.data.args, "root": "another/folder"}
    moved = spec.model_copy(update={"data": spec.data.model_copy(update={"args": args})})
    assert keys(moved) == base


def test_a_borrowed_cell_hangs_on_its_source_alone_for_what_it_is_scored_on(folder: Path) -> None:
    spec = small(folder, models=two_models(folder), transfer=True)
    base = keys(spec)
    first, second = two_models(folder)
    moved = keys(small(folder, models=[{**first, "args": {"seed": 7}}, second], transfer=True))
    changed = {name for name, key in moved.items() if key != base[name]}
    assert changed == {name for name in base if name[0] == "net0" or name[2] == "transfer:net0"}


def test_two_models_that_are_the_same_are_refused(folder: Path) -> None:
    model = two_models(folder)[0]
    spec = small(folder, models=[model, {**model, "label": "copy"}])
    with pytest.raises(UserError, match="models 'net0' and 'copy' are the same"):
        plan(spec, IDS, NOTHING)


def test_shards_hold_every_image_once_and_no_image_is_alone(folder: Path) -> None:
    spec = small(folder)
    for count in range(1, 40):
        ids = [f"{i}" for i in range(count)]
        made = plan(spec, ids, NOTHING)
        assert [name for shard in made.shards for name in shard] == ids
        assert count == 1 or min(len(shard) for shard in made.shards) > 1
        assert all(len(shard) == planning.SHARD for shard in made.shards[:-1])
        assert len(made.shards[-1]) <= planning.SHARD + 1
        assert set(made.shown) <= set(ids)
        assert len(set(made.shown)) == len(made.shown) == min(count, 2)


def test_kept_images_are_those_that_another_cell_or_the_spec_asks_for(folder: Path) -> None:
    def kept(**over: Any) -> set[tuple[str, str]]:
        return {(job.cell.defense, job.cell.threat) for job in jobs(small(folder, **over)).values() if job.keep}

    mine = defense(folder)
    assert kept() == set()
    assert kept(transfer=True) == set()
    assert kept(models=two_models(folder), transfer=True) == {("none", "white-box")}
    assert kept(defenses=["none", mine]) == {("none", "white-box")}
    assert kept(defenses=["none", mine], threats=["adaptive"]) == set()
    assert kept(defenses=["none", mine], keep=True) == {("none", "white-box"), (mine, "adaptive")}


def test_an_attack_without_eps_is_run_once(folder: Path) -> None:
    (folder / "own.py").write_text("def least(model, images, labels, *, rng):\n    return images\n")
    made = jobs(small(folder, attacks=[f"{folder}/own.py:least"]))
    assert [(name[2], name[4]) for name in made] == [("none", 0.0), ("white-box", None)]


def test_what_stands_between_images_and_logits_is_in_a_model_s_digest(folder: Path) -> None:
    net, names = torch.nn.Conv2d(3, 2, 1), ("a", "b")
    settings: list[dict[str, Any]] = [{}, {"mean": 0.5}, {"order": "bgr"}, {"scale": 255}, {"stride": 8}]
    settings += [{"class_map": {0: 1, 1: 0}}, {"class_map": {0: 1, 1: None}}]
    digests = [build.digest(Wrapped(net, names, **own)) for own in settings]
    assert len(set(digests)) == len(settings)
    assert digests[0] == build.digest(Wrapped(net, names))


def test_attacks_that_do_the_same_are_run_once_or_refused(folder: Path) -> None:
    twice = [{"name": "pgd", "steps": 3, "norm": "l2"}, {"name": "pgd", "norm": "l2", "steps": 3}]
    assert keys(small(folder, attacks=twice)) == keys(small(folder, attacks=twice[:1]))
    sea = {"name": "sea", "steps": 4}
    apgd = {"name": "apgd", "steps": 4, "loss": "js", "radius_reduction": True}
    assert keys(small(folder, attacks=[sea, apgd])) == keys(small(folder, attacks=[sea]))
    with pytest.raises(UserError, match=r"^attacks 'sea by accuracy' and 'sea\(steps=300\) by accuracy' are the same"):
        jobs(small(folder, attacks=["sea", {"name": "sea", "steps": 300}]))


def test_a_borrowed_cell_knows_whose_masks_its_images_were_led_to(folder: Path) -> None:
    attacks = [{"name": "pgd", "steps": 2, "target": "least_likely"}]
    made = jobs(small(folder, models=two_models(folder), transfer=True, attacks=attacks))
    for (model, _, threat, _, _), job in made.items():
        if threat.startswith("transfer:"):
            assert job.lender is not None
            assert job.lender.title() == threat.removeprefix("transfer:") != model
        else:
            assert job.lender is None
