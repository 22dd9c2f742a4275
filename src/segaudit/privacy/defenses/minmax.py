"""The min-max game: the victim learns to leave an attacker of its own nothing to tell."""

from __future__ import annotations

from segaudit.privacy.defenses import _check as check
from segaudit.privacy.experiment import Trainer
from segaudit.training.minmax import minmax as recipe
from segaudit.types import Segmenter


def minmax(trainer: Trainer, *, weight: float = 0.4, adversary_steps: int = 1, adversary_lr: float = 1e-3) -> Segmenter:
    """Trained against an adversary that tells outputs on members from those on the reference set.

    weight, adversary_steps, adversary_lr: as recipe `minmax` has them. Raises UserError without a reference set.
    Source: Nasr et al. 2018 (membership privacy), number 5 of the seven.
    """
    own = {"weight": weight, "adversary_steps": adversary_steps, "adversary_lr": adversary_lr}
    others = check.reference("minmax", trainer)
    return trainer.fit(
        trainer.members, recipe="minmax", args={**own, **check.loss_of(trainer)}, given={"reference": others}
    )


minmax.check = recipe.check  # type: ignore[attr-defined]  # of what a spec says, before anything is trained
