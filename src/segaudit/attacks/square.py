"""Random search on a model's scores alone: Square Attack, made for maps of labels."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from segaudit.attacks._iterate import project, whole
from segaudit.attacks._losses import open_pixels, pixel_loss
from segaudit.types import Segmenter, Streams

FIRST = 0.5
"""The side of the first windows, as a share of the image's shorter side."""
PACE = 10
"""The side of the windows shrinks as 1 / sqrt(1 + step / 10): half of the first at step 30, a quarter at 150."""
COVERED = 0.25
"""The share of a map that the windows of one query cover."""
CONFIRM = 3
"""Every so many queries of a map are of what was kept of the ones before."""
CHECK = 10
"""Every so many steps, finished images leave the batch."""
TIE = 1e-6
"""Rounding may make a loss better by this much."""


@torch.no_grad()
def square(
    model: Segmenter,
    images: Tensor,
    labels: Tensor,
    *,
    rng: Streams,
    eps: float,
    steps: int = 1000,
    loss: str = "margin",
    targeted: bool = False,
) -> Tensor:
    """Square: random search with the scores alone, no gradient; corners of the Linf ball, a window at a time.

    It starts from vertical stripes of +-eps; steps: queries an image after that one. A query gives the signs of
    square windows anew, each channel's alike, or in stripes down or across, ever smaller ones. A classifier is asked
    about one flat window at a time, as published but for the sizes. A map is asked about many at once, and in each
    block around one it is kept where the block's own pixels are better for it; every third query is of what was kept,
    and counts if it is better as a whole. An image keeps the signs that leave the fewest pixels right (targeted: off
    target), by loss where they are even, and leaves the batch when there are none.
    loss: margin, ce, masked_ce, balanced_masked_ce or js.
    Source: Andriushchenko et al. 2020; the blocks and stripes for maps are ours.
    """
    whole(steps=steps)
    ascend = pixel_loss(loss)

    def query(signs: Tensor) -> _Point:
        logits = model(project(clean + eps * signs, clean, eps, "linf"))
        left = open_pixels(logits, goal, targeted).flatten(1).sum(1)
        return _Point(signs, ascend(logits, goal, targeted), left)

    clean, goal, rows = images, labels, torch.arange(len(images), device=images.device)
    is_map = labels.shape[1:] == images.shape[2:]
    best = now = query(_signs(rng.uniform(images[:, :, :1])).expand_as(images))
    signs = best.signs.clone()
    for step in range(1, steps + 1):
        if step % CHECK == 1:
            going = best.left > 0
            signs[rows] = best.signs
            if not going.any():
                break
            rows, clean, goal, rng = rows[going], clean[going], goal[going], rng[going]
            best, now = best[going], now[going]
        since = (step - 1) % CONFIRM
        if is_map and (since == CONFIRM - 1 or (since and step == steps)):
            found = query(now.signs)
            best = now = found.where(found.beats(best), best)
            continue
        windows = _Windows(clean, step, is_map, rng)
        found = query(windows.paint(now.signs))
        if is_map:
            now = found.where(windows.better(found.loss - now.loss), now)
        best = found.where(found.beats(best), best)
        if not is_map:
            now = best
    signs[rows] = best.signs
    return project(images + eps * signs, images, eps, "linf")


square.gradient_free = True  # type: ignore[attr-defined]  # which those read who hand it a model


@dataclass(frozen=True)
class _Point:
    """What a query of N images found: the signs, N x C x H x W of -1 and 1, the loss of each pixel under them, 0 at
    void, and how many pixels are left to be won."""

    signs: Tensor
    loss: Tensor
    left: Tensor

    def beats(self, other: _Point) -> Tensor:
        """N x 1 x 1: whether an image is better off here."""
        gain = (self.loss - other.loss).flatten(1).sum(1)
        better = (self.left < other.left) | ((self.left == other.left) & (gain > TIE))
        return better.view(-1, 1, 1)

    def where(self, chosen: Tensor, other: _Point) -> _Point:
        """This where it is chosen, N x 1 x 1 or a choice of pixels N x H x W, else the other."""
        return _Point(
            torch.where(chosen[:, None], self.signs, other.signs),
            torch.where(chosen, self.loss, other.loss),
            torch.where(chosen.flatten(1).all(1), self.left, other.left),
        )

    def __getitem__(self, rows: Tensor) -> _Point:
        return _Point(*(getattr(self, field.name)[rows] for field in fields(self)))


class _Windows:
    """A square window at a random place of each block of N images, and the signs to be tried in it.

    The blocks of a map tile it from a random corner; the image of a classifier is one block.
    """

    def __init__(self, images: Tensor, step: int, is_map: bool, rng: Streams) -> None:
        (n, channels), size = images.shape[:2], images.shape[2:]
        side = max(1, round(FIRST * min(size) / math.sqrt(1 + step / PACE)))
        block = [math.ceil(side / math.sqrt(COVERED))] * 2 if is_map else list(size)
        count = [math.ceil(length / b) + is_map for length, b in zip(size, block, strict=True)]
        corner = rng.uniform(images.new_empty(n, 2)) * is_map
        kind, *place = rng.uniform(images.new_empty(n, 3, *count)).unbind(1)
        flat = _signs(rng.uniform(images.new_empty(n, channels, *count)))
        lines = _signs(rng.uniform(images.new_empty(n, channels, sum(size))))

        self.image = torch.arange(n, device=images.device).view(-1, 1, 1)
        moved = [
            torch.arange(length, device=images.device) + (start[:, None] * b).long()
            for length, b, start in zip(size, block, corner.unbind(1), strict=True)
        ]
        self.rows, self.columns = (at // b for at, b in zip(moved, block, strict=True))
        self.count = count
        first = [(at * (b - side + 1)).long() for at, b in zip(place, block, strict=True)]
        y = (moved[0] % block[0])[:, :, None] - self._spread(first[0])
        x = (moved[1] % block[1])[:, None, :] - self._spread(first[1])
        self.inside = (y >= 0) & (y < side) & (x >= 0) & (x < side)
        self.signs = self._spread(flat.movedim(1, -1)).movedim(-1, 1)
        if is_map:
            third = (3 * self._spread(kind)).long()[:, None]
            striped = torch.where(third == 1, lines[:, :, : size[0], None], lines[:, :, None, size[0] :])
            self.signs = torch.where(third == 0, self.signs, striped)

    def paint(self, signs: Tensor) -> Tensor:
        """The signs with those of the windows in them."""
        return torch.where(self.inside[:, None], self.signs, signs)

    def better(self, change: Tensor) -> Tensor:
        """N x H x W: the pixels of the blocks in which a loss that changed by so much, N x H x W, rose as a whole."""
        rows, columns = (
            (at[:, None] == torch.arange(count, device=at.device)[:, None]).to(change)
            for at, count in zip((self.rows, self.columns), self.count, strict=True)
        )
        return self._spread(rows @ change @ columns.mT > TIE)

    def _spread(self, blocks: Tensor) -> Tensor:
        """N x H x W x ...: at each pixel what is its block's in N x rows x columns x ..."""
        return blocks[self.image, self.rows[:, :, None], self.columns[:, None, :]]


def _signs(numbers: Tensor) -> Tensor:
    """-1 or 1 for uniform numbers in [0, 1)."""
    return torch.where(numbers < 0.5, -torch.ones_like(numbers), 1)
