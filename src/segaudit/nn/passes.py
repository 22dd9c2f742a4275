"""What an attack does with a network, seen by hooks and not told by the attack: passes, and how it gets on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segaudit.types import VOID


@dataclass
class Passes:
    """Images that went forward through a network, and gradients that came back."""

    forwards: int = 0
    backwards: int = 0


@contextmanager
def count_passes(model: nn.Module) -> Iterator[Passes]:
    """Count the images that pass through the model inside the block, forward and backward."""
    passes = Passes()

    def seen(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        passes.forwards += len(output)
        if output.requires_grad:
            output.register_hook(came_back)  # type: ignore[no-untyped-call]

    def came_back(gradient: Tensor) -> None:
        passes.backwards += len(gradient)

    handle = model.register_forward_hook(seen)
    try:
        yield passes
    finally:
        handle.remove()


@contextmanager
def watch(model: nn.Module, labels: Tensor) -> Iterator[list[tuple[float, float]]]:
    """The curve of an attack: the mean cross-entropy and the share of pixels on the labels, at each forward pass.

    labels: N x H x W, the truth or the masks to reach. Void pixels, and passes of images of another number or size, are
    left out.
    """
    curve: list[tuple[float, float]] = []
    valid = labels != VOID

    def seen(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        logits = output.detach()
        if logits[:, 0].shape == labels.shape and valid.any():
            loss = F.cross_entropy(logits, labels, ignore_index=VOID)
            hits = (logits.max(1).indices == labels)[valid]
            curve.append((float(loss), float(hits.to(torch.float64).mean())))

    handle = model.register_forward_hook(seen)
    try:
        yield curve
    finally:
        handle.remove()
