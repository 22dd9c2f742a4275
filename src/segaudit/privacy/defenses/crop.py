"""Crop training: the victim never sees a whole image."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from segaudit.privacy.defenses import _check as check
from segaudit.privacy.experiment import Trainer
from segaudit.types import Segmenter, UserError


def crop(trainer: Trainer, *, size: int | None = None, whole: bool = False) -> Segmenter:
    """Trained on a random square of each image, anew in each epoch, and asked about images in such squares.

    size: of the squares in pixels, half the shorter side by default, as 128 of 256. whole: it is asked about whole
    images, which is not what it was trained on: a weaker attack in place of a better defense. Raises UserError for a
    size that no image is larger than.
    Source: crop training, number 3 of the seven.
    """
    _checked(size=size, whole=whole)
    height, width = trainer.samples.sample(trainer.members[0])[0].shape[1:]
    side = max(1, min(height, width) // 2) if size is None else size
    if side >= max(height, width):
        raise UserError(
            f"defense crop: size {side} is the whole of images of {height} x {width}; give it less, such as "
            f"{max(1, min(height, width) // 2)}"
        )
    own = {**trainer.schedule.augment, "crop": [min(side, height), min(side, width)]}
    model = trainer.fit(trainer.members, augment=own)
    return model if whole else InPieces(model, side).eval()


def _checked(*, size: Any = None, whole: Any = False, **_: Any) -> None:
    """Refuse what cannot be. Raises UserError."""
    if size is not None:
        check.whole("crop", "size", size, 1)
    check.flag("crop", "whole", whole)


crop.check = _checked  # type: ignore[attr-defined]  # of what a spec says, before anything is trained


class InPieces(Segmenter):
    """A model that is asked about squares of an image, as few as cover it, evenly placed; where they meet, the mean."""

    def __init__(self, model: Segmenter, size: int) -> None:
        super().__init__()
        self.class_names, self.model, self.size = model.class_names, model, size

    def forward(self, images: Tensor) -> Tensor:
        """Logits N x K x H x W of images in [0, 1]. Raises UserError for a model of one label an image."""
        height, width = images.shape[2:]
        rows, columns = min(self.size, height), min(self.size, width)
        total, count = images.new_zeros(len(images), self.num_classes, height, width), images.new_zeros(height, width)
        for top, left in product(starts(height, rows), starts(width, columns)):
            logits: Tensor = self.model(images[..., top : top + rows, left : left + columns])
            if logits.shape[2:] != (rows, columns):
                raise UserError("defense crop: a model of one label an image has no pieces; give it `whole: true`")
            total = total + F.pad(logits, (left, width - left - columns, top, height - top - rows))
            count[top : top + rows, left : left + columns] += 1
        return total / count


def starts(side: int, size: int) -> list[int]:
    """Where the fewest pieces of a size begin that cover a side, evenly placed."""
    count = math.ceil(side / size)
    return [round(i * (side - size) / max(1, count - 1)) for i in range(count)]
