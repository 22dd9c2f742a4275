"""A model that is only a function: it gives scores, and there is no gradient to be had of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segaudit.models.build import reason, where
from segaudit.types import UserError

Function = Callable[[Any], Any]


class Opaque(nn.Module):
    """A function of images as a network: N x C x H x W -> N x K x H x W (N x K of a classifier).

    It is handed a NumPy array, or a tensor where its parameter is annotated as one, and gives logits or
    probabilities, or the predicted classes N x H x W (N) as whole numbers, which become scores of 0 and 1.
    outputs: K of such predictions. Raises UserError for anything else, and where a gradient is asked for.
    """

    def __init__(self, function: Function, name: str, outputs: int) -> None:
        super().__init__()
        self.function, self.name, self.outputs = function, name, outputs
        self.takes_tensors = _takes_tensors(function)

    def forward(self, images: Tensor) -> Tensor:
        """The function's scores, on the images' device."""
        given = images.detach().clone(memory_format=torch.contiguous_format)  # its own, to do with as it likes
        try:
            with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
                made = self.function(given if self.takes_tensors else given.cpu().numpy())
        except Exception as error:
            raise UserError(f"model {self.name!r}: {where(self.function, error)}: {reason(error)}") from error
        scores = self._scores(made, images)
        walled: Tensor = _Wall.apply(images, scores, self.name)
        return walled

    def _scores(self, made: Any, images: Tensor) -> Tensor:
        if not isinstance(made, (Tensor, np.ndarray)) or made.shape[:1] != images.shape[:1]:
            found = f"of shape {tuple(made.shape)}" if isinstance(made, (Tensor, np.ndarray)) else type(made).__name__
            raise UserError(f"model {self.name!r} must give an array of scores, one row an image, not {found}")
        if isinstance(made, np.ndarray):
            made = torch.from_numpy(made.astype(np.float64 if made.dtype.kind == "f" else np.int64))
        scores: Tensor = made.to(images.device)
        if scores.is_floating_point():
            return scores.to(images.dtype)
        if scores.ndim not in (1, 3):
            raise UserError(
                f"model {self.name!r} must give classes N x H x W, or scores as floating-point numbers, not "
                f"{tuple(scores.shape)} of {made.dtype}"
            )
        wrong = scores[(scores < 0) | (scores >= self.outputs)]
        if len(wrong):
            raise UserError(
                f"model {self.name!r} predicts class {int(wrong[0])}, but its classes are 0 to {self.outputs - 1}; "
                "`outputs` says how many there are"
            )
        return F.one_hot(scores.long(), self.outputs).movedim(-1, 1).to(images.dtype)

    def __deepcopy__(self, memo: Any) -> Opaque:
        return self  # a session, a connection or a library's handle cannot be copied, and nothing here is changed


class _Wall(torch.autograd.Function):
    """Scores go through forward, and nothing goes back: zeros would be taken for robustness."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, scores: Tensor, name: str) -> Tensor:
        ctx.name = name
        return scores.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise UserError(
            f"model {ctx.name!r} has no gradient: attack it with square, or transfer images from another model"
        )


def has_gradient(model: nn.Module) -> bool:
    """Whether no part of a model is only a function."""
    return not any(isinstance(module, Opaque) for module in model.modules())


def _takes_tensors(function: Function) -> bool:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # of a function that is not Python's
        return False
    return bool(parameters) and parameters[0].annotation in (Tensor, "Tensor", "torch.Tensor")
