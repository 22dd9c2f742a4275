"""What noise buys: epsilon and delta of a private training, as Opacus' accountants count them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from segaudit.training.course import steps
from segaudit.training.schedule import Schedule
from segaudit.types import UserError

ACCOUNTANTS = ("rdp", "prv")
NEEDED = "private training needs opacus: pip install 'segaudit[privacy]'"


@dataclass(frozen=True)
class Budget:
    """What a private training may give away of one unit.

    epsilon: what `sigma` comes to, at most what was asked for; inf without noise. delta: the chance that it does not
    hold. sigma: the noise's standard deviation over the clipping norm. rate: the chance of each unit to be drawn in a
    step. units: how many a step draws on average, which a sum of clipped gradients is divided by. steps: in all.
    """

    epsilon: float
    delta: float
    sigma: float
    rate: float
    units: float
    steps: int


def budget(
    images: int,
    units: int,
    schedule: Schedule,
    *,
    epsilon: float,
    delta: float | None = None,
    noise: bool = True,
    accountant: str = "rdp",
) -> Budget:
    """The least noise that keeps a training on so many images, of so many units, within epsilon.

    A unit is drawn in a step with probability batch / images, apart from all others. delta: 1 / units by default.
    accountant: `rdp` or `prv`. Raises UserError for an epsilon that no noise reaches, and for a single unit.
    Source: Abadi et al. 2016; Mironov et al. 2019 (rdp); Gopi et al. 2021 (prv).
    """
    rate, every = min(1.0, schedule.batch / images), schedule.epochs * steps(images, schedule)
    if units < 2:
        raise UserError("recipe private: all images are one unit, which no noise hides; give it other units, or more")
    delta = 1 / units if delta is None else delta
    sigma, reached = 0.0, float("inf")
    if noise:
        sigma = _least(epsilon, delta, rate, every, accountant)
        reached = spent(sigma, delta, rate, every, accountant)
    return Budget(reached, delta, sigma, rate, rate * units, every)


@lru_cache
def _least(epsilon: float, delta: float, rate: float, steps: int, accountant: str) -> float:
    try:
        from opacus.accountants.utils import get_noise_multiplier
    except ImportError as error:
        raise UserError(NEEDED) from error
    own = {"target_epsilon": epsilon, "target_delta": delta, "sample_rate": rate, "steps": steps}
    try:
        return _quietly(get_noise_multiplier, **own, accountant=accountant)
    except ValueError as error:
        reason = f"epsilon {epsilon} is out of reach ({error}); give it a larger one"
        raise UserError(f"recipe private: {reason}") from error


def spent(sigma: float, delta: float, rate: float, steps: int, accountant: str = "rdp") -> float:
    """The epsilon of so many steps with noise of sigma."""
    from opacus.accountants import create_accountant

    made = create_accountant(mechanism=accountant)
    made.history = [(sigma, rate, steps)]
    return _quietly(made.get_epsilon, delta=delta)


def _quietly(function: Callable[..., Any], **own: Any) -> float:
    """Without what an accountant says of the orders that it tries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(function(**own))
