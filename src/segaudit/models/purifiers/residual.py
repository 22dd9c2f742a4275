"""A convolutional denoiser with skips, and the same without them: an autoencoder for images of any size."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from segaudit.models.purifiers import Purifier

STRIDE = 8


class Residual(Purifier):
    """A convolutional denoiser with skips, which learns the noise that is in an image.

    Images N x C x H x W, in [0, 1] or with noise beyond it -> images of the same shape in [0, 1]; any H and W.
    Convolutions at a half, a quarter and an eighth of the size, down and up again, with skips; what they give is taken
    from the input. channels: C. width: channels at half size, twice as many below; with fewer than 4 C, which is what
    four pixels hold, some of the noise always stays. depth: residual blocks at each size, both ways.
    Without batch norms, so that no image depends on another. In train mode the output is not clipped: a clipped pixel
    would teach nothing. Raises UserError for other arguments, and for images of other channels.
    Source: ours, after DnCNN (Zhang et al. 2017: the noise is learnt), FFDNet (Zhang et al. 2018: folded pixels) and
    Source: DRUNet (Zhang et al. 2021).
    """

    skips = True

    def __init__(self, *, channels: int = 3, width: int = 24, depth: int = 1) -> None:
        super().__init__(channels=channels, width=width, depth=depth)
        self.whole("width", width)
        self.whole("depth", depth, high=64)
        low = 2 * width
        self.stem = nn.Conv2d(4 * channels, width, 3, padding=1)
        self.begin = _blocks(width, depth)
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, low, 2, stride=2), _blocks(low, depth)) for inputs in (width, low)
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(low, outputs, 2, stride=2) for outputs in (low, width))
        self.end = nn.ModuleList(_blocks(outputs, depth) for outputs in (low, width))
        self.head = nn.Conv2d(width, 4 * channels, 3, padding=1)
        if self.skips:  # the first step starts from the picture as it is
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Clean images N x C x H x W of noisy ones."""
        self.fits(images)
        height, width = images.shape[2:]
        bottom, right = -height % STRIDE, -width % STRIDE
        padded = F.pad(images, (0, right, 0, bottom), mode="replicate") if bottom or right else images
        x = self.begin(self.stem(F.pixel_unshuffle(padded, 2)))
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(x)
        for up, end in zip(self.up, self.end, strict=True):
            skip = skips.pop()
            x = end(up(x) + skip if self.skips else up(x))
        found = F.pixel_shuffle(self.head(x), 2)[:, :, :height, :width].to(images.dtype)
        made = images - found if self.skips else found
        return made if self.training else made.clamp(0, 1)


class Bottleneck(Residual):
    """A convolutional autoencoder for images of any size: `residual` without a skip.

    Nothing is taken from the input: the picture is made anew from 2 x width numbers for 8 x 8 pixels. All else is
    as it is there.
    Source: ours, after Meng & Chen 2017 (MagNet's autoencoders).
    """

    skips = False


def _blocks(width: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(_Residual(width) for _ in range(depth)))


class _Residual(nn.Module):
    """Two convolutions around which the input goes as well."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return x + self.second(F.relu(self.first(x)))  # type: ignore[no-any-return]
