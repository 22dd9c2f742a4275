"""No defense."""

from __future__ import annotations

from segaudit.types import Segmenter


def none(model: Segmenter) -> Segmenter:
    """The bare model, what every defense is compared with."""
    return model
