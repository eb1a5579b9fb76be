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


def pixels(config: dict[str, Any], image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """Prepares an image: RGB uint8 [height, width, 3] -> fp32, and rows and columns of its pieces or tiles."""
    source = np.ascontiguousarray(image)
    height, width = (ctypes.c_int64(side) for side in source.shape[:2])
    given = (_text(config), _address(source), width, height)
    rank, rows, columns = (ctypes.c_int64() for _ in range(3))
    shape = (ctypes.c_int64 * 4)()
    _check(library().awq2trt_images_shape(*given, ctypes.byref(rank), shape, ctypes.byref(rows), ctypes.byref(columns)))
    prepared = np.full(shape[: rank.value], np.nan, np.float32)
    _check(library().awq2trt_images_prepare(*given, _address(prepared)))
    return prepared, (rows.value, columns.value)


def prepare(config: dict[str, Any], image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Prepares an image of one size: RGB uint8 [height, width, 3] -> fp32 [3, height, width]."""
    prepared: NDArray[np.float32] = pixels(config, image)[0][0]
    return prepared


def divide(config: dict[str, Any], image: NDArray[np.uint8], side: int) -> tuple[NDArray[Any], ...]:
    """Divides an image: patches, fp32; and for windows of `side` pieces places, windows and slots of patches, int64."""
    patches, (rows, columns) = pixels(config, image)
    merge = config.get("merge_size", 2)
    windows = -(-rows // side) * -(-columns // side)
    made = (
        np.full((len(patches), 2), -9, np.int64),
        np.full((windows, (side * merge) ** 2), -9, np.int64),
        np.full(len(patches), -9, np.int64),
    )
    sizes = (ctypes.c_int64(size) for size in (rows, columns, merge, side))
    _check(library().awq2trt_images_windows(*sizes, *map(_address, made)))
    return (patches, *made)


def order(side: int, tiles: tuple[int, int], size: tuple[int, int]) -> NDArray[np.int64]:
    """Which rows of a grid of tiles of `side` pieces a side are the pieces of an image of this height and width."""
    sizes = [ctypes.c_int64(length) for length in (side, *tiles, *size[::-1])]
    count = ctypes.c_int64()
    _check(library().awq2trt_images_order(*sizes, ctypes.byref(count), None))
    made = np.full(count.value, -9, np.int64)
    _check(library().awq2trt_images_order(*sizes, ctypes.byref(count), _address(made)))
    return made


def _address(array: NDArray[Any]) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)


def _text(config: dict[str, Any] | bytes) -> bytes:
    return config if isinstance(config, bytes) else json.dumps(config).encode()
