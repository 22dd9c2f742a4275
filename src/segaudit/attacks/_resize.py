"""The resizers that stand before a network, as their own libraries do them, and the matrices that they are.

Every one is linear and separable: small = rows @ picture @ columns^T for each channel, but for what the library rounds
and clips. Both matrices are what the library itself makes of an identity picture, so no kernel is written out here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from segaudit.registry import suggest
from segaudit.types import UserError

Size = tuple[int, int]
"""Height and width in pixels."""
Resize = Callable[[NDArray[np.uint8], Size], NDArray[np.float64]]
"""What stands between a picture H x W x C and a network: h x w x C in [0, 1], as the network gets it."""


def _pil(picture: NDArray[Any], size: Size, method: str) -> NDArray[Any]:
    bands = [Image.fromarray(band).resize(size[::-1], Image.Resampling[method]) for band in np.moveaxis(picture, 2, 0)]
    return np.stack([np.asarray(band) for band in bands], axis=2)


def _opencv(picture: NDArray[Any], size: Size, method: str) -> NDArray[Any]:
    cv2 = importlib.import_module("cv2")
    made: NDArray[Any] = cv2.resize(picture, size[::-1], interpolation=getattr(cv2, method))
    return made.reshape(*size, -1)


def _torch(picture: NDArray[Any], size: Size, method: str) -> NDArray[Any]:
    """In float, as a picture that is made a tensor first; not rounded."""
    mode, _, antialias = method.partition("+")
    pixels = torch.from_numpy(picture.transpose(2, 0, 1))[None]
    pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
    return F.interpolate(pixels, size=size, mode=mode, antialias=bool(antialias))[0].permute(1, 2, 0).numpy()


LIBRARIES: dict[str, Callable[[NDArray[Any], Size, str], NDArray[Any]]] = {
    "pil": _pil,
    "opencv": _opencv,
    "torch": _torch,
}
METHODS: dict[str, Mapping[str, str]] = {
    "pil": {"nearest": "NEAREST", "bilinear": "BILINEAR", "bicubic": "BICUBIC", "area": "BOX", "lanczos": "LANCZOS"},
    "opencv": {
        "nearest": "INTER_NEAREST",
        "bilinear": "INTER_LINEAR",
        "bicubic": "INTER_CUBIC",
        "area": "INTER_AREA",
        "lanczos": "INTER_LANCZOS4",
    },
    "torch": {
        "nearest": "nearest",
        "nearest_exact": "nearest-exact",
        "bilinear": "bilinear",
        "bicubic": "bicubic",
        "area": "area",
        "bilinear_antialias": "bilinear+antialias",
        "bicubic_antialias": "bicubic+antialias",
        "lanczos_antialias": "lanczos+antialias",
    },
}
"""What each library calls its methods. Those of PIL weigh every pixel when they shrink (as torch's antialiased ones
do); OpenCV's and torch's plain ones look at 1, 2, 4 or 8 pixels a side, however many there are."""


@dataclass(frozen=True, slots=True)
class Resizer:
    """A library's method: a picture H x W x C uint8 -> what the network sees of it, h x w x C float64 in [0, 1].

    PIL and OpenCV round that to 8 bits; torch's is clipped to [0, 1], not rounded.
    Raises UserError for a library or method that does not exist, or is not installed here.
    """

    library: str
    method: str

    def __post_init__(self) -> None:
        for key, value, known in (
            ("library", self.library, LIBRARIES),
            ("method", self.method, METHODS.get(self.library, {})),
        ):
            if value not in known:
                raise UserError(f"{key} must be one of {', '.join(known)}, not {value!r}{suggest(str(value), known)}")
        try:
            matrix(self, 4, 2)
        except ImportError as error:
            raise UserError("library 'opencv' is not installed; pip install opencv-python-headless") from error
        except (NotImplementedError, ValueError) as error:
            raise UserError(f"method {self.method!r} is not in this version of {self.library}: {error}") from error

    def __call__(self, picture: NDArray[np.uint8], size: Size) -> NDArray[np.float64]:
        """The picture as the library resizes it."""
        made = self.raw(picture, size)
        return made / 255 if made.dtype == np.uint8 else made.astype(np.float64).clip(0, 1)

    def raw(self, picture: NDArray[Any], size: Size) -> NDArray[Any]:
        """What the library makes of a picture H x W x C of its own kind of numbers."""
        return LIBRARIES[self.library](picture, size, METHODS[self.library][self.method])


def resizers(library: str) -> list[Resizer]:
    """All of a library's methods that there are here. Raises UserError for a library that is not."""
    Resizer(library, "nearest")
    found = []
    for method in METHODS[library]:
        try:
            found.append(Resizer(library, method))
        except UserError:
            continue
    return found


@lru_cache(maxsize=16)
def matrix(resizer: Resizer, side: int, small: int) -> Tensor:
    """What the resizer does to a column of `side` pixels: small x side, float64; not to be changed."""
    kind = np.float32 if resizer.library == "pil" else np.float64  # PIL has no float64 pictures
    made = resizer.raw(np.eye(side, dtype=kind)[:, :, None], (side, small))
    return torch.from_numpy(made[:, :, 0].T.astype(np.float64))
