"""Adversarial training: no defense of privacy, but of the predictions, whose price in privacy is to be seen."""

from __future__ import annotations

from typing import Any

from segaudit.privacy.defenses import _check as check
from segaudit.privacy.experiment import Trainer
from segaudit.training.adversarial import adversarial as recipe
from segaudit.types import Segmenter


def adversarial(
    trainer: Trainer, *, attack: str = "pgd", eps: float = 4 / 255, steps: int | None = 3, share: float = 1.0
) -> Segmenter:
    """Trained on attacked images: robust, and often more telling of its members; for the two to be seen side by side.

    attack, eps, steps: of the attack; without steps where it has none (fgsm). share: of each batch.
    Source: Madry et al. 2018; Song et al. 2019 (what it gives away).
    """
    _checked(eps=eps, steps=steps, share=share)
    made = {"name": attack, "eps": eps} | ({} if steps is None else {"steps": steps})
    own = {"attack": made, "share": share, **check.loss_of(trainer)}
    return trainer.fit(trainer.members, recipe="adversarial", args=own)


def _checked(*, eps: Any = 4 / 255, steps: Any = 3, share: Any = 1.0, **_: Any) -> None:
    """Refuse what cannot be. Raises UserError."""
    check.above("adversarial", "eps", eps)
    if steps is not None:
        check.whole("adversarial", "steps", steps, 1)
    recipe.check(share=share)  # type: ignore[attr-defined]


adversarial.check = _checked  # type: ignore[attr-defined]  # of what a spec says, before anything is trained
