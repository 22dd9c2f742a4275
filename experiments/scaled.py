"""A network of `camvid-arnab.yaml` that sees its images at other scales, as a model of its own.

As a model and not as a defense, it is in the transfer matrix: images made at one scale are tried at every other. In a
spec: `{source: python, name: "experiments/scaled.py:scaled", label: deeplab-50, args: {net: ..., scales: [0.5]}}`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segaudit.audit import build, parts
from segaudit.audit.spec import RunSpec
from segaudit.data.camvid import CLASS_NAMES
from segaudit.defenses.multiscale import multiscale
from segaudit.types import Segmenter

SPEC = Path(__file__).parent / "camvid-arnab.yaml"


def scaled(net: str, scales: Sequence[float], fusion: str = "average") -> Segmenter:
    """The network with this label, its logits fused over resized copies of the image; of one scale, at that alone."""
    (spec,) = [model for model in parts.read(RunSpec, SPEC).models if model.title() == net]
    return multiscale(build.model(spec, CLASS_NAMES), scales=scales, fusion=fusion)
