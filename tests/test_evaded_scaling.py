"""Detectors of image scaling attacks, and the attack that evades them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audit_kit import audit, content, write_net, write_pictures
from segaudit.attacks._resize import Resizer
from segaudit.attacks.blended_scaling import blended_scaling
from segaudit.attacks.image_scaling import image_scaling
from segaudit.audit.resizing import Scaling
from segaudit.audit.spec import RunSpec
from segaudit.defenses.scaling_detectors import down_up_mse, spectrum_energy
from segaudit.metrics.roc import auc
from segaudit.metrics.scaling import scaled
from segaudit.report import scaling
from segaudit.report.tables import table

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_detector_of_scaling_attacks_is_evaded_at_the_cost_of_the_picture(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    source = np.clip(rng.normal(150, 3, (48, 64, 3)), 0, 255).astype(np.uint8)
    target = np.clip(rng.normal(90, 3, (12, 16, 3)), 0, 255).astype(np.uint8)
    resizer = Resizer("torch", "bilinear")
    for detector in (down_up_mse, spectrum_energy):

        def noticed(picture: Any, detector: Any = detector) -> float:
            return float(detector([picture], resizer, (12, 16))[0])

        plain = image_scaling(source, target, resizer)
        made = blended_scaling(source, target, resizer, noticed=noticed)
        assert noticed(plain) > noticed(source) >= noticed(made)
        assert np.abs(resizer(made, (12, 16)) - target / 255).max() <= 2 / 255 + 1e-6
        change = [np.square(own.astype(float) - source).sum() for own in (plain, made, resizer(target, (48, 64)) * 255)]
        assert change[0] < change[1] < 1.02 * change[2]
    assert (blended_scaling(source, target, resizer, noticed=lambda _: 0.0) == plain).all()
    calm = blended_scaling(source, target, resizer, noticed=lambda picture: float((picture != source).mean()))
    assert (calm == plain).all()  # none is as calm as the source, and this is the calmest


def test_a_run_evades_the_detectors_of_scaling_attacks(tmp_path: Path) -> None:
    write_pictures(tmp_path, 3)
    write_net(tmp_path)
    block = {"library": "torch", "methods": ["nearest"], "factor": 3, "detectors": ["down_up_mse"], "evading": True}
    given = content(tmp_path, scaling=block, attacks=["fgsm"], eps=["4/255"])
    given["data"]["size"] = [16, 20]
    found = audit(RunSpec.model_validate(given), tmp_path / "run")
    plain, knowing = found.scaling
    assert [own.threat for own in found.scaling] == ["white-box", "evading down_up_mse"]
    areas = [auc(*own.scores["down_up_mse"]) for own in found.scaling]
    assert areas[0] == 1
    assert areas[1] <= 0.5
    assert (knowing.similarity < plain.similarity).all()
    assert np.abs(knowing.target.intersection - plain.target.intersection).max() <= 2  # it is as well hidden
    assert "evading down\\_up\\_mse" in table(found, "latex", form="scaling_detectors")
    assert table(found, "csv", form="scaling").splitlines()[2].startswith("net,torch,nearest,none,evading down_up_mse,")
    first, later = (scaled(own) for own in (knowing, plain))  # what it costs is told in the change without a guard
    grid = scaling.attacks([first, later, replace(later, guard="median", threat="adaptive")], True)
    assert [row[-1] for row in grid.rows] == [repr(first.change / later.change), "1.0", "1.0"]
    with pytest.raises(ValueError, match="there is nothing to evade"):
        Scaling.model_validate({"evading": True})
