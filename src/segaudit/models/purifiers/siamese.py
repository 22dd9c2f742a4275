"""A small network that puts images of one class near each other: what says how alike two pictures are."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from segaudit.models.purifiers import Purifier


class Siamese(Purifier):
    """An embedding in which images of one class are near, and those of others far: a distance, and no purifier itself.

    Images N x C x H x W in [0, 1] -> N x D numbers, D = `features`; the distance of two images is that of these. width:
    maps of the first of two convolutions, twice as many in the second; both halve the size. No image depends on
    another. Raises UserError for other arguments, and for images of another size.
    Source: Hadsell et al. 2006 (the network and its loss); as a distance for inversion ours.
    """

    def __init__(
        self, *, channels: int = 1, size: Sequence[int] = (28, 28), features: int = 32, width: int = 16
    ) -> None:
        super().__init__(channels=channels, size=size, features=features, width=width)
        self.features = self.whole("features", features)
        self.whole("width", width, high=512)
        height, across = (-(-side // 4) for side in self.size or (0, 0))
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 5, 2, 2),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 5, 2, 2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * width * height * across, features),
        )

    def forward(self, images: Tensor) -> Tensor:
        """The place of each image, N x D."""
        self.fits(images)
        found: Tensor = self.body(2 * images - 1)
        return found
