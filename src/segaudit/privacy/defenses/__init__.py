"""Defenses against membership inference: `(trainer, **own) -> Segmenter`, the network that is then asked."""

from __future__ import annotations

SEED = {1: "none", 2: "argmax", 3: "crop", 4: "mixup", 5: "minmax", 6: "dp", 7: "distillation"}
"""The numbers by which they are known to those who come from the study of poisoned segmentation models."""


def named(asked: int | str) -> str:
    """The name of a defense that is asked for by its number in `SEED`, 4 or `4`; any other name as it is."""
    text = str(asked)
    return SEED.get(int(text), text) if text.isascii() and text.isdigit() else text
