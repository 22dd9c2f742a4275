"""The trained CamVid nets, some images and a watch, for the benchmarks."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from segaudit.audit import build, parts
from segaudit.audit.spec import RunSpec
from segaudit.types import Batch, Segmenter

SPEC = Path(__file__).parent.parent / "experiments" / "camvid-arnab.yaml"


def images(count: int) -> Batch:
    """CamVid val images at 192 x 256, evenly spread."""
    spec = parts.read(RunSpec, SPEC)
    part = spec.data.model_copy(update={"args": spec.data.args | {"limit": count}})
    data = build.dataset(part)
    return data.batch(data.ids)


def nets() -> dict[str, Segmenter]:
    """label -> the net of `experiments/camvid-arnab.yaml`, frozen, in fp32."""
    spec = parts.read(RunSpec, SPEC)
    names = build.dataset(spec.data).class_names
    return {model.title(): build.model(model, names) for model in spec.models}


def seconds(work: Callable[[], None]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
