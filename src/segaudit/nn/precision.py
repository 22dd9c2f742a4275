"""What this processor is fast at."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from segaudit.types import UserError

PRECISIONS = ("auto", "bf16", "fp32")
_KEEP = {-1: 2**31 - 1, -2: 2**26, -4: 0}
"""glibc's malloc.h: M_TRIM_THRESHOLD and M_TOP_PAD in bytes, M_MMAP_MAX: no block has a mapping of its own."""


def bf16_is_fast(device: torch.device | str = "cpu") -> bool:
    """Whether the device multiplies bfloat16 in hardware."""
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    cpu = torch.cpu
    return any(bool(getattr(cpu, probe, bool)()) for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


def resolve(precision: str, device: torch.device | str = "cpu") -> str:
    """`auto` -> bf16 where the device is fast at it, else fp32."""
    if precision not in PRECISIONS:
        raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision == "auto":
        return "bf16" if bf16_is_fast(device) else "fp32"
    return precision


_exact = False


@contextmanager
def exactly() -> Iterator[None]:
    """Models that are asked in bf16 answer in full precision inside the block, for an attack that judges itself."""
    global _exact
    before, _exact = _exact, True
    try:
        yield
    finally:
        _exact = before


def is_exact() -> bool:
    """Whether this is inside `exactly`."""
    return _exact


def prepare_process() -> None:
    """Settings of a whole process, for speed.

    Denormals are read as zero: trained networks hold them, and they can cost a factor of 30. Freed memory is kept: an
    attack frees and takes the same tensors at every step, and glibc would give their pages back in between; so a
    process holds on to the most memory that it has ever needed.
    """
    torch.set_flush_denormal(True)
    allocator = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if allocator is not None:
        for option, size in _KEEP.items():
            allocator(option, size)


def exact_on_cuda() -> None:
    """fp32 that is fp32 (no TF32), by algorithms of cuDNN that repeat; bf16 is only where it is asked for."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


def clock(device: torch.device) -> float:
    """Seconds, once the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def default_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
