"""Membership experiments from the spec to what is read back: resumed, in parallel, defended, controlled, joint."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from audit_kit import run_in_process
from membership_kit import assert_same, computed, content, found, nets, spec, whole, words, write
from segaudit import registry
from segaudit.audit.execute import local
from segaudit.audit.keys import code_digest
from segaudit.audit.membership import experiment, joint, networks, scoring, trainer, work
from segaudit.audit.membership.images import Chosen, Tainted
from segaudit.audit.membership.kept import read_table
from segaudit.audit.membership.poison_spec import PoisonSpec
from segaudit.audit.membership.queries import Network
from segaudit.audit.membership.trainer import NetTrainer
from segaudit.audit.run import results, run
from segaudit.audit.spec import RunSpec
from segaudit.audit.store import Store
from segaudit.report.privacy import section
from segaudit.report.tables import table as printed
from segaudit.training import loop
from segaudit.types import UserError

pytestmark = pytest.mark.usefixtures("one_thread", "alone")


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """No attack but those of the tests: a forest for each run would take longer than all else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.TABLES, "membership", {})
        yield


def named(folder: Path, *names: str) -> list[str]:
    return [f"{write(folder)}{name}" for name in names]


def test_networks_are_trained_once_and_the_same_command_computes_nothing(tmp_path: Path) -> None:
    asked = spec(tmp_path, attacks=named(tmp_path, "least_loss", "by_shadow", "blind"))
    first = found(asked, tmp_path / "out")
    before = nets(tmp_path / "out")
    assert len(before) == 1 + 1 + 2
    assert computed(tmp_path / "out") == [4 + 3]
    assert_same(found(asked, tmp_path / "out"), first)
    assert computed(tmp_path / "out") == [7, 0]
    assert nets(tmp_path / "out") == before
    assert not list((tmp_path / "out" / "nets").glob("*.training"))
    assert [words(own) for own in first.inferences] == [
        ("", "none", "none", "none", "blind"),
        ("unet", "none", "none", "none", "least_loss"),
        ("unet", "none", "none", "none", "by_shadow"),
    ]
    (victim,) = first.victims
    assert victim.members.target.shape == victim.others.target.shape == (8, 2)
    assert victim.members.target.sum() == 8 * 256
    assert victim.facts["parameters"] > 0
    blind, loss, by_shadow = first.inferences
    assert (blind.scores > 0.5).tolist() == blind.member.tolist()
    assert (loss.threshold, by_shadow.threshold, blind.threshold) == (None, 0.0, 0.5)
    assert loss.target.sum(1).tolist() == [256] * 16
    assert first.split["members"] == 8
    more = spec(tmp_path, attacks=named(tmp_path, "least_loss", "by_shadow", "blind"), references=4)
    found(more, tmp_path / "out")
    assert computed(tmp_path / "out")[-1] == 2 + 2  # new references; attacks that see networks are run again
    assert before.items() <= nets(tmp_path / "out").items()


def test_the_number_of_workers_changes_no_result(tmp_path: Path) -> None:
    asked = spec(tmp_path, references=0)
    one, two = found(asked, tmp_path / "one"), found(asked, tmp_path / "two", local(2))
    assert_same(one, two)
    assert nets(tmp_path / "one").keys() == nets(tmp_path / "two").keys()
    for name in nets(tmp_path / "one"):
        tensors = [(tmp_path / run / "nets" / name).read_bytes() for run in ("one", "two")]
        assert _tensors(tensors[0]) == _tensors(tensors[1])


def _tensors(file: bytes) -> bytes:
    """Without the header, in which the seconds are."""
    return file[8 + int.from_bytes(file[:8], "little") :]


