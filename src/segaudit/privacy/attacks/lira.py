"""The likelihood-ratio attack: networks with and without an image say what its log-odds are to be expected to be."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import log_ndtr  # type: ignore[import-untyped]
from torch import Generator

from segaudit.privacy.attacks import _check as check
from segaudit.privacy.attacks._evidence import Bools, compared, settled
from segaudit.privacy.experiment import Experiment, Scored
from segaudit.types import Floats

NAME = "lira"
SIGNALS = {"phi": "phi", "dice": "dice_logit", "band": "band_phi", "class": "class_phi"}
CENTERS = ("median", "mean")
VARIANCES = ("auto", "own", "fixed")
MANY = 32
"""Networks on a side from which `auto` gives each image a variance of its own."""
SMALLEST = 1e-3
"""The least standard deviation, in nats: a signal that never differs is no certainty."""


def lira(
    experiment: Experiment,
    *,
    rng: Generator,
    signal: str = "phi",
    offline: bool = False,
    center: str = "median",
    variance: str = "auto",
) -> Scored:
    """LiRA: the likelihood of an image's log-odds under networks that had it against those that had not.

    log N(phi; mu_in, s_in) - log N(phi; mu_out, s_out), with the threshold 0. offline: without networks that had it,
    log Phi((phi - mu_out) / s_out), which only ranks. signal: `phi`, the mean over the pixels; `dice`, the log-odds of
    the soft Dice; `band`, phi near the mask's boundaries; `class`, the mean over the classes in the mask of each one's
    evidence. center: mu is the `median` or the `mean` of the references. variance: each image's `own` (of the two sides
    apart), or `fixed`, one a side and class for all images, of what references differ from the image's mean;
    `auto`: fixed below 32 networks a side. An image without a valid pixel, or with fewer than two networks on a side,
    scores the threshold (offline: the median of the others).
    Raises UserError for other words, and without enough references.
    Source: Carlini et al. 2022 (algorithm 1, eq. 4); for maps, the signals are ours.
    """
    _checked(signal=signal, offline=offline, center=center, variance=variance)
    asked, inside, outside, enough = compared(experiment, NAME, offline=offline)
    own, *others = (
        _columns(net.signals(experiment.candidates)[SIGNALS[signal]]) for net in (experiment.victim, *asked)
    )
    few = min(np.median(side.sum(0)) for side in ((outside,) if offline else (inside, outside))) < MANY
    fixed = variance == "fixed" or (variance == "auto" and bool(few))
    found = evidence(own, np.stack(others), None if offline else inside, outside, center=center, fixed=fixed)
    threshold = None if offline else 0.0
    known = ~np.isnan(found)
    with np.errstate(invalid="ignore"):
        mean = np.where(known, found, 0.0).sum(1) / known.sum(1)
    return Scored(settled(np.where(enough, mean, np.nan), threshold), threshold)


def _checked(
    *, signal: Any = "phi", offline: Any = False, center: Any = "median", variance: Any = "auto", **_: Any
) -> None:
    check.choice(NAME, "signal", signal, list(SIGNALS))
    check.flag(NAME, "offline", offline)
    check.choice(NAME, "center", center, CENTERS)
    check.choice(NAME, "variance", variance, VARIANCES)


lira.check = _checked  # type: ignore[attr-defined]  # of what a spec says, before anything is trained


def evidence(own: Floats, others: Floats, inside: Bools | None, outside: Bools, *, center: str, fixed: bool) -> Floats:
    """The log likelihood ratio of the victim's signals N x D, from those of R references R x N x D; nan where unknown.

    inside, outside: R x N, which reference was trained on which image, and which was not; inside None: offline.
    """
    middle, spread = _normal(others, outside, center, fixed)
    score = (own - middle) / spread
    if inside is None:
        return np.asarray(log_ndtr(score), np.float64)
    above, apart = _normal(others, inside, center, fixed)
    density_in = -0.5 * ((own - above) / apart) ** 2 - np.log(apart)  # without log sqrt(2 pi), which both have
    density_out = -0.5 * score**2 - np.log(spread)
    return np.asarray(density_in - density_out, np.float64)


def _normal(values: Floats, chosen: Bools, center: str, fixed: bool) -> tuple[Floats, Floats]:
    """Middle and standard deviation, N x D, over the chosen of R references, R x N x D; nan where none is."""
    kept = np.ma.masked_array(values, ~chosen[:, :, None] | np.isnan(values))
    mean = kept.mean(0)
    middle = np.ma.median(kept, 0) if center == "median" else mean  # type: ignore[no-untyped-call]
    if fixed:  # pooled over the images, each of which has spent one freedom on its mean
        free = np.maximum(kept.count(0) - 1, 0).sum(0)
        spread = np.ma.sqrt(((kept - mean) ** 2).sum(0).sum(0) / np.maximum(free, 1))
        spread = np.broadcast_to(np.ma.filled(spread, 0.0), middle.shape)
    else:
        spread = np.ma.filled(kept.std(0), 0.0)
    return np.ma.filled(middle, np.nan), np.maximum(spread, SMALLEST)


def _columns(values: Floats) -> Floats:
    return values.reshape(len(values), -1)
