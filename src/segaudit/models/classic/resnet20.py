"""ResNet-20, the small residual network for CIFAR-10."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from segaudit.models.build import IMAGENET, Network
from segaudit.models.classic._backbones import stage
from segaudit.models.classic._parts import initialise, scaled, statistics
from segaudit.models.tiny import unit


def resnet20(outputs: int, *, width: float = 1.0, channels: int = 3) -> Network:
    """ResNet-20 as a classifier of images of about 32 x 32; channels: of the image.

    Its shortcuts have no parameters: every second pixel, and zeros for the new channels.
    Parameters: the paper 0.27 M, here 0.27 M (10 classes).
    Source: He et al. 2016.
    """
    size = scaled(16, width)
    layers: list[nn.Module] = [unit(channels, size)]
    for i, o in ((size, size), (size, 2 * size), (2 * size, 4 * size)):
        made = stage("BasicBlock", i, o, 3, stride=1 if i == o else 2)
        if i != o:
            made[0].downsample = Shortcut(o - i)
        layers.append(made)
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * size, outputs))
    initialise(net)
    return Network(net, IMAGENET if channels == 3 else statistics(channels))


class Shortcut(nn.Module):
    """Every second pixel, and `more` channels of zeros behind."""

    def __init__(self, more: int) -> None:
        super().__init__()
        self.more = more

    def forward(self, x: Tensor) -> Tensor:
        """Half the size, more channels."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.more))