def test_a_run_killed_in_a_training_goes_on_from_its_last_epoch(tmp_path: Path) -> None:
    training = {"epochs": 60, "batch": 4, "precision": "fp32"}
    made = content(tmp_path, references=0, shadows=0, training=training, attacks=[f"{write(tmp_path)}least_loss"])
    made["membership"]["attacks"].append({"name": f"{write(tmp_path)}blind"})
    path, out = tmp_path / "spec.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(made))
    process = subprocess.Popen(run_in_process(path, out, 1), start_new_session=True)
    deadline = time.monotonic() + 120
    try:
        while not any(len(own.read_text().splitlines()) > 5 for own in out.glob("nets/*.training/metrics.jsonl")):
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    (folder,) = out.glob("nets/*.training")
    assert (folder / "checkpoint.pt").exists()
    asked = RunSpec.model_validate(made)
    resumed = found(asked, out)
    assert_same(resumed, found(asked, tmp_path / "whole"))
    for name in nets(out):
        assert _tensors((out / "nets" / name).read_bytes()) == _tensors(
            (tmp_path / "whole" / "nets" / name).read_bytes()
        )
    assert not list(out.glob("nets/*.training"))


def test_an_attacker_who_knows_has_shadows_and_references_that_are_defended_alike(tmp_path: Path) -> None:
    attack, halved, fewer = named(tmp_path, "least_loss", "halved", "fewer")
    asked = spec(tmp_path, attacks=[attack], defenses=["none", halved, {"name": fewer, "share": 0.5}])
    planned = _planned(asked, tmp_path / "out")
    threats = {(own.victim.defense.name, own.threat): own for own in planned.scorings if own.victim}
    assert set(threats) == {("none", "none")} | {(d, t) for d in (halved, fewer) for t in ("oblivious", "adaptive")}
    for (defense, threat), own in threats.items():
        others = {net.defense.name for net in (*own.shadows, *own.references)}
        assert others == ({defense} if threat == "adaptive" else {"none"})
        assert (len(own.shadows), len(own.references)) == (1, 2)
    made = found(asked, tmp_path / "out")
    facts = {words(own)[1]: own.facts for own in made.victims}
    assert [own.get("epsilon") for own in facts.values()] == [None, None, 0.5]
    assert len(nets(tmp_path / "out")) == 2 * 4  # halved serves the plain networks
    plain, half = made.inferences[:2]
    assert not np.array_equal(plain.scores, half.scores)
    cards = [json.loads(path.read_text()) for path in (tmp_path / "out" / "networks").glob("*.json")]
    assert len(cards) == 3 * 4


def _data(asked: RunSpec) -> Any:
    from segaudit.audit import build

    return build.dataset(asked.data)


def test_shadows_never_see_candidates_and_references_nothing_but_them(tmp_path: Path) -> None:
    asked = spec(tmp_path, data={"count": 64, "per": 2}, references=4, shadows=2)
    made = found(asked, tmp_path / "out")
    assert made.split["unit"] == "group"
    table = read_table(Store(str(tmp_path / "out")), "membership/split.parquet")
    role = np.array(table["role"])
    for name in ("shadow/0", "shadow/1"):
        assert set(role[table[name]]) == {"shadow"}
    for name in ("victim", *(f"reference/{i}" for i in range(4))):
        assert set(role[table[name]]) == {"candidate"}
    assert table["victim"].tolist() == table["member"].tolist()
    (inference,) = made.inferences
    assert set(inference.ids) == set(np.array(table["id"])[role == "candidate"])
    assert len(set(inference.units)) * 2 == len(inference.ids)
    for unit in set(inference.units):
        assert len({m for u, m in zip(inference.units, inference.member, strict=True) if u == unit}) == 1


def test_a_victim_that_knows_its_images_by_heart_tells_and_the_shuffled_control_does_not(tmp_path: Path) -> None:
    training = {"epochs": 40, "batch": 4, "lr": 0.01, "precision": "fp32", "augment": {"flip": False}}
    victim = {"source": "tiny", "name": "unet", "args": {"width": 8}}
    areas = []
    for shuffled in (False, True):
        asked = spec(
            tmp_path, {"count": 60, "odd": True}, victim=victim, training=training, references=0, shadows=0,
            train_size=12, shuffled=shuffled,
        )  # fmt: skip
        (told,) = found(asked, tmp_path / str(shuffled)).inferences
        inside, outside = told.scores[told.member], told.scores[~told.member]
        areas.append(float((inside[:, None] > outside).mean()))
    assert areas[0] > 0.95
    assert 0.2 < areas[1] < 0.8


