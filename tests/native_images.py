"""Image preparation of the C++ library, by ctypes over its C interface (plugins/runtime/images/c_api.h).

Nothing is loaded before a test asks for it; tests are skipped where `make runtime` has not built the library.
"""

from __future__ import annotations

import ctypes
import json
from functools import cache
from typing import Any

import numpy as np
import pytest
from native_text import BUILD, NativeError
from numpy.typing import NDArray


@cache
def library() -> ctypes.CDLL:
    """The library, or a skip."""
    path = BUILD / "libawq2trt_images_c.so"
    if not path.is_file():
        pytest.skip("the C++ library is not built: make runtime")
    loaded = ctypes.CDLL(str(path))
    loaded.awq2trt_images_last_error.restype = ctypes.c_char_p
    return loaded


def _check(code: int) -> None:
    if code:
        raise NativeError(code, library().awq2trt_images_last_error().decode("utf-8", "replace"))


def prepared_size(config: dict[str, Any] | bytes) -> tuple[int, int] | None:
    """Height and width of every prepared image; None if it depends on the image's own."""
    width, height = ctypes.c_int64(), ctypes.c_int64()
    _check(library().awq2trt_images_size(_text(config), ctypes.byref(width), ctypes.byref(height)))
    return (height.value, width.value) if width.value else None


def prepare(config: dict[str, Any], image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Prepares an image: RGB uint8 [height, width, 3] -> fp32 [3, height, width]."""
    size = prepared_size(config)
    assert size is not None
    prepared = np.full((3, *size), np.nan, np.float32)
    pixels = np.ascontiguousarray(image)
    height, width = (ctypes.c_int64(side) for side in pixels.shape[:2])
    source, result = (array.ctypes.data_as(ctypes.c_void_p) for array in (pixels, prepared))
    _check(library().awq2trt_images_prepare(_text(config), source, width, height, result))
    return prepared


def divide(config: dict[str, Any], image: NDArray[np.uint8], side: int) -> tuple[NDArray[Any], ...]:
    """Divides an image: patches, fp32; and for windows of `side` pieces places, windows and slots of patches, int64."""
    pixels = np.ascontiguousarray(image)
    height, width = (ctypes.c_int64(length) for length in pixels.shape[:2])
    rows, columns, numbers = (ctypes.c_int64() for _ in range(3))
    sizes = (ctypes.byref(number) for number in (rows, columns, numbers))
    _check(library().awq2trt_images_grid(_text(config), width, height, *sizes))
    merge = config.get("merge_size", 2)
    windows = -(-(rows.value // merge) // side) * -(-(columns.value // merge) // side)
    patches = rows.value * columns.value
    made = (
        np.full((patches, numbers.value), np.nan, np.float32),
        np.full((patches, 2), -9, np.int64),
        np.full((windows, (side * merge) ** 2), -9, np.int64),
        np.full(patches, -9, np.int64),
    )
    source, *results = (array.ctypes.data_as(ctypes.c_void_p) for array in (pixels, *made))
    _check(library().awq2trt_images_divide(_text(config), source, width, height, ctypes.c_int64(side), *results))
    return made


def _text(config: dict[str, Any] | bytes) -> bytes:
    return config if isinstance(config, bytes) else json.dumps(config).encode()
