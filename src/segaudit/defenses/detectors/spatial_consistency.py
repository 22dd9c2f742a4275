"""Whether a model says the same of a pixel in whatever patch it sees it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from segaudit.defenses._check import real, whole
from segaudit.rng import streams_of
from segaudit.types import Segmenter, UserError

NAME = "spatial_consistency"


def spatial_consistency(model: Segmenter, images: Tensor, *, pairs: int = 8, size: float = 0.5) -> Tensor:
    """Spatial consistency: how little overlapping patches of an image agree, each segmented on its own; 1 - mIoU.

    pairs: of patches an image, over which the mean is taken. size: a patch's share of the image's sides. A pair
    overlaps by half of each side at least; where it lies comes from `segaudit.rng.streams_of`. Scores N in [0, 1],
    with the gradient of the same IoU of softmax maps. A call costs 2 pairs x size^2 passes of an image,
    patches being counted by their share of it.
    Raises UserError for a classifier, whose maps are of one pixel.
    Source: Xiao et al. 2018 (spatial consistency).
    """
    whole(NAME, "pairs", pairs, 1, kind="detector")
    if real(NAME, "size", size, "detector", above=0) > 1:
        raise UserError(f"detector {NAME!r}: size must be a share of at most 1, not {size!r}")
    sides = images.shape[2:]
    height, width = (max(1, round(size * side)) for side in sides)
    drawn = streams_of(images).uniform(images.new_empty(len(images), pairs, 4)).tolist()
    found = []
    for pair in range(pairs):
        rows = [_starts(sides[0], height, own[pair][0], own[pair][1]) for own in drawn]
        columns = [_starts(sides[1], width, own[pair][2], own[pair][3]) for own in drawn]
        corners = [[(y[k], x[k]) for y, x in zip(rows, columns, strict=True)] for k in range(2)]
        patches = [images[i, :, y : y + height, x : x + width] for own in corners for i, (y, x) in enumerate(own)]
        logits: Tensor = model(torch.stack(patches))
        if logits.shape[2:] != (height, width):
            raise UserError(
                f"detector {NAME!r}: it compares maps, and of a patch of {height} x {width} the model gives "
                f"{logits.shape[2]} x {logits.shape[3]}; leave it out, or give a size whose patches it takes"
            )
        first, second = logits.chunk(2)
        found.append(
            torch.stack(
                [
                    1 - _agreement(_common(one, own, other), _common(two, other, own))
                    for one, two, own, other in zip(first, second, *corners, strict=True)
                ]
            )
        )
    return torch.stack(found).mean(0)


def _starts(side: int, patch: int, where: float, apart: float) -> tuple[int, int]:
    """Where along a side two patches begin, from two numbers in [0, 1): the first anywhere, the second near it."""
    first = math.floor(where * (side - patch + 1))
    low, high = max(0, first - patch // 2), min(side - patch, first + patch // 2)
    return first, low + math.floor(apart * (high - low + 1))


def _common(logits: Tensor, own: tuple[int, int], other: tuple[int, int]) -> Tensor:
    """What a patch K x h x w has in common with another one, by their corners."""
    (y, x), (v, u) = own, other
    height, width = logits.shape[1:]
    return logits[:, max(0, v - y) : height + min(0, v - y), max(0, u - x) : width + min(0, u - x)]


def _agreement(one: Tensor, other: Tensor) -> Tensor:
    """The mIoU of two predictions on one place, with the gradient of that of their softmax maps; logits K x h x w."""
    hard = [F.one_hot(logits.argmax(0), len(logits)).movedim(2, 0).to(logits) for logits in (one, other)]
    seen = (hard[0] + hard[1]).flatten(1).any(1)
    made = _iou(hard[0], hard[1])[seen].mean()
    if not one.requires_grad:
        return made
    soft = _iou(one.softmax(0), other.softmax(0))[seen].mean()
    return soft + (made - soft).detach()


def _iou(one: Tensor, other: Tensor) -> Tensor:
    """Of each class, K; maps K x h x w of shares."""
    both = (one * other).sum((1, 2))
    either = (one + other).sum((1, 2)) - both
    return both / either.clamp_min(torch.finfo(either.dtype).tiny)
