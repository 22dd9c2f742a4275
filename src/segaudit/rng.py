"""One seeded stream per image, so that batches, workers, restarts and crashes do not change a result."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Generator, Tensor, nn

from segaudit.types import Streams


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

    def __len__(self) -> int:
        return len(self._generators)

    def __getitem__(self, rows: Tensor) -> ImageStreams:
        """The streams of the chosen images (a mask or indices), which go on from where they are.

        An image that is chosen several times draws for each in turn.
        """
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


_drawing: ContextVar[Streams | None] = ContextVar("drawing", default=None)


@contextmanager
def drawing(streams: Streams) -> Iterator[None]:
    """Random models (`is_random`) draw from these streams inside the block, and go on in them from pass to pass.

    So the same passes in a new block with fresh streams draw the same, and no two passes of a block do.
    """
    token = _drawing.set(streams)
    try:
        yield
    finally:
        _drawing.reset(token)


def streams_of(images: Tensor) -> Streams:
    """What a random model draws from for images N x C x H x W, in its forward pass.

    Inside `drawing` image i draws from stream i; where there are k images to a stream, images i k to i k + k - 1 do,
    one after the other: the copies of an expectation, or whatever images a single stream is given. Anywhere else
    torch's own generator decides, as it does for dropout. Raises ValueError where images and streams do not fit.
    """
    given = _drawing.get()
    if given is None:
        return ImageStreams(int(torch.randint(2**62, ())), [str(i) for i in range(len(images))])
    if len(images) == len(given):
        return given
    if not len(given) or len(images) % len(given):
        raise ValueError(
            f"a random model was given {len(images)} images and {len(given)} streams: an attack that leaves images out "
            "on its way is handed one image at a time"
        )
    return given[torch.arange(len(given)).repeat_interleave(len(images) // len(given))]


def is_random(model: nn.Module) -> bool:
    """Whether any part of a model says of itself that it draws anew in every pass: it has a true `random`."""
    return any(getattr(module, "random", False) is True for module in model.modules())
