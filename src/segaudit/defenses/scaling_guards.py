"""What stands before a resizer, or in its place, against pictures that become others when they are resized.

A guard is a function `(resizer, **own) -> resizer`; its `adaptive` names the scaling attack that knows of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segaudit.attacks._resize import Resizer
from segaudit.attacks._sampled import Sampled
from segaudit.defenses._check import real
from segaudit.types import Streams


def none(resizer: Resizer) -> Resizer:
    """No guard: the resizer as it is.

    Source: the control.
    """
    return resizer


def area(resizer: Resizer) -> Resizer:
    """Area: the library's area method in place of the attacked one, so that every pixel weighs alike.

    An attack on it has to change what a whole window shows.
    Source: Quiring et al. 2020 (section 4.2).
    """
    return Resizer(resizer.library, "area")


def median(resizer: Resizer, *, reach: float = 1.0) -> Sampled:
    """Median: each pixel that the resizer reads gives way to the median of those around it that it does not read.

    A channel at a time; of an even number the lower of the two in the middle. reach: how far a window goes each way,
    in ratios of the sizes. Where the resizer reads nearly all pixels, all count.
    Source: Quiring et al. 2020 (section 4.3, selective median filter).
    """
    return Sampled(resizer, _middle, real("median", "reach", reach, "guard", above=0))


def random(resizer: Resizer, *, rng: Streams, reach: float = 1.0) -> Sampled:
    """Random: each pixel that the resizer reads gives way to one of those around it that it does not read, drawn anew.

    All channels come from one place. rng: the one stream of the picture, which goes on from call to call. reach: how
    far a window goes each way, in ratios of the sizes. Where the resizer reads nearly all pixels, all count.
    Source: Quiring et al. 2020 (section 4.3, selective random filter).
    """

    def drawn(values: NDArray[np.uint8], counted: NDArray[np.bool_]) -> NDArray[Any]:
        chance = rng.uniform(torch.empty(1, len(values), dtype=torch.float64))[0].numpy()
        number = (chance * counted.sum(1)).astype(np.int64)
        place = (counted.cumsum(1) > number[:, None]).argmax(1)
        picked: NDArray[Any] = values[np.arange(len(values)), place]
        return picked

    return Sampled(resizer, drawn, real("random", "reach", reach, "guard", above=0))


def _middle(values: NDArray[np.uint8], counted: NDArray[np.bool_]) -> NDArray[Any]:
    ordered = np.sort(np.where(counted[:, :, None], values, np.int16(256)), axis=1)
    middle: NDArray[Any] = ordered[np.arange(len(values)), (counted.sum(1) - 1) // 2]
    return middle


none.adaptive = area.adaptive = "image_scaling"  # type: ignore[attr-defined]  # of the guarded resizer itself
median.adaptive = "median_scaling"  # type: ignore[attr-defined]
random.adaptive = "random_scaling"  # type: ignore[attr-defined]
