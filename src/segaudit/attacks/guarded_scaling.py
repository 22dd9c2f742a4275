"""Image scaling attacks that know of the filter before the resizer."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segaudit.attacks._iterate import whole
from segaudit.attacks._resize import Resizer, matrix
from segaudit.attacks._sampled import Sampled, Windows
from segaudit.attacks.image_scaling import Picture, check
from segaudit.types import Ints, UserError

BEYOND = 1024
"""Sorts after every grey level."""
GAIN = 0.97
"""A sweep that leaves more than this of the squared error is the last one."""


def median_scaling(
    source: Picture, target: Picture, resizer: Sampled, *, eps: float = 2 / 255, steps: int = 10
) -> Picture:
    """Image scaling through a median filter: in each window as many pixels as the median needs take the target's value.

    source: H x W x C uint8. target: h x w x C uint8, no larger. resizer: behind the `median` guard. eps: how far the
    medians may be from the target (Linf, in [0, 1]). steps: sweeps over all windows, at most. Returns H x W x C uint8.
    In one window the change is the least in L2: the upper half is raised, or the lower half lowered, to the band and
    no further. Windows overlap, so that sweeps repeat; of their pictures the one nearest to the target is returned.
    Whether the goal is reached is for the caller to measure.
    Raises UserError for pictures, eps or steps that cannot be, and for a resizer that has no windows.
    Source: Quiring et al. 2020 (section 5.5); the sweeps are ours.
    """
    whole(steps=steps)
    check(source, target, eps)
    inner = _inner("median_scaling", resizer)
    around = _windows(source, target, resizer)
    wanted, room = np.rint(_wanted(source, target, inner)), int(eps * 255 + 1e-6)
    low, high = (np.clip(wanted + way * room, 0, 255).astype(np.int16) for way in (-1, 1))
    apart = list(product(_apart(around.rows, 2 * around.up + 1), _apart(around.columns, 2 * around.side + 1)))
    padded, made = around.pad(source).astype(np.int16), source
    before = least = np.inf
    for _ in range(steps):
        for i, j in apart:
            at = np.ix_(i, j)
            values = _halves(around.take(padded, i, j), around.counted(i, j), low[at], high[at])
            around.put(padded, i, j, values)
        tried = around.crop(padded).astype(np.uint8)
        error = resizer(tried, (target.shape[0], target.shape[1])) - target / 255
        if (square := float((error**2).sum())) < least:
            made, least = tried, square
        if np.abs(error).max() <= eps + 1e-6 or square > GAIN * before:
            break
        before = square
    return made


def random_scaling(source: Picture, target: Picture, resizer: Sampled, *, share: float = 0.75) -> Picture:
    """Image scaling through a random filter: every pixel of a window goes most of the way to the target's value.

    source: H x W x C uint8. target: h x w x C uint8, no larger. resizer: behind the `random` guard. share: how far a
    pixel goes from its own value (0) to the mean of what the windows that hold it want of it (1): more where more of
    them do. Returns H x W x C uint8. But for rounding, no change of the same L2 leaves a smaller squared error of the
    filtered pixels, in expectation over the filter's draws.
    Raises UserError for pictures or a share that cannot be, and for a resizer that has no windows.
    Source: Quiring et al. 2020 (section 5.5, which overwrites a share of the pixels); the expected error is ours.
    """
    check(source, target, 0)
    inner = _inner("random_scaling", resizer)
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise UserError(f"share must be a number above 0 and at most 1, not {share!r}")
    around = _windows(source, target, resizer)
    wanted, chance = _wanted(source, target, inner), 1 / around.each(around.free)
    weight = _scattered(around, chance) * around.crop(around.free[:, :, None])[:, :, 0]
    pull = np.stack([_scattered(around, chance * wanted[:, :, c]) for c in range(wanted.shape[2])], axis=2)
    hold = weight[weight > 0].mean() * (1 - share) / share  # what a unit of squared change is worth
    off = np.where(weight > 0, weight + hold, 1)[:, :, None]
    moved = np.where(weight[:, :, None] > 0, pull - weight[:, :, None] * source, 0) / off
    made: Picture = np.rint(source + moved).clip(0, 255).astype(np.uint8)
    return made


def _inner(attack: str, resizer: Sampled) -> Resizer:
    if not isinstance(resizer, Sampled):
        raise UserError(f"{attack} is made for a resizer behind a filter of the pixels that it reads, not {resizer!r}")
    return resizer.resizer


def _windows(source: Picture, target: Picture, resizer: Sampled) -> Windows:
    large, small = (source.shape[0], source.shape[1]), (target.shape[0], target.shape[1])
    return Windows(resizer.resizer, large, small, resizer.reach)


def _wanted(source: Picture, target: Picture, resizer: Resizer) -> NDArray[np.float64]:
    """What the pixels that a resizer reads are to be for the target to come out, rows x columns x C in grey levels.

    The mean of the target's pixels that read each, by their weights: exact where no two of them share a pixel.
    """
    sides = []
    for side in range(2):
        weights = np.abs(matrix(resizer, source.shape[side], target.shape[side]).numpy())
        weights = weights[:, weights.any(0)].T
        sides.append(weights / weights.sum(1, keepdims=True))
    made: NDArray[np.float64] = np.einsum("ri,ijc,sj->rsc", sides[0], target.astype(float), sides[1], optimize=True)
    return made


def _apart(places: Ints, span: int) -> list[Ints]:
    """The numbers of the places in groups of which no two windows overlap; places rise, a window is `span` long."""
    groups: list[list[int]] = []
    for i, place in enumerate(places):
        free = next((group for group in groups if place - places[group[-1]] >= span), None)
        if free is None:
            groups.append([i])
        else:
            free.append(i)
    return [np.array(group) for group in groups]


def _halves(values: NDArray[Any], counted: NDArray[np.bool_], low: NDArray[Any], high: NDArray[Any]) -> NDArray[Any]:
    """Windows n x m x K x C with the upper half of what counts at least `low` and the lower half at most `high`.

    So the median (the lower of two middle ones) is between them: low, high n x m x C. Where it is, nothing is changed.
    """
    made = values.copy()
    ours = np.moveaxis(made, 2, 3)
    keys = np.where(counted[:, :, None], ours, BEYOND).astype(np.int16)
    total = np.broadcast_to(counted.sum(2)[:, :, None], low.shape)
    middle = (total - 1) // 2
    found = np.take_along_axis(np.sort(keys, axis=3), middle[..., None], 3)[..., 0]
    off = (found < low) | (found > high)
    rows, rank = keys[off], np.arange(keys.shape[3])
    order = rows.argsort(1, kind="stable")
    ranked, half = np.take_along_axis(rows, order, 1), middle[off][:, None]
    upper, lower = (rank >= half) & (rank < total[off][:, None]), rank <= half
    ranked = np.where(upper, np.maximum(ranked, low[off][:, None]), ranked)
    ranked = np.where(lower, np.minimum(ranked, high[off][:, None]), ranked)
    np.put_along_axis(rows, order, ranked, 1)
    ours[off] = np.where(rows == BEYOND, ours[off], rows)
    return made


def _scattered(around: Windows, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum, at each place of the picture, of the values (rows x columns) of the windows that hold it, H x W."""
    height, width = around.crop(around.free[:, :, None]).shape[:2]
    down = np.abs(np.arange(height)[:, None] - around.rows) <= around.up
    along = np.abs(around.columns[:, None] - np.arange(width)) <= around.side
    summed: NDArray[np.float64] = down.astype(np.float64) @ values @ along.astype(np.float64)
    return summed
