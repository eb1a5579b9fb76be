"""Where blocks of image tokens end, for models in which tokens of an image see each other.

In: which tokens are those of images. Out: the last position that each token sees. NumPy only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def block_ends(is_image: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The last position that each token sees: bool [S] -> int64 [S].

    Image tokens that stand side by side are one block, as in transformers.
    """
    places: NDArray[Any] = np.arange(len(is_image))
    text = np.where(is_image, len(is_image), places)
    next_text = np.minimum.accumulate(text[::-1])[::-1]
    return np.where(is_image, next_text - 1, places).astype(np.int64)
