"""How far an adversarial image is from the clean one."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from segaudit.types import Norms


def norms(adversarial: Tensor, clean: Tensor) -> Norms:
    """Linf, L2 and L0 of each image's perturbation; both N x C x H x W in [0, 1]. L0 counts places, not values."""
    sizes = [_sizes(one, other) for one, other in zip(adversarial, clean, strict=True)]
    linf, l2, l0 = zip(*sizes, strict=True) if sizes else ((), (), ())
    return Norms(np.array(linf, np.float64), np.array(l2, np.float64), np.array(l0, np.int64))


def _sizes(adversarial: Tensor, clean: Tensor) -> tuple[float, float, int]:
    """Of one image: in float64, which for a whole batch would tear the heap of a long run to pieces."""
    delta = (adversarial.double() - clean.double()).abs()
    return float(delta.max()), float(delta.norm()), int((delta.amax(0) > 0).sum())


def to_8bit(images: Tensor) -> Tensor:
    """The images as an 8-bit file would hold them, in [0, 1] again."""
    return (images.clamp(0, 1) * 255).round() / 255
