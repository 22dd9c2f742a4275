"""Tiny networks, and images with their truth: what the contract tests ask attacks about."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segaudit.rng import ImageStreams
from segaudit.types import VOID, Segmenter

KINDS = {"segmentation": 5, "binary": 2, "classifier": 4}
"""The number of classes of each kind of network there is; a classifier's map is 1 x 1."""
HEIGHT, WIDTH = 17, 23
CODES = torch.tensor([[1, 1, 1], [-1, -1, 1], [1, -1, -1], [-1, 1, -1], [0, 0, 0]]).float()
"""How the colour of each class differs from the mean."""


class Net(Segmenter):
    """Convolution, batch norm, ReLU, convolution; a classifier averages its features."""

    def __init__(self, classes: int, *, whole: bool = False, width: int = 12) -> None:
        super().__init__()
        self.class_names = tuple(f"class {k}" for k in range(classes))
        self.first, self.norm = nn.Conv2d(3, width, 5, padding=2), nn.BatchNorm2d(width)
        self.head = nn.Conv2d(width, classes, 1 if whole else 5, padding=0 if whole else 2)
        self.whole = whole

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.first(images)).relu()
        return self.head(features.mean((2, 3), keepdim=True) if self.whole else features)


class Linear(Segmenter):
    """Two classes, linear in a pixel's channels: the logits are 0 and weight . pixel + bias."""

    class_names = ("no", "yes")

    def __init__(self, weight: Tensor, bias: float = 0.0) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight, requires_grad=False), bias

    def forward(self, images: Tensor) -> Tensor:
        yes = (images * self.weight.view(1, -1, 1, 1)).sum(1, keepdim=True) + self.bias
        return torch.cat([torch.zeros_like(yes), yes], 1)


class Flat(Segmenter):
    """The same logits for every image: the gradient is 0 everywhere."""

    def __init__(self, classes: int, *, whole: bool = False) -> None:
        super().__init__()
        self.class_names = tuple(f"class {k}" for k in range(classes))
        self.whole = whole

    def forward(self, images: Tensor) -> Tensor:
        zero = 0 * images[:, :1]
        zero = zero.mean((2, 3), keepdim=True) if self.whole else zero
        return zero + torch.arange(self.num_classes).to(images).view(1, -1, 1, 1)


class Painter(nn.Module):
    """A generator of any image of a size, from one number for each of its values."""

    classes = 0

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape, self.latent = shape, math.prod(shape)

    def sample(self, z: Tensor, labels: None = None) -> Tensor:
        return 0.5 + 0.25 * z.unflatten(1, self.shape)


def draw(kind: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures in noise with their labels: regions (a classifier: whole pictures) told apart by a weak colour.

    A network must average the noise away, which leaves it open to a small perturbation that is not random. Many
    pixels of the first and last channel are at 0 and at 1.
    """
    rng, classes = torch.Generator().manual_seed(seed), KINDS[kind]
    if kind == "classifier":
        labels = torch.randint(classes, (count, 1, 1), generator=rng)
    else:
        fields = torch.randn(count, classes, 3, 4, generator=rng)
        labels = F.interpolate(fields, (HEIGHT, WIDTH), mode="bilinear", align_corners=True).argmax(1)
    strength = {"segmentation": 0.06, "binary": 0.03, "classifier": 0.02}[kind]
    colour = torch.tensor([0.08, 0.5, 0.92]) + strength * CODES[labels].expand(-1, HEIGHT, WIDTH, -1)
    noise = torch.randn(count, HEIGHT, WIDTH, 3, generator=rng)
    return (colour + 0.08 * noise).clamp(0, 1).movedim(3, 1).contiguous(), labels


@lru_cache
def _trained(kind: str) -> Net:
    images, labels = draw(kind, 64, seed=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Net(KINDS[kind], whole=kind == "classifier")
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for step in range(80):
        part = slice(step % 4 * 16, step % 4 * 16 + 16)
        optimizer.zero_grad()
        F.cross_entropy(net(images[part]), labels[part]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return net.eval().requires_grad_(False)


@dataclass(frozen=True)
class Problem:
    """A trained network, images it has not seen, and their truth with some void; a classifier's last one is void."""

    model: Segmenter
    images: Tensor
    labels: Tensor
    ids: tuple[str, ...]

    def streams(self, seed: int = 0) -> ImageStreams:
        return ImageStreams(seed, self.ids, "test")

    def accuracy(self, images: Tensor, labels: Tensor | None = None) -> float:
        """The share of the valid pixels that are predicted as `labels` (default: the truth)."""
        labels = self.labels if labels is None else labels
        with torch.no_grad():
            return float((self.model(images).argmax(1) == labels)[labels != VOID].double().mean())


def problem(kind: str, dtype: torch.dtype = torch.float64, count: int = 4) -> Problem:
    """A network of a kind of `KINDS` and `count` images, the same ones every time."""
    images, labels = draw(kind, count, seed=2)
    if kind == "classifier":
        labels[-1] = VOID
    else:
        labels[:, 3:9, 5:13] = VOID
    return Problem(
        copy.deepcopy(_trained(kind)).to(dtype), images.to(dtype), labels, tuple(f"#{i}" for i in range(count))
    )
