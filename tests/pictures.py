"""Pictures for tests of everything that reads images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth colours with some noise, so that filters have something to do."""
    rows, columns = np.mgrid[0:height, 0:width]
    smooth = np.stack([rows * 255 / height, columns * 255 / width, (rows + columns) % 256], axis=-1)
    noise = np.random.default_rng(seed).normal(scale=20, size=smooth.shape)
    return (smooth + noise).clip(0, 255).astype(np.uint8)


def save_pictures(folder: Path, count: int, *, captions: bool = False) -> list[Path]:
    """Saves pictures of different sizes, named by number, and captions beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:02}.png" for index in range(count)]
    for index, path in enumerate(paths):
        shown = np.roll(picture(24 + 4 * (index % 3), 30, seed=index), 3 * index, axis=1)
        Image.fromarray(shown).save(path)
        if captions:
            path.with_suffix(".txt").write_text(f"Picture {index}.")
    return paths
