"""Random crops of pictures, so that a few of them show a model many different things.

In: RGB, uint8 [height, width, 3]. Out: a part of it, of the same type. It needs only NumPy.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.models.vision.prepared import MOST_ELONGATED

_SHARE: Final = (0.25, 1.0)
"""How much of a picture is kept: less than a quarter often shows nothing that could be described."""

_STRETCH: Final = math.log(4 / 3)
"""By how much a crop may be wider or narrower in proportion than the picture, as a logarithm: torchvision's
`RandomResizedCrop` has the same limits."""


def random_crop(image: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
    """Cuts a part out of a picture: its share of the area, its proportions and its place are drawn.

    Args:
        image: uint8 [height, width, 3].
        generator: Draws.
    """
    height, width = image.shape[:2]
    share, stretch = generator.uniform(*_SHARE), math.exp(generator.uniform(-_STRETCH, _STRETCH))
    rows = _kept(height, math.sqrt(share / stretch))
    columns = _kept(width, math.sqrt(share * stretch))
    if max(rows, columns) > MOST_ELONGATED * min(rows, columns):  # no longer an image that can be read
        return image
    top, left = (int(generator.integers(length + 1)) for length in (height - rows, width - columns))
    return image[top : top + rows, left : left + columns]


def _kept(side: int, share: float) -> int:
    return min(side, max(1, round(side * share)))
