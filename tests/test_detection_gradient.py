"""Detectors without a gradient: nothing that knows of them is tried, which is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from audit_kit import audit
from detect_kit import watching
from report_kit import Reader
from segaudit.audit import build
from segaudit.report import detection
from segaudit.report.page import page
from segaudit.types import EVADING

pytestmark = pytest.mark.usefixtures("one_thread")
NO_SLOPE = [
    "images.detach().mean((1, 2, 3))",
    "torch.tensor(images.numpy().mean((1, 2, 3)))",
    "images.mul(255).round().mean((1, 2, 3))",
]


@pytest.mark.parametrize("how", NO_SLOPE)
def test_a_detector_without_a_gradient_is_met_by_the_oblivious_attacks_alone(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(f"import torch\n\n\ndef dull(model, images):\n    return {how}\n")
    block = {"detectors": [f"{mine}:dull", "squeezing"], "fit": None, "evading": {"steps": 2}}
    found = audit(watching(tmp_path, block=block, eps=["16/255"], attacks=["fgsm"]), tmp_path / "run")
    zeros = (
        f"segaudit: detector '{mine}:dull' on model 'net': its gradient is zero on the first 4 images, clean and "
        "attacked, which tells an attack nothing of it: none that evades it is made"
    )
    assert caplog.messages == ([zeros] if "round" in how else [])
    assert not found.lacking
    threats = [(own.detector.rpartition(":")[2], own.cell.threat) for own in found.detection]
    kinds = [("dull", "none"), ("dull", "white-box"), *(("squeezing", own) for own in ("none", "white-box", EVADING))]
    assert threats == kinds
    rows = detection.noticed(found)
    told = sorted(detection.lines(rows), key=lambda line: "squeezing" in line)
    assert told[0].endswith("no attack that does was made, as it or the model has no gradient, or one of zeros.")
    assert "no gradient" not in told[1]
    assert sum(tag == "polyline" for tag, _ in Reader(page(found)).tags) == 3


def test_a_gradient_that_is_zero_on_one_image_alone_is_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = build.dataset(watching(tmp_path).data)
    means = data.batch(data.ids).images.mean((2, 3))
    channel = int((means.amax(0) - means[0]).argmax())
    first = float(means[0, channel]) + 0.005
    assert first < means[:, channel].max() - 0.005
    mine = tmp_path / "mine.py"
    mine.write_text(f"def one(model, images):\n    return (images[:, {channel}].mean((1, 2)) - {first}).clamp_min(0)\n")
    block = {"detectors": [f"{mine}:one"], "fit": None, "evading": {"steps": 1}}
    spec = watching(tmp_path, block=block, attacks=["fgsm"], eps=["16/255"])
    found = audit(spec, tmp_path / "run")
    assert EVADING in {own.cell.threat for own in found.detection}
    assert caplog.messages == []


def test_a_score_that_is_flat_on_clean_images_and_rises_on_attacked_ones_is_evaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = build.dataset(watching(tmp_path).data)
    images = data.batch(data.ids).images
    most = float((images[..., 1:] - images[..., :-1]).abs().mean((1, 2, 3)).max()) + 1e-4
    mine = tmp_path / "mine.py"
    mine.write_text(
        "def rough(model, images):\n    steps = (images[..., 1:] - images[..., :-1]).abs()\n"
        f"    return (steps.mean((1, 2, 3)) - {most}).clamp_min(0)\n"
    )
    block = {"detectors": [f"{mine}:rough"], "fit": None, "evading": {"steps": 4}}
    found = audit(watching(tmp_path, block=block, attacks=["fgsm"], eps=["16/255"]), tmp_path / "run")
    clean, blind, knowing = found.detection
    assert knowing.cell.threat == EVADING
    assert (clean.scores == 0).all()
    assert (blind.scores > 0).all()
    assert (knowing.scores == 0).all()
    assert (knowing.records.norms.linf > 0).all()
    assert caplog.messages == []


def test_features_whose_sum_never_changes_have_a_gradient(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "import torch\n\n\ndef halves(model, images):\n"
        "    own = images.mean((1, 2, 3))\n    return torch.stack([own, -own], 1)\n\n\nhalves.fitted = True\n"
    )
    block = {"detectors": [f"{mine}:halves"], "evading": {"steps": 1}}
    found = audit(watching(tmp_path, block=block, attacks=["fgsm"], eps=["16/255"]), tmp_path / "run")
    assert [own.cell.threat for own in found.detection] == ["none", "white-box", EVADING]
