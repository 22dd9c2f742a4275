"""What a spec says of a poison, what the flags map to, and how tables name it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from data_kit import refused
from segaudit.audit.membership.poison_spec import PoisonSpec
from segaudit.audit.parts import Strict, read
from segaudit.privacy.poison import Poison

CLASSES = ("sky", "road", "car")


class Block(Strict):
    poison: list[PoisonSpec]


def block(tmp_path: Path, text: str) -> Block:
    (tmp_path / "spec.yaml").write_text(text)
    return read(Block, tmp_path / "spec.yaml")


@pytest.mark.parametrize(
    ("text", "poison", "label"),
    [
        (
            "{trigger: line, size: 0.1, value: 1, probability: 0.5, rule: empty}",
            Poison("line", 0.1, 1.0, 0.5, "empty", seed=7),
            "line(size=0.1, probability=0.5)",
        ),
        (
            "{trigger: square, size: 8, value: 128/255, probability: 1e-1, rule: target, victim_class: car, "
            "target_class: 1}",
            Poison("square", 8, 128 / 255, 0.1, "target", 2, 1, seed=7),
            "square(size=8, value=0.501961, probability=0.1, car to 1)",
        ),
        (
            "{trigger: inside, size: 5, value: [0, 0.5, 1], probability: 1, rule: all, target_class: sky}",
            Poison("inside", 5, (0.0, 0.5, 1.0), 1, "all", target_class=0, seed=7),
            "inside(size=5, value=0+0.5+1, probability=1, all to sky)",
        ),
        ("none", None, "none"),
    ],
)
def test_a_poison_of_a_spec(tmp_path: Path, text: str, poison: Poison | None, label: str) -> None:
    (spec,) = block(tmp_path, f"poison: [{text}]").poison
    assert spec.build(CLASSES, 7) == poison
    assert spec.label() == label
    assert bool(spec) == (poison is not None)
    assert PoisonSpec.model_validate(spec.model_dump(mode="json")) == spec
    assert PoisonSpec.model_validate(yaml.safe_load(text)) == spec


@pytest.mark.parametrize("kind", ["line", "square"])
def test_the_flags_map_one_to_one(kind: str) -> None:
    """`--triggertype KIND --triggersize 10 --triggerval 1 --poison 0.3`."""
    spec = PoisonSpec(trigger=kind, size=10, value=1, probability=0.3)
    assert spec.build(CLASSES, 0) == Poison(kind, 10, 1, 0.3, "empty")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("{trigger: lime}", ["spec.yaml", "no trigger is called 'lime' (did you mean 'line'?)"]),
        ("{trigger: line, sise: 3}", ["poison.0", "unknown key 'sise' (did you mean 'size'?)"]),
        ("{size: 3}", ["poison.0.trigger", "required"]),
        ("line", ["poison.0: write none, or {trigger: line, size: 0.1, ...}, not 'line'"]),
        ("{trigger: none, size: 3}", ["trigger none is no poison"]),
        ("{trigger: line, value: white}", ["value must be a number from 0 to 1, or one a channel, not 'white'"]),
        ("{trigger: line, probability: 1.5}", ["probability must be above 0"]),
        ("{trigger: line, rule: target, victim_class: car}", ["rule target needs a target_class"]),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, text: str, parts: list[str]) -> None:
    refused(lambda: block(tmp_path, f"poison: [{text}]"), *parts)


def test_a_class_that_there_is_not_is_named() -> None:
    spec = PoisonSpec(trigger="line", rule="target", victim_class="kar", target_class="road")
    refused(lambda: spec.build(CLASSES, 0), "victim_class must be a class (0 sky, 1 road, 2 car), not 'kar'", "'car'?")
    spec = PoisonSpec(trigger="line", rule="all", target_class=3)
    refused(lambda: spec.build(CLASSES, 0), "target_class must be a class", "not 3")
    spec = PoisonSpec(trigger="line", rule="target", victim_class="car", target_class=2)
    refused(lambda: spec.build(CLASSES, 0), "another class than the victim's 2")


def test_a_poison_is_frozen() -> None:
    with pytest.raises(ValidationError):
        PoisonSpec(trigger="line").size = 3  # type: ignore[misc]
