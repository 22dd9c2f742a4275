"""Many numbers an image, and a small learner that weighs them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Generator

from segaudit.privacy.attacks import _check as check
from segaudit.privacy.attacks._evidence import scikit_learn, seed_of, settled, shadows_of, told
from segaudit.privacy.experiment import Experiment, Scored
from segaudit.privacy.signals import NAMES
from segaudit.types import Floats

NAME = "statistics"
LEARNERS = ("logistic", "boosting")
OWN = tuple(name for name in NAMES if name not in ("log_p", "class_phi"))  # log_p is the loss again


def statistics(experiment: Experiment, *, rng: Generator, learner: str = "logistic") -> Scored:
    """Statistics: loss, Dice, log-odds and entropy, also near boundaries and by class, weighed by a small learner.

    It learns from all shadows at once and is tried on the victim. learner: `logistic` regression on standardised
    signals, or `boosting`, small trees. The log-odds of a class that is not in the mask are the image's own. The score
    is the learner's log-odds of a member, the threshold 0, which an image without a valid pixel scores.
    Raises UserError without shadows, for another learner, and without scikit-learn.
    Source: Shokri et al. 2017 (shadows); Carlini et al. 2022 (log-odds); the signals of maps are ours.
    """
    _checked(learner=learner)
    shadows = shadows_of(experiment, NAME)
    model = _model(learner, seed_of(rng))
    model.fit(*told(shadows, NAME, _features))
    found = _features(experiment.victim.signals(experiment.candidates))
    seen = ~np.isnan(found).any(1)
    scores = np.full(len(found), np.nan)
    if seen.any():
        scores[seen] = model.decision_function(found[seen])
    return Scored(settled(scores, 0.0), 0.0)


def _checked(*, learner: Any = "logistic", **_: Any) -> None:
    check.choice(NAME, "learner", learner, LEARNERS)


statistics.check = _checked  # type: ignore[attr-defined]  # of what a spec says, before anything is trained


def _features(signals: Mapping[str, Floats]) -> Floats:
    """N x F; nan only where an image has no valid pixel."""
    by_class = np.where(np.isnan(signals["class_phi"]), signals["phi"][:, None], signals["class_phi"])
    return np.column_stack([*(signals[name] for name in OWN), by_class])


def _model(learner: str, seed: int) -> Any:
    scikit_learn(NAME)
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if learner == "boosting":
        return HistGradientBoostingClassifier(learning_rate=0.05, max_depth=3, early_stopping=False, random_state=seed)
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
