"""Differential privacy: what any one image, or any one patient, changes in the victim is bounded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from segaudit.privacy.defenses import _check as check
from segaudit.privacy.experiment import Trainer
from segaudit.training.budget import budget
from segaudit.training.private import private as recipe
from segaudit.types import Segmenter, UserError

NORMS = "segaudit.nn.norms:group_norms"
UNITS = ("image", "group")


def dp(
    trainer: Trainer,
    *,
    epsilon: float = 8.5,
    delta: float | None = None,
    norm: float = 2.0,
    lr: float | None = 4e-4,
    unit: str = "image",
    noise: bool = True,
    accountant: str = "rdp",
) -> Segmenter:
    """Trained by DP-SGD within epsilon and delta, with group norms in place of batch norms.

    epsilon, delta, norm, noise, accountant: as recipe `private` has them; delta is 1 / units by default. unit: `image`,
    or `group`: what the experiment has in or out together, such as a patient. lr: of the schedule; None: the
    experiment's own. A Dice loss of the experiment's is that of each image here. Notes epsilon, delta and sigma, and
    how many images or groups it promises this to (`private_images`, `private_groups`); where `noise` is false, which
    clips alone and promises nothing, only a sigma of 0. Raises UserError for other arguments.
    Source: Abadi et al. 2016 (DP-SGD), number 6 of the seven.
    """
    _checked(epsilon=epsilon, delta=delta, norm=norm, lr=lr, unit=unit, noise=noise, accountant=accountant)
    members, own = trainer.members, _loss(trainer.args)
    _checked_recipe(**trainer.args)
    rate: dict[str, Any] = {} if lr is None else {"lr": lr}
    asked: dict[str, Any] = {"epsilon": epsilon, "delta": delta, "noise": noise, "accountant": accountant}
    units = tuple((name, trainer.units[name]) for name in members) if unit == "group" else ()
    count = len({unit for _, unit in units}) or len(members)
    spent = budget(len(members), count, trainer.schedule, **asked)
    model = trainer.fit(
        members,
        recipe="private",
        args=asked | own | {"norm": norm},
        given={"units": units} if units else None,
        adapt=NORMS,
        **rate,
    )
    promised = {"epsilon": spent.epsilon, "delta": spent.delta, f"private_{unit}s": float(count)}
    trainer.note(**(promised if noise else {}), sigma=spent.sigma)
    return model


def _checked(*, lr: Any = 4e-4, unit: Any = "image", **others: Any) -> None:
    """Refuse what cannot be. Raises UserError."""
    if lr is not None:
        check.above("dp", "lr", lr)
    if unit not in UNITS:
        raise UserError(f"defense dp: unit must be {' or '.join(UNITS)}, not {unit!r}")
    recipe.check(**others)  # type: ignore[attr-defined]


def _loss(args: Mapping[str, Any]) -> dict[str, Any]:
    """The loss of the experiment's recipe, of each image by itself."""
    own = {key: value for key, value in args.items() if key in check.LOSS}
    return own | {"image_dice": own.pop("dice", 0.0)}


def _checked_recipe(**args: Any) -> None:
    """Refuse a loss that tells of the members: epsilon knows of no weights counted on them. Raises UserError."""
    recipe.check(**_loss(args))  # type: ignore[attr-defined]


dp.check = _checked  # type: ignore[attr-defined]  # of what a spec says, before anything is trained
dp.check_recipe = _checked_recipe  # type: ignore[attr-defined]  # of the experiment's recipe in it
