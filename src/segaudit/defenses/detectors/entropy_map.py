"""What the map of an image's softmax entropies comes to, in a few numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from segaudit.types import Segmenter

QUANTILES = (0.1, 0.5, 0.9)


def entropy_map(model: Segmenter, images: Tensor) -> Tensor:
    """Entropy map: how far the softmax entropies of an image's pixels are, as a whole, from those of clean images.

    Features N x 7, of the entropies in shares of the largest one: mean, standard deviation, the quantiles 0.1, 0.5
    and 0.9, the mean where a pixel has a neighbour of another predicted class, and that of all other pixels. Of a
    classifier N x 1, the entropy. What is scored is their Mahalanobis distance from those of clean images.
    Source: Maag and Fischer 2024 (entropies, fitted on clean images alone); the features beside the mean are ours.
    """
    logits: Tensor = model(images)
    log = logits.log_softmax(1)
    entropy = -(log.exp() * log).sum(1) / math.log(max(2, logits.shape[1]))
    flat = entropy.flatten(1)
    places = flat.shape[1]
    if places == 1:
        return flat
    edge = _edges(logits.argmax(1)).flatten(1)
    spread = flat.var(1, unbiased=False).clamp_min(torch.finfo(flat.dtype).tiny).sqrt()
    sorts = flat.sort(1).values[:, [round(q * (places - 1)) for q in QUANTILES]]
    return torch.column_stack([flat.mean(1), spread, sorts, _mean(flat, edge), _mean(flat, ~edge)])


entropy_map.fitted = True  # type: ignore[attr-defined]  # its features are compared with those of clean images


def _edges(classes: Tensor) -> Tensor:
    """Where a pixel has one of another class above, below, or at its side: N x H x W bool."""
    edge = torch.zeros_like(classes, dtype=torch.bool)
    down, along = classes[:, 1:] != classes[:, :-1], classes[:, :, 1:] != classes[:, :, :-1]
    edge[:, 1:] |= down
    edge[:, :-1] |= down
    edge[:, :, 1:] |= along
    edge[:, :, :-1] |= along
    return edge


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean of the chosen values of each row; 0 where none is."""
    return (values * chosen).sum(1) / chosen.sum(1).clamp_min(1)