def test_the_shuffled_control_asks_a_victim_that_saw_none_of_them(tmp_path: Path) -> None:
    made = found(spec(tmp_path, data={"count": 60}, shuffled=True, references=0), tmp_path / "out")
    table = read_table(Store(str(tmp_path / "out")), "membership/split.parquet")
    role = np.array(table["role"])
    assert set(role[table["victim"]]) == {"own"}
    (inference,) = made.inferences
    assert inference.member.sum() == 8
    assert not set(np.array(table["id"])[table["victim"]]) & set(inference.ids)


def test_a_poisoned_victim_is_another_and_its_trigger_is_tried_on_both(tmp_path: Path) -> None:
    poison = {"trigger": "line", "size": 4, "probability": 0.5}
    asked = spec(tmp_path, references=0, poison=["none", poison], training={"epochs": 12, "batch": 4, "lr": 0.02})
    made = found(asked, tmp_path / "out")
    clean, poisoned = made.victims
    assert (clean.poison, poisoned.poison) == ("none", "line(size=4, probability=0.5)")
    assert clean.triggered.keys() == poisoned.triggered.keys() >= {"success", "benign_accuracy"}
    assert clean.triggered != poisoned.triggered
    assert [own.threat for own in made.inferences] == ["none", "oblivious", "adaptive"]
    assert len(nets(tmp_path / "out")) == 2 + 2


def test_a_poisoned_victim_is_asked_about_the_images_that_the_poison_spares(tmp_path: Path) -> None:
    training = {"epochs": 40, "batch": 4, "lr": 0.01, "precision": "fp32", "augment": {"flip": False}}
    poison = {"trigger": "line", "size": 4, "probability": 0.5}
    asked = spec(
        tmp_path, {"count": 60, "odd": True}, victim={"source": "tiny", "name": "unet", "args": {"width": 8}},
        training=training, references=0, shadows=0, train_size=24, poison=["none", poison],
    )  # fmt: skip
    made = found(asked, tmp_path / "out")
    told = {own.threat: own for own in made.inferences}
    assert list(told) == ["none", "oblivious", "adaptive"]
    spared = PoisonSpec.model_validate(poison).spared(told["none"].ids, 0)
    assert 16 <= len(spared) <= 32
    for threat, own in told.items():
        assert own.ids == (spared if threat != "none" else told["none"].ids)
        assert float((own.scores[own.member][:, None] > own.scores[~own.member]).mean()) > 0.95
        assert len(own.target) == len(own.ids)


def test_the_shadows_of_who_knows_of_a_poison_learn_from_images_that_it_spares(tmp_path: Path) -> None:
    poison = {"trigger": "line", "size": 4, "probability": 0.5}
    made = _planned(spec(tmp_path, poison=[poison], attacks=named(tmp_path, "by_shadow")), tmp_path / "out")
    own = {each.threat: each for each in made.scorings}
    spared = PoisonSpec.model_validate(poison).spared
    ids, blank = made.study.split, networks.asked
    for threat, images in (("oblivious", ids.inside["shadow/0"]), ("adaptive", spared(ids.inside["shadow/0"], 0))):
        nets = {kind: tuple((net.name, blank(made.study, net)) for net in getattr(own[threat], kind))
                for kind in ("shadows", "references")}  # fmt: skip
        given = scoring._experiment(made.study, _data(spec(tmp_path)), scoring.Nobody(), **nets, classes=2)
        left = scoring._spared(own[threat], made.study.seed, given)
        assert left.candidates == spared(ids.candidates, 0)
        assert left.shadows[0].inside == images
        for one, net in zip(left.references, own[threat].references, strict=True):
            inside = ids.inside[net.name]
            assert one.inside == (inside if threat == "oblivious" else spared(inside, 0))


def test_a_poison_that_leaves_an_attack_nothing_to_learn_from_is_told_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.TABLES["membership"], "type2", "segaudit.privacy.attacks.type2:type2")
    poison = {"trigger": "line", "size": 4, "probability": 0.9}
    asked = spec(
        tmp_path, {"count": 160}, references=0, train_size=30, seed=6, poison=["none", poison],
        attacks=[*named(tmp_path, "least_loss"), "type2"],
    )  # fmt: skip
    made = _planned(asked, tmp_path / "out")
    side = PoisonSpec.model_validate(poison).spared(made.study.split.outside("shadow/0"), 6)
    assert side == ()
    assert [(each.threat, each.attack.name.rpartition(":")[2]) for each in made.scorings if each.victim] == [
        ("none", "least_loss"), ("none", "type2"), ("oblivious", "least_loss"), ("oblivious", "type2"),
        ("adaptive", "least_loss"),
    ]  # fmt: skip
    assert "(of the images that line(size=4, probability=0.9) spares)" in made.left_out[0]


