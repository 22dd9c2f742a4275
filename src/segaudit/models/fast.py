"""The same network, made cheap to differentiate: what attacks take their gradients from. The verdict never is."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from segaudit.models.opaque import has_gradient
from segaudit.nn.precision import is_exact
from segaudit.rng import ImageStreams, drawing
from segaudit.types import Segmenter, UserError

TOLERANCE = 1e-3
"""How far folding may move the logits, relative to the largest of them, before it is undone."""


class Fast(Segmenter):
    """A copy of a Segmenter with folded batch norms, channels-last weights, and bf16 arithmetic where asked.

    precision: `bf16` (autocast, but not inside of `segaudit.nn.precision.exactly`) or `fp32`. Logits are float32, or
    float64 for such images.
    """

    def __init__(self, model: Segmenter, precision: str, probe: Tensor) -> None:
        super().__init__()
        self.class_names = model.class_names
        made = folded(model, probe) if has_gradient(model) else model  # a function would be asked in vain
        self.model = made.to(memory_format=torch.channels_last)
        self.bf16 = precision == "bf16"
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits N x K x H x W of images in [0, 1]."""
        cheap = self.bf16 and images.dtype == torch.float32 and not is_exact()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=cheap):
            logits: Tensor = self.model(images)
        if torch.is_grad_enabled() and images.requires_grad and not logits.requires_grad:
            raise UserError(
                "the model's logits have no gradient (does it run under torch.no_grad, or detach?): attack it with "
                "square, or transfer images from another model"
            )
        exact = torch.float32 if logits.dtype == torch.bfloat16 else logits.dtype
        return logits.to(exact, memory_format=torch.contiguous_format)  # sums over classes are several times as fast


def folded(model: Segmenter, probe: Tensor) -> Segmenter:
    """A copy whose batch norms are folded into the convolutions that feed them (exact in eval mode).

    Which norm follows which convolution is seen in a forward pass on `probe` (1 x C x H x W); where the result is
    not the same to `TOLERANCE`, the copy is left as it was.
    """
    plain = copy.deepcopy(model).eval()
    mended = copy.deepcopy(plain)
    with torch.no_grad(), drawing(ImageStreams(0, ("probe",))):
        for conv, norm in _pairs(mended, probe):
            _replace(mended, conv, fuse_conv_bn_eval(_module(mended, conv), _module(mended, norm)))
            _replace(mended, norm, _rest(_module(mended, norm)))
    before, after = _logits(plain, probe), _logits(mended, probe)
    same = (before - after).abs().max() <= TOLERANCE * before.abs().max().clamp_min(1e-6)
    return mended if same else plain


@torch.no_grad()
def _logits(model: Segmenter, probe: Tensor) -> Tensor:
    """On the probe; of a random model, always those of the same draw."""
    with drawing(ImageStreams(0, ("probe",))):
        logits: Tensor = model(probe)
    return logits


def _pairs(model: nn.Module, probe: Tensor) -> list[tuple[str, str]]:
    """(convolution, batch norm) names where each is used for the other alone, in every call of a forward pass."""
    made: dict[tuple[int, int], str] = {}
    calls: dict[str, int] = {}
    keep: list[Tensor] = []
    pairs: list[tuple[str, str]] = []
    with _hooks() as handles:
        for name, module in model.named_modules():
            if type(module) is nn.Conv2d:

                def convolved(_m: nn.Module, _i: Any, output: Tensor, name: str = name) -> None:
                    keep.append(output)  # so that no id is used again
                    made[id(output), output._version] = name
                    calls[name] = calls.get(name, 0) + 1

                handles.append(module.register_forward_hook(convolved))
            elif isinstance(module, nn.BatchNorm2d) and module.track_running_stats and not module.training:

                def normed(_m: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
                    key = (id(inputs[0]), inputs[0]._version)  # what works in place between them raises the version
                    if key in made:
                        pairs.append((made[key], name))

                handles.append(module.register_forward_pre_hook(normed))
        model(probe)
    convs, norms = [conv for conv, _ in pairs], [norm for _, norm in pairs]
    return [p for p, n in Counter(pairs).items() if calls[p[0]] == convs.count(p[0]) == norms.count(p[1]) == n]


@contextmanager
def _hooks() -> Iterator[list[Any]]:
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def _rest(norm: nn.Module) -> nn.Module:
    """What is left of a norm once it is folded: nothing, or the activation that timm's norms hold."""
    inside = [getattr(norm, part) for part in ("drop", "act") if isinstance(getattr(norm, part, None), nn.Module)]
    return nn.Sequential(*inside) if inside else nn.Identity()


def _module(model: nn.Module, name: str) -> Any:
    return model.get_submodule(name)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)
