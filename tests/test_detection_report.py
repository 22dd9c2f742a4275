"""What a run's table and page say of detectors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from audit_kit import audit
from detect_kit import watched, watching
from report_kit import Reader, cell, run, scored
from segaudit.report import detection
from segaudit.report.page import page
from segaudit.report.tables import table
from segaudit.types import EVADING, UserError

pytestmark = pytest.mark.usefixtures("one_thread")


def test_table_and_page_show_what_is_worth_what(tmp_path: Path) -> None:
    found = audit(watching(tmp_path), tmp_path / "run")
    lines = table(found, "csv", form="detection").splitlines()
    assert lines[0] == "model,detector,threat,attack,norm,eps,images,mIoU,AUC,TPR at 5 %"
    assert len(lines) == 1 + 2 * (4 + 2)
    assert "| evading(steps=8) squeezing " in table(found, form="detection")
    made = Reader(page(found))
    assert "Detection" in made.text
    assert "does not know of the detector (AUC " in " ".join(made.text.split())
    assert "); 0.0 % of those of the attack that does, at a mIoU of " in " ".join(made.text.split())
    assert sum(tag == "polyline" for tag, _ in made.tags) == 4


def test_areas_and_hits_by_hand() -> None:
    clean = [float(i) for i in range(40)]
    scores = {
        ("none", "none", 0): clean,
        ("white-box", "pgd", 8): [37.5, 38.5, 100.0, -1.0],
        (EVADING, "evading squeezing", 8): [0.5, 1.5],
    }
    found = run([(cell(), scored(0.6))], detection=watched(scores))
    blind, knowing = detection.noticed(found)
    assert blind.auc == pytest.approx((38 + 39 + 40 + 0) / 160)
    assert blind.tpr == 0.75  # two of 40 clean images are false positives: the threshold is just below 37.5
    assert knowing.auc == pytest.approx((1 + 2) / 80)
    assert knowing.tpr == 0
    (told,) = detection.lines([blind, knowing])
    assert told == (
        "net, squeezing, Linf 8/255: at 5 % false positives 75.0 % are found of the images of pgd, which leaves a mIoU "
        "of 30.0 and does not know of the detector (AUC 0.73); 0.0 % of those of the attack that does, at a mIoU of "
        "30.0 (AUC 0.04)."
    )
    (figure,) = detection.figures([blind, knowing])
    assert [line["dash"] for line in figure["lines"]] == ["", "5 4"]
    rows = table(found, "csv", form="detection").splitlines()
    assert rows[1] == f"net,squeezing,white-box,pgd,linf,{8 / 255!r},4,{blind.miou!r},{blind.auc!r},0.75"


def test_images_that_come_back_as_they_were_are_told() -> None:
    """An attack that lost its way would look like a detector that holds."""
    clean = {("none", "none", 0): [0.1, 0.2], ("white-box", "pgd", 8): [0.3, 0.4]}
    evaded: dict[tuple[str, str, float], list[float]] = {(EVADING, "evading squeezing", 8): [0.1, 0.2, 0.15]}
    (own,) = watched(evaded)
    norms = replace(own.records.norms, linf=np.array([0.0, 8 / 255, 0.0]))
    still = replace(own, records=replace(own.records, norms=norms))
    found = run([(cell(), scored(0.6))], detection=[*watched(clean), still])
    (told,) = detection.lines(detection.noticed(found))
    assert told.endswith("(AUC 0.50), which left 2 of 3 images as they were.")


def test_a_run_without_detectors_says_how_to_ask_for_them() -> None:
    with pytest.raises(UserError, match=r"holds no scores of detectors; ask for them in its spec with `detection: \{"):
        table(run([(cell(), scored(0.6))]), form="detection")
