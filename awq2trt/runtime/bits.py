"""How NumPy stores a decoder's tensors, by the contract's names of types; NumPy has no bf16, so it stores the bits."""

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

_BEFORE_HALF: Final = np.uint32(0x7FFF)
"""The largest lower half of fp32 that is rounded down."""


def widen(stored: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Converts numbers of the contract's type to fp32, exactly.

    Args:
        stored: The numbers, in the type that `STORED` gives.
        dtype: The contract's name of their type.
    """
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << _BFLOAT16_SHIFT).view(np.float32)
    return stored.astype(np.float32, copy=False)


def narrow_table(table: NDArray[Any], dtype: str) -> NDArray[Any]:
    """A decoder's table in its own type, where it is not of whole numbers; arguments as for `narrow`."""
    return table if np.issubdtype(table.dtype, np.integer) else narrow(table, dtype)


def narrow(wide: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Finite numbers as `STORED` holds those of the contract's type, rounded to the nearest, of two the even one.

    Args:
        wide: fp32, or what is stored so already, which stays.
        dtype: The contract's name of it.
    """
    if wide.dtype == STORED[dtype]:
        return wide
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(wide).view(np.uint32)
        halves = _BEFORE_HALF + ((bits >> _BFLOAT16_SHIFT) & 1)
        return ((bits + halves) >> _BFLOAT16_SHIFT).astype(np.uint16)
    return wide.astype(STORED[dtype])
