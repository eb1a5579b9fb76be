"""Lowers an exported decoder on disk for one provider of ONNX Runtime, so that programs without Python can load it.

In: the directory that `export` wrote. Out, in a directory that the caller owns: an equivalent `model.onnx` and its
weights. Tensors are read, rewritten and written one at a time, so that memory holds only the largest.

- For the CPU: operators of `com.microsoft`, fp32, and a cache of any length up to the capacity (`ort_lowering`).
- For CUDA with our kernels: our operators with codes, without function bodies, so that the plugin library implements
  them, and usually fused operators of the same library (`fusion`).
- For CUDA without them: `MatMulNBits` in the activations' type.

The first form, and the one with fused operators, may have a cache of codes (`int8_cache`). All forms for CUDA give
`next_token` beside the logits, read an unquantized head in the layout in which it is stored (`heads_by_rows`), and have
a fixed capacity, which a CUDA graph needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Final

import onnx_ir as ir

from awq2trt import opset
from awq2trt.errors import UsageError
from awq2trt.graph import ort_lowering
from awq2trt.graph.fusion import fuse_, fused_nodes
from awq2trt.graph.heads_by_rows import multiply_by_rows_
from awq2trt.graph.inline import has_kernels, inline_bodies_
from awq2trt.graph.int8_cache import int8_contract, quantize_cache_
from awq2trt.graph.next_token import CONTRACT, append_next_token_, drop_next_token_
from awq2trt.graph.read import DecoderSizes, open_decoder
from awq2trt.io_contract import MODEL_FILE, IoContract, TensorContract, is_cache, weights_of
from awq2trt.progress import Progress

INLINE_BYTES: Final = 1024
"""Tensors of up to this many bytes stay in the model file: when it loads it, ONNX Runtime reads shapes and axes only
there."""


class Lowering(str, Enum):
    """A form that a decoder can take; the value is its name in manifests."""

    CPU = "cpu"
    CPU_INT8 = "cpu-int8-cache"
    CUDA_PLUGIN = "cuda"
    CUDA_FUSED = "cuda-fused"
    CUDA_INT8 = "cuda-fused-int8-cache"
    CUDA_ORT = "cuda-matmulnbits"

    @property
    def has_int8_cache(self) -> bool:
        """Whether the cache holds codes and scales."""
        return self in (Lowering.CPU_INT8, Lowering.CUDA_INT8)

    @property
    def is_for_cpu(self) -> bool:
        """Whether the CPU provider runs it."""
        return self in (Lowering.CPU, Lowering.CPU_INT8)


def write_lowered(exported: Path, lowering: Lowering, directory: Path, progress: Progress) -> None:
    """Writes the lowered model into `directory`.

    Args:
        exported: Directory of the exported model.
        lowering: The form.
        directory: An empty directory of the caller's.
        progress: Counts the tensors.

    Raises:
        ArtifactError: The exported model is damaged.
    """
    model, sizes = open_decoder(exported)
    lower_(model, sizes, lowering)
    with progress.task("lowering", len(model.graph.initializers)) as advance:
        save_model(model, directory, on_tensor=lambda: advance(1))


def lower_(model: ir.Model, sizes: DecoderSizes, lowering: Lowering) -> None:
    """Rewrites an exported model in memory, or for `CUDA_ORT` one that was lowered for the plugin library.

    Raises:
        UnsupportedError: The model cannot have the cache of this form.
        UsageError: The model has fused operators, for which ONNX Runtime has no kernels.
    """
    if lowering.is_for_cpu:
        if lowering.has_int8_cache:
            quantize_cache_(model, in_standard_operators=True)
        ort_lowering.lower_linears_(model, widened=True)
        ort_lowering.widen_to_fp32_(model)
        if ort_lowering.has_free_capacity(model):
            ort_lowering.free_capacity_(model)
        return
    if lowering is Lowering.CUDA_ORT:
        _refuse_fused(model)
        ort_lowering.lower_linears_(model, widened=False)
    else:
        _leave_to_library_(model)
        if lowering is not Lowering.CUDA_PLUGIN:
            fuse_(model)
        if lowering.has_int8_cache:
            quantize_cache_(model)
    multiply_by_rows_(model)
    drop_next_token_(model)  # of a file that was lowered already
    append_next_token_(model, sizes.vocab_size, in_library=lowering is not Lowering.CUDA_ORT)


def lowered_contract(contract: IoContract, lowering: Lowering) -> IoContract:
    """Returns the inputs and outputs of a lowered model, from those of the exported one."""
    contract = int8_contract(contract) if lowering.has_int8_cache else contract
    if not lowering.is_for_cpu:
        return replace(contract, outputs=(*contract.outputs, CONTRACT))

    return widened_contract(contract)


def widened_contract(contract: IoContract) -> IoContract:
    """Inputs and outputs of a graph that computes in fp32, from those of the exported one."""

    def widened(tensor: TensorContract) -> TensorContract:
        shape = (*tensor.shape[:2], "capacity", *tensor.shape[3:]) if is_cache(tensor.name) else tensor.shape
        return replace(tensor, dtype=_widened(tensor.dtype), shape=shape)

    return replace(
        contract,
        inputs=tuple(map(widened, contract.inputs)),
        outputs=tuple(map(widened, contract.outputs)),
        cache=replace(contract.cache, dtype=_widened(contract.cache.dtype)) if contract.cache else None,
    )


def _widened(dtype: str) -> str:
    """The type in the contract after half precision became fp32."""
    return "float32" if dtype in ("float16", "bfloat16") else dtype


def save_model(
    model: ir.Model, directory: Path, on_tensor: Callable[[], None] = lambda: None, name: str = MODEL_FILE
) -> None:
    """Writes a model whose tensors may be computed lazily, one at a time."""
    ir.save(
        model,
        directory / name,
        external_data=weights_of(name),
        size_threshold_bytes=INLINE_BYTES,
        callback=lambda _tensor, _info: on_tensor(),
    )


def _refuse_fused(model: ir.Model) -> None:
    if fused_nodes(model):
        raise UsageError(
            "the model calls fused operators, for which ONNX Runtime has no kernels of its own.",
            where=str(model.graph.name),
            fix="name the exported model, or build with --no-fusion.",
        )


def _leave_to_library_(model: ir.Model) -> None:
    """Drops function bodies, so that only the plugin library uses a weight, and nothing dequantizes all of it.

    Linears for which it has no kernels keep their bodies, since there is nothing better.
    """
    inline_bodies_(model, keep=has_kernels)
    model.functions.clear()
    for node in model.graph:
        if node.domain == opset.DOMAIN:
            node.overload = ""
