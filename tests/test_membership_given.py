"""Membership experiments on victims that were trained elsewhere: what is asked, what is trained, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from membership_kit import content, found, nets, spec, whole
from segaudit import registry
from segaudit.audit import build
from segaudit.audit.membership.given import members, untrained
from segaudit.audit.membership.kept import read_table
from segaudit.audit.membership.spec import Membership
from segaudit.audit.membership.split import Known, split
from segaudit.audit.parts import ModelSpec, Part
from segaudit.audit.spec import RunSpec
from segaudit.audit.store import Store
from segaudit.models import weights
from segaudit.report.privacy import section
from segaudit.training import loop
from segaudit.types import UserError
from test_membership_split import Names

pytestmark = pytest.mark.usefixtures("one_thread", "alone")
VICTIM = {"source": "tiny", "name": "unet", "args": {"width": 8}}
LEARN = {"epochs": 40, "batch": 4, "lr": 0.01, "precision": "fp32", "augment": {"flip": False}}
DATA = {"count": 60, "odd": True}


@pytest.fixture(scope="module")
def alone() -> Any:
    """No attack but those of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.TABLES, "membership", {})
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The weights of a network that knows 12 images by heart, and the file of their ids."""
    folder = tmp_path_factory.mktemp("elsewhere")
    asked = spec(folder, DATA, victim=VICTIM, training=LEARN, references=0, shadows=0, train_size=12)
    (told,) = found(asked, folder / "out").inferences
    ids = [name for name, member in zip(told.ids, told.member, strict=True) if member]
    (folder / "members.txt").write_text("# trained on\n" + "\n".join(ids) + "\n")
    (name,) = nets(folder / "out")
    (folder / "out" / "nets" / name).rename(folder / "victim.safetensors")
    return folder, ids


def given(folder: Path, trained: tuple[Path, list[str]], **over: Any) -> dict[str, Any]:
    where, _ = trained
    usual = {
        "victim": VICTIM | {"weights": str(where / "victim.safetensors")}, "members": str(where / "members.txt"),
        "train_size": None,
    }  # fmt: skip
    return content(folder, DATA, **usual | over)


def columns(out: Path) -> dict[str, Any]:
    return read_table(Store(str(out)), "membership/split.parquet")


def test_a_victim_is_taken_as_it_is_and_gives_its_images_away(tmp_path: Path, trained: tuple[Path, list[str]]) -> None:
    asked = RunSpec.model_validate(given(tmp_path, trained, references=0, shadows=0))
    results = whole(asked, tmp_path / "out")
    made = results.privacy
    assert made is not None
    assert nets(tmp_path / "out") == {}
    (told,) = made.inferences
    assert set(np.array(told.ids)[told.member]) == set(trained[1])
    inside, outside = told.scores[told.member], told.scores[~told.member]
    assert len(inside) == len(outside) == 12
    assert float((inside[:, None] > outside).mean()) > 0.95
    shown = section(results, [])
    assert shown is not None
    assert ("victims", "as they were given") in shown["split"]


def test_what_the_attacker_trains_begins_without_the_victims_weights(
    tmp_path: Path, trained: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    starts, fit = list[dict[str, Tensor]](), loop.fit

    def noted(model: Any, *args: Any, **own: Any) -> dict[str, float]:
        starts.append({name: tensor.clone() for name, tensor in model.net.state_dict().items()})
        return fit(model, *args, **own)

    monkeypatch.setattr(loop, "fit", noted)
    asked = RunSpec.model_validate(given(tmp_path, trained, references=2, train_size=8, defenses=["none", "argmax"]))
    made = found(asked, tmp_path / "out")
    assert [own.defense for own in made.victims] == ["none", "argmax"]
    table = columns(tmp_path / "out")
    known = {name for name, own in zip(table["id"], table["victim"], strict=True) if own}
    assert len(known) == 8
    assert known < set(trained[1])
    assert known.isdisjoint(np.array(table["id"])[table["shadow/0"]])
    assert set(table["id"]) & set(trained[1]) == known  # the other members have no role: not in any other set
    assert len(nets(tmp_path / "out")) == len(starts) == 1 + 2
    there = weights.read(trained[0] / "victim.safetensors")[0]
    learnt = [name for name, tensor in there.items() if tensor.ndim == 4]
    assert learnt
    assert not any(torch.equal(start[name], there[name]) for start in starts for name in learnt)


def test_a_victim_that_was_trained_elsewhere_is_attacked_on_images_that_it_never_saw(
    tmp_path: Path, trained: tuple[Path, list[str]]
) -> None:
    made = given(tmp_path, trained, references=0, shadows=0)
    made |= {"attacks": ["fgsm"], "eps": ["8/255"], "diagnostics": False}
    results = whole(RunSpec.model_validate(made), tmp_path / "out")
    assert [(cell.model, cell.attack) for cell, _ in results.cells] == [("unet", "none"), ("unet", "fgsm")]
    for _, records in results.cells:
        assert len(records.ids) == 12
        assert set(records.ids).isdisjoint(trained[1])


def test_members_may_be_named_by_arguments_of_the_data(tmp_path: Path, trained: tuple[Path, list[str]]) -> None:
    asked = RunSpec.model_validate(given(tmp_path, trained, references=0, members={"only": trained[1]}))
    made = found(asked, tmp_path / "out")
    (told,) = made.inferences
    assert set(np.array(told.ids)[told.member]) == set(trained[1])


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"shuffled": True}, "members says who is a member"),
        ({"unit": "order"}, "members says who is a member"),
        ({"poison": [{"trigger": "line"}]}, "were trained elsewhere"),
        ({"victim": VICTIM}, "victim 'unet': with `members` it is taken with its weights"),
        ({"defenses": ["none", "mixup"]}, "defenses: mixup trains the victim anew"),
        ({"members": {}}, "members"),
    ],
)
def test_what_a_spec_cannot_ask_of_a_trained_victim(
    tmp_path: Path, trained: tuple[Path, list[str]], over: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        RunSpec.model_validate(given(tmp_path, trained, **over))


@pytest.mark.parametrize(
    ("text", "over", "said"),
    [
        (None, {}, "cannot be read"),
        ("00-000\nnobody\n", {}, "has the image 'nobody'"),
        ("# none\n", {}, "has no image of the pool"),
        ("00-000\n01-001\n", {"train_size": 3}, "there are 2 and 58; give a train_size of at most 2"),
        ("00-000\n", {}, "give more data"),
    ],
)
def test_members_that_do_not_fit_are_one_line(
    tmp_path: Path, trained: tuple[Path, list[str]], text: str | None, over: dict[str, Any], said: str
) -> None:
    path = tmp_path / "own.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as caught:
        found(RunSpec.model_validate(given(tmp_path, trained, members=str(path), **over)), tmp_path / "out")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_of_fewer_images_those_members_are_asked_about_that_are_left(
    tmp_path: Path, trained: tuple[Path, list[str]]
) -> None:
    made = given(tmp_path, trained, references=0)
    made["data"]["limit"] = 30
    left = set(found(RunSpec.model_validate(made), tmp_path / "out").inferences[0].ids)
    assert 4 <= len(left & set(trained[1])) < 12


def test_nothing_shares_a_group_with_what_the_victim_saw() -> None:
    data = Names([4] * 25)
    known = data.ids[: 4 * 4 + 2]
    asked = Membership.model_validate({
        "victim": {"source": "tiny", "name": "unet", "weights": "some"}, "members": "some", "train_size": 12,
    })  # fmt: skip
    made = split(data, asked, 0, Known(known))
    assert made.given
    assert set(made.members) <= set(known)
    roles: list[tuple[str, ...]] = [made.outside("victim"), made.shadow, made.reference, made.population]
    seen: NDArray[Any] = np.concatenate([np.array(role) for role in roles])
    assert len(seen) == len(set(seen)) == 80
    assert not any(name.startswith(("g0/", "g1/", "g2/", "g3/", "g4/")) for name in seen)
    assert len(made.outside("victim")) == 12
    assert len(made.members) in (10, 12, 14)


def test_of_a_pool_that_was_cut_no_group_is_among_the_others_that_the_victim_saw(tmp_path: Path) -> None:
    listed = tmp_path / "members.txt"
    listed.write_text("".join(f"{group:02d}-{group * 6 + i:03d}  # seen\n" for group in range(10) for i in (0, 1)))
    made = content(tmp_path, {"count": 120, "per": 6, "limit": 30}, members=str(listed), shadow=VICTIM)
    data = build.dataset(RunSpec.model_validate(made).data)
    known = members(data, Part.model_validate(made["data"]), str(listed))
    assert {name[:2] for name in known.ids} < known.groups == {f"{group:02d}" for group in range(10)}
    asked = Membership.model_validate({"victim": VICTIM, "shadow": VICTIM, "members": str(listed), "train_size": 4})
    drawn = split(data, asked, 0, known)
    for role in (drawn.outside("victim"), drawn.shadow, drawn.reference, drawn.population):
        assert role
        assert all(int(name[:2]) >= 10 for name in role)


def test_the_attackers_networks_have_the_preprocessing_of_the_victims_weights(
    tmp_path: Path, trained: tuple[Path, list[str]]
) -> None:
    card = weights.read(trained[0] / "victim.safetensors")[1]
    card["model"]["preprocess"] |= {"order": "bgr", "scale": 255.0}
    net = build.model(
        ModelSpec.model_validate(VICTIM | {"weights": str(trained[0] / "victim.safetensors")}), ("dark", "bright")
    ).net
    weights.write(net, tmp_path / "bgr.safetensors", card)
    one = untrained(ModelSpec.model_validate(VICTIM | {"weights": str(tmp_path / "bgr.safetensors")}))
    assert one.weights is None
    assert (one.preprocess["order"], one.preprocess["scale"]) == ("bgr", 255.0)
    told = ModelSpec.model_validate(
        VICTIM | {"weights": str(tmp_path / "bgr.safetensors"), "preprocess": {"order": "rgb"}}
    )
    assert untrained(told).preprocess["order"] == "rgb"


def test_a_victim_that_brings_its_weights_is_taken_and_one_that_has_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "members.txt").write_text("".join(f"{i:02d}-{i:03d}\n" for i in range(12)))
    own = tmp_path / "net.py"
    own.write_text(
        "import torch\n\n\ndef build():\n    with torch.random.fork_rng():\n        torch.manual_seed(7)\n"
        "        return torch.nn.Conv2d(3, 2, 1)\n"
    )
    over = {"members": str(tmp_path / "members.txt"), "references": 0, "shadows": 0, "train_size": 8}
    brought = {"source": "python", "name": f"{own}:build", "label": "own"}
    made = found(spec(tmp_path, DATA, victim=brought, **over), tmp_path / "out")
    assert len(made.inferences) == 1
    assert nets(tmp_path / "out") == {}
    with pytest.raises(UserError, match="victim 'unet' has no weights"):
        found(spec(tmp_path, DATA, victim=VICTIM, **over), tmp_path / "bare")
