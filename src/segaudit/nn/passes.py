"""Honest counting: forward and backward passes, seen by hooks and not told by the attack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


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
