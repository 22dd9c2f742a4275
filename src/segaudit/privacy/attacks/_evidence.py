"""What membership attacks share: the networks that they need, their signals, and the score that says nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator

from segaudit.privacy.experiment import Asked, Experiment, Shadow
from segaudit.types import Floats, UserError

LEAST = 2
"""How many networks on a side an image needs: of one alone nobody knows how far such networks differ."""
LACKING = 0.1
"""The share of the candidates that may have fewer; they get the score that says nothing."""

Bools = NDArray[np.bool_]


def seed_of(rng: Generator) -> int:
    """A seed for what takes whole numbers (scikit-learn: below 2 ** 32), drawn from a stream."""
    return int(torch.randint(2**31, (), generator=rng))


def own_shadows(experiment: Experiment) -> tuple[Shadow, ...]:
    """The attacker's own networks that have images on both sides."""
    return tuple(shadow for shadow in experiment.shadows if shadow.inside and shadow.outside)


def shadows_of(experiment: Experiment, attack: str) -> tuple[Shadow, ...]:
    """The attacker's own networks. Raises UserError where there is none to learn from."""
    found = own_shadows(experiment)
    if not found:
        raise UserError(
            f"membership attack {attack!r} learns from networks of the attacker's own, and there is none: set "
            "`shadows` of the membership block to 1 or more"
        )
    return found


def told(shadows: Sequence[Shadow], attack: str, of: Callable[[Mapping[str, Floats]], Floats]) -> tuple[Floats, Bools]:
    """What `of` makes of the signals of all images of some shadows, M or M x F, and who of them is inside, M.

    Images for which it is nan, those without a valid pixel, are left out. Raises UserError where a side has no other.
    """
    sides = [(shadow.asked, ids, own) for shadow in shadows for ids, own in ((shadow.inside, 1), (shadow.outside, 0))]
    parts = [of(asked.signals(ids)) for asked, ids, _ in sides]
    values, member = np.concatenate(parts), np.repeat([own for *_, own in sides], [len(part) for part in parts]) == 1
    known = ~np.isnan(values).reshape(len(values), -1).any(1)
    if len(set(member[known].tolist())) < 2:
        raise UserError(
            f"membership attack {attack!r} learns from the shadows' images, and of those trained on, or of the others, "
            "none has a valid pixel: look at the masks of the data set"
        )
    return values[known], member[known]


def compared(experiment: Experiment, attack: str, *, offline: bool) -> tuple[list[Asked], Bools, Bools, Bools]:
    """The references, which candidates each was trained on and which it was not (R x N both), and who has enough, N.

    Enough is `LEAST` networks on either side; offline, that were not trained on the image. Raises UserError where more
    than `LACKING` of the candidates have fewer.
    """
    ids, references = experiment.candidates, experiment.references
    sets = [(frozenset(own.inside), frozenset(own.outside)) for own in references]
    inside, outside = (
        np.array([[name in own[side] for name in ids] for own in sets], bool).reshape(len(sets), len(ids))
        for side in (0, 1)
    )
    enough = outside.sum(0) >= LEAST
    if not offline:
        enough &= inside.sum(0) >= LEAST
    if not len(ids) or enough.mean() < 1 - LACKING:
        sides = "not trained on" if offline else "trained on and not trained on"
        raise UserError(
            f"membership attack {attack!r} needs for each image {LEAST} references {sides} it, and {(~enough).sum()} "
            f"of {len(ids)} images have fewer with {len(references)} references: set `references` of the membership "
            "block to 16 or so"
        )
    return [own.asked for own in references], inside, outside, enough


def settled(scores: Floats, threshold: float | None = None) -> Floats:
    """The scores with a number for images that have none (nan: no valid pixel), one that speaks for neither side.

    It is the threshold where there is one, else the median of the other scores.
    """
    missing = np.isnan(scores)
    if not missing.any():
        return scores
    middle = threshold if threshold is not None else float(np.median(scores[~missing])) if (~missing).any() else 0.0
    return np.where(missing, middle, scores)


def scikit_learn(attack: str) -> None:
    """Raises UserError where scikit-learn is not installed."""
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise UserError(f"membership attack {attack!r} needs scikit-learn: pip install 'segaudit[privacy]'") from error


def best_cut(values: Floats, member: Bools) -> float:
    """The threshold between two values that parts members (above) from the others with the best balanced accuracy.

    Of several equally good ones the lowest. Values without nan.
    """
    order = np.unique(values)
    cuts = np.concatenate([[order[0] - 1], (order[1:] + order[:-1]) / 2])
    found, alarms = (
        1 - np.searchsorted(np.sort(values[kind]), cuts, "right") / kind.sum() for kind in (member, ~member)
    )
    return float(cuts[int(np.argmax(found - alarms))])
