"""ENet: narrow bottlenecks at an eighth of the size, and a decoder that is smaller still."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segaudit.models.build import IMAGENET, Network
from segaudit.models.classic._parts import scaled, unpool


def enet(outputs: int, *, width: float = 1.0) -> Network:
    """ENet, for real-time segmentation.

    Parameters: the paper 0.37 M, here 0.36 M (19 classes).
    Source: Paszke et al. 2016.
    """
    return Network(ENet(outputs, width), {**IMAGENET, "stride": 8})


class ENet(nn.Module):
    """Initial block, three stages down, two up, and a transposed convolution for the scores."""

    def __init__(self, outputs: int, width: float) -> None:
        super().__init__()
        small, middle, large = (scaled(count, width, 8) for count in (16, 64, 128))
        self.first = nn.Conv2d(3, small - 3, 3, 2, 1, bias=False)
        self.norm = nn.Sequential(nn.BatchNorm2d(small), nn.PReLU(small))
        self.down1 = Bottleneck(small, middle, step="down", drop=0.01)
        self.stage1 = nn.Sequential(*(Bottleneck(middle, middle, drop=0.01) for _ in range(4)))
        self.down2 = Bottleneck(middle, large, step="down")
        self.stage2, self.stage3 = _dilated(large), _dilated(large)
        self.up4 = Bottleneck(large, middle, step="up", soft=False)
        self.stage4 = nn.Sequential(*(Bottleneck(middle, middle, soft=False) for _ in range(2)))
        self.up5 = Bottleneck(middle, small, step="up", soft=False)
        self.stage5 = Bottleneck(small, small, soft=False)
        self.head = nn.ConvTranspose2d(small, outputs, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits at the input's size."""
        x = self.norm(torch.cat([self.first(x), F.max_pool2d(x, 2)], 1))
        near = F.max_pool2d(x, 2, return_indices=True)[1], x.shape[2:]
        x = self.stage1(self.down1(x))
        far = F.max_pool2d(x, 2, return_indices=True)[1], x.shape[2:]
        x = self.stage3(self.stage2(self.down2(x)))
        x = self.stage4(self.up4(x, far))
        made: Tensor = self.head(self.stage5(self.up5(x, near)))
        return made


class Bottleneck(nn.Module):
    """Three convolutions at a quarter of the channels beside the input. step: `same`, `down` (half) or `up` (twice).

    soft: PReLU; otherwise ReLU, as in the decoder. drop: the share of channels left out in training.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        step: str = "same",
        dilation: int = 1,
        asymmetric: bool = False,
        drop: float = 0.1,
        soft: bool = True,
    ) -> None:
        super().__init__()
        inner, self.step, self.more = max(1, outputs // 4), step, outputs - inputs
        edge = 2 if step == "down" else 1
        middle: list[nn.Module] = [nn.Conv2d(inner, inner, 3, padding=dilation, dilation=dilation, bias=False)]
        if step == "up":
            middle = [nn.ConvTranspose2d(inner, inner, 3, 2, 1, output_padding=1, bias=False)]
        elif asymmetric:
            middle = [nn.Conv2d(inner, inner, (5, 1), padding=(2, 0), bias=False)]
            middle += [nn.Conv2d(inner, inner, (1, 5), padding=(0, 2), bias=False)]
        self.body = nn.Sequential(
            nn.Conv2d(inputs, inner, edge, edge, bias=False),
            *_normed(inner, soft),
            *middle,
            *_normed(inner, soft),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.Dropout2d(drop),
        )
        self.main: nn.Module = nn.Identity()
        if step == "up":
            self.main = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.act = nn.PReLU(outputs) if soft else nn.ReLU()

    def forward(self, x: Tensor, places: tuple[Tensor, torch.Size] | None = None) -> Tensor:
        """The input's map at the step's size; places: where `up` puts the values, and the size to reach."""
        main = self.main(x)
        if self.step == "down":
            main = F.pad(F.max_pool2d(x, 2), (0, 0, 0, 0, 0, self.more))
        if places is not None:
            main = unpool(main, *places)
        made: Tensor = self.act(main + self.body(x))
        return made


def _normed(channels: int, soft: bool) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.PReLU(channels) if soft else nn.ReLU()]


def _dilated(channels: int) -> nn.Sequential:
    """The eight bottlenecks of stages 2 and 3: plain, dilated, asymmetric, dilated, and that again."""
    layers = []
    for first, second in ((2, 4), (8, 16)):
        layers += [Bottleneck(channels, channels), Bottleneck(channels, channels, dilation=first)]
        layers += [Bottleneck(channels, channels, asymmetric=True), Bottleneck(channels, channels, dilation=second)]
    return nn.Sequential(*layers)
