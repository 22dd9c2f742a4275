"""What several of the networks are made of."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from segaudit import registry
from segaudit.types import UserError


def scaled(count: int, width: float, multiple: int = 1) -> int:
    """A paper's number of channels times `width`, rounded to a multiple and at least one of it."""
    return max(1, round(count * width / multiple)) * multiple


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """A map at another size H x W, bilinear."""
    return F.interpolate(x, size=list(size), mode="bilinear", align_corners=False)


def unpool(x: Tensor, indices: Tensor, size: Sequence[int]) -> Tensor:
    """Max unpooling N x C x h x w -> N x C x H x W: each value to where its maximum was, zero elsewhere."""
    # A scatter, and not max_unpool2d, which lacks bfloat16 on the CPU.
    empty = x.new_zeros(*x.shape[:2], size[0] * size[1])
    return empty.scatter(2, indices.flatten(2), x.flatten(2)).view(*x.shape[:2], *size)


def initialise(net: nn.Module) -> None:
    """He's initialisation of every convolution, as a deep network without it gives no signal (He et al. 2015)."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def choose(network: str, key: str, value: Any, known: Collection[str]) -> str:
    """The value where it is one of the known words. Raises UserError otherwise."""
    if not isinstance(value, str) or value not in known:
        near = registry.suggest(str(value), known)
        raise UserError(f"classic {network}: there is no {key} {value!r}{near}; there are: {', '.join(known)}")
    return value


def numbers(network: str, key: str, value: Any, kinds: tuple[type, ...]) -> list[Any]:
    """A list of one number above 0 or more. Raises UserError otherwise."""
    found = list(value) if isinstance(value, (list, tuple)) else []
    if not found or not all(type(x) in kinds and 0 < x < 1000 for x in found):
        kind = "numbers" if float in kinds else "whole numbers"
        raise UserError(f"classic {network}: {key} must be a list of {kind} above 0, not {value!r}")
    return found


def statistics(channels: int) -> dict[str, Any]:
    """Mean and std of images that are not in three colours."""
    return {"mean": [0.5] * channels, "std": [0.25] * channels}