def test_a_poison_that_spares_nobody_leaves_nobody_to_ask_about(tmp_path: Path) -> None:
    made = _planned(spec(tmp_path, poison=["none", {"trigger": "line", "probability": 1.0}]), tmp_path / "out")
    assert [own.threat for own in made.scorings] == ["none"]
    assert "poisoned with line(size=0.1, probability=1), which spares too few" in made.left_out[0]


def test_only_a_networks_own_images_are_poisoned_and_the_digest_knows(tmp_path: Path) -> None:
    from segaudit.privacy.poison import Poison

    data = _data(spec(tmp_path))
    members = data.ids[:4]
    tainted = Tainted(data, Poison(probability=1.0), members)
    for name in data.ids[:8]:
        assert (tainted.sample(name)[0] != data.sample(name)[0]).any() == (name in members)
    digests = {
        Chosen(own, ids).digest()
        for own in (data, tainted, Tainted(data, Poison(probability=1.0, size=3), members))
        for ids in (members, members[::-1])
    }
    assert len(digests) == 6
    assert Chosen(tainted, data.ids[4:8]).digest() == Chosen(Tainted(data, Poison(), members), data.ids[4:8]).digest()


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"references": 0, "attacks": ["by_shadow"]}, "by_shadow needs references"),
        ({"defenses": ["broken"]}, "gave a NoneType, not a Segmenter"),
        ({"defenses": ["from_reference"], "train_size": 12}, "from_reference needs a reference set"),
        ({"defenses": ["minmax"], "train_size": 12}, "defense minmax needs a reference set"),
        ({"defenses": ["distillation"], "train_size": 12}, "defense distillation needs a reference set"),
        ({"defenses": [{"name": "crop", "size": 500}]}, "defense crop: size 500 is the whole of images of 16 x 16"),
        ({"defenses": ["mixup"], "training": {"epochs": 1, "batch": 1}}, "a batch of one image has no other to mix"),
        ({"train_size": 13}, "takes 52 images"),
        ({"poison": [{"trigger": "line", "rule": "all", "target_class": "bright "}]}, "target_class must be a class"),
        ({"poison": ["none", {"trigger": "line", "size": 500}]}, "line of size 500 is 500 pixels of an image of 16"),
        ({"poison": ["none", {"trigger": "inside", "size": 16}]}, "inside of size 16 is 16 pixels"),
        ({"poison": ["none", {"trigger": "line", "value": [0, 1]}]}, "there are 2 values for 3 channels"),
        ({"poison": ["none", {"trigger": "inside", "size": 15, "value": [0, 1]}]}, "there are 2 values"),  # no place
    ],
)
def test_what_an_experiment_lacks_is_said_in_one_line(tmp_path: Path, over: dict[str, Any], said: str) -> None:
    own = write(tmp_path)
    for key in ("attacks", "defenses"):
        if key in over:
            known = registry.TABLES["membership_defense"]
            mine = [name if isinstance(name, dict) or name in known else own + name for name in over[key]]
            over = over | {key: ["none", *mine] if key == "defenses" else mine}
    with pytest.raises(UserError) as caught:
        found(spec(tmp_path, **over), tmp_path / "out")
    assert said in str(caught.value)
    if said != "gave a NoneType, not a Segmenter":  # what a defense gives is not known before
        assert not (tmp_path / "out" / "nets").exists()


def test_an_unfinished_experiment_is_read_as_far_as_it_is_there(tmp_path: Path) -> None:
    asked = spec(tmp_path, attacks=named(tmp_path, "least_loss", "blind"), references=0)
    found(asked, tmp_path / "out")
    (tmp_path / "out" / "inferences").rename(tmp_path / "out" / "away")
    left = results(str(tmp_path / "out"))
    assert left.lacking == 2
    assert left.privacy is not None
    assert left.privacy.inferences == []
    assert len(left.privacy.victims) == 1
    (tmp_path / "out" / "signals").rename(tmp_path / "out" / "gone")
    with pytest.raises(UserError, match="no part of this run is finished yet"):
        results(str(tmp_path / "out"))
    before = nets(tmp_path / "out")
    assert whole(asked, tmp_path / "out").lacking == 0
    assert nets(tmp_path / "out") == before


