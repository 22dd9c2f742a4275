"""For who sees the predicted classes alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Generator

from segaudit.privacy.attacks import _check as check
from segaudit.privacy.attacks._evidence import best_cut, own_shadows, settled, told
from segaudit.privacy.experiment import Experiment, Scored
from segaudit.types import Floats

NAME = "label_only"
SIGNALS = ("both", "dice", "boundary")


def label_only(experiment: Experiment, *, rng: Generator, signal: str = "both") -> Scored:
    """Label only: how well the predicted classes fit the mask, on the whole and near its boundaries.

    signal: `dice`, the image's Dice; `boundary`, the share of right pixels near a boundary of the mask; `both`, the
    mean of the two; each in [0, 1]. The threshold is where it parts the shadows' images best; without shadows the
    attack only ranks. An image without a valid pixel scores the threshold, or the median of the others.
    Raises UserError for another signal.
    Source: Choquette-Choo et al. 2021 (label-only, the gap in accuracy); Dice and boundary error in its place are ours.
    """
    _checked(signal=signal)
    threshold = None
    if shadows := own_shadows(experiment):
        threshold = best_cut(*told(shadows, NAME, lambda signals: _fit(signals, signal)))
    return Scored(settled(_fit(experiment.victim.signals(experiment.candidates), signal), threshold), threshold)


def _checked(*, signal: Any = "both", **_: Any) -> None:
    check.choice(NAME, "signal", signal, SIGNALS)


label_only.check = _checked  # type: ignore[attr-defined]  # of what a spec says, before anything is trained


def _fit(signals: Mapping[str, Floats], signal: str) -> Floats:
    dice, near = signals["dice"], 1 - signals["boundary_error"]
    return {"both": (dice + near) / 2, "dice": dice, "boundary": near}[signal]
