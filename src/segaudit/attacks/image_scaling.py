"""The image scaling attack: a picture that becomes another one when it is resized."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segaudit.attacks._iterate import whole
from segaudit.attacks._resize import Resizer, matrix, resizers
from segaudit.types import UserError

__all__ = ["Resizer", "image_scaling", "resizers"]

Picture = NDArray[np.uint8]

HALF = 0.5 / 255
"""What rounding to 8 bits may take from a value."""
ROUNDS = 5
"""How often the goal is moved against what rounding did."""


def image_scaling(
    source: Picture, target: Picture, resizer: Resizer, *, eps: float = 2 / 255, steps: int = 300
) -> Picture:
    """Image scaling: the picture nearest to the source that becomes the target when it is resized.

    source: H x W x C uint8. target: h x w x C uint8, no larger. eps: how far the resized picture may be from the
    target (Linf, in [0, 1]). steps: of the solver, at most, each time. Returns H x W x C uint8 with the least L2
    change but for rounding. Pixels that the resizer does not look at keep their values.
    Whether the goal is reached is for the caller to measure: where neighbours share pixels (antialiased resizers), a
    target of full contrast may be out of reach, and what comes back is as near to it as it gets.
    Raises UserError for pictures, eps or steps that cannot be, and for what is no library's resizer.
    Source: Xiao et al. 2019 (their quadratic program, here of both axes at once); Quiring et al. 2020.
    """
    whole(steps=steps)
    check(source, target, eps)
    if not isinstance(resizer, Resizer):
        raise UserError(f"image_scaling is made for a library's resizer alone, not {resizer!r}")
    rows, columns = matrix(resizer, len(source), len(target)), matrix(resizer, source.shape[1], target.shape[1])
    used = np.ix_(*(m.any(0).numpy() for m in (rows, columns)))
    made = source.copy()
    if all(((m != 0).sum(1) == 1).all() for m in (rows, columns)):
        made[used] = _overwritten(source[used], target, eps)
        return made
    goal = torch.from_numpy(target.astype(np.float32) / 255)
    problem = _Problem(torch.from_numpy(source[used].astype(np.float32) / 255), rows, columns)
    # a bound at the end of the range is none: what is beyond it the library clips
    low = torch.where(goal <= eps, -torch.inf, goal - max(eps - HALF, 0))
    high = torch.where(goal >= 1 - eps, torch.inf, goal + max(eps - HALF, 0))
    dual, least = torch.zeros_like(goal), np.inf
    for _ in range(ROUNDS):
        pixels, dual, beyond = problem.solve(low, high, dual, steps)
        tried = source.copy()
        tried[used] = (pixels * 255).round().byte().numpy()
        error = torch.from_numpy(resizer(tried, target.shape[:2])).float() - goal
        worst = float(error.abs().max())
        if worst < least:
            made, least = tried, worst
        if worst <= eps + 1e-6 or beyond > HALF:
            break
        under, over = error < -eps, error > eps
        low = torch.where(under, low - eps - error + HALF, low)
        high = torch.where(over, high + eps - error - HALF, high)
        low, high = torch.where(over, low.minimum(high), low), torch.where(under, high.maximum(low), high)
    return made


class _Problem:
    """The least change of the pixels that a resizer looks at, H x W x C in [0, 1], for bounds on its h x w x C."""

    def __init__(self, source: Tensor, rows: Tensor, columns: Tensor) -> None:
        self.source = source
        rows, columns = (m[:, m.any(0)].float() for m in (rows, columns))
        self.rows, self.columns = rows.to_sparse(), columns.to_sparse()
        self.rows_t, self.columns_t = rows.T.to_sparse(), columns.T.to_sparse()
        weight = torch.outer(*((m @ m.T).abs().sum(1) for m in (rows, columns)))
        self.weight = weight[:, :, None]  # diagonally dominates A A^T, so its inverse is a step size for each pixel

    def solve(self, low: Tensor, high: Tensor, start: Tensor, steps: int) -> tuple[Tensor, Tensor, float]:
        """min |x - source|^2 with low <= A x <= high and 0 <= x <= 1: x, its multipliers, and how far A x is outside.

        Accelerated proximal gradient on the dual with restarts, started from multipliers; it ends where the duality
        gap is below 0.1 %. Source: Beck and Teboulle 2014; O'Donoghue and Candes 2015.
        """
        dual = ahead = start
        t = torch.ones(())
        pixels, beyond = self.source, np.inf
        for step in range(steps):
            pixels = (self.source - self.grow(ahead)).clamp_(0, 1)
            small = self.shrink(pixels)
            if step % 10 == 9 or step == steps - 1:
                beyond = float(torch.maximum(low - small, small - high).max())
                bound = torch.where(ahead > 0, high, low).where(ahead != 0, 0)
                gap = float((ahead * (bound - small)).sum())
                if beyond <= HALF / 20 and abs(gap) <= 1e-3 * float((pixels - self.source).square().sum() / 2):
                    break
            free = self.weight * ahead + small
            new = (free - free.clamp(low, high)) / self.weight
            if ((ahead - new) * (new - dual) * self.weight).sum() > 0:
                t = torch.ones(())
            after = (1 + (1 + 4 * t * t).sqrt()) / 2
            ahead, dual, t = new + (t - 1) / after * (new - dual), new, after
        return pixels, dual, beyond

    def shrink(self, pixels: Tensor) -> Tensor:
        """A x: H x W x C -> h x w x C."""
        return _both(self.rows, self.columns, pixels)

    def grow(self, small: Tensor) -> Tensor:
        """A^T y: h x w x C -> H x W x C."""
        return _both(self.columns_t, self.rows_t, small.transpose(0, 1)).transpose(0, 1)


def _both(first: Tensor, second: Tensor, values: Tensor) -> Tensor:
    """`first` along the first axis of values, then `second` along the second."""
    half = torch.sparse.mm(first, values.flatten(1)).view(-1, *values.shape[1:]).transpose(0, 1)
    both: Tensor = torch.sparse.mm(second, half.flatten(1)).view(-1, *half.shape[1:]).transpose(0, 1)
    return both


def _overwritten(pixels: Picture, target: Picture, eps: float) -> Picture:
    """Where each target pixel is one of the source's: moved no further than into its band."""
    room = int(eps * 255 + 1e-6)
    return pixels.astype(int).clip(target.astype(int) - room, target.astype(int) + room).astype(np.uint8)


def check(source: Picture, target: Picture, eps: float) -> None:
    """Refuse pictures that cannot hide one another, and an eps that is none."""
    for key, picture in (("source", source), ("target", target)):
        if picture.ndim != 3 or picture.dtype != np.uint8 or 0 in picture.shape:
            raise UserError(f"{key} must be an H x W x C picture of 8 bits, not {picture.dtype} {picture.shape}")
    if any(small > large for small, large in zip(target.shape[:2], source.shape[:2], strict=True)):
        raise UserError(f"target must be no larger than the source's {_by(source)}, not {_by(target)}")
    if target.shape[2] != source.shape[2]:
        raise UserError(f"target must be of the source's {source.shape[2]} channels, not {target.shape[2]}")
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 <= eps < 1:
        raise UserError(f"eps must be a number from 0 to below 1, not {eps!r}")


def _by(picture: Picture) -> str:
    return " x ".join(str(side) for side in picture.shape[:2])
