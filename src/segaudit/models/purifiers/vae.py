"""A variational autoencoder for small images."""

from __future__ import annotations

import torch
from torch import Tensor

from segaudit.models.purifiers import Purifier
from segaudit.models.purifiers._coder import ACTIVATIONS, Decoder, Encoder
from segaudit.rng import streams_of

LEAST, MOST = -12.0, 12.0
"""Between which the logarithm of a variance is kept."""


class VAE(Purifier):
    """A variational autoencoder for small images of one size: a mean and a variance for each of z numbers.

    z: how many numbers. activation: relu or gelu. noisy: images are made from numbers that are drawn anew in each pass;
    otherwise from their means. Recipe `vae` draws in any case. Raises UserError for other arguments and images.
    Source: Kingma & Welling 2014; as a defense against attacks Li & Ji 2019 (Defense-VAE).
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        size: tuple[int, int] = (28, 28),
        z: int = 16,
        activation: str = "gelu",
        noisy: bool = False,
    ) -> None:
        super().__init__(channels=channels, size=size, z=z, activation=activation, noisy=noisy)
        self.whole("z", z)
        self.choice("activation", activation, list(ACTIVATIONS))
        own = self.sides(size)
        self.random = noisy
        self.encoder = Encoder(channels, own, 2 * z, activation)
        self.decoder = Decoder(channels, own, z, activation)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of an image's numbers, N x z each."""
        self.fits(images)
        mean, log_var = self.encoder(images).chunk(2, 1)
        return mean, log_var.clamp(LEAST, MOST)

    def decode(self, z: Tensor) -> Tensor:
        """Images N x C x H x W in [0, 1] of numbers N x z."""
        made: Tensor = self.decoder(z)
        return made

    def forward(self, images: Tensor) -> Tensor:
        """Images N x C x H x W made anew."""
        mean, log_var = self.encode(images)
        return self.decode(drawn(mean, log_var) if self.random else mean).to(images.dtype)


def drawn(mean: Tensor, log_var: Tensor) -> Tensor:
    """Numbers N x z with these means and logarithms of variances, from the images' own streams."""
    return mean + (log_var / 2).exp() * streams_of(mean).normal(torch.empty_like(mean))
