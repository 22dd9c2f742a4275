"""The two halves of the dense autoencoders: images to a few numbers, and a few numbers to images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}
WIDTHS = (8, 16, 32)
"""Channels after each convolution, which halves the size."""
HIDDEN = 128

Side = tuple[int, int]


class Encoder(nn.Module):
    """Images N x C x H x W -> N x outputs numbers: three convolutions of stride 2, two dense layers.

    labels: how many numbers of an image's label come in before the dense layers, 0 for none. The last convolution has
    no padding where the image is large enough: 28 x 28 becomes 14, 7 and 3, and 288 numbers.
    Source: ours.
    """

    def __init__(self, channels: int, size: Side, outputs: int, activation: str, labels: int = 0) -> None:
        super().__init__()
        act, places = ACTIVATIONS[activation], _places(size)
        layers: list[nn.Module] = []
        for i, (inputs, width) in enumerate(pairwise((channels, *WIDTHS))):
            layers.append(nn.Conv2d(inputs, width, 3, stride=2, padding=_padding(i, places)))
            layers += [nn.BatchNorm2d(width), act()] if i == 1 else [act()]
        self.body = nn.Sequential(*layers, nn.Flatten())
        flat = WIDTHS[-1] * places[-1][0] * places[-1][1]
        self.dense = nn.Sequential(nn.Linear(flat + labels, HIDDEN), act(), nn.Linear(HIDDEN, outputs))

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Numbers N x outputs; labels: N x `labels`."""
        found = self.body(images)
        made: Tensor = self.dense(found if labels is None else torch.cat([found, labels.to(found)], 1))
        return made


class Decoder(nn.Module):
    """N x inputs numbers -> images N x C x H x W in [0, 1]: the encoder mirrored, with a sigmoid."""

    def __init__(self, channels: int, size: Side, inputs: int, activation: str) -> None:
        super().__init__()
        act, places = ACTIVATIONS[activation], _places(size)
        self.first = (WIDTHS[-1], *places[-1])
        flat = WIDTHS[-1] * places[-1][0] * places[-1][1]
        self.dense = nn.Sequential(nn.Linear(inputs, HIDDEN), act(), nn.Linear(HIDDEN, flat), act())
        layers: list[nn.Module] = []
        widths = (*reversed(WIDTHS), channels)
        for j, (width, outputs) in enumerate(pairwise(widths)):
            i = len(WIDTHS) - 1 - j
            padding = _padding(i, places)
            missing = [above - (2 * below - 2 * padding + 1) for above, below in zip(*places[i : i + 2], strict=True)]
            layers.append(nn.ConvTranspose2d(width, outputs, 3, 2, padding, (missing[0], missing[1])))
            layers += [nn.BatchNorm2d(outputs), act()] if i else []
        self.body = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Images N x C x H x W."""
        found: Tensor = self.body(self.dense(z).unflatten(1, self.first))
        exact = torch.promote_types(found.dtype, torch.float32)  # in bfloat16 a pixel of 0.998 is 1, and learns nothing
        return found.to(exact).sigmoid()


def _places(size: Side) -> list[Side]:
    """H x W before each convolution, and after the last."""
    found = [size]
    for i in range(len(WIDTHS)):
        padding = 0 if i == len(WIDTHS) - 1 and min(found[-1]) >= 3 else 1
        height, width = ((side + 2 * padding - 3) // 2 + 1 for side in found[-1])
        found.append((height, width))
    return found


def _padding(layer: int, places: Sequence[Side]) -> int:
    return 0 if layer == len(WIDTHS) - 1 and min(places[layer]) >= 3 else 1
