"""Knowledge distillation: what is asked has not seen a member, only what a teacher says of other images."""

from __future__ import annotations

from typing import Any

from segaudit.privacy.defenses import _check as check
from segaudit.privacy.defenses._taught import Taught, answers, best
from segaudit.privacy.experiment import Trainer
from segaudit.types import Segmenter


def distillation(trainer: Trainer, *, keep: float = 0.5, soft: bool = False, temperature: float = 1.0) -> Segmenter:
    """A student of a teacher that was trained on the members, on images of the reference set alone.

    keep: the share of the reference that the student sees, those that the teacher predicts best. It learns the
    teacher's masks; with `soft` the teacher's softmax at a temperature (1: as it is). Raises UserError without a
    reference set, and for other numbers.
    Source: Shejwalkar & Houmansadr 2021 (DMP, the soft one); Hinton et al. 2015, number 7 of the seven.
    """
    _checked(keep=keep, soft=soft, temperature=temperature)
    ids = check.reference("distillation", trainer)
    teacher = trainer.fit(trainer.members)
    masks, scores = answers(teacher, trainer.samples, ids, trainer.schedule.batch)
    kept = best(ids, scores, keep)
    if soft:
        own = {"temperature": temperature}
        return trainer.fit(kept, recipe="distillation", args=own, given={"teacher": teacher})
    return trainer.fit(kept, samples=Taught(trainer.samples, {name: masks[name] for name in kept}))


def _checked(*, keep: Any = 0.5, soft: Any = False, temperature: Any = 1.0, **_: Any) -> None:
    """Refuse what cannot be. Raises UserError."""
    check.share("distillation", "keep", keep)
    check.flag("distillation", "soft", soft)
    check.above("distillation", "temperature", temperature)


distillation.check = _checked  # type: ignore[attr-defined]  # of what a spec says, before anything is trained
