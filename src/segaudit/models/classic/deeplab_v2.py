"""DeepLab v2: a dilated backbone, scores from several fields of view, and the maximum over several scales."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from segaudit.models import weights
from segaudit.models.build import IMAGENET, Network
from segaudit.models.classic._backbones import RESNETS, VGG, VGGS, ResNet, dilate, filled
from segaudit.models.classic._parts import choose, numbers, resized, scaled
from segaudit.models.classic.fcn8s import convolved
from segaudit.types import UserError

CAFFE = {"order": "bgr", "scale": 255, "mean": [104.008, 116.669, 122.675], "std": 1.0}
"""The preprocessing of the released Caffe models."""
CONVOLUTION = {"reduce": "conv1", "conv3x3": "conv2", "increase": "conv3"}


def deeplab_v2(
    outputs: int,
    *,
    backbone: str = "resnet101",
    width: float = 1.0,
    rates: Sequence[int] = (6, 12, 18, 24),
    scales: Sequence[float] = (1,),
    caffe: bool = False,
    backbone_weights: str | None = None,
    conversion: str | None = None,
) -> Network:
    """DeepLab v2 on VGG16 or a ResNet, without its CRF (see crf_rnn).

    rates: dilations of the branches; [6, 12, 18, 24] is ASPP-L, [2, 4, 8, 12] ASPP-S, [12] LargeFOV. scales:
    [0.5, 0.75, 1] is multi-scale with max fusion. caffe: the ResNet's strides and the preprocessing of the released
    models. conversion: a file with such a model, converted to PyTorch under either of its usual names (`Scale.layer1`
    or `scale.layer2.block1`); it asks for `caffe: true`.
    Parameters: the paper 20.5 M (VGG16, LargeFOV, 21 classes; in its first version), here 20.5 M; with ResNet-101 and
    ASPP-L 44.0 M, of which the backbone is torchvision's 44.5 M less its dense layer.
    Source: Chen et al. 2018.
    """
    choose("deeplab_v2", "backbone", backbone, (*VGGS, *RESNETS))
    rates, scales = numbers("deeplab_v2", "rates", rates, (int,)), numbers("deeplab_v2", "scales", scales, (int, float))
    if caffe and RESNETS.get(backbone, ("", ()))[0] != "Bottleneck":
        raise UserError(f"classic deeplab_v2: caffe is for resnet50 and resnet101, not {backbone}")
    body: VGG | ResNet
    if backbone in RESNETS:
        body = ResNet(backbone, width, (1, 2, 1, 1), (1, 1, 2, 4), caffe=caffe)
        branches: list[nn.Module] = [_scores(body.channels[-1], outputs, rate) for rate in rates]
    else:
        body, dense = _dilated(VGG(width, norm=backbone == "vgg16_bn")), scaled(1024, width)
        last = body.channels[-1]
        branches = [nn.Sequential(*convolved(last, dense, 3, rate), nn.Conv2d(dense, outputs, 1)) for rate in rates]
    filled(body, backbone_weights)
    net = DeepLabV2(body, branches, scales)
    if conversion is not None:
        if not caffe:
            raise UserError("classic deeplab_v2: a conversion asks for `caffe: true`, the form that it was trained in")
        tensors, _ = weights.read(conversion)
        weights.fill(net, {renamed(key): value for key, value in tensors.items()}, conversion)
    preprocess: dict[str, Any] = CAFFE if caffe else IMAGENET
    return Network(net, {**preprocess, "stride": 8})


class DeepLabV2(nn.Module):
    """A backbone at an eighth, branches whose scores are added up, and the pixelwise maximum over scales."""

    def __init__(self, backbone: VGG | ResNet, branches: Sequence[nn.Module], scales: Sequence[float]) -> None:
        super().__init__()
        self.backbone, self.aspp = backbone, nn.ModuleList(branches)
        self.scales = sorted(scales, reverse=True)

    def forward(self, x: Tensor) -> Tensor:
        """Logits at an eighth of the size of the largest scale."""
        first, *others = (self._scored(x, scale) for scale in self.scales)
        return reduce(torch.maximum, (resized(other, first.shape[2:]) for other in others), first)

    def _scored(self, x: Tensor, scale: float) -> Tensor:
        if scale != 1:
            x = resized(x, [max(1, round(side * scale)) for side in x.shape[2:]])
        x = self.backbone(x)[-1]
        return torch.stack([branch(x) for branch in self.aspp]).sum(0)


def renamed(key: str) -> str:
    """What a tensor of a Caffe conversion is called here, from either of the usual layouts."""
    key = re.sub(r"^(module\.)?(scale|base|Scale)\.", "", key)
    if found := re.fullmatch(r"(?:layer5\.conv2d_list\.|aspp\.(?:stages\.)?c)(\d)\.(\w+)", key):
        return f"aspp.{found[1]}.{found[2]}"
    if found := re.fullmatch(r"layer1\.conv1\.(conv|bn)\.(\w+)", key):
        return f"backbone.{found[1]}1.{found[2]}"
    if found := re.fullmatch(r"layer(\d)\.block(\d+)\.(\w+)\.(conv|bn)\.(\w+)", key):
        layer, block, part, kind, end = found.groups()
        if part in ("proj", "shortcut"):
            own = f"downsample.{int(kind == 'bn')}"
        else:
            own = CONVOLUTION.get(part, part)
            own = own.replace("conv", "bn") if kind == "bn" else own
        return f"backbone.layer{int(layer) - 1}.{int(block) - 1}.{own}.{end}"
    return f"backbone.{key}"


def _scores(inputs: int, outputs: int, rate: int) -> nn.Conv2d:
    made = nn.Conv2d(inputs, outputs, 3, padding=rate, dilation=rate)
    nn.init.normal_(made.weight, std=0.01)
    return made


def _dilated(body: VGG) -> VGG:
    """VGG16 as DeepLab has it: overlapping pooling, the last two without a stride, the last stage dilated."""
    for number, pool in enumerate(body.pools):
        body.features[pool] = nn.MaxPool2d(3, 2 if number < 3 else 1, 1)
    dilate(body.stage(4), 2)
    return body
