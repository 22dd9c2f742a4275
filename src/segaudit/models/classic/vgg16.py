"""VGG16 in the form that is used on CIFAR-10."""

from __future__ import annotations

from torch import Tensor, nn

from segaudit.models.build import IMAGENET, Network
from segaudit.models.classic._backbones import VGG, filled
from segaudit.models.classic._parts import statistics


def vgg16(outputs: int, *, width: float = 1.0, channels: int = 3, backbone_weights: str | None = None) -> Network:
    """VGG16 with batch norm as a classifier of images of about 32 x 32, its dense layers but the last left out.

    channels: of the image. Sides are padded to a multiple of 32, so that its five poolings fit.
    Parameters: the paper 138 M, of which 123.6 M are in the three dense layers; here 14.7 M (10 classes).
    Source: Simonyan & Zisserman 2015; for CIFAR-10: Liu & Deng 2015.
    """
    backbone = VGG(width, norm=True, inputs=channels)
    filled(backbone, backbone_weights)
    preprocess = IMAGENET if channels == 3 else statistics(channels)
    return Network(VGG16(outputs, backbone), {**preprocess, "stride": 32})


class VGG16(nn.Module):
    """The 13 convolutions, their mean over the picture, and one dense layer."""

    def __init__(self, outputs: int, backbone: VGG) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.channels[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits N x K."""
        made: Tensor = self.head(self.backbone(x)[-1].mean((2, 3)))
        return made
