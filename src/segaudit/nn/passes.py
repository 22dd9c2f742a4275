"""What an attack does with a network, seen by hooks and not told by the attack: passes, and how it gets on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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

    forwards: float = 0
    backwards: float = 0


@contextmanager
def count_passes(model: nn.Module, size: Sequence[int] | None = None) -> Iterator[Passes]:
    """Count the images that pass through the model inside the block, forward and backward.

    size: height and width of an image that counts as one; a patch of it counts by its share of the pixels, and so does
    whatever is larger. Without a size each counts as one.
    """
    passes = Passes()

    def seen(_module: nn.Module, inputs: Any, named: Any, output: Tensor) -> None:
        count: float = len(output)
        if size is not None:
            images = (*inputs, *named.values())[0]
            count *= math.prod(images.shape[2:]) / math.prod(size)

        def came_back(_gradient: Tensor) -> None:
            passes.backwards += count

        passes.forwards += count
        if output.requires_grad:
            output.register_hook(came_back)  # type: ignore[no-untyped-call]

    handle = model.register_forward_hook(seen, with_kwargs=True)
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
