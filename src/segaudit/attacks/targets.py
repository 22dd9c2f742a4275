"""The masks that a targeted attack is to reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from segaudit.types import Segmenter, UserError

LookUp = Callable[[str], Tensor]


def following(model: Segmenter, images: Tensor, labels: Tensor, *, ids: Sequence[str], look_up: LookUp) -> Tensor:
    """Each image is to be segmented as the next one of its shard (the last one as the first).

    Source: Xie et al. 2017 (DAG) and the multiclass ASMA study permute masks the same way.
    """
    if len(labels) == 1:
        raise UserError(f"target 'next': {ids[0]} is alone in its shard; use more images, or {{name: image, id: ...}}")
    return labels.roll(-1, dims=0)


def image(model: Segmenter, images: Tensor, labels: Tensor, *, ids: Sequence[str], look_up: LookUp, id: str) -> Tensor:
    """Every image is to be segmented as one image of the data set, given by its `id`.

    Source: Ozbulak et al. 2019 (ASMA).
    """
    mask = look_up(id)
    if mask.shape != labels.shape[1:]:
        raise UserError(
            f"target {id!r}: its mask is {tuple(mask.shape)}, the images {tuple(labels.shape[1:])}; give data a size"
        )
    return torch.stack([mask] * len(labels)).to(labels.device)
