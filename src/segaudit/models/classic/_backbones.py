"""The backbones that were trained as ImageNet classifiers, under torchvision's names of their parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from segaudit.models import weights
from segaudit.models.classic._parts import initialise, scaled
from segaudit.types import UserError

VGGS = ("vgg16", "vgg16_bn")
RESNETS: dict[str, tuple[str, Sequence[int]]] = {
    "resnet18": ("BasicBlock", (2, 2, 2, 2)),
    "resnet34": ("BasicBlock", (3, 4, 6, 3)),
    "resnet50": ("Bottleneck", (3, 4, 6, 3)),
    "resnet101": ("Bottleneck", (3, 4, 23, 3)),
}
CONVOLUTIONS = (2, 2, 3, 3, 3)
"""Of each of VGG16's five stages."""


class VGG(nn.Module):
    """The 13 convolutions of VGG16: N x 3 x H x W -> what comes out of each of the five poolings.

    channels: of each of them. norm: with a batch norm after every convolution.
    Source: Simonyan & Zisserman 2015, network D.
    """

    def __init__(self, width: float = 1.0, *, norm: bool = False, inputs: int = 3) -> None:
        super().__init__()
        self.channels = tuple(scaled(count, width) for count in (64, 128, 256, 512, 512))
        plan: list[int | str] = []
        for count, channels in zip(CONVOLUTIONS, self.channels, strict=True):
            plan += [*[channels] * count, "M"]
        self.features: nn.Sequential = _library("vgg").make_layers(plan, batch_norm=norm)
        if inputs != 3:
            self.features[0] = nn.Conv2d(inputs, self.channels[0], 3, padding=1)
        self.pools = tuple(i for i, layer in enumerate(self.features) if isinstance(layer, nn.MaxPool2d))
        initialise(self)

    def stage(self, number: int) -> nn.Sequential:
        """What stands before pooling `number`, from 0."""
        start = self.pools[number - 1] + 1 if number else 0
        return self.features[start : self.pools[number]]

    def forward(self, x: Tensor) -> list[Tensor]:
        """The five maps."""
        maps = []
        for number, pool in enumerate(self.pools):
            x = self.features[pool](self.stage(number)(x))
            maps.append(x)
        return maps


class ResNet(nn.Module):
    """A residual network without its classifier: N x 3 x H x W -> the maps of its four stages.

    channels: of each of them. strides, dilations: of each stage; a dilated stage is dilated throughout. caffe: the
    stride of a stage is in the 1 x 1 convolution of its first block, and the pooling rounds sizes up.
    Source: He et al. 2016.
    """

    def __init__(
        self,
        name: str,
        width: float = 1.0,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        *,
        caffe: bool = False,
    ) -> None:
        super().__init__()
        kind, counts = RESNETS[name]
        block = getattr(_library("resnet"), kind)
        first = scaled(64, width)
        self.conv1 = nn.Conv2d(3, first, 7, 2, 3, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(first), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1, ceil_mode=caffe)
        sizes = [first, *(first * 2**i * block.expansion for i in range(4))]
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            stage(kind, sizes[i], first * 2**i, counts[i], strides[i], dilations[i]) for i in range(4)
        )
        for layer, stride in zip(self._layers(), strides, strict=True):
            if caffe and stride > 1:
                layer[0].conv1.stride, layer[0].conv2.stride = (stride, stride), (1, 1)
        self.channels = tuple(sizes[1:])
        initialise(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The four maps."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = []
        for layer in self._layers():
            x = layer(x)
            maps.append(x)
        return maps

    def _layers(self) -> list[Any]:
        return [self.layer1, self.layer2, self.layer3, self.layer4]


def stage(kind: str, inputs: int, planes: int, count: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """A stage of torchvision's residual blocks: `BasicBlock` (planes channels out) or `Bottleneck` (4 planes)."""
    block = getattr(_library("resnet"), kind)
    outputs = planes * block.expansion
    way = None
    if stride != 1 or inputs != outputs:
        way = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    made = nn.Sequential(block(inputs, planes, stride, way), *(block(outputs, planes) for _ in range(count - 1)))
    dilate(made, dilation)
    return made


def dilate(layers: nn.Module, dilation: int) -> None:
    """Dilate every 3 x 3 convolution and keep its output's size."""
    for module in layers.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.dilation = module.padding = (dilation, dilation)


def filled(backbone: nn.Module, file: str | None) -> None:
    """Load the convolutions of a classifier's weights file into a backbone; its head is left out.

    Raises UserError that lists what does not match.
    """
    if file is not None:
        tensors, _ = weights.read(file)
        weights.fill(backbone, tensors, file, unused=("fc.", "classifier."))


def _library(name: str) -> Any:
    try:
        from torchvision.models import resnet, vgg
    except ImportError as error:
        raise UserError(
            "model source classic needs torchvision for its VGG and ResNet: pip install 'segaudit[models]'"
        ) from error
    return {"resnet": resnet, "vgg": vgg}[name]
