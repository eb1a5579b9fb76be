"""How NumPy holds tensors of a decoder, by the contract's names of types: bf16, which it does not have, as its bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

STORED: Final[Mapping[str, np.dtype[Any]]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
    "int8": np.dtype(np.int8),
}

_BFLOAT16_SHIFT: Final = 16
"""bf16 is the upper half of fp32."""


def widen(stored: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Numbers of the contract's type as fp32; exact.

    Args:
        stored: As `STORED` holds them.
        dtype: The contract's name of it.
    """
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << _BFLOAT16_SHIFT).view(np.float32)
    return stored.astype(np.float32, copy=False)
