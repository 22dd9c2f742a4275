"""Any `nn.Module` -> Segmenter: everything between a picture in [0, 1] and logits at the label's size lives here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segaudit.types import NEVER, Segmenter, UserError

LUMA = (0.299, 0.587, 0.114)
"""The weights of red, green and blue in a grey picture (ITU-R BT.601, as Pillow and OpenCV use them)."""


class Wrapped(Segmenter):
    """A network with its preprocessing in front and its output made a Segmenter's.

    net: takes N x C x H x W; gives logits as a tensor, the first of a tuple or list, or under `out`, `logits` or
    `pred` of a mapping or object, at any resolution; N x K is a classifier.
    order: what the network sees of an RGB image: `rgb` (as it is, any number of channels), `bgr`, or `grey` (one
    channel). scale: factor on the image (255: networks that want [0, 255]). mean, std: after order and scale, one
    number or one a channel.
    stride: height and width are padded to a multiple of it (edge pixels repeated) and the logits are cropped.
    outputs: channels that the network has; 1 is a binary network's one logit, read as two classes.
    class_map: output -> class number, or None for an output that is left out; several outputs of one class are
    merged by their largest; outputs that are not named keep their own number.
    Raises UserError for what does not fit together, here or at the first images.
    """

    def __init__(
        self,
        net: nn.Module,
        class_names: Sequence[str],
        *,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        scale: float = 1.0,
        order: str = "rgb",
        stride: int = 1,
        outputs: int | None = None,
        class_map: Mapping[int, int | None] | None = None,
    ) -> None:
        super().__init__()
        if order not in ("rgb", "bgr", "grey"):
            raise UserError(f"model: preprocess.order must be rgb, bgr or grey, not {order!r}")
        if type(stride) is not int or stride < 1:
            raise UserError(f"model: preprocess.stride must be a whole number of at least 1, not {stride!r}")
        if type(scale) not in (int, float) or not 0 < scale < math.inf:
            raise UserError(f"model: preprocess.scale must be a number above 0, not {scale!r}")
        means, stds = _numbers("mean", mean), _numbers("std", std)
        if any(value <= 0 for value in stds):
            raise UserError(f"model: preprocess.std must be above 0, not {std!r}")
        self.net = net
        self.class_names = tuple(class_names)
        self.scale, self.order, self.stride = float(scale), order, stride
        self.outputs = len(class_names) if outputs is None else outputs
        self.groups = _groups(self.outputs, self.num_classes, class_map)
        self.register_buffer("mean", torch.tensor(means).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(stds).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("luma", torch.tensor(LUMA).view(1, 3, 1, 1), persistent=False)
        single = self.groups is not None and all(len(group) == 1 for group in self.groups)
        picked = torch.tensor([group[0] for group in self.groups or ()]) if single else None
        self.register_buffer("picked", picked, persistent=False)
        self.eval().requires_grad_(False)

    mean: Tensor
    std: Tensor
    luma: Tensor
    picked: Tensor | None

    def extra_repr(self) -> str:
        """What stands between images and logits, beside the network and the buffers."""
        return f"scale={self.scale}, order={self.order}, stride={self.stride}, groups={self.groups}"

    def forward(self, images: Tensor) -> Tensor:
        """Logits N x K x H x W (N x K x 1 x 1 of a classifier) of images in [0, 1]."""
        size = images.shape[2:]
        logits = _tensor(self._run(self._prepare(images)))
        if logits.ndim == 2:
            logits = logits[:, :, None, None]
        elif logits.ndim == 4:
            padded = [side + (-side) % self.stride for side in size]
            if list(logits.shape[2:]) != padded:
                logits = F.interpolate(logits, size=padded, mode="bilinear", align_corners=False)
            logits = logits[:, :, : size[0], : size[1]]
        else:
            raise UserError(f"model: the network gives a tensor of shape {tuple(logits.shape)}, not N x K x H x W")
        if logits.shape[1] != self.outputs:
            raise UserError(
                f"model: the network has {logits.shape[1]} outputs, not {self.outputs} (the data's "
                f"{self.num_classes} classes); give the model `outputs: {logits.shape[1]}` and a class_map"
            )
        return self._classes(logits)

    def _run(self, images: Tensor) -> Any:
        try:
            return self.net(images)
        except RuntimeError as error:
            if "expected input" in str(error) and "channels" in str(error):
                mend = "preprocess `order: grey` gives it one" if images.shape[1] == 3 else "build it for as many"
                raise UserError(
                    f"model: the network does not take images of {images.shape[1]} channels ({str(error).strip()}); "
                    f"{mend}"
                ) from error
            raise

    def _prepare(self, images: Tensor) -> Tensor:
        if self.order != "rgb" and images.shape[1] != 3:
            raise UserError(
                f"model: preprocess.order {self.order} is for 3 channels; the images have {images.shape[1]}"
            )
        if self.order == "bgr":
            images = images.flip(1)
        elif self.order == "grey":
            images = (images * self.luma.to(images.dtype)).sum(1, keepdim=True)
        for key, values in (("mean", self.mean), ("std", self.std)):
            if values.shape[1] not in (1, images.shape[1]):
                raise UserError(
                    f"model: preprocess.{key} has {values.shape[1]} numbers, but the network's images "
                    f"{images.shape[1]} channels; give one number, or one a channel"
                )
        if self.scale != 1:
            images = images * self.scale
        images = (images - self.mean.to(images.dtype)) / self.std.to(images.dtype)
        bottom, right = (-images.shape[2]) % self.stride, (-images.shape[3]) % self.stride
        return F.pad(images, (0, right, 0, bottom), mode="replicate") if bottom or right else images

    def _classes(self, logits: Tensor) -> Tensor:
        if self.outputs == 1:
            return torch.cat([torch.zeros_like(logits), logits], dim=1)
        if self.groups is None:
            return logits
        if self.picked is not None:
            return logits.index_select(1, self.picked)
        empty = torch.full_like(logits[:, :1], NEVER)
        return torch.cat([logits[:, group].amax(1, keepdim=True) if group else empty for group in self.groups], dim=1)


def _groups(outputs: int, classes: int, class_map: Mapping[int, int | None] | None) -> list[list[int]] | None:
    """The outputs of each class, or None where output i is class i (or one logit stands for both)."""
    if outputs < 1:
        raise UserError(f"model: outputs must be at least 1, not {outputs}")
    if outputs == 1:
        if classes != 2:
            raise UserError(f"model: a network with one output is binary, but the data have {classes} classes")
        if class_map is not None:
            raise UserError("model: a network with one output takes no class_map; its logit is that of class 1")
        return None
    if class_map is None:
        if outputs != classes:
            way = (
                f"such as {{{classes}: null}} to leave out output {classes}"
                if outputs > classes
                else "such as {0: 0}; a class without an output is never predicted"
            )
            raise UserError(f"model: {outputs} outputs for {classes} classes need a class_map, {way}")
        return None
    unknown = [output for output in class_map if not 0 <= output < outputs]
    if unknown:
        raise UserError(
            f"model: class_map names output {unknown[0]}, but the outputs are 0 to {outputs - 1}; "
            "`outputs` says how many the network has"
        )
    chosen = {i: class_map.get(i, i) for i in range(outputs)}
    for output, number in chosen.items():
        if number is not None and not 0 <= number < classes:
            raise UserError(
                f"model: class_map sends output {output} to class {number}, but there are {classes} classes "
                f"(0 to {classes - 1}); null leaves an output out"
            )
    return [[output for output, number in chosen.items() if number == k] for k in range(classes)]


def _numbers(key: str, value: Any) -> list[float]:
    found = list(value) if isinstance(value, (list, tuple)) else [value]
    if not found or not all(type(x) in (int, float) and math.isfinite(x) for x in found):
        raise UserError(f"model: preprocess.{key} must be a number, or a list of one a channel, not {value!r}")
    return [float(x) for x in found]


def _tensor(output: Any) -> Tensor:
    """The logits in whatever a network returns."""
    while not isinstance(output, Tensor):
        for key in ("out", "logits", "pred"):
            if isinstance(output, Mapping) and key in output:
                output = output[key]
                break
            if not isinstance(output, Mapping) and hasattr(output, key):
                output = getattr(output, key)
                break
        else:
            if isinstance(output, (tuple, list)) and output:
                output = output[0]
            else:
                raise UserError(
                    f"model: the network returns a {type(output).__name__} without `out`, `logits` or `pred`"
                )
    return output
