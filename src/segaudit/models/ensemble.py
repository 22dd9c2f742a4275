"""Several models as one: what images are made on that are to fool yet another."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segaudit.types import Segmenter, UserError


class Ensemble(Segmenter):
    """The mean of several models' softmax, in log space: logits N x K x H x W whose softmax is that mean.

    A class that one of the models has no output for is left to the others. Raises UserError for models of different
    classes, or for none.
    Source: Liu et al. 2017, the ensemble of white-box models.
    """

    def __init__(self, models: Sequence[Segmenter]) -> None:
        super().__init__()
        if len({model.class_names for model in models}) != 1:
            raise UserError("an ensemble must be of one model or more, all with the same classes")
        self.class_names = models[0].class_names
        self.models = nn.ModuleList(models)

    def forward(self, images: Tensor) -> Tensor:
        """Logits N x K x H x W of images in [0, 1]."""
        each = torch.stack([model(images) for model in self.models])
        return each.log_softmax(2).logsumexp(0) - math.log(len(self.models))
