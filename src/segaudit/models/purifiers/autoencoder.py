"""A dense autoencoder for small images, with or without noise in its few numbers."""

from __future__ import annotations

from torch import Tensor

from segaudit.models.purifiers import Purifier
from segaudit.models.purifiers._coder import ACTIVATIONS, Decoder, Encoder
from segaudit.rng import streams_of


class Autoencoder(Purifier):
    """A dense autoencoder for small images of one size: z numbers an image, and the image made anew from them.

    z: how many numbers. activation: relu or gelu. noisy: standard normal noise is added to the numbers, drawn anew for
    each image in each pass; a variational autoencoder learns how much, this one does not. An attack on it needs an
    expectation over draws. Raises UserError for other arguments, and for other images.
    Parameters: 88,667 for MNIST with z 10.
    Source: ours; as a defense Meng & Chen 2017 (MagNet), trained on attacked images Gu & Rigazio 2015.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        size: tuple[int, int] = (28, 28),
        z: int = 10,
        activation: str = "relu",
        noisy: bool = False,
    ) -> None:
        super().__init__(channels=channels, size=size, z=z, activation=activation, noisy=noisy)
        self.whole("z", z)
        self.choice("activation", activation, list(ACTIVATIONS))
        own = self.sides(size)
        self.random = noisy
        self.encoder = Encoder(channels, own, z, activation)
        self.decoder = Decoder(channels, own, z, activation)

    def encode(self, images: Tensor) -> Tensor:
        """The numbers N x z of images, without noise."""
        self.fits(images)
        found: Tensor = self.encoder(images)
        return found

    def decode(self, z: Tensor) -> Tensor:
        """Images N x C x H x W in [0, 1] of numbers N x z."""
        made: Tensor = self.decoder(z)
        return made

    def forward(self, images: Tensor) -> Tensor:
        """Images N x C x H x W made anew."""
        z = self.encode(images)
        return self.decode(z + streams_of(z).normal(z.detach()) if self.random else z).to(images.dtype)
