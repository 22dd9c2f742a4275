"""Pictures of regions of one colour each, for what tells pixels apart by their colours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def photo(height: int, width: int, seed: int = 0) -> NDArray[np.float64]:
    """Four colours in regions, with shading and a little noise, 3 x H x W in whole 255ths."""
    rng = np.random.default_rng(seed)
    made = np.empty((3, height, width))
    field = ndimage.gaussian_filter(rng.normal(size=(4, height, width)), (0, 5, 5)).argmax(0)
    for channel in made:
        shade = ndimage.gaussian_filter(rng.normal(size=(height, width)), 8)
        channel[:] = rng.uniform(40, 215, 4)[field] + 12 * shade / shade.std() + rng.normal(size=(height, width))
    return made.clip(0, 255).round()
