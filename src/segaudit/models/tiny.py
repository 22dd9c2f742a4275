"""Three tiny networks of different families, in torch alone: what the demo attacks and the tests train."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segaudit import registry
from segaudit.models.build import Network
from segaudit.types import UserError


def tiny(name: str, outputs: int, width: int | None = None) -> Network:
    """A small network with random weights: `unet`, `pyramid` or `dilated`; width: channels of its first stage.

    Images N x 3 x H x W are padded to its stride (16, 8 or 4). Raises UserError for another name or width.
    Source: ours, after U-Net (Ronneberger et al. 2015), PSPNet (Zhao et al. 2017) and DilatedNet (Yu & Koltun 2016).
    """
    if name not in NETWORKS:
        raise UserError(
            f"tiny has no network {name!r}{registry.suggest(name, NETWORKS)}; it has: {', '.join(NETWORKS)}"
        )
    make, usual, stride = NETWORKS[name]
    width = usual if width is None else width
    if not isinstance(width, int) or width < 1:
        raise UserError(f"tiny {name}: width must be a whole number of at least 1, not {width!r}")
    return Network(make(outputs, width), {"mean": [0.5] * 3, "std": [0.25] * 3, "stride": stride})


class UNet(nn.Module):
    """Encoder and decoder with skips: four halvings, from a stem at half resolution."""

    def __init__(self, outputs: int, width: int) -> None:
        super().__init__()
        sizes = [width, 2 * width, 3 * width, 4 * width]
        self.stem = unit(3, width, stride=2)
        self.down = nn.ModuleList(nn.Sequential(unit(i, o, stride=2), unit(o, o)) for i, o in pairwise(sizes))
        self.up = nn.ModuleList(unit(deep + skip, skip) for deep, skip in zip(sizes[:0:-1], sizes[-2::-1], strict=True))
        self.head = nn.Conv2d(width, 4 * outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits at the input's resolution."""
        x = self.stem(x)
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(x)
        for up in self.up:
            x = up(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skips.pop()], 1))
        return F.pixel_shuffle(self.head(x), 2)


class Pyramid(nn.Module):
    """Residual stages to an eighth, the mean of the picture in 1, 2 x 2 and 4 x 4 parts beside them, one wide head."""

    def __init__(self, outputs: int, width: int) -> None:
        super().__init__()
        self.stem = unit(3, width, stride=2)
        self.low = nn.Sequential(unit(width, 2 * width, stride=2), Residual(2 * width))
        self.deep = nn.Sequential(unit(2 * width, 4 * width, stride=2), *(Residual(4 * width) for _ in range(3)))
        # No batch norm here: over 1 x 1 maps it has nothing to average in a batch of one.
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(n), nn.Conv2d(4 * width, width, 1), nn.ReLU(inplace=True))
            for n in (1, 2, 4)
        )
        self.join = unit(7 * width, 4 * width, 1)
        self.mix = unit(6 * width, 3 * width)
        self.head = nn.Conv2d(3 * width, 16 * outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits at the input's resolution."""
        low = self.low(self.stem(x))
        x = self.deep(low)
        parts = [F.interpolate(pool(x), size=x.shape[2:], mode="bilinear", align_corners=False) for pool in self.pools]
        x = F.interpolate(self.join(torch.cat([x, *parts], 1)), scale_factor=2.0, mode="nearest")
        return F.pixel_shuffle(self.head(self.mix(torch.cat([x, low], 1))), 4)


class Dilated(nn.Module):
    """One resolution (a quarter) and a context module of growing dilation; no skips, no pooling."""

    def __init__(self, outputs: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(unit(3, width, stride=2), unit(width, 2 * width, stride=2))
        self.context = nn.Sequential(*(Residual(2 * width, dilation) for dilation in (1, 2, 4, 8, 4, 1)))
        self.head = nn.Conv2d(2 * width, 16 * outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits at the input's resolution."""
        return F.pixel_shuffle(self.head(self.context(self.stem(x))), 4)


class Residual(nn.Module):
    """Two convolutions around which the input goes as well."""

    def __init__(self, width: int, dilation: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            unit(width, width, dilation=dilation), nn.Conv2d(width, width, 3, padding=1, bias=False)
        )
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return F.relu(x + self.norm(self.body(x)))


def unit(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU; padded to keep the size at stride 1."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=dilation * (kernel // 2), dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


NETWORKS: dict[str, tuple[type[UNet] | type[Pyramid] | type[Dilated], int, int]] = {
    "unet": (UNet, 16, 16),
    "pyramid": (Pyramid, 16, 8),
    "dilated": (Dilated, 16, 4),
}
"""name -> network, usual width, stride."""
