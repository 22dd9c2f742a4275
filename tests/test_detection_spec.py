"""What a `detection` block may ask for, and what it may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from audit_kit import audit
from detect_kit import watching
from segaudit.audit.recipe import Recipe
from segaudit.types import UserError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("block", "over", "said"),
    [
        ({"detectors": ["squeeze"]}, {}, r"no detector is called 'squeeze' \(did you mean 'squeezing'\?\)"),
        ({"detectors": ["squeezing", "squeezing"], "fit": None}, {}, "'squeezing' is there twice"),
        ({"detectors": [{"name": "squeezing", "bit": 3}]}, {}, "has no argument 'bit'"),
        ({"detectors": ["reconstruction"]}, {}, "detector 'reconstruction' needs the argument 'denoiser'"),
        ({"detectors": []}, {}, "List should have at least 1 item"),
        ({"detectors": ["squeezing"]}, {}, "fit: none of squeezing is fitted on clean images; leave it out"),
        ({"evading": {"stepz": 3}}, {}, r"has no argument 'stepz' \(did you mean 'steps'\?\)"),
        ({"evading": {"detector": "squeezing"}}, {}, "has no argument 'detector'"),
        ({"evading": {"steps": 0}}, {}, "evading: steps must be a whole number of at least 1, not 0"),
        ({"evading": {"steps": 2.5}}, {}, "evading: steps must be a whole number of at least 1, not 2.5"),
        ({"evading": {"norm": "l3"}}, {}, "evading: norm must be linf or l2, not 'l3'"),
        ({"evading": {"step_size": 5}}, {}, "step_size 5 of evading must be above 0 and within"),
        ({"evading": {"step_size": -1, "norm": "l2"}}, {}, "step_size -1 of evading must be above 0"),
        ({"evading": {"threshold": "high"}}, {}, "evading: threshold must be a number, not 'high'"),
        ({"evading": {"weight": True}}, {}, "evading: weight must be a number of at least 0, not True"),
        ({"attacks": ["pgd"]}, {}, r"the run has no attack 'pgd'.*; it has: fgsm, pgd\(steps=3\)"),
        ({}, {"eps": [2]}, "eps 2 is larger than the image range"),
        ({}, {"defenses": ["jpeg"]}, "put none among the defenses"),
        ({}, {"attacks": ["segaudit.attacks.evading:evading"]}, "is run by the block `detection`; leave it out"),
        ({}, {"attacks": ["evading"]}, "attack 'evading' is run by the block `detection`; leave it out"),
    ],
)
def test_what_a_block_cannot_ask_for_is_one_line(
    tmp_path: Path, block: dict[str, Any], over: dict[str, Any], said: str
) -> None:
    with pytest.raises((ValueError, UserError), match=said):
        watching(tmp_path, block=block, **over)


def test_an_attack_of_a_users_own_may_have_an_argument_of_that_name_and_no_training_evades(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def still(model, images, labels, *, rng, eps, detector=0):\n    return images\n")
    (own,) = watching(tmp_path, attacks=[{"name": f"{mine}:still", "detector": 1}]).attacks
    assert own.args == {"detector": 1}
    with pytest.raises(UserError, match="recipe: attack 'evading' evades a detector, and there is none"):
        Recipe.model_validate({"name": "adversarial", "attack": {"name": "evading", "eps": 0.1}}).check()


def test_what_cannot_be_watched_is_said_before_any_work(tmp_path: Path) -> None:
    out, mine = tmp_path / "run", tmp_path / "mine.py"
    mine.write_text("def wide(model, images):\n    return images.mean((2, 3))\n")
    for block, said in (
        ({"detectors": [f"{mine}:wide"], "fit": None}, r"wide' gives \(1, 3\) for one image; let it be N scores"),
        ({"fit": {"only": ["p03", "p05"]}}, "detection would be fitted on p03, which is scored too"),
        ({"detectors": [{"name": "divergence", "denoiser": "no.safetensors"}], "fit": None}, r"no\.safetensors"),
    ):
        with pytest.raises(UserError, match=said):
            audit(watching(tmp_path, block=block), out)
    assert not (out / "cells").exists()


def test_step_sizes_of_the_block_are_in_the_specs_unit(tmp_path: Path) -> None:
    spec = watching(tmp_path, block={"evading": {"steps": 4, "step_size": 2}}, unit="1/255", eps=[4], pictures=None)
    assert spec.detection is not None
    assert spec.detection.evading["step_size"] == pytest.approx(2 / 255)
