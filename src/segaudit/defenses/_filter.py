"""A model that sees its images through a filter: what most test-time defenses are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from segaudit.defenses._check import choice, remade
from segaudit.nn.straight import GRADIENTS, through
from segaudit.types import Segmenter

Filter = Callable[[Tensor], Tensor]
"""Images N x C x H x W in [0, 1] -> images of the same shape, each on its own."""


class Filtered(Segmenter):
    """A model behind a filter.

    gradient: `exact`, through the filter as it is; `straight_through`, as if it were not there.
    """

    def __init__(self, model: Segmenter, own: Filter, gradient: str, defense: str) -> None:
        super().__init__()
        self.model, self.filter, self.class_names = model, own, model.class_names
        self.gradient, self.defense = choice(defense, "gradient", gradient, GRADIENTS), defense

    def forward(self, images: Tensor) -> Tensor:
        """Logits N x K x H x W of the filtered images."""
        if self.gradient == "exact":
            seen = self.purified(images)
        else:
            with torch.no_grad():
                seen = self.purified(images)
            seen = through(images, seen)
        logits: Tensor = self.model(seen)
        return logits

    def purified(self, images: Tensor) -> Tensor:
        """What the model sees of images, N x C x H x W."""
        with torch.autocast(images.device.type, enabled=False):  # a filter in bfloat16 is another filter
            return remade(self.defense, self.filter(images), images)


@torch.no_grad()
def purified(model: Segmenter, images: Tensor) -> Tensor | None:
    """What the filters before a model make of images, N x C x H x W; None where there are none.

    A defense that is one has a `purified` and the `model` behind it.
    """
    seen: Tensor = images
    inner: Any = model
    while hasattr(inner, "purified"):
        seen, inner = inner.purified(seen), getattr(inner, "model", None)
    return None if seen is images else seen
