"""From a training spec to weights with a card, and from the card to the same weights again."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from segaudit import cli
from segaudit.attacks.pgd import pgd
from segaudit.audit import build, parts
from segaudit.audit.recipe import Recipe
from segaudit.audit.train import TrainSpec, card_of, read, train
from segaudit.models import weights
from segaudit.rng import ImageStreams
from segaudit.training.budget import budget
from segaudit.training.private import private
from segaudit.training.schedule import Schedule
from segaudit.training.standard import standard
from segaudit.types import UserError
from train_kit import Drawn, batch_of, equal, net

pytestmark = pytest.mark.usefixtures("one_thread")

AT: dict[str, Any] = {"name": "adversarial", "attack": {"name": "segpgd", "eps": "4/255", "steps": 2}, "share": 0.5}


@pytest.fixture(autouse=True)
def _plain_arithmetic() -> Any:
    yield
    torch.set_flush_denormal(False)


def content(**over: Any) -> dict[str, Any]:
    data = {split: {"name": "scenes", "kind": "lesion", "split": split, "images": 5} for split in ("train", "val")}
    made = {"name": "tiny", "model": {"source": "tiny", "name": "unet", "args": {"width": 4}}, "data": data}
    return made | {"recipe": AT, "epochs": 2, "batch": 2, "lr": "1e-2", "precision": "fp32"} | over


def save(path: Path, made: Any) -> Path:
    path.write_text(yaml.safe_dump(made))
    return path


def test_the_card_of_a_private_training_says_what_it_promises() -> None:
    ids, own = tuple(map(str, range(40))), Schedule(epochs=3, batch=4)
    halves = [(name, str(int(name) // 2)) for name in ids]
    for args, units in (({}, 40), ({"epsilon": 3.0, "units": halves}, 20), ({"noise": False}, 40)):
        asked = Recipe(name="private", args=args)
        said = asked.promise(partial(private, **args), ids, own)["promise"]
        found = budget(40, units, own, **{"epsilon": 8.5} | {k: v for k, v in args.items() if k != "units"})
        kept = {"sigma": found.sigma, "epsilon": found.epsilon, "delta": 1 / units}
        assert said == (kept if args.get("noise", True) else {"sigma": 0.0})
    assert Recipe(name="standard").promise(partial(standard), ids, own) == {}
    more = tuple([*halves, ("elsewhere", "another")])  # a list of a larger set has units that no image here is of
    assert Recipe(name="private").promise(partial(private, units=more), ids, own)["promise"]["delta"] == 1 / 20


def test_the_card_says_what_the_recipe_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recipe, "promise", lambda _, made, ids, own: {"promise": [len(ids), own.epochs]})
    path, _ = train(TrainSpec.model_validate(content(recipe="standard", epochs=1)), tmp_path)
    assert card_of(path)["promise"] == [5, 1]


def test_arguments_that_a_purifier_does_not_have_are_said_at_once(tmp_path: Path) -> None:
    made = content(recipe={"name": "denoise", "sigma": 0.1}, model={"source": "purifier", "name": "residual"})
    made["model"]["args"] = {"channels": 3}  # the images say how many
    with pytest.raises(UserError, match="purifier 'residual' has no argument 'channels'; its arguments: width"):
        read(save(tmp_path / "spec.yaml", made))


def test_the_card_makes_the_same_network_again_bit_for_bit(tmp_path: Path) -> None:
    made = content(recipe=AT | {"class_weights": "balanced"}, lr_schedule="poly", augment={"light": 0.1})
    spec = parts.read(TrainSpec, save(tmp_path / "spec.yaml", made))
    path, score = train(spec, tmp_path / "first")
    first, card = weights.read(path)
    assert read(path) == spec
    again, told = train(read(path), tmp_path / "again")
    second, other = weights.read(again)
    assert equal(first, second)
    assert told == score
    assert {k: v for k, v in card.items() if k != "seconds"} == {k: v for k, v in other.items() if k != "seconds"}

    assert card["training"] == spec.model_dump(mode="json")
    assert card["training"]["recipe"]["args"]["attack"] == {"name": "segpgd", "args": {"eps": 4 / 255, "steps": 2}}
    assert card["training"]["seed"] == 0
    assert card["score"] == score
    data = build.dataset(spec.data.train)
    assert card["data"]["train"] == {"images": 5, "digest": data.digest()}
    assert card["data"]["val"]["digest"] not in ("", data.digest())
    assert card["class_names"] == list(data.class_names)
    assert card["start"] == build.digest(build.model(spec.model, data.class_names, spec.seed))
    assert card["versions"].keys() >= {"segaudit", "python", "torch", "numpy", "pillow"}
    assert (card["precision"], card["threads"]) == ("fp32", 1)
    assert card["device"]
    assert card["machine"]
    assert card["files"] == {}
    other_seed, _ = train(spec.model_copy(update={"seed": 1}), tmp_path / "seed")
    assert not equal(weights.read(other_seed)[0], first)


def test_a_training_starts_from_weights_that_it_is_given(tmp_path: Path) -> None:
    start, _ = train(TrainSpec.model_validate(content(recipe="standard", epochs=1)), tmp_path / "standard")
    model = content()["model"] | {"weights": str(start)}
    spec = TrainSpec.model_validate(content(model=model, epochs=1, lr=1e-9, weight_decay=0))
    path, _ = train(spec, tmp_path / "robust")
    moved, card = weights.read(path)
    begun = weights.read(start)[0]
    learnt = [key for key in begun if key.endswith("weight")]
    assert learnt
    for key in learnt:
        torch.testing.assert_close(moved[key], begun[key], rtol=0, atol=1e-6)
    assert card["training"]["model"]["weights"] == str(start)
    assert card["model"]["weights"] is None


def test_a_folder_goes_on_with_the_same_spec_alone(tmp_path: Path) -> None:
    spec = TrainSpec.model_validate(content(recipe="standard", epochs=1))
    path, score = train(spec, tmp_path)
    note = json.loads((tmp_path / "train.json").read_text())
    del note["lr_schedule"]  # as if written before there was one
    (tmp_path / "train.json").write_text(json.dumps(note))
    before = weights.read(path)[0]
    assert train(spec, tmp_path)[1] == score
    assert equal(weights.read(path)[0], before)
    for stale in (TrainSpec.model_validate(content(recipe="standard", epochs=2)), TrainSpec.model_validate(content())):
        with pytest.raises(UserError, match="holds the training of another spec"):
            train(stale, tmp_path)


def test_other_images_or_weights_than_a_training_began_with_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = TrainSpec.model_validate(content(recipe="standard", epochs=1))
    path, _ = train(spec, tmp_path / "one")
    train(spec, tmp_path / "one")
    train(read(path), tmp_path / "two", card=card_of(path))
    assert caplog.messages == []
    kept = tmp_path / "one" / "contents.json"
    began = json.loads(kept.read_text())
    assert began.items() <= card_of(path).items()
    kept.write_text(json.dumps(began | {"data": began["data"] | {"val": {"images": 5, "digest": "another"}}}))
    train(spec, tmp_path / "one")
    train(spec, tmp_path / "three", card={"start": "another", "files": {"gone.py:net": "x"}})
    assert caplog.messages == [
        f"segaudit: {tmp_path}/one: images of data.val: not those that this training began with, so the network or its "
        "score will be another",
        f"segaudit: {tmp_path}/three: weights at the start: not those of the card, so the network or its score will be "
        "another",
    ]


def test_a_card_has_what_the_training_began_with_and_names_what_it_was_resumed_with(tmp_path: Path) -> None:
    spec = TrainSpec.model_validate(content(recipe="standard", epochs=1))
    path, _ = train(spec, tmp_path)
    kept = tmp_path / "contents.json"
    now = json.loads(kept.read_text())
    assert "resumed_with" not in card_of(path)
    began = now | {"data": now["data"] | {"train": {"images": 5, "digest": "another"}}}
    kept.write_text(json.dumps(began))
    for _ in range(2):
        train(spec, tmp_path)
        card = card_of(path)
        assert {key: card[key] for key in began} == began
        assert card["resumed_with"] == [now]
    assert json.loads(kept.read_text()) == began | {"resumed_with": [now]}

    kept.unlink()  # nobody knows any more
    train(spec, tmp_path)
    assert not card_of(path).keys() & now.keys()
    assert card_of(path)["resumed_with"] == [now]

    kept.write_text(json.dumps(began))
    (tmp_path / "checkpoint.pt").unlink()  # as after a kill in the first epoch: it begins with what is there now
    train(spec, tmp_path)
    assert now.items() <= card_of(path).items()
    assert "resumed_with" not in card_of(path)


DENOISE: dict[str, Any] = {
    "model": {"source": "purifier", "name": "residual", "args": {"width": 4}},
    "recipe": {"name": "denoise", "sigma": 0.1},
}


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"recipe": {"name": "noise", "sigma": 0.1, "class_weights": [1, 1, 1]}}, "recipe: 3 class_weights for 2 "),
        ({"recipe": {"name": "noise", "sigma": 0}}, "recipe noise: sigma must be a number above 0, not 0"),
        (
            {"recipe": {"name": "noise", "sigma": 0.1, "dice": -1}},
            "recipe: dice must be a number of at least 0, not -1",
        ),
        ({"recipe": {"name": "standard", "dice": "x"}}, "recipe: dice must be a number of at least 0, not 'x'"),
        (
            {"recipe": {"name": "standard", "label_smoothing": 2}},
            "recipe: label_smoothing must be a number from 0 to 1, not 2",
        ),
        ({"recipe": AT | {"share": 0}}, "recipe adversarial: share must be above 0 and at most 1, not 0"),
        ({"recipe": AT | {"dice": -1}}, "recipe: dice must be a number of at least 0, not -1"),
        *(
            (DENOISE | {"recipe": DENOISE["recipe"] | own | other}, f"recipe denoise: stability must be {said}")
            for own, said in (
                ({"stability": -1}, "a number above 0, not -1"),
                ({"stability": "x"}, "a number above 0, not 'x'"),
            )
            for other in ({}, {"segmenter": "unet"})
        ),
        ({"lr": -1}, "lr must be a number above 0, not -1.0"),
        ({"lr": float("nan")}, "lr must be a number above 0, not nan"),
        ({"warmup": 1.5}, "warmup must be a share from 0 to 1, not 1.5"),
        ({"weight_decay": -0.1}, "weight_decay must be a number of at least 0, not -0.1"),
        ({"clip": 0}, "clip must be a number above 0, not 0.0"),
        ({"augment": {"flip": 1}}, "augment: flip must be true or false, not 1"),
        ({"augment": {"turn": "no"}}, "augment: turn must be true or false, not 'no'"),
        *(
            (
                {"augment": {"scale": scale}},
                f"augment: scale must be two numbers above 0, the smaller first: [0.5, 2.0], not {scale!r}",
            )
            for scale in (2, [1], [2, 1], [0, 1], ["1/2", 2])
        ),
        *(
            ({"augment": {"crop": crop}}, "augment: crop must be [height, width], whole numbers of at least 1, not ")
            for crop in (32, [32], [32, 0], [32.5, 32])
        ),
        ({"augment": {"light": -0.1}}, "augment: light must be a number from 0 to 1, not -0.1"),
    ],
)
def test_a_spec_that_cannot_begin_leaves_no_note_behind(over: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        train(TrainSpec.model_validate(content(**over)), tmp_path)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_numbers_are_checked_before_any_image_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []
    monkeypatch.setattr(build, "dataset", read.append)
    with pytest.raises(UserError, match=r"^lr must be a number above 0, not -1\.0"):
        train(TrainSpec.model_validate(content(lr=-1)), tmp_path)
    assert not read


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train.json", ""),
        ("train.json", "[]"),
        ("contents.json", ""),
        ("contents.json", "\udcff"),
        ("contents.json", "[1]"),
        ("contents.json", '{"data": []}'),
        ("contents.json", '{"data": {"train": "x"}}'),
        ("contents.json", '{"data": {"train": {}}}'),
        ("contents.json", '{"files": 3}'),
        ("contents.json", '{"files": {"net.py:net": []}}'),
        ("contents.json", '{"start": 1}'),
        ("contents.json", '{"resumed_with": 1}'),
    ],
)
def test_a_note_that_is_none_is_one_line_that_names_it(name: str, text: str, tmp_path: Path) -> None:
    spec = TrainSpec.model_validate(content(recipe="standard", epochs=1))
    (tmp_path / name).write_text(text, errors="surrogateescape")
    with pytest.raises(UserError) as error:
        train(spec, tmp_path)
    assert str(error.value) == (
        f"{tmp_path / name} is no note of a training that is whole; give another --out, or remove the folder"
    )
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_kill_while_a_note_is_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, write = TrainSpec.model_validate(content(recipe="standard", epochs=1)), Path.write_text
    train(spec, tmp_path)
    before = {name: (tmp_path / name).read_text() for name in ("train.json", "contents.json")}

    def half(path: Path, text: str) -> None:
        write(path, text[:9])
        raise KeyboardInterrupt

    for name in before:
        stem = name.partition(".")[0]
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_text", lambda p, t, s=stem: half(p, t) if p.stem == s else write(p, t))
            with pytest.raises(KeyboardInterrupt):
                train(spec, tmp_path)
        assert (tmp_path / name).read_text() == before[name]


@pytest.mark.parametrize(
    "card",
    [{"data": []}, {"data": {"train": "x"}}, {"data": {"train": {}}}, {"files": 3}, {"files": {"a": 1}}, {"start": {}}],
)
def test_a_card_whose_digests_are_none_is_one_line(card: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^the card's start, data or files are no digests; give the training's spec"):
        train(TrainSpec.model_validate(content(recipe="standard", epochs=1)), tmp_path / "out", card=card)
    assert not (tmp_path / "out").exists()


def test_an_attack_reaches_a_recipe_of_one_s_own_as_a_function(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def double(model, batch, *, rng, attack, power=1):\n"
        "    return power * attack(model, batch.images, batch.labels, rng=rng)\n"
    )
    name = f"{tmp_path}/mine.py:double"
    spec = TrainSpec.model_validate(
        content(recipe={"name": name, "attack": {"name": "pgd", "eps": "8/255"}, "power": "1/2"})
    )
    recipe = spec.recipe.make(Drawn("binary", 2, 1), ("no", "yes"))
    batch, model = batch_of("binary"), net("binary").eval()
    rng = ImageStreams(0, batch.ids)
    expected = pgd(model, batch.images, batch.labels, rng=rng, eps=8 / 255) / 2
    assert torch.equal(recipe(model, batch, rng=rng), expected)
    assert TrainSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("recipe", "fault"),
    [
        ("adversarial", "recipe 'adversarial' needs the argument 'attack'"),
        ({"name": "adversarial", "attack": 3}, "attack must be a name, or {name: ..., and its arguments}, not 3"),
        ({"name": "adversarial", "attack": {"eps": 1}}, "recipe.args: attack: give it a `name`"),
        (
            {"name": "adversarial", "attack": "segpdg"},
            "no attack is called 'segpdg' (did you mean 'segpgd'?); there are: ",
        ),
        ({"name": "adversarial", "attack": "pgd"}, "attack 'pgd' needs the argument 'eps'"),
        (AT | {"shar": 1}, "recipe 'adversarial' has no argument 'shar' (did you mean 'share'?)"),
        (AT | {"attack": {"name": "pgd", "eps": 4}}, "eps 4 of attack 'pgd' must be above 0 and within the images' 0"),
        (AT | {"attack": {"name": "pgd", "eps": 0}}, "eps 0 of attack 'pgd' must be above 0"),
        (AT | {"attack": {"name": "pgd", "eps": None}}, "eps None of attack 'pgd' must be above 0"),
        (AT | {"attack": {"name": "pgd", "eps": "4/0"}}, "recipe.args: '4/0' divides by zero"),
        (AT | {"attack": {"name": "pgd", "eps": 0.1, "step_size": 2}}, "step_size 2 of attack 'pgd' must be above 0"),
        (
            AT | {"attack": {"name": "pgd", "eps": 0.1, "stepz": 2}},
            "attack 'pgd' has no argument 'stepz' (did you mean",
        ),
        (AT | {"attack": {"name": "pgd", "eps": 0.1, "targeted": True}}, "attack 'pgd' has no argument 'targeted'"),
        (AT | {"attack": {"name": "universal", "eps": 0.1}}, "attack 'universal' is fitted on a set of images"),
        ({"name": "noise"}, "recipe 'noise' needs the argument 'sigma'"),
        ({"name": "noise", "sigma": 0.1, "varied": 1}, "recipe 'noise': varied must be true or false, not 1"),
    ],
)
def test_what_a_recipe_lacks_is_one_line_that_names_the_file(recipe: Any, fault: str, tmp_path: Path) -> None:
    path = save(tmp_path / "spec.yaml", content(recipe=recipe))
    with pytest.raises(UserError) as error:
        parts.read(TrainSpec, path)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert fault in text
    assert "\n" not in text


def test_the_budget_of_another_norm_may_be_larger() -> None:
    TrainSpec.model_validate(content(recipe=AT | {"attack": {"name": "pgd", "norm": "l2", "eps": 3}}))


def test_weights_without_a_card_are_no_spec(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    weights.write(nn.Conv2d(3, 2, 1), path, {})
    with pytest.raises(UserError, match="has no card that says how it was trained; give the training's spec"):
        read(path)
    weights.write(nn.Conv2d(3, 2, 1), path, {"training": {"name": "x"}})
    with pytest.raises(UserError, match=r"its card holds a spec that is none: model: Field required; data: "):
        read(path)
    weights.write(nn.Conv2d(3, 2, 1), path, {"training": content(recipe={"name": "noise", "sigma": 0})})
    with pytest.raises(UserError, match=r"net.safetensors: its card holds a spec that is none: recipe noise: sigma"):
        read(path)


def test_the_command_leaves_weights_and_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made = content(name="<b>a</script>", recipe="standard", validate_every=1)
    with pytest.raises(SystemExit) as exit:
        cli.main(["train", str(save(tmp_path / "spec.yaml", made)), "--out", "first"])
    assert not exit.value.code
    out, _ = capfd.readouterr()
    path, miou, accuracy = out.splitlines()
    assert path == "first/model.safetensors"
    score = weights.read(path)[1]["score"]
    assert (miou, accuracy) == (f"miou {score['miou']:.4f}", f"accuracy {score['accuracy']:.4f}")
    page = Path("first/curves.html").read_text()
    drawn = page[page.rindex("Plotly.newPlot") :]
    history = [json.loads(line) for line in Path("first/metrics.jsonl").read_text().splitlines()]
    for value in (history[0]["loss"], history[1]["loss"], 100 * history[0]["miou"], 100 * score["miou"]):
        assert repr(value) in drawn
    assert drawn.count("</script>") == 1
    assert 'src="http' not in page
    with pytest.raises(SystemExit):
        cli.main(["train", path, "--out", "again"])
    assert equal(weights.read("again/model.safetensors")[0], weights.read(path)[0])
