"""The Siamese recipe: images of one class are drawn together, those of two pushed apart."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segaudit.training.loop import Judge, stack
from segaudit.training.schedule import Samples
from segaudit.types import VOID, Batch, Streams, UserError

NEAREST = 1e-6
"""The distance below which two places are the same; the root has no slope at 0."""


def siamese(model: nn.Module, batch: Batch, *, rng: Streams, margin: float = 1.0, sigma: float = 0.0) -> Tensor:
    """Contrastive loss of all pairs of images of a batch, for an embedding in which a class is near itself.

    Half the mean squared distance of two images of one class, and half the mean square of what the distance of two of
    other classes lacks of `margin`. sigma: of Gaussian noise on the images, drawn anew, which an embedding that is to
    see through an attack learns to leave out. Raises UserError for other numbers, for labels that are maps, and for a
    batch without a pair. What is held out is scored by the share of images whose nearest other one is of their class.
    Source: Hadsell et al. 2006.
    """
    _check(margin=margin, sigma=sigma)
    labels = _labels(batch.labels, batch.ids)
    images = batch.images + sigma * rng.child("noise").normal(batch.images) if sigma else batch.images
    return contrastive(model(images).float(), labels, margin)


def contrastive(places: Tensor, labels: Tensor, margin: float) -> Tensor:
    """The loss of N places, N x D, with labels N: each kind of pair by its own mean, half as much as in the paper.

    The distance of two of one class enters squared, that of two others as max(0, margin - distance) squared.
    """
    first, second = torch.triu_indices(len(places), len(places), 1, device=places.device)
    known = (labels[first] != VOID) & (labels[second] != VOID)
    first, second = first[known], second[known]
    distance = (places[first] - places[second]).square().sum(1).clamp_min(NEAREST**2).sqrt()
    same = labels[first] == labels[second]
    losses = torch.where(same, distance.square(), F.relu(margin - distance).square())
    kinds = [losses[kind].mean() for kind in (same, ~same) if kind.any()]
    if not kinds:
        raise UserError("recipe siamese: a batch holds no pair of images with labels; give it a larger batch")
    return torch.stack(kinds).sum() / 2


@torch.no_grad()
def nearest(model: nn.Module, samples: Samples, batch: int = 8) -> dict[str, float]:
    """`nearest`: the share of held-out images whose nearest other one, in the embedding, is of their class."""
    model.eval()
    device, places, labels = next(model.parameters()).device, [], []
    for start in range(0, len(samples.ids), batch):
        ids = samples.ids[start : start + batch]
        images, maps = zip(*(samples.sample(name) for name in ids), strict=True)
        places.append(model(stack(images).to(device)).double())
        labels.append(_labels(torch.stack(maps), ids))
    truth = torch.cat(labels)
    apart = torch.cdist(torch.cat(places), torch.cat(places)).fill_diagonal_(torch.inf)
    return {"nearest": float((truth[apart.argmin(1).cpu()] == truth).double().mean())}


def _judge(**_: Any) -> Judge:
    return nearest


siamese.judge = _judge  # type: ignore[attr-defined]  # which those read who train: what it trains is no segmenter
siamese.trains = ("siamese",)  # type: ignore[attr-defined]


def _check(*, margin: Any = 1.0, sigma: Any = 0.0, **_: Any) -> None:
    """Refuse numbers that cannot be. Raises UserError."""
    for key, value, wanted in (("margin", margin, "above 0"), ("sigma", sigma, "of at least 0")):
        plain = not isinstance(value, bool) and isinstance(value, (int, float)) and 0 <= value < math.inf
        if not plain or (value == 0 and key == "margin"):
            raise UserError(f"recipe siamese: {key} must be a number {wanted}, not {value!r}")


siamese.check = _check  # type: ignore[attr-defined]


def _labels(maps: Tensor, ids: Any) -> Tensor:
    """The label of each image, N. Raises UserError for maps."""
    if maps.shape[1:] != (1, 1):
        size = " x ".join(map(str, maps.shape[1:]))
        raise UserError(f"recipe siamese: it needs one label for each image, and that of {ids[0]} is a map of {size}")
    return maps.flatten()
