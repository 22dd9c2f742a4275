"""Logits fused over resized copies of the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segaudit.defenses._check import choice, real
from segaudit.types import Segmenter, UserError


def multiscale(model: Segmenter, *, scales: Sequence[float] = (0.5, 0.75, 1.0), fusion: str = "average") -> Segmenter:
    """Multi-scale: the logits of resized copies of the image, fused by their average or their maximum.

    scales: factors on height and width. fusion: average or max. The gradient goes through every copy; a classifier's
    1 x 1 maps are fused as they are.
    Source: Chen et al. 2018 (DeepLab v2, maximum); as a defense Arnab et al. 2018.
    """
    if not isinstance(scales, (list, tuple)) or not scales:
        raise UserError(f"defense 'multiscale': scales must be a list such as [0.5, 0.75, 1], not {scales!r}")
    found = [real("multiscale", "scales", scale, above=0) for scale in scales]
    return MultiScale(model, found, choice("multiscale", "fusion", fusion, ("average", "max")))


class MultiScale(Segmenter):
    """A model asked at several scales."""

    def __init__(self, model: Segmenter, scales: Sequence[float], fusion: str) -> None:
        super().__init__()
        self.model, self.scales, self.fusion, self.class_names = model, tuple(scales), fusion, model.class_names

    def forward(self, images: Tensor) -> Tensor:
        """Logits N x K x H x W at the images' own size."""
        each = torch.stack([self._at(images, scale) for scale in self.scales])
        return each.mean(0) if self.fusion == "average" else each.amax(0)

    def _at(self, images: Tensor, scale: float) -> Tensor:
        size = [max(1, round(side * scale)) for side in images.shape[2:]]
        logits: Tensor = self.model(resized(images, size))
        whole = logits.shape[2:] == (1, 1) and size != [1, 1]  # a classifier, and no map of a tiny copy
        return logits if whole else resized(logits, list(images.shape[2:]))


def resized(images: Tensor, size: list[int]) -> Tensor:
    """Bilinear, corners not aligned; what has the size already is left as it is."""
    if list(images.shape[2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)
