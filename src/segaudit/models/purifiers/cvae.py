"""A variational autoencoder that is told the class of an image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segaudit.models.purifiers import Purifier
from segaudit.models.purifiers._coder import ACTIVATIONS, Decoder, Encoder
from segaudit.models.purifiers.vae import LEAST, MOST, drawn


class CVAE(Purifier):
    """A class-conditional variational autoencoder for small images of one size and of one class each.

    It makes an image anew once for each class, and gives back the one that is closest to what came (PuVAE). z: how many
    numbers. activation: relu or gelu. noisy: they are drawn anew in each pass; otherwise they are their means. Raises
    UserError for other arguments, and for other images.
    Source: Sohn et al. 2015; as a defense Hwang et al. 2019 (PuVAE).
    """

    conditional = True

    def __init__(
        self,
        *,
        channels: int = 1,
        size: tuple[int, int] = (28, 28),
        classes: int = 10,
        z: int = 16,
        activation: str = "gelu",
        noisy: bool = False,
    ) -> None:
        super().__init__(channels=channels, size=size, classes=classes, z=z, activation=activation, noisy=noisy)
        self.classes = self.whole("classes", classes)
        self.whole("z", z)
        self.choice("activation", activation, list(ACTIVATIONS))
        own = self.sides(size)
        self.random = noisy
        self.encoder = Encoder(channels, own, 2 * z, activation, classes)
        self.decoder = Decoder(channels, own, z + classes, activation)

    def encode(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of the numbers of images that are of classes N, N x z each."""
        self.fits(images)
        mean, log_var = self.encoder(images, F.one_hot(labels, self.classes)).chunk(2, 1)
        return mean, log_var.clamp(LEAST, MOST)

    def decode(self, z: Tensor, labels: Tensor) -> Tensor:
        """Images N x C x H x W in [0, 1] of numbers N x z and classes N."""
        made: Tensor = self.decoder(torch.cat([z, F.one_hot(labels, self.classes).to(z)], 1))
        return made

    def candidates(self, images: Tensor) -> Tensor:
        """Images made anew as if each was of each of the K classes, N x K x C x H x W."""
        rows = images.repeat_interleave(self.classes, 0)
        labels = torch.arange(self.classes, device=images.device).repeat(len(images))
        mean, log_var = self.encode(rows, labels)
        made = self.decode(drawn(mean, log_var) if self.random else mean, labels)
        return made.to(images.dtype).view(len(images), self.classes, *images.shape[1:])

    def forward(self, images: Tensor) -> Tensor:
        """Images N x C x H x W made anew, as of the class that they are closest to."""
        made = self.candidates(images)
        nearest = (made - images[:, None]).square().flatten(2).sum(2).argmin(1)
        return made[torch.arange(len(images), device=images.device), nearest]
