"""Expectation over transformation: what an attack climbs where the defense draws anew in every pass."""

from __future__ import annotations

from torch import Tensor, nn

from segaudit.rng import is_random
from segaudit.types import Segmenter


class EOT(Segmenter):
    """The mean of a random model's logits over some draws, and with it the mean of its gradients.

    The draws of an image go through the model together, each with numbers of its own: a pass costs `draws` passes, and
    their memory, as no draw's slope is known before the mean of all, which the loss is of.
    It is for gradients: what is scored is the model itself, drawn anew.
    Source: Athalye et al. 2018 (EOT); on random defenses Athalye, Carlini & Wagner 2018.
    """

    def __init__(self, model: Segmenter, draws: int) -> None:
        super().__init__()
        if type(draws) is not int or draws < 1:
            raise ValueError(f"draws must be a whole number of at least 1, not {draws!r}")
        self.model, self.draws, self.class_names = model, draws, model.class_names

    def forward(self, images: Tensor) -> Tensor:
        """Mean logits N x K x H x W."""
        logits: Tensor = self.model(images.repeat_interleave(self.draws, 0))
        return logits.view(len(images), self.draws, *logits.shape[1:]).mean(1)


def draws_of(model: nn.Module) -> int:
    """The draws that a random model asks of an attack: the outermost `eot` of its parts, 1 where there is none."""
    asked = [getattr(module, "eot", None) for module in model.modules()] if is_random(model) else []
    return next((own for own in asked if type(own) is int), 1)
