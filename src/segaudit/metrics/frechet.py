"""The Frechet distance of two sets of images, in the features of a classifier of our own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from segaudit.types import Segmenter, UserError


def frechet(first: Tensor, second: Tensor) -> float:
    """The squared Frechet (2-Wasserstein) distance of the Gaussians that fit two sets of features, N x F and M x F.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2), in float64; the covariances are those of samples (N - 1). The
    root is taken of a symmetric matrix, so a covariance may be singular. Of few rows it comes out too large: compare
    sets of the same sizes alone. Raises UserError for sets of fewer than two, or of other features.
    Source: Dowson & Landau 1982; of generated images Heusel et al. 2017.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or min(len(first), len(second)) < 2:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise UserError(f"the Frechet distance is of two or more rows of the same features each, not {shapes}")
    (mean, own), (other_mean, other) = _moments(first), _moments(second)
    values, vectors = torch.linalg.eigh(own)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.mT
    between = torch.linalg.eigvalsh(root @ other @ root).clamp_min(0).sqrt().sum()
    apart = (mean - other_mean).square().sum() + own.trace() + other.trace() - 2 * between
    return max(0.0, float(apart))  # rounding may carry that of equal sets below 0


def named(classifier: str) -> str:
    """What the distance in the features of this classifier is called: it compares with no other classifier's."""
    return f"Frechet-{classifier}"


@torch.no_grad()
def features(classifier: Segmenter, images: Tensor) -> Tensor:
    """What the last layer of a classifier is given for images N x C x H x W in [0, 1]: N x F, in float64.

    The last layer is the dense one, or the convolution, that comes last in the pass; of maps the mean over the places
    is taken. Raises UserError for a model without one.
    """
    seen: list[Tensor] = []

    def given(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen[:] = inputs[:1]

    layers = [part for part in classifier.modules() if isinstance(part, (nn.Linear, nn.Conv2d))]
    handles = [part.register_forward_pre_hook(given) for part in layers]
    try:
        with torch.autocast(images.device.type, enabled=False):
            classifier(images)
    finally:
        for handle in handles:
            handle.remove()
    if not seen or len(seen[0]) != len(images):
        raise UserError(
            f"the Frechet distance needs a classifier whose last layer is dense or a convolution; a "
            f"{type(classifier).__name__} has none that sees each image once"
        )
    found = seen[0].double()
    return found.flatten(2).mean(2) if found.ndim > 2 else found


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    rows = rows.double()
    mean = rows.mean(0)
    off = rows - mean
    return mean, off.mT @ off / (len(rows) - 1)
