"""Quantized checkpoint -> `model.onnx` and `model.onnx.data` in a directory that the caller owns.

Weights go to disk one tensor at a time while the graph is built, so memory stays that of the largest tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol, get_args

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)
import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from awq2trt import opset
from awq2trt.errors import ArtifactError, UsageError
from awq2trt.io_contract import MODEL_FILE, WEIGHTS_FILE, IoContract
from awq2trt.models.families import DecoderSpec
from awq2trt.onnx_export.bodies import BodyVariant
from awq2trt.onnx_export.decoder_graph import GraphPlan, build_decoder, decoder_contract
from awq2trt.onnx_export.external_data import ExternalDataWriter
from awq2trt.onnx_export.weights import LinearInputs, Order
from awq2trt.progress import Progress, SilentProgress
from awq2trt.recipe import ActivationDtype, ExportOptions
from awq2trt.scheme import QuantizedLinear, QuantScheme

DEFAULT_MAX_SEQ_LEN: Final = 4096
"""Cache capacity unless asked otherwise: longer contexts cost cache memory that few runs use."""

DTYPES: Final[tuple[str, ...]] = get_args(ActivationDtype)


class Checkpoint(Protocol):
    """The part of `QuantizedCheckpoint` that the export reads."""

    spec: DecoderSpec
    config: dict[str, Any]
    head_scheme: QuantScheme | None

    def linear(self, name: str) -> QuantizedLinear:
        """A quantized linear by its full name."""

    def is_quantized(self, name: str) -> bool:
        """Whether a linear is; parts of fused ones have their own names, the head may be."""

    def input_order(self, name: str) -> NDArray[np.int64] | None:
        """The order of a linear's input channels; None for their own."""

    def tensor(self, name: str) -> NDArray[np.generic]:
        """A plain tensor by its full name."""

    def has(self, name: str) -> bool:
        """Whether there is a plain tensor of this name."""


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        contract: The model's inputs and outputs, for the manifest.
        dtype: Type of activations in the graph, by NumPy's name.
    """

    contract: IoContract
    dtype: str


def export_onnx(
    checkpoint: Checkpoint,
    directory: Path,
    *,
    options: ExportOptions | None = None,
    all_logits: bool = False,
    progress: Progress | None = None,
) -> ExportResult:
    """Writes the decoder and its weights into `directory`.

    Nothing is visible under its final name before it is complete.

    Args:
        checkpoint: What to export.
        directory: Where `model.onnx` and its weights go.
        options: Capacity, type of activations, function bodies; None for the defaults.
        all_logits: Whether the model gives logits of every position rather than only of the last.
        progress: Counts the blocks.

    Raises:
        UsageError: `max_seq_len` exceeds the positions that the model was made for.
        ArtifactError: The files cannot be written.
    """
    plan = _plan(options or ExportOptions(), checkpoint, all_logits=all_logits)
    model_path, weights_path = directory / MODEL_FILE, directory / WEIGHTS_FILE
    partial = weights_path.with_name(weights_path.name + ".partial")
    try:
        model = _stream(checkpoint, partial, weights_path, plan, progress or SilentProgress())
        partial.replace(weights_path)
        _write_model(model, model_path)
    except OSError as error:
        raise ArtifactError(
            f"cannot write the exported model: {error.strerror or error}.",
            where=str(error.filename or directory),
            fix="free disk space or choose another output directory.",
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    contract = decoder_contract(checkpoint.spec, plan)
    return ExportResult(contract, dtype=plan.dtype.name.lower())


class _StreamedWeights:
    """An implementation of `weights.Weights` that writes each tensor to disk when it is requested."""

    def __init__(self, checkpoint: Checkpoint, writer: ExternalDataWriter, dtype: ir.DataType) -> None:
        self.dtype = dtype
        self.quantized_head = checkpoint.head_scheme is not None
        self._checkpoint = checkpoint
        self._writer = writer
        spec = checkpoint.spec
        self._biased = {spec.prefix(layer) + name for layer in range(spec.num_layers) for name in spec.biased}

    def linear(self, name: str, rows: Order | None = None) -> LinearInputs:
        """codes, scales, and zeros and bias if there are any."""
        linear = _rows_in_order(self._checkpoint.linear(name).widened(), rows)
        write_codes = self._writer.write_int4 if linear.scheme.bits == opset.CODE_BITS else self._writer.write_int8
        tensors = [
            write_codes(f"{name}.codes", linear.codes),
            self._writer.write_float(f"{name}.scales", linear.scales, self.dtype),
        ]
        if linear.zeros is not None:
            tensors.append(write_codes(f"{name}.zeros", linear.zeros))
        if linear.bias is not None:
            tensors.append(self._writer.write_float(f"{name}.bias", linear.bias, self.dtype))
        return BodyVariant.of(linear), tuple(_initializer(tensor) for tensor in tensors)

    def is_quantized(self, name: str) -> bool:
        """Whether the checkpoint has codes of the linear."""
        return self._checkpoint.is_quantized(name)

    def plain_linear(self, name: str, rows: Order | None = None) -> tuple[ir.Value, ...]:
        """Weight, and bias if there is one."""
        kinds = ("weight", "bias") if name in self._biased else ("weight",)
        plain = {f"{name}.{kind}": self._checkpoint.tensor(f"{name}.{kind}") for kind in kinds}
        return tuple(self.constant(key, value if rows is None else value[rows]) for key, value in plain.items())

    def input_order(self, name: str) -> Order | None:
        """The order of a linear's input channels; None for their own."""
        return self._checkpoint.input_order(name)

    def order(self, name: str, value: Order) -> ir.Value:
        """An order of channels, int32."""
        return _initializer(self._writer.write_integers(name, value.astype(np.int32)))

    def tensor(self, name: str) -> ir.Value:
        """A plain tensor in the graph's dtype."""
        return self.constant(name, self._checkpoint.tensor(name))

    def has(self, name: str) -> bool:
        """Whether the checkpoint has the tensor."""
        return self._checkpoint.has(name)

    def gain(self, name: str) -> ir.Value:
        """A norm's weight, or 1 + weight, which is rounded after the sum."""
        weight = self._checkpoint.tensor(name)
        gain = weight.astype(np.float32) + 1 if self._checkpoint.spec.norm.unit_offset else weight
        return self.constant(name, gain)

    def constant(self, name: str, value: NDArray[np.generic]) -> ir.Value:
        """A tensor in the graph's dtype."""
        return _initializer(self._writer.write_float(name, value, self.dtype))


