"""No defense: the victim as it is trained."""

from __future__ import annotations

from segaudit.privacy.experiment import Trainer
from segaudit.types import Segmenter


def none(trainer: Trainer) -> Segmenter:
    """The network as the experiment trains it, logits and all: no defense.

    Source: the usual victim, number 1 of the seven.
    """
    return trainer.fit(trainer.members)
