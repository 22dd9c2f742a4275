"""One seeded stream per image, so that batches, workers, restarts and crashes do not change a result."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor


class ImageStreams:
    """The random streams of a batch: image i draws from the stream of (seed, ids[i], purpose).

    Numbers are drawn on the CPU in float32 and then moved, so that every device gets the same ones.
    """

    def __init__(self, seed: int, ids: Sequence[str], purpose: str = "") -> None:
        self._key = (seed, tuple(ids), purpose)
        self._generators = [_generator(seed, name, purpose) for name in ids]

    def uniform(self, like: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform numbers in [low, high) of the shape of `like` (N x ...), row i from the stream of image i."""
        return self._draw(like, lambda shape, g: torch.rand(shape, generator=g)) * (high - low) + low

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers of the shape of `like` (N x ...), row i from the stream of image i."""
        return self._draw(like, lambda shape, g: torch.randn(shape, generator=g))

    def integers(self, high: int) -> Tensor:
        """N whole numbers in [0, high), one an image."""
        return torch.tensor([torch.randint(high, (), generator=g) for g in self._generators], dtype=torch.int64)

    def child(self, purpose: str) -> ImageStreams:
        """Fresh streams of the same images for another purpose."""
        seed, ids, own = self._key
        return ImageStreams(seed, ids, f"{own}/{purpose}")

    def __getitem__(self, rows: Tensor) -> ImageStreams:
        """The streams of the chosen images (a mask or indices), which go on from where they are."""
        chosen = torch.arange(len(self._generators))[rows.cpu()].tolist()
        seed, ids, purpose = self._key
        part = ImageStreams(seed, (), purpose)
        part._key = (seed, tuple(ids[i] for i in chosen), purpose)
        part._generators = [self._generators[i] for i in chosen]
        return part

    def _draw(self, like: Tensor, draw: Callable[[torch.Size, Generator], Tensor]) -> Tensor:
        if len(like) != len(self._generators):
            raise ValueError(f"{len(self._generators)} streams for {len(like)} images")
        rows = [draw(like.shape[1:], g) for g in self._generators]
        return torch.stack(rows).to(like) if rows else torch.empty_like(like)


def _generator(seed: int, name: str, purpose: str) -> Generator:
    digest = hashlib.sha256(f"{seed}\0{name}\0{purpose}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
