"""Labels alone: what is answered is the class of each pixel."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from segaudit.privacy.experiment import Trainer
from segaudit.types import Segmenter


def argmax(trainer: Trainer) -> Segmenter:
    """Only the class of each pixel is answered, as logits 1 and 0; there is no gradient.

    Source: the label-only setting (Choquette-Choo et al. 2021), number 2 of the seven.
    """
    return LabelOnly(trainer.fit(trainer.members)).eval()


argmax.serves = True  # type: ignore[attr-defined]  # it changes what is answered, not what is trained


class LabelOnly(Segmenter):
    """A model of which only the labels are seen: one-hot logits, of the largest of its own (of two alike the first)."""

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.class_names, self.model = model.class_names, model

    def forward(self, images: Tensor) -> Tensor:
        """Logits N x K x H x W of 0 and 1, a single 1 a pixel, of images in [0, 1]."""
        logits: Tensor = self.model(images)
        return F.one_hot(logits.detach().argmax(1), logits.shape[1]).movedim(-1, 1).to(logits.dtype)
