"""A small network that looks at another's outputs."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from segaudit.nn.norms import groups
from segaudit.types import VOID


class OutputNet(nn.Module):
    """One number an image, of a network's output and the true mask: higher = more likely trained on.

    Strided convolutions with group norms, and the mean over places, so maps may be of any size, 1 x 1 among them.
    Source: Shokri et al. 2017 (the attack network); of output and mask as Type II in He et al. 2020.
    """

    def __init__(self, classes: int, width: int = 16) -> None:
        super().__init__()
        sizes = [2 * classes, width, 2 * width, 4 * width, 4 * width]
        self.body = nn.Sequential(*(_stage(i, o) for i, o in pairwise(sizes)))
        self.head = nn.Linear(sizes[-1], 1)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """N numbers of logits N x K x H x W and labels N x H x W; what is void is 0 in both."""
        valid = (labels != VOID)[:, None]
        p = logits.float().softmax(1) * valid
        own = torch.zeros_like(p).scatter_(1, labels.where(labels != VOID, 0)[:, None], 1.0) * valid
        scores: Tensor = self.head(self.body(torch.cat([p, own], 1)).mean((2, 3)))
        return scores[:, 0]


def _stage(inputs: int, outputs: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(groups(outputs), outputs), nn.ReLU())
