"""ROC curves against scikit-learn, and against the definition, pair by pair."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from segaudit.metrics.roc import auc, curve, tpr_at


def scores(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Negatives and positives of different numbers: all distinct, with many ties, or with infinite ones."""
    rng = np.random.default_rng(seed)
    below, above = rng.normal(0, 1, 83), rng.normal(0.7, 1.3, 131)
    if kind == "ties":
        return below.round(), above.round()
    if kind == "infinite":
        below[3], above[[5, 9]], above[11] = np.inf, np.inf, -np.inf
    return below, above


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["distinct", "ties"])
def test_the_curve_and_its_area_are_those_of_scikit_learn(kind: str, seed: int) -> None:
    below, above = scores(kind, seed)
    truth, values = np.repeat([0, 1], [len(below), len(above)]), np.concatenate([below, above])
    fpr, tpr, thresholds = roc_curve(truth, values, drop_intermediate=False)
    made = curve(below, above)
    np.testing.assert_allclose(made.fpr, fpr, rtol=0, atol=1e-12)
    np.testing.assert_allclose(made.tpr, tpr, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(made.thresholds, thresholds)
    assert auc(below, above) == pytest.approx(roc_auc_score(truth, values), abs=1e-12)


@pytest.mark.parametrize("kind", ["distinct", "ties", "infinite"])
def test_the_area_is_the_share_of_pairs_that_are_ordered_right(kind: str) -> None:
    below, above = scores(kind, 7)
    pairs = [1.0 if b > a else 0.5 if b == a else 0.0 for a in below for b in above]
    assert auc(below, above) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_the_ends_of_the_scale() -> None:
    assert auc([0, 1, 2], [3, 4]) == 1
    assert auc([3, 4], [0, 1, 2]) == 0
    assert auc([1, 5, 5, 9], [9, 5, 1, 5]) == 0.5
    assert auc([2] * 3, [2] * 8) == 0.5


@pytest.mark.parametrize("kind", ["distinct", "ties", "infinite"])
@pytest.mark.parametrize("fpr", [0.0, 0.001, 0.01, 0.1, 0.5, 1.0])
def test_the_hits_at_few_false_alarms_are_the_most_of_any_threshold(kind: str, fpr: float) -> None:
    below, above = scores(kind, 3)
    best = 0.0
    for threshold in [*below, *above]:
        if (below >= threshold).mean() <= fpr:
            best = max(best, (above >= threshold).mean())
    assert tpr_at(below, above, fpr) == pytest.approx(best, abs=1e-12)


def test_a_false_alarm_rate_is_met_exactly_where_it_can_be() -> None:
    below, above = np.arange(1000.0), np.array([989.5, 990.5, 998.5, 999.5])
    assert tpr_at(below, above, 0.01) == 1  # ten of a thousand are above 989.5
    assert tpr_at(below, above, 0.0099) == 0.75
    assert tpr_at(below, above, 0.001) == 0.5
    assert tpr_at(below, above, 0) == 0.25
    assert tpr_at(below[-50:], above, 0.01) == 0.25  # of fifty not one may be wrong


@pytest.mark.parametrize(
    ("below", "above", "said"), [([], [1], "0 negatives and 1 positives"), ([1], [], "both"), ([0, np.nan], [1], "nan")]
)
def test_what_has_no_curve_is_said(below: list[float], above: list[float], said: str) -> None:
    for ask in (curve, auc, lambda a, b: tpr_at(a, b, 0.01)):
        with pytest.raises(ValueError, match=said):
            ask(below, above)