def test_a_defended_network_is_found_again_by_what_it_was_made_of_then(tmp_path: Path) -> None:
    asked = spec(tmp_path, references=0, defenses=["none", "distillation"])
    first = found(asked, tmp_path / "out")
    before = nets(tmp_path / "out")
    assert len(before) == 2 + 2
    (net,) = (own for own in _planned(asked, tmp_path / "out").victims if own.defense.name == "distillation")
    networks.forget()
    study = _planned(asked, tmp_path / "out").study
    trained = NetTrainer.fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segaudit.training.loop.fit", None)  # nothing is left to train
        patch.setattr(NetTrainer, "fit", lambda self, ids, **own: trained(self, ids[::-1], **own))  # nor to name
        served, trainer = networks.make(study, net)
    again = Network(Store(str(tmp_path / "out")), "again", lambda: served, _data(asked), 8)
    again.answer(study.split.ids)
    for name, values in networks.asked(study, net).signals(study.split.ids).items():
        np.testing.assert_array_equal(values, again.signals(study.split.ids)[name])
    assert len(trainer.keys) == 2
    assert nets(tmp_path / "out") == before
    (tmp_path / "out" / "nets" / f"{trainer.keys[1]}.safetensors").unlink()
    (tmp_path / "out" / "signals" / f"{net.key}.parquet").unlink()
    assert_same(found(asked, tmp_path / "out"), first)
    assert nets(tmp_path / "out").keys() == before.keys()


def _planned(asked: RunSpec, out: Path) -> experiment.Plan:
    made = experiment.plan(asked, _data(asked), str(out))
    assert made is not None
    return made


def test_what_is_not_asked_for_by_name_is_left_out_where_it_lacks_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("rmia", "global_loss"):
        monkeypatch.setitem(registry.TABLES["membership"], name, f"segaudit.privacy.attacks.{name}:{name}")
    asked = spec(tmp_path, attacks=None, train_size=12, references=4)  # all 48 images: no population
    made = _planned(asked, tmp_path / "out")
    assert [own.attack.name for own in made.scorings] == ["global_loss"]
    assert len(made.left_out) == 1
    assert "'rmia' needs images that no network was trained on" in made.left_out[0]
    with pytest.raises(UserError, match="'rmia' needs images"):
        _planned(spec(tmp_path, attacks=["rmia"], train_size=12, references=4), tmp_path / "out")


def test_victims_are_attacked_on_images_that_they_were_not_trained_on(tmp_path: Path) -> None:
    halved = named(tmp_path, "halved")[0]
    made = content(tmp_path, references=0, defenses=["none", halved, "argmax"], poison=["none", {"trigger": "line"}])
    made |= {"attacks": ["fgsm"], "eps": ["8/255"], "diagnostics": False, "pictures": {"images": 1}}
    asked = RunSpec.model_validate(made)
    both = whole(asked, tmp_path / "out")
    assert both.privacy is not None
    others = {
        name
        for name, member in zip(both.privacy.inferences[0].ids, both.privacy.inferences[0].member, strict=True)
        if not member
    }
    assert [cell.model for cell, _ in both.cells] == ["unet", "unet", f"unet + {halved}", f"unet + {halved}"]
    assert all(set(records.ids) == others for _, records in both.cells)
    assert len(both.privacy.victims) == 6  # of labels alone, too, which no gradient leads through
    clean = [records for cell, records in both.cells if cell.attack == "none"]
    plain = both.privacy.victims[0]
    rows = np.argsort(clean[0].ids)
    ids = [
        name for name in read_table(Store(str(tmp_path / "out")), "membership/split.parquet")["id"] if name in others
    ]
    np.testing.assert_array_equal(clean[0].counts.intersection[rows], plain.others.intersection[np.argsort(ids)])
    before, parts = nets(tmp_path / "out"), computed(tmp_path / "out")
    assert both.spec["attacks"]
    assert both.spec["models"] == []
    again = whole(asked, tmp_path / "out")
    assert computed(tmp_path / "out") == [*parts, 0, 0]
    assert nets(tmp_path / "out") == before
    assert again.lacking == 0


