"""Intersections and unions by class, an image at a time, and what the literature makes of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from segaudit.types import VOID, Counts, Floats


def count(prediction: Tensor, labels: Tensor, classes: int) -> Counts:
    """Pixel counts by image and class of predictions against labels, both N x H x W; void pixels are left out.

    Raises ValueError for a label outside of the classes: nothing is clamped into another class.
    """
    guess, truth = prediction.flatten(1).long(), labels.flatten(1)
    valid = truth != VOID
    if bool((valid & ((truth < 0) | (truth >= classes))).any()):
        raise ValueError(f"a label is outside of the {classes} classes")
    image = torch.arange(len(truth), device=truth.device)[:, None] * classes**2
    cells = (image + truth * classes + guess)[valid]
    matrix = torch.bincount(cells, minlength=len(truth) * classes**2).view(-1, classes, classes).cpu().numpy()
    hit, target, guessed = matrix.diagonal(axis1=1, axis2=2), matrix.sum(2), matrix.sum(1)
    return Counts(hit.copy(), target + guessed - hit, target)


def join(parts: Sequence[Counts]) -> Counts:
    """The counts of several batches as one."""
    return Counts(
        np.concatenate([part.intersection for part in parts]),
        np.concatenate([part.union for part in parts]),
        np.concatenate([part.target for part in parts]),
    )


def iou(intersection: Floats, union: Floats, target: Floats) -> Floats:
    """IoU of each class; nan for a class without truth."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(target > 0, intersection / union, np.nan)


def iou_by_class(counts: Counts) -> Floats:
    """IoU of each class over the data set, K: summed intersections over summed unions; nan without truth."""
    return iou(*(part.sum(0).astype(float) for part in (counts.intersection, counts.union, counts.target)))


def miou(counts: Counts) -> float:
    """The data set's mIoU: the mean over the classes that occur in the truth (nan where none does).

    A class that is only predicted adds nothing of its own, but its pixels are missing where they belong; so clean and
    attacked images are always averaged over the same classes.
    """
    return mean(iou_by_class(counts))


def image_miou(counts: Counts) -> float:
    """The mean over images of each image's own mIoU. Not the literature's mIoU, and named apart from it."""
    each = iou(*(part.astype(float) for part in (counts.intersection, counts.union, counts.target)))
    present = (~np.isnan(each)).sum(1)
    return mean(np.nansum(each, 1)[present > 0] / present[present > 0])


def dice(counts: Counts) -> float:
    """The mean over images of the Dice coefficient, 2 intersection / (truth + prediction).

    With two classes that of the second, the thing looked for, over the images that hold it; with more, of each image
    the mean of the classes in it.
    """
    each = iou(*(part.astype(float) for part in (counts.intersection, counts.union, counts.target)))
    each = 2 * each / (1 + each)
    each = each[:, 1:] if each.shape[1] == 2 else each
    present = (~np.isnan(each)).sum(1)
    return mean(np.nansum(each, 1)[present > 0] / present[present > 0])


def accuracy(counts: Counts) -> float:
    """The share of all valid pixels that are predicted right, pooled over the images (nan without a valid pixel)."""
    total = counts.target.sum()
    return float(counts.intersection.sum() / total) if total else float("nan")


def success(counts: Counts, targeted: bool = False, share: float = 0.99) -> float:
    """The share of images of which at least `share` of the valid pixels are wrong (targeted: on target).

    An image without a valid pixel is left out. Source: Xie et al. 2017; Rony et al. 2023.
    """
    total = counts.target.sum(1)
    hit = counts.intersection.sum(1)[total > 0] / total[total > 0]
    return mean(((hit >= share) if targeted else (hit <= 1 - share + 1e-12)).astype(float))


SIZES = {"small": (0.0, 0.01), "medium": (0.01, 0.1), "large": (0.1, 1.01)}
"""The share of an image's valid pixels that a class covers in it: from (inclusive), to (exclusive)."""


def iou_by_size(counts: Counts) -> dict[str, float]:
    """The mean IoU of what is small, medium and large: one object is what a class covers in one image.

    Small things fall first (Halmosi et al., ECCV 2024), and a pooled mIoU hides it. nan where there is none.
    """
    each = iou(*(part.astype(float) for part in (counts.intersection, counts.union, counts.target)))
    share = counts.target / np.maximum(1, counts.target.sum(1, keepdims=True))
    return {
        name: mean(each[(counts.target > 0) & (share >= low) & (share < high)]) for name, (low, high) in SIZES.items()
    }


def mean(values: Floats) -> float:
    """The mean of what is not nan; nan where nothing is left."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
