"""Writes an ONNX graph whose tensors are streamed into one external-data file, a piece of one tensor at a time.

In: what builds the graph, and its tensors as it asks for them. Out: the model and its data file, both complete.

Format: https://onnx.ai/onnx/repo-docs/ExternalData.html. Offsets are multiples of a page, which lets executors map
the file instead of reading it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from awq2trt.checkpoint.pack import pack_int4, signed_bytes
from awq2trt.errors import ArtifactError, UnsupportedError

PAGE_BYTES: Final = 4096
_CHUNK_ELEMENTS: Final = 1 << 24
"""Elements cast at a time: 64 MB in fp32."""

_NUMPY_DTYPE: Final = {ir.DataType.FLOAT16: np.dtype(np.float16), ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16)}


class ExternalDataWriter:
    """Appends tensors to one file; each call returns the ONNX tensor that refers to the bytes written.

    Args:
        file: Open for binary writing, at its beginning.
        path: Where the file will be found, beside the model.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path

    def write_float(self, name: str, value: NDArray[np.generic], dtype: ir.DataType) -> ir.ExternalTensor:
        """Writes a tensor as `dtype` (FLOAT16 or BFLOAT16), casting piece by piece.

        Raises:
            UnsupportedError: A value is beyond what `dtype` holds.
        """
        offset = self._align()
        flat = value.reshape(-1)
        for start in range(0, flat.size, _CHUNK_ELEMENTS):
            self._file.write(_bytes_of(_cast(flat[start : start + _CHUNK_ELEMENTS], dtype, name)))
        return self._tensor(name, offset, dtype, value.shape)

    def write_int4(self, name: str, codes: NDArray[np.uint8]) -> ir.ExternalTensor:
        """Writes unsigned codes of any shape as a signed INT4 tensor of that shape."""
        return self.write_packed(name, pack_int4(codes), ir.DataType.INT4, codes.shape)

    def write_integers(self, name: str, values: NDArray[np.int32]) -> ir.ExternalTensor:
        """Writes a tensor of int32."""
        offset = self._align()
        self._file.write(np.ascontiguousarray(values).astype("<i4", copy=False).tobytes())
        return self._tensor(name, offset, ir.DataType.INT32, values.shape)

    def write_int8(self, name: str, codes: NDArray[np.uint8]) -> ir.ExternalTensor:
        """Writes unsigned 8-bit codes of any shape as a signed INT8 tensor of that shape."""
        return self.write_packed(name, signed_bytes(codes), ir.DataType.INT8, codes.shape)

    def write_packed(
        self, name: str, packed: NDArray[np.generic], dtype: ir.DataType, shape: tuple[int, ...]
    ) -> ir.ExternalTensor:
        """Writes the bytes of a tensor of this type and shape, as they are in memory."""
        offset = self._align()
        self._file.write(_bytes_of(packed))
        return self._tensor(name, offset, dtype, shape)

    def _align(self) -> int:
        self._file.write(bytes(-self._file.tell() % PAGE_BYTES))
        return self._file.tell()

    def _tensor(self, name: str, offset: int, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.ExternalTensor:
        return ir.ExternalTensor(
            self._path.name,
            offset,
            self._file.tell() - offset,
            dtype,
            shape=ir.Shape(shape),
            name=name,
            base_dir=self._path.parent,
        )


def write_graph(model_path: Path, weights_path: Path, build: Callable[[ExternalDataWriter], ir.Model]) -> None:
    """Writes a graph and its weights; nothing is visible under its final name before it is complete.

    Args:
        model_path: The ONNX file.
        weights_path: Its external data, in the same directory.
        build: Makes the graph out of tensors that it gives to the writer.

    Raises:
        ArtifactError: The files cannot be written.
    """
    partial = weights_path.with_name(weights_path.name + ".partial")
    try:
        with partial.open("wb") as file:
            model = build(ExternalDataWriter(file, weights_path))
        partial.replace(weights_path)
        _write_model(model, model_path)
    except OSError as error:
        raise ArtifactError(
            f"cannot write the exported model: {error.strerror or error}.",
            where=str(error.filename or model_path.parent),
            fix="free disk space or choose another output directory.",
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _write_model(model: ir.Model, path: Path) -> None:
    """Serializes the graph, whose weights are on disk already, checks it, and gives it its name."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(ir.to_proto(model).SerializeToString())
        onnx.checker.check_model(str(partial))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def initializer(tensor: ir.ExternalTensor) -> ir.Value:
    """A graph's initializer whose bytes are written."""
    return ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)


def _bytes_of(array: NDArray[np.generic]) -> memoryview:
    """The bytes of an array, which are only copied if they are not one after the other."""
    return np.ascontiguousarray(array).view(np.uint8).data


def _cast(piece: NDArray[np.generic], dtype: ir.DataType, name: str) -> NDArray[np.generic]:
    """`piece` as `dtype`; refuses what would become infinite."""
    with np.errstate(over="ignore"):
        cast = piece.astype(_NUMPY_DTYPE[dtype], copy=False)
    if not np.isfinite(cast).all():
        largest = float(np.abs(piece.astype(np.float32)).max())
        raise UnsupportedError(
            f"the largest value, {largest:.4g}, does not fit {dtype.name.lower()}.",
            where=name,
            fix="export with dtype bfloat16.",
        )
    return cast
