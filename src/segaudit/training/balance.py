"""Class weights: as they were given, or counted on the images that are trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from segaudit.training.schedule import Samples
from segaudit.types import VOID, UserError


def class_weights(wanted: Any, samples: Samples, class_names: Sequence[str]) -> list[float]:
    """One weight a class: `wanted` where it is a list of them, counted where it is `balanced`.

    Raises UserError for anything else.
    """
    if wanted == "balanced":
        return balanced(samples, len(class_names))
    count = len(class_names)
    if not isinstance(wanted, (list, tuple)) or not all(
        type(weight) in (int, float) and 0 <= weight < math.inf for weight in wanted
    ):
        raise UserError(f"recipe: class_weights must be `balanced`, or a list of {count} numbers, not {wanted!r}")
    if len(wanted) != count:
        raise UserError(f"recipe: {len(wanted)} class_weights for {count} classes ({', '.join(class_names)})")
    return [float(weight) for weight in wanted]


def balanced(samples: Samples, classes: int) -> list[float]:
    """Median frequency balancing: the median of the classes' frequencies over each class's own; 0 without a pixel.

    A class's frequency: its pixels over the valid pixels of the images that it occurs in.
    Source: Eigen & Fergus 2015; SegNet (Badrinarayanan et al. 2017).
    """
    own, around = torch.zeros(classes, dtype=torch.int64), torch.zeros(classes, dtype=torch.int64)
    for name in samples.ids:
        labels = samples.sample(name)[1]
        counts = torch.bincount(labels[labels != VOID], minlength=classes)
        own += counts
        around += (counts > 0) * counts.sum()
    found = own > 0
    if not found.any():
        raise UserError("recipe: class_weights `balanced`: no training image has a pixel that is not void")
    frequency = own[found].double() / around[found]
    weights = torch.zeros(classes, dtype=torch.float64)
    weights[found] = frequency.quantile(0.5) / frequency
    return [float(weight) for weight in weights]
