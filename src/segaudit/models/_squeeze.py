"""Tensors of 16 and 8 bits in fewer bytes, bit for bit: what a network's weights have in common LZMA finds."""

from __future__ import annotations

import lzma
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

KINDS = {torch.float16: "@xz", torch.int8: "@xz8"}
"""What ends the key of the bytes that stand for a tensor."""
GAIN = 0.97
"""It is worth it where they are at most this share of the tensor's."""
MEMORY = 2**25
"""Bytes that unfolding may take beside the result; what was squeezed here takes a quarter."""
BOMB = 1000
"""No weights are so alike that a byte stands for more: what unfolds further is no network."""


def squeezed(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """(the tensors, those of `KINDS` as bytes where that is worth it; the shapes of these by key)."""
    found, shapes = dict[str, Tensor](), dict[str, list[int]]()
    for key, value in tensors.items():
        size = value.numel() * value.element_size()
        small = lzma.compress(_planes(value), lzma.FORMAT_ALONE) if value.dtype in KINDS and size else b""
        if small and size / BOMB < len(small) <= GAIN * size:
            found[key + KINDS[value.dtype]] = torch.frombuffer(bytearray(small), dtype=torch.uint8)
            shapes[key] = list(value.shape)
        else:
            found[key] = value
    return found, shapes


def unfolded(tensors: Mapping[str, Tensor], shapes: Any) -> dict[str, Tensor]:
    """The tensors as they were. shapes: as a file says them. Raises ValueError for bytes that are not of these."""
    found = {key: value for key, value in tensors.items() if not key.endswith(tuple(KINDS.values()))}
    for dtype, end in KINDS.items():
        for key in (key.removesuffix(end) for key in tensors if key.endswith(end)):
            if key in found:
                raise ValueError(f"{key} is there twice")
            found[key] = _unfolded(key, tensors[key + end], dtype, _shape(shapes, key))
    return found


def _unfolded(key: str, small: Tensor, dtype: torch.dtype, shape: list[int]) -> Tensor:
    size = math.prod(shape) * dtype.itemsize
    if not shape or small.dtype != torch.uint8 or not size < BOMB * small.numel():
        raise ValueError(f"{key} stands for nothing that was ever squeezed")
    try:
        unfold = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=MEMORY)
        raw = unfold.decompress(small.numpy().tobytes(), max_length=size + 1)
    except lzma.LZMAError as error:
        raise ValueError(f"{key}: {error}") from error
    if len(raw) != size:
        raise ValueError(f"{key} unfolds to {len(raw)} bytes, not {size}")
    planes = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(dtype.itemsize, -1)
    return planes.T.contiguous().view(dtype).view(shape)


def _shape(shapes: Any, key: str) -> list[int]:
    """What a file says of a tensor's shape; empty where that is none."""
    shape = shapes.get(key) if isinstance(shapes, dict) else None
    return shape if isinstance(shape, list) and all(type(side) is int and side > 0 for side in shape) else []


def _planes(value: Tensor) -> bytes:
    """The low bytes of all numbers, then the high ones: of float16 sign, exponent and the first bits after it."""
    numbers = value.contiguous().view(-1).view(torch.uint8)
    return numbers.view(-1, value.element_size()).T.contiguous().numpy().tobytes()
