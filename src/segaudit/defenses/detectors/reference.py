"""What a detector's features come to on clean images, and how far those of another image are from that."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from segaudit.types import UserError

FPR = 0.05
"""The false positive rate at which detectors are compared."""
FLOOR = 1e-6
"""Features that vary less than this over the clean images are taken to vary so much."""


def learnt(features: Tensor) -> Tensor:
    """What `distance` needs to know of the features N x F of clean images: (1 + F) x F float64.

    Their mean, and below it the inverse of their covariance, which is shrunk towards uncorrelated features of their
    own variances, the more the fewer images there are. Raises UserError for fewer than two images, and for NaN.
    Source: Ledoit and Wolf 2004 (the shrinkage), on features scaled to a variance of 1.
    """
    count, size = features.shape
    if count < 2:
        raise UserError(f"a detector is fitted on two clean images or more, not on {count}")
    if not features.isfinite().all():
        raise UserError("a detector's features of a clean image are NaN or infinite")
    values = features.detach().double()
    mean = values.mean(0)
    scale = values.std(0, unbiased=False).clamp_min(FLOOR)
    scaled = (values - mean) / scale
    covariance = scaled.T @ scaled / count
    level = covariance.diagonal().mean()
    target = level * torch.eye(size).to(covariance)
    apart = (covariance - target).square().sum()
    noise = ((scaled.square().T @ scaled.square()).sum() / count - covariance.square().sum()) / count
    share = noise.clamp_min(0).minimum(apart) / apart.clamp_min(FLOOR**2)
    shrunk = share * target + (1 - share) * covariance
    inverse = torch.linalg.inv(shrunk + FLOOR * torch.eye(size).to(shrunk)) / scale.outer(scale)
    return torch.cat([mean[None], inverse])


def allowed(scores: Tensor) -> Tensor:
    """The largest score that is not noticed at a false positive rate of at most `FPR`; scores N, of clean images.

    More than that share of them score at least this, so that a threshold that notices it gives more false positives.
    """
    return scores.sort(descending=True).values[math.floor(FPR * len(scores) + 1e-9)]


def distance(features: Tensor, known: Tensor) -> Tensor:
    """The Mahalanobis distance N float64 of features N x F from those of clean images; known: what was `learnt`.

    Source: Mahalanobis 1936; as a detector of attacks Lee et al. 2018.
    """
    if features.shape[1] != known.shape[1]:
        raise UserError(f"a detector gives {features.shape[1]} features, and was fitted on {known.shape[1]}")
    off = features.double() - known[0]
    squared = torch.einsum("ni,ij,nj->n", off, known[1:], off)
    return squared.clamp_min(FLOOR**2).sqrt()
