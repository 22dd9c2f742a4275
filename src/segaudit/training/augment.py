"""Random views of a training image with its mask: flip, turn, scale, crop, light."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from segaudit.types import VOID, UserError


def augment(
    image: Tensor,
    labels: Tensor,
    rng: Generator,
    *,
    flip: bool = True,
    turn: bool = False,
    scale: Sequence[float] = (1.0, 1.0),
    crop: Sequence[int] | None = None,
    light: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """One random view: image C x H x W in [0, 1], labels H x W; both come back at `crop` (default: their own size).

    flip: left-right with probability 1/2. turn: by 0, 90, 180 or 270 degrees (a view that is no square by 0 or 180),
    for pictures that have no up. scale: log-uniform between the two. What the crop does not cover is void on grey.
    light: brightness, contrast and a tint an image, each by up to this factor. The one label of a classifier's image
    (1 x 1) stays as it is.
    """
    height, width = crop or image.shape[1:]
    mask = labels.expand(image.shape[1:])
    low, high = scale
    factor = float(low * (high / low) ** torch.rand((), generator=rng))
    if factor != 1:
        size = [max(1, round(side * factor)) for side in image.shape[1:]]
        image = F.interpolate(image[None], size=size, mode="bilinear", antialias=factor < 1)[0]
        mask = F.interpolate(mask[None, None].float(), size=size, mode="nearest-exact")[0, 0].long()
    bottom, right = max(0, height - image.shape[1]), max(0, width - image.shape[2])
    if bottom or right:
        image = F.pad(image, (0, right, 0, bottom), value=0.5)
        mask = F.pad(mask, (0, right, 0, bottom), value=VOID)
    top = _pick(image.shape[1] - height, rng)
    left = _pick(image.shape[2] - width, rng)
    image = image[:, top : top + height, left : left + width]
    mask = mask[top : top + height, left : left + width]
    if flip and torch.rand((), generator=rng) < 0.5:
        image, mask = image.flip(2), mask.flip(1)
    if turn:
        quarters = 2 * _pick(1, rng) if height != width else _pick(3, rng)
        image, mask = image.rot90(quarters, (1, 2)), mask.rot90(quarters)
    if light:
        gain, bias, contrast = (light * (2 * torch.rand(3, generator=rng) - 1)).tolist()
        tint = 1 + light * (2 * torch.rand(len(image), 1, 1, generator=rng) - 1) / 2
        mean = image.mean()
        image = ((image - mean) * (1 + contrast) + mean * (1 + gain) + bias / 4) * tint
    return image.clamp(0, 1).contiguous(), labels if labels.shape == (1, 1) else mask.contiguous()


def check(own: Mapping[str, Any]) -> None:
    """Refuse arguments that `augment` cannot use. Raises UserError."""
    scale, crop, light = own.get("scale", (1.0, 1.0)), own.get("crop"), own.get("light", 0.0)
    for key in ("flip", "turn"):
        if type(own.get(key, False)) is not bool:
            raise UserError(f"augment: {key} must be true or false, not {own[key]!r}")
    numbers = isinstance(scale, (list, tuple)) and all(type(end) in (int, float) for end in scale)
    if not numbers or len(scale) != 2 or not 0 < scale[0] <= scale[1] < math.inf:
        raise UserError(f"augment: scale must be two numbers above 0, the smaller first: [0.5, 2.0], not {scale!r}")
    sides = isinstance(crop, (list, tuple)) and len(crop) == 2 and all(type(side) is int and side > 0 for side in crop)
    if crop is not None and not sides:
        raise UserError(f"augment: crop must be [height, width], whole numbers of at least 1, not {crop!r}")
    if type(light) not in (int, float) or not 0 <= light <= 1:
        raise UserError(f"augment: light must be a number from 0 to 1, not {light!r}")


def _pick(most: int, rng: Generator) -> int:
    return int(torch.randint(most + 1, (), generator=rng)) if most > 0 else 0
