"""A small generator of images with its critic, with labels and without."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segaudit.models.purifiers import Purifier, name_of
from segaudit.types import UserError

STRIDE = 4
"""The generator starts from maps of a quarter of the side."""
LEAK = 0.2


class GAN(Purifier):
    """What `WGAN` and `CWGAN` share. classes: K, 0 without labels. turn: how often the recipe was asked.

    The generator starts from 4 x width maps of a quarter of the side and doubles them twice; its norms are over an
    image's own values. The critic mirrors it without norms, as its gradient penalty is of single images. Images are in
    [0, 1], for both of them. Raises UserError for images that are not square, or of a side that is no multiple of 4.
    """

    turn: Tensor

    def __init__(
        self,
        *,
        channels: int,
        size: Sequence[int],
        z: int,
        width: int,
        classes: int = 0,
        embedding: int = 0,
    ) -> None:
        labelled = {"classes": classes, "embedding": embedding} if classes else {}
        super().__init__(channels=channels, size=size, z=z, width=width, **labelled)
        height, side = self.size or (0, 0)
        if height != side or side % STRIDE or side < 2 * STRIDE:
            raise UserError(
                f"purifier {name_of(self)!r}: images must be square, of a side that is a multiple of {STRIDE} from "
                f"{2 * STRIDE} on, not {height} x {side}; give data a `size`"
            )
        self.latent, self.classes = self.whole("z", z), classes
        self.whole("width", width, high=512)
        self.embed = nn.Embedding(classes, self.whole("embedding", embedding)) if classes else None
        self.generator = _Generator(channels, side // STRIDE, z + embedding, width)
        self.critic = _Critic(channels, side // STRIDE, width, classes)
        self.register_buffer("turn", torch.zeros((), dtype=torch.int64))

    def sample(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images N x C x H x W in [0, 1] from z N x D, standard normal, and labels N where there are classes."""
        if self.embed is not None:
            z = torch.cat([z, self.embed(self._known(labels)).to(z.dtype)], 1)
        made: Tensor = self.generator(z)
        return made.to(z.dtype).sigmoid()

    def score(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """The critic's score N of images: the higher, the more they look like those of the data."""
        found: Tensor = self.critic(images, self._known(labels) if self.classes else None)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """None: a generator takes no images. Raises UserError that says what does."""
        raise UserError(
            f"purifier {name_of(self)!r}: a generator takes no images; put it before a model with the defense "
            "gan_inversion, which searches for the image that it makes"
        )

    def _known(self, labels: Tensor | None) -> Tensor:
        if labels is None or labels.ndim != 1:
            raise ValueError(f"a generator with labels needs one for each image, not {labels!r}")
        return labels


class WGAN(GAN):
    """A generator of images from normal numbers, with its critic, for square images of a side such as 28.

    z: D, how many numbers an image is made from. width: maps of the generator's last layer, four times as many in
    its first. The size of the images must be a multiple of 4.
    Source: Radford et al. 2016 (DCGAN); Gulrajani et al. 2017 (the critic's norms).
    """

    def __init__(self, *, channels: int = 1, size: Sequence[int] = (28, 28), z: int = 64, width: int = 16) -> None:
        super().__init__(channels=channels, size=size, z=z, width=width)


class CWGAN(GAN):
    """A generator of images of a class, with its critic: `wgan` with labels.

    classes: K. embedding: numbers that stand for a label beside the z. The critic has weights of its own
    for each label, behind its last features. All else is as it is there.
    Source: Mirza & Osindero 2014 (labels); Miyato & Koyama 2018 (the critic's).
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        size: Sequence[int] = (28, 28),
        classes: int = 10,
        z: int = 64,
        width: int = 16,
        embedding: int = 32,
    ) -> None:
        self.whole("classes", classes)
        super().__init__(channels=channels, size=size, z=z, width=width, classes=classes, embedding=embedding)


class _Generator(nn.Module):
    """Numbers N x D -> images N x C x 4 low x 4 low before the sigmoid."""

    def __init__(self, channels: int, low: int, inputs: int, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, 4 * width * low * low)
        self.unfold = nn.Unflatten(1, (4 * width, low, low))
        self.body = nn.Sequential(
            nn.GroupNorm(1, 4 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1),
            nn.GroupNorm(1, 2 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1),
            nn.GroupNorm(1, width),
            nn.ReLU(),
            nn.Conv2d(width, channels, 3, padding=1),
        )

    def forward(self, z: Tensor) -> Tensor:
        made: Tensor = self.body(self.unfold(self.first(z)))
        return made


class _Critic(nn.Module):
    """Images N x C x H x W in [0, 1] and labels N -> scores N."""

    def __init__(self, channels: int, low: int, width: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 4, 2, 1),
            nn.LeakyReLU(LEAK),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.LeakyReLU(LEAK),
            nn.Conv2d(2 * width, 4 * width, 3, padding=1),
            nn.LeakyReLU(LEAK),
            nn.Flatten(),
        )
        features = 4 * width * low * low
        self.head = nn.Linear(features, 1)
        self.labels = nn.Embedding(classes, features) if classes else None
        if self.labels is not None:
            nn.init.normal_(self.labels.weight, std=features**-0.5)

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        found: Tensor = self.body(2 * images - 1)
        score: Tensor = self.head(found).squeeze(1)
        return score if self.labels is None else score + (self.labels(labels) * found).sum(1)
