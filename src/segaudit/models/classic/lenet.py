"""LeNet-5, a classifier of digits."""

from __future__ import annotations

from torch import nn

from segaudit.models.build import IMAGENET, Network
from segaudit.models.classic._parts import scaled, statistics


def lenet(outputs: int, *, width: float = 1.0, channels: int = 3) -> Network:
    """LeNet-5 as a classifier, with ReLU and max pooling, for images of 28 x 28.

    Images of other sizes, from 10 x 10 on, are pooled to its 5 x 5.
    channels: of the image (1 for grey). The third layer sees all maps of the second, not the paper's choice of them.
    Parameters: the paper 60,000, here 61,706 (one channel, 10 classes).
    Source: LeCun et al. 1998.
    """
    first, second, third, fourth = (scaled(count, width) for count in (6, 16, 120, 84))
    net = nn.Sequential(
        nn.Conv2d(channels, first, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(5),
        nn.Conv2d(second, third, 5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(third, fourth),
        nn.ReLU(),
        nn.Linear(fourth, outputs),
    )
    return Network(net, IMAGENET if channels == 3 else statistics(channels))
