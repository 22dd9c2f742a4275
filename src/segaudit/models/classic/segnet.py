"""SegNet: VGG16 and its mirror, which puts values back to where their maxima were."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from segaudit.models.build import IMAGENET, Network
from segaudit.models.classic._backbones import CONVOLUTIONS, VGG, filled
from segaudit.models.classic._parts import initialise, unpool


def segnet(outputs: int, *, width: float = 1.0, backbone_weights: str | None = None) -> Network:
    """SegNet on VGG16 with batch norm; the decoder unpools with the encoder's indices.

    Parameters: the paper 29.45 M, here 29.45 M (11 classes).
    Source: Badrinarayanan et al. 2017.
    """
    return Network(SegNet(outputs, width, backbone_weights), {**IMAGENET, "stride": 32})


class SegNet(nn.Module):
    """Encoder and decoder of 13 convolutions each; the decoder's last one gives the scores."""

    def __init__(self, outputs: int, width: float, file: str | None = None) -> None:
        super().__init__()
        self.backbone = VGG(width, norm=True)
        filled(self.backbone, file)
        for pool in self.backbone.pools:
            self.backbone.features[pool].return_indices = True  # type: ignore[assignment]
        channels = self.backbone.channels
        stages = []
        for number in reversed(range(5)):
            own, out = channels[number], channels[number - 1] if number else outputs
            sizes = [own] * CONVOLUTIONS[number] + [out]
            layers: list[nn.Module] = []
            for i, o in pairwise(sizes):
                layers += [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(inplace=True)]
            stages.append(nn.Sequential(*(layers if number else layers[:-2])))  # scores are neither normed nor cut off
        self.decoder = nn.ModuleList(stages)
        initialise(self.decoder)

    def forward(self, x: Tensor) -> Tensor:
        """Logits at the input's size."""
        places = []
        for number, pool in enumerate(self.backbone.pools):
            x = self.backbone.stage(number)(x)
            size = x.shape[2:]
            x, indices = self.backbone.features[pool](x)
            places.append((indices, size))
        for stage in self.decoder:
            x = stage(unpool(x, *places.pop()))
        return x