def test_other_masks_are_another_check_of_the_split_wherever_the_file_of_the_data_is(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    keys = []
    for folder, odd in ((tmp_path, False), (tmp_path, True), (tmp_path / "there", False)):
        made = content(folder, {"odd": odd}, attacks=[f"{write(tmp_path)}blind"], references=0)
        keys += [own.key for own in _planned(RunSpec.model_validate(made), tmp_path / "out").scorings]
    assert keys[0] != keys[1]
    assert keys[0] == keys[2]


def test_a_victim_is_known_by_itself_where_the_shadow_has_its_name(tmp_path: Path) -> None:
    def keys(width: int) -> dict[str, str]:
        shadow = {"source": "tiny", "name": "unet", "args": {"width": 4}}
        asked = spec(tmp_path, victim=shadow | {"args": {"width": width}}, shadow=shadow, references=0)
        return {net.name: net.key for net in _planned(asked, tmp_path / "out").nets}

    two, three = keys(2), keys(3)
    assert two["victim"] != three["victim"]
    assert two["shadow/0"] == three["shadow/0"]


def test_what_an_attacker_who_knows_has_no_more_of_is_computed_once(tmp_path: Path) -> None:
    asked = spec(tmp_path, shadows=0, references=0, poison=[{"trigger": "line", "size": 4}])
    made = found(asked, tmp_path / "out")
    assert [own.threat for own in made.inferences] == ["oblivious", "adaptive"]
    assert computed(tmp_path / "out") == [1 + 1 + 1]  # a network, its trigger, and the attack on it
    assert len(work.steps(_planned(asked, tmp_path / "out"))) == 3


def test_what_is_damaged_or_cannot_be_written_is_named_and_the_mend_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, asked = tmp_path / "out", spec(tmp_path, shadows=0, references=0)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("torch.save", full)
        with pytest.raises(UserError, match=r"training: cannot be written \(No space left .*give the same command"):
            found(asked, out)
    first = found(asked, out)
    for folder in ("signals", "inferences", "membership"):
        (path,) = (out / folder).glob("*.parquet")
        whole_file = path.read_bytes()
        path.write_bytes(whole_file[: len(whole_file) // 2])
        with pytest.raises(UserError, match=rf"{path}: is not a whole table .*; remove the file"):
            results(str(out))
        path.write_bytes(whole_file)
    (note,) = (path for path in (out / "networks").glob("*.json") if "card" not in path.name)
    whole_note = note.read_text()
    note.write_text("{}")
    with pytest.raises(UserError, match=rf"{note}: has no facts; remove the file"):
        results(str(out))
    note.write_text(whole_note)
    (path,) = (out / "signals").glob("*.parquet")
    path.unlink()
    (kept,) = (out / "nets").glob("*.safetensors")
    kept.write_bytes(kept.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"{kept} is not a whole safetensors file .*; remove the file"):
        found(asked, out)
    kept.unlink()
    assert_same(found(asked, out), first)


def test_networks_of_a_store_elsewhere_are_trained_in_a_folder_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    folders = list[Path]()
    fit = loop.fit
    monkeypatch.setattr(loop, "fit", lambda *own: folders.append(own[-1]) or fit(*own))
    place = f"memory://{tmp_path.name}"
    run(spec(tmp_path, shadows=0, references=0), place, local(1), "a test")
    assert results(place).lacking == 0
    (folder,) = folders
    assert folder.parent.parent == tmp_path / "temporary"
    assert folder.parent.stat().st_mode & 0o077 == 0
    assert not folder.exists()


def test_an_edit_of_an_attack_that_is_trained_against_is_another_network(tmp_path: Path) -> None:
    own = tmp_path / "attack.py"
    keys = []
    for sign in "+-":
        own.write_text(f"def step(model, images, labels, *, rng, eps=0.1):\n    return images {sign} eps\n")
        code_digest.cache_clear()  # of an earlier process
        training = {"recipe": {"name": "adversarial", "attack": f"{own}:step"}}
        keys.append([net.key for net in _planned(spec(tmp_path, training=training), tmp_path / "out").nets])
    assert set(keys[0]).isdisjoint(keys[1])


def test_victims_that_cannot_be_attacked_are_refused_first_and_those_to_come_are_lacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = content(tmp_path, references=0, shadows=0) | {"attacks": ["fgsm"], "eps": ["8/255"], "diagnostics": False}
    poisoned = made | {"membership": made["membership"] | {"poison": {"trigger": "line"}}}
    whole_only = made | {"data": f"{write(tmp_path)}uncut"}
    for wrong, said in ((poisoned, "put none among its poison"), (whole_only, "has no argument `only`")):
        with pytest.raises(UserError, match=said):
            whole(RunSpec.model_validate(wrong), tmp_path / "out")
    assert nets(tmp_path / "out") == {}
    asked = RunSpec.model_validate(made)
    with monkeypatch.context() as patch:
        patch.setattr(joint, "audited", None)
        with pytest.raises(TypeError):
            whole(asked, tmp_path / "out")
    assert results(str(tmp_path / "out")).lacking == 1
    assert whole(asked, tmp_path / "out").lacking == 0


def test_nothing_is_kept_of_networks_that_were_trained_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = spec(tmp_path)
    before = {own.key for own in (*_planned(asked, tmp_path).nets, *_planned(asked, tmp_path).scorings)}
    monkeypatch.setattr(trainer, "VERSION", trainer.VERSION + 1)
    after = {own.key for own in (*_planned(asked, tmp_path).nets, *_planned(asked, tmp_path).scorings)}
    assert before.isdisjoint(after)


def test_defect_the_min_max_adversary_was_trained_on_the_audit_s_own_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is handed the images that are for defenses alone: no candidate, no image of an attacker's, none to compare."""
    made = _planned(spec(tmp_path, references=0, defenses=["none", "minmax"]), tmp_path / "out")
    split, read, handed, fit, sample = made.study.split, list[str](), list[Any](), loop.fit, Chosen.sample

    def noted(model: Any, images: Any, held_out: Any, recipe: Any, *own: Any) -> Any:
        handed.append(recipe.keywords["reference"])
        return fit(model, images, held_out, recipe, *own)

    def watched(self: Chosen, name: str) -> Any:
        read.append(name)
        return sample(self, name)

    monkeypatch.setattr(loop, "fit", noted)
    monkeypatch.setattr(Chosen, "sample", watched)
    nets = {own.name: own for own in made.nets if own.defense.name == "minmax"}
    assert set(nets) == {"victim", "shadow/0"}
    for name, net in nets.items():
        read.clear()
        networks.make(made.study, net)
        others = set(read) - set(split.inside[name])
        assert handed.pop() == split.reference
        assert others
        assert others <= set(split.reference)
        assert others.isdisjoint({*split.candidates, *split.shadow, *split.population})


def test_defect_there_were_no_seeds_no_auc_and_no_roc(tmp_path: Path) -> None:
    """The same seed gives the same scores to the bit, another one another split; each attack has its curve and area."""
    attacks = named(tmp_path, "least_loss", "by_shadow")
    same, other = spec(tmp_path, attacks=attacks, seed=3), spec(tmp_path, attacks=attacks, seed=4)
    first = whole(same, tmp_path / "one")
    assert first.privacy is not None
    assert_same(found(same, tmp_path / "two"), first.privacy)
    splits = [_planned(own, tmp_path / "out").study.split for own in (same, other)]
    assert set(splits[0].members) != set(splits[1].members)
    assert set(splits[0].inside["shadow/0"]) != set(splits[1].inside["shadow/0"])
    rows = list(csv.DictReader(io.StringIO(printed(first, "csv", form="privacy"))))
    for row, own in zip(rows, first.privacy.inferences, strict=True):
        inside, outside = own.scores[own.member][:, None], own.scores[~own.member]
        area = float(((inside > outside) + (inside == outside) / 2).mean())
        assert float(row["auc"]) == pytest.approx(area, abs=1e-9)
    shown = section(first, [])
    assert shown is not None
    (figure,) = shown["rocs"]
    assert len(figure["lines"]) == len(attacks)
    assert all(len(line["points"].split()) > 2 for line in figure["lines"])
