"""FCN8s: scores at three depths, added up from the coarsest to an eighth."""

from __future__ import annotations

from torch import Tensor, nn

from segaudit.models.build import IMAGENET, Network
from segaudit.models.classic._backbones import RESNETS, VGG, VGGS, ResNet, filled
from segaudit.models.classic._parts import choose, initialise, resized, scaled


def fcn8s(outputs: int, *, backbone: str = "vgg16", width: float = 1.0, backbone_weights: str | None = None) -> Network:
    """FCN8s on VGG16 (with or without batch norm) or on a ResNet, which takes the place of the dense layers too.

    Scores are upsampled bilinearly, which the paper's last upsampling is and its others begin as.
    Parameters: the paper 134 M (VGG16, 21 classes), here 134.4 M.
    Source: Long et al. 2015.
    """
    choose("fcn8s", "backbone", backbone, (*VGGS, *RESNETS))
    if backbone in RESNETS:
        return Network(FCN8s(outputs, ResNet(backbone, width), backbone_weights), {**IMAGENET, "stride": 32})
    body = VGG(width, norm=backbone == "vgg16_bn")
    return Network(FCN8s(outputs, body, backbone_weights, scaled(4096, width)), {**IMAGENET, "stride": 32})


class FCN8s(nn.Module):
    """Backbone, what was dense in its classifier (`dense` channels; 0: nothing), and three maps of scores."""

    def __init__(self, outputs: int, backbone: VGG | ResNet, file: str | None = None, dense: int = 0) -> None:
        super().__init__()
        self.backbone = backbone
        filled(backbone, file)
        low, middle, high = backbone.channels[-3:]
        self.dense = convolved(high, dense, 7) if dense else nn.Identity()
        self.score = nn.ModuleList(nn.Conv2d(count, outputs, 1) for count in (low, middle, dense or high))

    def forward(self, x: Tensor) -> Tensor:
        """Logits at an eighth of the input's size."""
        low, middle, high = self.backbone(x)[-3:]
        x = self.score[2](self.dense(high))
        x = resized(x, middle.shape[2:]) + self.score[1](middle)
        made: Tensor = resized(x, low.shape[2:]) + self.score[0](low)
        return made


def convolved(inputs: int, channels: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    """VGG16's two dense layers as convolutions that keep the size."""
    made = nn.Sequential(
        nn.Conv2d(inputs, channels, kernel, padding=dilation * (kernel // 2), dilation=dilation),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Conv2d(channels, channels, 1),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
    )
    initialise(made)
    return made
