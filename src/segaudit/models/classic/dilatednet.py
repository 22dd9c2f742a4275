"""DilatedNet: VGG16 that stays at an eighth, and a context module that looks ever wider."""

from __future__ import annotations

from torch import Tensor, nn

from segaudit.models.build import IMAGENET, Network
from segaudit.models.classic._backbones import VGG, dilate, filled
from segaudit.models.classic._parts import scaled
from segaudit.models.classic.fcn8s import convolved

DILATIONS = (1, 1, 2, 4, 8, 16, 1)


def dilatednet(
    outputs: int,
    *,
    width: float = 1.0,
    context: bool = True,
    batch_norm: bool = False,
    backbone_weights: str | None = None,
) -> Network:
    """The dilated VGG16 front end, with the basic context module on its scores or (`context: false`) without.

    Padded with zeros. batch_norm: after VGG16's convolutions, for training from scratch.
    Parameters: the paper 64 C^2 in the context module of C classes, here that and its biases (8 C); the front end
    134.3 M, for which the paper has no figure: its layers are those of FCN8s (134 M).
    Source: Yu & Koltun 2016.
    """
    backbone = VGG(width, norm=batch_norm)
    filled(backbone, backbone_weights)
    return Network(DilatedNet(outputs, backbone, scaled(4096, width), context=context), {**IMAGENET, "stride": 8})


class DilatedNet(nn.Module):
    """VGG16 without its last two poolings, dilated in their place, and the context module."""

    def __init__(self, outputs: int, backbone: VGG, dense: int, *, context: bool) -> None:
        super().__init__()
        self.backbone = backbone
        for pool in backbone.pools[3:]:
            backbone.features[pool] = nn.Identity()
        dilate(backbone.stage(4), 2)
        self.dense = convolved(backbone.channels[-1], dense, 7, dilation=4)
        self.score = nn.Conv2d(dense, outputs, 1)
        layers: list[nn.Module] = []
        for dilation in DILATIONS:
            layers += [nn.Conv2d(outputs, outputs, 3, padding=dilation, dilation=dilation), nn.ReLU(inplace=True)]
        self.context = nn.Sequential(*layers, nn.Conv2d(outputs, outputs, 1)) if context else nn.Identity()
        for module in self.context.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.dirac_(module.weight)  # it begins as the identity, without which the paper's does not learn
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits at an eighth of the input's size."""
        x = self.score(self.dense(self.backbone(x)[-1]))
        made: Tensor = self.context(x)
        return made
