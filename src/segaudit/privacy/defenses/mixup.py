"""Mix-up: the victim never sees an image by itself."""

from __future__ import annotations

from segaudit.privacy.defenses import _check as check
from segaudit.privacy.experiment import Trainer
from segaudit.training.mixup import mixup as recipe
from segaudit.types import Segmenter, UserError


def mixup(trainer: Trainer, *, cut: bool = False, alpha: float = 2.0) -> Segmenter:
    """Trained on mixtures of two images and of their losses; with `cut` on two parts side by side.

    cut, alpha: as recipe `mixup` has them. Raises UserError for batches of one image.
    Source: Zhang et al. 2018 (mix-up); Yun et al. 2019 (cut-mix), number 4 of the seven.
    """
    if trainer.schedule.batch < 2:
        raise UserError("defense mixup: a batch of one image has no other to mix it with; give `training` a batch of 2")
    own = {"cut": cut, "alpha": alpha, **check.loss_of(trainer)}
    return trainer.fit(trainer.members, recipe="mixup", args=own)


mixup.check = recipe.check  # type: ignore[attr-defined]  # of what a spec says, before anything is trained
