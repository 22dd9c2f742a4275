"""The course of the learning rate: `(done, warmup) -> share of the peak`, both of them shares of the training."""

from __future__ import annotations

import math
from collections.abc import Callable


def one_cycle(done: float, warmup: float) -> float:
    """Linear warm-up, then cosine to 0. Source: Smith & Topin 2019; Loshchilov & Hutter 2017 (the cosine)."""
    if done < warmup:
        return _rise(done, warmup)
    return 0.5 * (1 + math.cos(math.pi * _since(done, warmup)))


def poly(done: float, warmup: float) -> float:
    """Linear warm-up, then (1 - t)^0.9 to 0. Source: DeepLab v2 (Chen et al. 2017), without the warm-up."""
    if done < warmup:
        return _rise(done, warmup)
    return math.pow(max(0.0, 1 - _since(done, warmup)), 0.9)


RATES: dict[str, Callable[[float, float], float]] = {"one_cycle": one_cycle, "poly": poly}
"""By name."""


def _rise(done: float, warmup: float) -> float:
    return (done + 1e-3) / (warmup + 1e-3)  # the first step is not of length 0


def _since(done: float, warmup: float) -> float:
    return (done - warmup) / max(1e-9, 1 - warmup)
