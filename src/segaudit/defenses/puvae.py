"""A class-conditional autoencoder before the model: of an image for each class, the one that is closest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from segaudit.defenses._check import choice, real, whole
from segaudit.defenses.purify import Purified, network
from segaudit.nn.straight import GRADIENTS, through
from segaudit.types import Segmenter, UserError

SLOPES = ("soft", *GRADIENTS)


def puvae(
    model: Segmenter, *, purifier: Any, gradient: str = "soft", temperature: float = 0.01, eot: int = 10
) -> Segmenter:
    """PuVAE: the image is made anew as if it was of each class, and the model sees the one that is closest to it.

    purifier: the path of a `cvae`'s weights, as recipe `vae` left them; in Python, the network. Closest: of the least
    mean squared error. gradient: soft, that of the mean of all of them with the softmax of - error / temperature as
    weights, so that an attack sees the other classes coming; exact, through the chosen one, as if the choice was
    settled; straight_through, as if the image was given back as it is. eot: draws that an attack takes the mean
    gradient of, where the network draws anew in each pass.
    Source: Hwang et al. 2019.
    """
    net = network("puvae", purifier)
    if not callable(getattr(net, "candidates", None)):
        raise UserError("defense 'puvae': purifier must be a class-conditional one, such as a `cvae`")
    own = choice("puvae", "gradient", gradient, SLOPES)
    made = _Nearest(net, real("puvae", "temperature", temperature, above=0) if own == "soft" else None)
    return Purified(model, made, "exact" if own == "soft" else own, whole("puvae", "eot", eot, 1), "puvae")


class _Nearest(nn.Module):
    """The closest of the candidates. temperature: of the mean that the gradient is of; None: of the chosen one."""

    def __init__(self, net: nn.Module, temperature: float | None) -> None:
        super().__init__()
        self.net: Any = net
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        """Images N x C x H x W made anew."""
        made: Tensor = self.net.candidates(images)
        error = (made - images[:, None]).square().flatten(2).mean(2)
        chosen = made[torch.arange(len(images), device=images.device), error.argmin(1)]
        if self.temperature is None:
            return chosen
        weight = (-error / self.temperature).softmax(1)
        return through((weight[:, :, None, None, None] * made).sum(1), chosen)
