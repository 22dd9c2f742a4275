"""A net of your own, as segaudit can audit it without knowing it: plain torch, in a file, built by a function.

It was made in OpenCV habits: pixels in the order blue, green, red, from 0 to 255, less the mean of CamVid. Its 12
outputs are CamVid's 11 classes and one for void, at a quarter of the image's size. In a spec:

    models:
      - source: python
        name: "examples/my_net.py:build"
        weights: my_net.safetensors
        preprocess: {order: bgr, scale: 255, mean: [109.8, 108.0, 104.5], stride: 8}
        outputs: 12
        class_map: {11: null}
"""

import torch
from torch import Tensor, nn


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class MyNet(nn.Module):
    """N x 3 x H x W of about -128 to 128 -> N x 12 x H/4 x W/4; H and W are multiples of 8."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.BatchNorm2d(3)
        self.quarter = nn.Sequential(block(3, width, 2), block(width, 2 * width, 2), block(2 * width, 2 * width))
        self.eighth = nn.Sequential(block(2 * width, 4 * width, 2), block(4 * width, 4 * width))
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.head = nn.Conv2d(6 * width, 12, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        near = self.quarter(self.scale(x))
        far = self.up(self.eighth(near))
        return {"out": self.head(torch.cat([near, far], dim=1))}


def build(width: int = 16) -> nn.Module:
    """The net with fresh weights; `segaudit train` or your own script fills them."""
    return MyNet(width)
