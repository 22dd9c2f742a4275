"""What happened: a versioned, typed log beside the records. Packages and machine stand here, not in any key."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata

import torch
from pydantic import Field

from segaudit import __version__
from segaudit.audit.parts import Strict
from segaudit.nn.precision import default_device, resolve

PACKAGES = ("torch", "numpy", "torchvision", "segmentation-models-pytorch", "transformers", "timm", "pillow")


class Session(Strict):
    """One go at a run."""

    started: str
    finished: str | None = None
    executor: str
    computed: int = 0
    """Parts computed in this session; the others were there."""
    seconds: float = 0.0
    device: str
    precision: str
    machine: str
    packages: dict[str, str]


class RunLog(Strict):
    """The log of a run. parts: how many it has in all."""

    version: int = 1
    name: str
    parts: int
    sessions: list[Session] = Field(default_factory=list)


def session(executor: str, precision: str) -> Session:
    """A session that starts now, on this machine."""
    device = default_device()
    return Session(
        started=now(),
        executor=executor,
        device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        precision=resolve(precision, device),
        machine=f"{platform.system()} {platform.machine()}, {_processor()}, {os.cpu_count()} cores",
        packages={"segaudit": __version__, "python": platform.python_version()} | _packages(),
    )


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"
