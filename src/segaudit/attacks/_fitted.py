"""Attacks in two parts: what is fitted on a set of images, and how it is applied to others."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from segaudit.types import Batch, Segmenter, Streams, UserError


class Fitted:
    """An attack `(model, images, labels, *, rng, fitted, **own) -> images` with the `fit` that its `fitted` is from.

    `own` and the signature hold the keywords of both parts; each part is handed those that it has.
    outside: only the pixels that it leaves as they are may be scored.
    """

    def __init__(self, fit: Callable[..., Tensor], apply: Callable[..., Tensor], *, outside: bool = False) -> None:
        self._fit, self._apply, self.outside = fit, apply, outside
        self.__name__, self.__doc__ = apply.__name__, apply.__doc__
        both = dict(inspect.signature(apply).parameters)
        both |= {key: own for key, own in inspect.signature(fit).parameters.items() if key not in both}
        self.__signature__ = inspect.Signature([p for key, p in both.items() if key not in ("batches", "fitted")])

    def fit(self, model: Segmenter, batches: Sequence[Batch], *, rng: Streams, **own: Any) -> Tensor:
        """What is learnt on images of one size; rng holds one stream for each of them, in their order.

        With `targeted`, their labels are the masks to reach. Raises UserError for wrong arguments.
        """
        return self._fit(model, batches, rng=rng, **self._of(self._fit, own))

    def __call__(
        self,
        model: Segmenter,
        images: Tensor,
        labels: Tensor,
        *,
        rng: Streams,
        fitted: Tensor | None = None,
        **own: Any,
    ) -> Tensor:
        """The images under what was fitted; no image depends on its neighbours."""
        if fitted is None:
            raise UserError(
                f"fitted must be what {self.__name__} has learnt on a set of images (`segaudit run`), not None"
            )
        return self._apply(model, images, labels, rng=rng, fitted=fitted, **self._of(self._apply, own))

    def _of(self, part: Callable[..., Tensor], given: Mapping[str, Any]) -> dict[str, Any]:
        for key in given:
            if key not in self.__signature__.parameters:
                raise TypeError(f"{self.__name__}() got an unexpected keyword argument {key!r}")
        return {key: value for key, value in given.items() if key in inspect.signature(part).parameters}


def gathered(batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    """The images and labels of all batches. Raises UserError where they differ in size."""
    shapes = list(dict.fromkeys(tuple(batch.images.shape[2:]) for batch in batches))
    if len(shapes) != 1:
        sizes = " and ".join(f"{height} x {width}" for height, width in shapes) or "none"
        raise UserError(f"images to fit on must be of one size (give data a `size: [H, W]`), not {sizes}")
    return torch.cat([batch.images for batch in batches]), torch.cat([batch.labels for batch in batches])


def mini_batches(rng: Streams, images: int, size: int, steps: int) -> Iterator[Tensor]:
    """`steps` times the indices of at most `size` images; the images are shuffled anew when all have had their turn."""
    left = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if not len(left):
            left = rng.uniform(torch.empty(images, 1)).flatten().argsort()
        yield left[:size]
        left = left[size:]
