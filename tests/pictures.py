"""Pictures for tests of everything that reads images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth colours with some noise, so that filters have something to do."""
    rows, columns = np.mgrid[0:height, 0:width]
    smooth = np.stack([rows * 255 / height, columns * 255 / width, (rows + columns) % 256], axis=-1)
    noise = np.random.default_rng(seed).normal(scale=20, size=smooth.shape)
    return (smooth + noise).clip(0, 255).astype(np.uint8)