def _stream(checkpoint: Checkpoint, partial: Path, weights_path: Path, plan: GraphPlan, progress: Progress) -> ir.Model:
    """Builds the graph while its weights go to `partial`; the graph names them by `weights_path`."""
    spec = checkpoint.spec
    with partial.open("wb") as file, progress.task("exporting", spec.num_layers) as advance:
        weights = _StreamedWeights(checkpoint, ExternalDataWriter(file, weights_path), plan.dtype)
        return build_decoder(spec, weights, plan, on_block=lambda: advance(1))


def _write_model(model: ir.Model, path: Path) -> None:
    """Serializes the graph, whose weights are on disk already, checks it, and gives it its name."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(ir.to_proto(model).SerializeToString())
        onnx.checker.check_model(str(partial))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _rows_in_order(linear: QuantizedLinear, rows: Order | None) -> QuantizedLinear:
    """The linear with its output channels in another order."""
    if rows is None:
        return linear
    zeros = None if linear.zeros is None else linear.zeros[rows]
    bias = None if linear.bias is None else linear.bias[rows]
    return replace(linear, codes=linear.codes[rows], scales=linear.scales[rows], zeros=zeros, bias=bias)


def _initializer(tensor: ir.ExternalTensor) -> ir.Value:
    return ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)


def _plan(options: ExportOptions, checkpoint: Checkpoint, *, all_logits: bool) -> GraphPlan:
    """Settles the options for this checkpoint."""
    limit = checkpoint.spec.max_positions
    capacity = options.max_seq_len or min(limit, DEFAULT_MAX_SEQ_LEN)
    if capacity > limit:
        raise UsageError(
            f"got {capacity}, but the model was made for at most {limit} positions.",
            where="--max-seq-len",
            fix=f"use --max-seq-len {limit} or less.",
        )
    said = checkpoint.config.get("torch_dtype") or checkpoint.config.get("dtype")
    dtype = options.dtype or (said if said in DTYPES else DTYPES[0])
    return GraphPlan(capacity, ir.DataType[dtype.upper()], all_logits, options.function_bodies)
