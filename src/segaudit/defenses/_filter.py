"""A model that sees its images through a filter: what most test-time defenses are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from segaudit.defenses._check import choice
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
        self.gradient = choice(defense, "gradient", gradient, GRADIENTS)

    def forward(self, images: Tensor) -> Tensor:
        """Logits N x K x H x W of the filtered images."""
        with torch.autocast(images.device.type, enabled=False):  # a filter in bfloat16 is another filter
            if self.gradient == "exact":
                seen = self.filter(images)
            else:
                with torch.no_grad():
                    seen = self.filter(images)
                seen = through(images, seen)
        logits: Tensor = self.model(seen)
        return logits
