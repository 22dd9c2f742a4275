"""Answers of a teacher: which of them are good, and images with them in place of their labels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from segaudit.metrics import confusion
from segaudit.privacy.experiment import Samples
from segaudit.training.loop import stack
from segaudit.types import VOID, Floats, Segmenter


class Taught:
    """Samples whose labels are a teacher's, H x W by id; what is void in the truth still is."""

    def __init__(self, samples: Samples, labels: Mapping[str, Tensor]) -> None:
        self.samples, self.labels, self.ids = samples, labels, tuple(labels)

    def sample(self, image_id: str) -> tuple[Tensor, Tensor]:
        """Image C x H x W in [0, 1] and labels H x W int64."""
        image, truth = self.samples.sample(image_id)
        return image, self.labels[image_id].long().where(truth != VOID, VOID)

    def digest(self) -> str:
        """Of all that is in these images and labels."""
        made = hashlib.sha256()
        for name in self.ids:
            for tensor in self.sample(name):
                made.update(f"{name}\0{tuple(tensor.shape)}\0".encode() + tensor.numpy().tobytes())
        return made.hexdigest()


@torch.no_grad()
def answers(teacher: Segmenter, samples: Samples, ids: Sequence[str], batch: int) -> tuple[dict[str, Tensor], Floats]:
    """The teacher's masks by id, H x W uint8, and how good each is, N: the mean IoU of the classes in its image."""
    device, masks, scores = next(teacher.parameters()).device, dict[str, Tensor](), []
    for start in range(0, len(ids), batch):
        part = ids[start : start + batch]
        images, labels = zip(*(samples.sample(name) for name in part), strict=True)
        found = teacher(stack(images).to(device)).argmax(1).cpu()
        counts = confusion.count(found, torch.stack(labels), teacher.num_classes)
        each = confusion.iou(*(one.astype(float) for one in (counts.intersection, counts.union, counts.target)))
        present = (~np.isnan(each)).sum(1)
        scores.append(np.nansum(each, 1) / np.maximum(1, present))
        masks |= dict(zip(part, found.byte(), strict=True))
    return masks, np.concatenate(scores)


def best(ids: Sequence[str], scores: Floats, share: float) -> tuple[str, ...]:
    """The share of the ids, at least one, with the highest scores, in their own order."""
    count = max(1, round(share * len(ids)))
    kept = set(np.argsort(-scores, kind="stable")[:count].tolist())
    return tuple(name for row, name in enumerate(ids) if row in kept)
