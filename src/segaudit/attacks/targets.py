"""The masks that a targeted attack is to reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from scipy.ndimage import distance_transform_edt  # type: ignore[import-untyped]
from torch import Tensor

from segaudit.registry import suggest
from segaudit.types import NEVER, Segmenter, UserError

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


def uniform(
    model: Segmenter, images: Tensor, labels: Tensor, *, ids: Sequence[str], look_up: LookUp, label: int | str
) -> Tensor:
    """Every pixel is to be of one class, the `label`: its name or its number.

    Source: Rony et al. 2023 (ALMA prox), whose experiments take a class as the target.
    """
    return torch.full_like(labels, _number(model, "label", label))


def least_likely(model: Segmenter, images: Tensor, labels: Tensor, *, ids: Sequence[str], look_up: LookUp) -> Tensor:
    """Each pixel is to be of the class that is least likely there on the clean image.

    A class that the network has no output for is none of them.
    Source: Kurakin et al. 2017; on segmentation Arnab et al. 2018, eq. 2.
    """
    return _each(model, images, lambda logits: logits.masked_fill(logits < 0.9 * NEVER, torch.inf).min(0).indices)


def hide(
    model: Segmenter, images: Tensor, labels: Tensor, *, ids: Sequence[str], look_up: LookUp, label: int | str
) -> Tensor:
    """A class is to be seen nowhere: the clean prediction, each pixel of the `label` as the nearest of another class.

    label: the name or number of the class. An image without it is to stay as it is. One that is nothing else (a
    classifier's map of 1 x 1) has no such neighbour: its pixels are to be of their most likely other class.
    Source: Metzen et al. 2017, dynamic target segmentation.
    """
    hidden = _number(model, "label", label)

    def filled(logits: Tensor) -> Tensor:
        prediction = logits.max(0).indices
        there = prediction == hidden
        if there.all():
            return logits.index_fill(0, there.new_tensor([hidden], dtype=torch.int64), -torch.inf).max(0).indices
        nearest = distance_transform_edt(there.cpu().numpy(), return_distances=False, return_indices=True)
        row, column = torch.from_numpy(nearest).to(prediction)
        return prediction[row, column]

    return _each(model, images, filled)


def swap(
    model: Segmenter,
    images: Tensor,
    labels: Tensor,
    *,
    ids: Sequence[str],
    look_up: LookUp,
    one: int | str,
    other: int | str,
) -> Tensor:
    """Two classes are to change places in the clean prediction: `one` and `other`, by name or number.

    Source: Xie et al. 2017 (DAG) lead every class to another; here two of them.
    """
    first, second = _number(model, "one", one), _number(model, "other", other)
    if first == second:
        raise UserError(f"other must be another class than {one!r}, not {other!r}")
    becomes = torch.arange(model.num_classes, device=images.device)
    becomes[[first, second]] = becomes[[second, first]]
    return _each(model, images, lambda logits: becomes[logits.max(0).indices])


def _each(model: Segmenter, images: Tensor, mask: Callable[[Tensor], Tensor]) -> Tensor:
    """A mask from the clean logits K x H x W of each image; one at a time, as a shard may not fit at once."""
    with torch.no_grad():
        return torch.stack([mask(model(image[None])[0]) for image in images])


def _number(model: Segmenter, key: str, value: int | str) -> int:
    """The number of a class given by its name or number. Raises UserError naming the classes that there are."""
    names = model.class_names
    if value in names:
        return names.index(str(value))
    if type(value) is int and 0 <= value < len(names):
        return value
    known = ", ".join(f"{i} {name}" for i, name in enumerate(names))
    raise UserError(f"{key} must be a class ({known}), not {value!r}{suggest(str(value), names)}")
