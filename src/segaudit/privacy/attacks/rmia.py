"""The relative attack: an image against images that nobody was trained on, each against what references say of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Generator

from segaudit.privacy.attacks import _check as check
from segaudit.privacy.attacks._evidence import Bools, compared, settled
from segaudit.privacy.experiment import Experiment, Scored
from segaudit.types import Floats, UserError

NAME = "rmia"
FINE = 1e-9
"""How much of a score tells apart images that beat as many of the population."""


def rmia(
    experiment: Experiment, *, rng: Generator, offline: bool = False, a: float = 0.3, gamma: float = 1.0
) -> Scored:
    """RMIA: against how many images of the population does the network know this one better than expected.

    The share of the population's z with (Pr(x | victim) / Pr(x)) / (Pr(z | victim) / Pr(z)) > gamma, in [0, 1]; it only
    ranks. It rises with x's own ratio, so of images with equal shares that with the larger ratio scores higher by up to
    `FINE`: by a small population alone many would tie at 1, others than members too. Pr(x | net) is exp of the mean
    log p of the pixels' classes, never their product. Pr(x) is the mean of the mean of networks that had x and that of
    networks that had not; Pr(z) the mean of all, as none had it. offline: of networks without x or z alone,
    Pr = ((1 + a) mean + 1 - a) / 2, for both. a: from 0 to 1. gamma: above 0.
    An image without a valid pixel, or with fewer than two networks on a side, scores the median of the others.
    Raises UserError for other numbers, and without a population or enough references.
    Source: Zarifzadeh et al. 2024; the mean over the pixels is ours.
    """
    _checked(offline=offline, a=a, gamma=gamma)
    if not experiment.population:
        raise UserError(
            f"membership attack {NAME!r} needs images that no network was trained on, and the pool has none left: "
            "lower `train_size` of the membership block"
        )
    asked, inside, outside, enough = compared(experiment, NAME, offline=offline)
    ids = (*experiment.candidates, *experiment.population)
    cut = len(experiment.candidates)
    own, *others = (np.exp(net.signals(ids)["log_p"]) for net in (experiment.victim, *asked))
    others_x, others_z = np.stack(others)[:, :cut], np.stack(others)[:, cut:]
    expected_x = _mean(others_x, outside)
    expected_z = others_z.mean(0)
    if offline:
        expected_x, expected_z = (((1 + a) * own + 1 - a) / 2 for own in (expected_x, expected_z))
    else:
        expected_x = (expected_x + _mean(others_x, inside)) / 2
    ratio_x, ratio_z = own[:cut] / expected_x, own[cut:] / expected_z
    ratio_z = ratio_z[~np.isnan(ratio_z)]
    if not len(ratio_z):
        raise UserError(f"membership attack {NAME!r}: no image of the population has a valid pixel")
    scores = (ratio_x[:, None] / ratio_z > gamma).mean(1) * (1 - FINE) + FINE * ratio_x / (1 + ratio_x)
    return Scored(settled(np.where(enough & ~np.isnan(ratio_x), scores, np.nan)), None)


def _checked(*, offline: Any = False, a: Any = 0.3, gamma: Any = 1.0, **_: Any) -> None:
    check.flag(NAME, "offline", offline)
    check.real(NAME, "a", a, 0, 1)
    check.real(NAME, "gamma", gamma, 0, above=True)


rmia.check = _checked  # type: ignore[attr-defined]  # of what a spec says, before anything is trained


def _mean(values: Floats, chosen: Bools) -> Floats:
    """The mean over the chosen of R references, R x N, of each image; nan without one."""
    with np.errstate(invalid="ignore"):
        made: Floats = np.where(chosen, values, 0.0).sum(0) / chosen.sum(0)
    return made
