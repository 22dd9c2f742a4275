"""A network that makes a picture anew before the model sees it."""

from __future__ import annotations

from typing import Any

from torch import nn

from segaudit.defenses._check import choice, whole
from segaudit.defenses._filter import Filtered
from segaudit.nn.straight import GRADIENTS
from segaudit.types import Segmenter, UserError


def purify(model: Segmenter, *, purifier: Any, gradient: str = "exact", eot: int = 10) -> Segmenter:
    """Purify: a network that was trained to undo attacks stands before the model.

    purifier: the path of its weights, as `segaudit train` left them (an autoencoder, a variational one, a U-Net and
    others); in Python, the network. gradient: exact, end to end through it; straight_through, as if it gave back what
    it was given. eot: draws that an attack takes the mean gradient of, where the network draws anew in each pass.
    Source: Meng & Chen 2017 (MagNet's reformer); Gu & Rigazio 2015; end to end: Carlini & Wagner 2017, Athalye et al.
    Source: 2018.
    """
    choice("purify", "gradient", gradient, GRADIENTS)
    return Purified(model, network("purify", purifier), gradient, whole("purify", "eot", eot, 1), "purify")


class Purified(Filtered):
    """A model behind a purifier. eot: the draws that an attack takes the mean gradient of, where that is random."""

    def __init__(self, model: Segmenter, purifier: nn.Module, gradient: str, eot: int, defense: str) -> None:
        super().__init__(model, purifier, gradient, defense)
        self.eot = eot


def network(defense: str, purifier: Any) -> nn.Module:
    """The network that a defense was handed, frozen and in eval mode. Raises UserError for anything else."""
    if not isinstance(purifier, nn.Module):
        raise UserError(f"defense {defense!r}: purifier must be the path of a purifier's weights, not {purifier!r}")
    return purifier.eval().requires_grad_(False)
