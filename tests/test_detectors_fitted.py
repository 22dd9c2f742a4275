"""What detectors learn of clean images: the distance from them, and the score that is not noticed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import ledoit_wolf
from torch import Tensor

from detect_kit import noise
from segaudit.defenses.detectors import reference
from segaudit.metrics.roc import auc, tpr_at
from segaudit.types import UserError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("count", "size"), [(40, 5), (6, 7), (12, 1)])
def test_the_distance_is_mahalanobis_with_the_shrinkage_of_scikit_learn(count: int, size: int) -> None:
    rng = np.random.default_rng(count)
    features = rng.normal(2, 1, (count, size)) @ rng.normal(0, 1, (size, size)) * 0.01
    known = reference.learnt(torch.from_numpy(features))
    mean, scale = features.mean(0), features.std(0)
    covariance, _ = ledoit_wolf((features - mean) / scale, assume_centered=True)
    inverse = np.linalg.inv(covariance + 1e-6 * np.eye(size))
    others = rng.normal(0, 0.02, (5, size))
    wanted = [mahalanobis(own / scale, mean / scale, inverse) for own in others]
    np.testing.assert_allclose(reference.distance(torch.from_numpy(others), known).numpy(), wanted, rtol=1e-6)


def test_features_that_never_vary_do_not_break_the_distance() -> None:
    features = torch.cat([noise(9, 2), torch.zeros(9, 1)], 1)
    known = reference.learnt(features)
    near, far = reference.distance(torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.1]]), known)
    assert known.isfinite().all()
    assert near < 3 < 1000 < far


def test_what_cannot_be_fitted_is_said() -> None:
    with pytest.raises(UserError, match="two clean images or more, not on 1"):
        reference.learnt(noise(1, 3))
    with pytest.raises(UserError, match="are NaN"):
        reference.learnt(noise(4, 3) * math.nan)
    with pytest.raises(UserError, match="gives 2 features, and was fitted on 3"):
        reference.distance(noise(4, 2), reference.learnt(noise(4, 3)))


def test_a_shifted_distribution_is_seen_and_its_own_is_not() -> None:
    rng = torch.Generator().manual_seed(0)

    def features(count: int, shift: float) -> Tensor:
        return torch.randn(count, 4, generator=rng) + shift

    known = reference.learnt(features(200, 0))
    clean, same, other = (reference.distance(features(200, shift), known).numpy() for shift in (0, 0, 2))
    assert auc(clean, other) > 0.94
    assert abs(auc(clean, same) - 0.5) < 0.08


@pytest.mark.parametrize("count", [1, 4, 19, 20, 21, 40, 100])
def test_no_threshold_at_few_false_positives_notices_what_is_allowed(count: int) -> None:
    scores = noise(count, seed=count)
    allowed = float(reference.allowed(scores))
    clean = scores.numpy()
    assert tpr_at(clean, [allowed], reference.FPR) == 0
    assert tpr_at(clean, [np.nextafter(allowed, 2)], reference.FPR) == 1
