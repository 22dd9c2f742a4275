"""Norms that no image shares with its neighbours in the batch."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

Model = TypeVar("Model", bound=nn.Module)
MOST = 32
"""Groups at most, as in the paper."""
LEAST = 4
"""Channels of a group at least, where there are as many: of one alone, at one place, nothing is left but the bias."""


def group_norms(model: Model) -> Model:
    """The model, changed in place: each batch norm is a group norm with its scale and shift, nothing works in place.

    The running statistics are gone, so it is for networks that are to be trained. What a layer with a norm gives is a
    copy while it trains: residual sums that are added to it in place (`x += skip`), and activations, would else be
    refused by the hooks that gradients of single images are taken with.
    Source: Wu & He 2018 (group norm).
    """
    made: dict[nn.Module, nn.Module] = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                if child not in made:
                    made[child] = _grouped(child)
                setattr(parent, name, made[child])
    for module in model.modules():
        if type(getattr(module, "inplace", None)) is bool:
            module.inplace = False  # type: ignore[assignment]
    return model


def groups(channels: int) -> int:
    """As many groups as there may be, of at least `LEAST` channels each; one where there are fewer."""
    return max(n for n in range(1, MOST + 1) if channels % n == 0 and (n == 1 or channels // n >= LEAST))


def coupled(model: nn.Module) -> str | None:
    """The name of a part that makes an image depend on others while it trains; None without."""
    for name, module in model.named_modules():
        counts = isinstance(module, _InstanceNorm) and module.track_running_stats
        if isinstance(module, _BatchNorm) or counts:
            return str(name)
    return None


class _Fresh(nn.Module):
    """The same numbers in memory of their own."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone() if torch.is_grad_enabled() and self.training else x


def _grouped(norm: _BatchNorm) -> nn.Sequential:
    weight = norm.weight if norm.affine else next(iter(norm.buffers()), torch.empty(0))
    made = nn.GroupNorm(groups(norm.num_features), norm.num_features, norm.eps, norm.affine)
    made = made.to(weight.device, weight.dtype)
    if norm.affine:
        made.weight, made.bias = norm.weight, norm.bias
    parts = [made, _Fresh()]
    parts += [part for key in ("drop", "act") if isinstance(part := getattr(norm, key, None), nn.Module)]  # of timm's
    return nn.Sequential(*parts).train(norm.training)
