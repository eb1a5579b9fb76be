"""Checks that a GGUF file's metadata fits into the file before the gguf package trusts it.

In: a file. Out: nothing, or a refusal. The package reads as many array elements as the file claims to have, and 45
bytes can claim 2^60. Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, "File Structure".
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, Final

from awq2trt.errors import CheckpointError

_SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value, by `gguf_metadata_value_type`: integers, floats, booleans."""

_STRING: Final = 8
_ARRAY: Final = 9

_DEEPEST: Final = 4
"""Deepest nesting of arrays that is read; real files have one level."""

_SMALLEST_TENSOR: Final = 24
"""Fewest bytes that describe a tensor: length of its name, number of axes, type, offset."""


def require_bounded_metadata(path: Path) -> None:
    """Walks through the metadata without reading its values.

    Raises:
        CheckpointError: The metadata claims more than the file holds.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise EOFError
            _, tensors, pairs = struct.unpack("<IQQ", _take(file, 20))
            for _ in range(pairs):
                _skip(file, _number(file, "<Q"), size)
                _skip_value(file, _number(file, "<I"), size, depth=0)
            if tensors > (size - file.tell()) // _SMALLEST_TENSOR:
                raise EOFError
    except (EOFError, OSError) as error:
        raise CheckpointError(
            "not a readable GGUF file (its metadata claims more than the file holds).",
            where=str(path),
            fix="it is truncated or damaged; download it again.",
        ) from error


def _take(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise EOFError
    return data


def _number(file: BinaryIO, layout: str) -> int:
    value: int = struct.unpack(layout, _take(file, struct.calcsize(layout)))[0]
    return value


def _skip(file: BinaryIO, count: int, size: int) -> None:
    if count > size - file.tell():
        raise EOFError
    file.seek(count, 1)


def _skip_value(file: BinaryIO, kind: int, size: int, *, depth: int) -> None:
    if kind in _SIZES:
        _skip(file, _SIZES[kind], size)
    elif kind == _STRING:
        _skip(file, _number(file, "<Q"), size)
    elif kind == _ARRAY and depth < _DEEPEST:
        of, count = _number(file, "<I"), _number(file, "<Q")
        if count > size:  # every element takes at least one byte
            raise EOFError
        if of in _SIZES:
            _skip(file, count * _SIZES[of], size)
            return
        for _ in range(count):
            _skip_value(file, of, size, depth=depth + 1)
    else:
        raise EOFError
