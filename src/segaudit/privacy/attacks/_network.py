"""The attack network: maps of many images in, a score each out; learnt on shadows, tried on the victim."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from segaudit.privacy.attacks._evidence import seed_of, shadows_of
from segaudit.privacy.experiment import Asked, Experiment
from segaudit.rng import ImageStreams
from segaudit.training.loop import fit
from segaudit.training.schedule import Schedule
from segaudit.training.standard import standard
from segaudit.types import Floats

Make = Callable[[Tensor, Tensor], Tensor]
"""Logits K x H x W and labels H x W of an image -> the map C x H x W in [0, 1] that the attack network sees."""
FAINT = 1e-6
"""Shares below this look the same to the attack network."""


class AttackNet(nn.Module):
    """Maps N x C x H x W in [0, 1], of any size -> N x 2 x 1 x 1: logits of no member and of member.

    It sees each value and its logarithm, in which sure pixels still differ; a linear layer weighs their means over the
    places, those of `width` features of a pixel, and of as many of its 3 x 3 neighbours. It is that shallow because the
    maps are a few hundred: residual stages learn them by heart and miss what the mean loss alone tells. Its norms are
    over the batch, as one over an image would take away how sure the whole image is.
    Source: Lin et al. 2014 (features of pixels, and their means).
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.pixel, self.around = _features(2 * channels, width, 1, 1), _features(2 * channels, width, 3, 2)
        self.norm = nn.BatchNorm2d(2 * (channels + width))
        self.head = nn.Conv2d(2 * (channels + width), 2, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """The two logits."""
        seen = torch.cat([maps, 1 + (maps + FAINT).log() / -np.log(FAINT)], 1)
        means = [own.mean((2, 3), keepdim=True) for own in (seen, self.pixel(seen), self.around(seen))]
        found: Tensor = self.head(self.norm(torch.cat(means, 1)))
        return found


def _features(entering: int, leaving: int, side: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(entering, leaving, side, stride=stride, padding=side // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(leaving), nn.ReLU())


def tried(
    experiment: Experiment,
    attack: str,
    make: Make,
    rng: Generator,
    *,
    width: int,
    epochs: int,
    batch: int,
    lr: float,
    side: int,
    patch: int | None = None,
    patches: int = 1,
) -> Floats:
    """The score of each candidate, logit of member minus that of none, from a network learnt on the shadows' maps.

    side: maps with more rows or columns are averaged down to so many; without `patch` all to the smallest of them.
    patch: the network sees squares of so many pixels (cut to the smallest map), a random one an epoch, and of a
    candidate `patches` of them, whose scores are added. Nothing is flipped: left and right of a scan differ.
    Raises UserError without shadows.
    """
    seed, maps, member = seed_of(rng), list[Tensor](), list[int]()
    for shadow in shadows_of(experiment, attack):
        for ids, inside in ((shadow.inside, 1), (shadow.outside, 0)):
            made = _maps(experiment, shadow.asked, ids, make, side)
            maps += made
            member += [inside] * len(made)
    asked = _maps(experiment, experiment.victim, experiment.candidates, make, side)
    rows, columns = (min(own.shape[axis] for own in (*maps, *asked)) for axis in (1, 2))
    if patch is None:
        maps, asked = ([_averaged(own, rows, columns) for own in part] for part in (maps, asked))
    square = None if patch is None else min(patch, rows, columns)
    net = _learnt(maps, member, seed, width=width, epochs=epochs, batch=batch, lr=lr, crop=square)
    if square is None:
        return _judged(net, asked)
    streams = ImageStreams(seed, experiment.candidates, "patches")
    found = [_judged(net, _cut(asked, square, streams)) for _ in range(patches)]
    return np.asarray(np.sum(found, axis=0), np.float64)


def _maps(experiment: Experiment, asked: Asked, ids: Sequence[str], make: Make, side: int) -> list[Tensor]:
    """The maps of images, in the order of the ids, of at most `side` rows and columns."""
    found: dict[str, Tensor] = {}
    for names, logits in asked.maps(ids):
        for name, own in zip(names, logits, strict=True):
            one = make(own.float().cpu(), experiment.samples.sample(name)[1])
            found[name] = _averaged(one, min(side, one.shape[1]), min(side, one.shape[2])).clamp(0, 1)
    return [found[name] for name in ids]


def _averaged(one: Tensor, height: int, width: int) -> Tensor:
    return one if one.shape[1:] == (height, width) else F.adaptive_avg_pool2d(one, (height, width))


def _cut(maps: Sequence[Tensor], side: int, streams: ImageStreams) -> list[Tensor]:
    """A random square of each map."""
    places = streams.uniform(torch.empty(len(maps), 2)).tolist()
    found = []
    for one, (down, along) in zip(maps, places, strict=True):
        top, left = int(down * (one.shape[1] - side + 1)), int(along * (one.shape[2] - side + 1))
        found.append(one[:, top : top + side, left : left + side])
    return found


class _Kept:
    """Maps with whether their image is a member, as the training loop wants its images."""

    def __init__(self, maps: Sequence[Tensor], member: Sequence[int]) -> None:
        self.ids = tuple(str(row) for row in range(len(maps)))
        self._maps, self._member = maps, member

    def sample(self, image_id: str) -> tuple[Tensor, Tensor]:
        """A map C x H x W and its label 1 x 1."""
        return self._maps[int(image_id)], torch.full((1, 1), self._member[int(image_id)])


def _learnt(
    maps: Sequence[Tensor],
    member: Sequence[int],
    seed: int,
    *,
    width: int,
    epochs: int,
    batch: int,
    lr: float,
    crop: int | None,
) -> AttackNet:
    """An attack network that has learnt who of these is a member; torch's own generator is left as it was."""
    views: dict[str, Any] = {"flip": False} | ({"crop": [crop, crop]} if crop else {})
    schedule = Schedule(epochs=epochs, batch=batch, lr=lr, seed=seed, precision="fp32", augment=views)
    with torch.random.fork_rng(devices=[]), TemporaryDirectory() as folder:
        torch.manual_seed(seed)
        net = AttackNet(maps[0].shape[0], width)
        fit(net, _Kept(maps, member), None, standard, schedule, Path(folder))
    _settle(net, maps if crop is None else _cut(maps, crop, ImageStreams(seed, [str(i) for i in range(len(maps))])))
    return net


@torch.no_grad()
def _settle(net: AttackNet, maps: Sequence[Tensor]) -> None:
    """Let the norms know all maps of the training by the weights that it came to, in place of a fading mean.

    After few steps that mean still holds what the norms began with, and the threshold is off.
    """
    for norm in (part for part in net.modules() if isinstance(part, nn.BatchNorm2d)):
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean of the batches
    device = next(net.parameters()).device
    net.train()
    for rows in torch.arange(len(maps)).tensor_split(-(-len(maps) // 32)):
        net(torch.stack([maps[row] for row in rows.tolist()]).to(device))
    net.eval()


@torch.no_grad()
def _judged(net: AttackNet, maps: Sequence[Tensor]) -> Floats:
    """Logit of member minus that of none, of maps of one size."""
    device = next(net.parameters()).device
    parts = [net(torch.stack(list(maps[row : row + 32])).to(device)).double().cpu() for row in range(0, len(maps), 32)]
    found = torch.cat(parts)[:, :, 0, 0]
    return np.asarray((found[:, 1] - found[:, 0]).numpy(), np.float64)
