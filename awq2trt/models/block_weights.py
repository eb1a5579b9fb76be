"""A block's tensors as PyTorch computes with them, read from wherever a model is stored.

In: a `ModelSource`, or NumPy's tensors of it. Out: fp32 tensors where PyTorch computes, a GPU's read ahead of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from awq2trt.models.families import DecoderSpec
from awq2trt.models.sources.base import Array, ModelSource
from awq2trt.tracing import span

BlockWeights = Mapping[str, Tensor]
"""A block's tensors by name relative to the block, fp32."""

READ_AHEAD = 2
"""Blocks that are read while a GPU quantizes one, each by a thread."""

READ_FAR_AHEAD = 4
"""The same while it only runs blocks, which takes less time than reading one. Llama-2-70B's take 1.7 GB each."""


def to_tensor(value: Array) -> Tensor:
    """Converts a NumPy tensor of any float dtype (including bfloat16 of ml_dtypes) to a new fp32 tensor.

    It is widened where PyTorch computes, so that a GPU receives no more bytes than are stored.
    """
    return _widened(_as_stored(value))


def _as_stored(value: Array) -> Tensor:
    """The same of PyTorch, in the machine's memory, shared where PyTorch knows the type."""
    writable = value if value.flags.writeable else value.copy()  # PyTorch warns of others
    if value.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(writable.view(np.int16)).view(torch.bfloat16)
    if value.dtype in (np.float16, np.float32, np.float64):
        return torch.from_numpy(writable)
    return torch.from_numpy(value.astype(np.float32))


def _widened(stored: Tensor) -> Tensor:
    """A copy in fp32 where PyTorch computes."""
    own = stored.dtype == torch.float32
    return stored.to(torch.get_default_device(), non_blocking=stored.is_pinned(), copy=own).float()


def load_block(source: ModelSource, layer: int) -> dict[str, Tensor]:
    """Loads all tensors of a block in fp32, by name relative to the block."""
    return {name: to_tensor(value) for name, value in source.block(layer).items()}


def load_blocks(source: ModelSource, first: int = 0, *, ahead: int = READ_AHEAD) -> Iterator[dict[str, Tensor]]:
    """All blocks from one on, as `load_block` has them.

    While a GPU computes on one, the next are read; a CPU would take the time to read from what it computes.

    Args:
        source: The model.
        first: The first block.
        ahead: How many are read at the same time.
    """
    layers, device = range(first, source.spec.num_layers), torch.get_default_device()
    if torch.empty(0).is_cpu:
        yield from (load_block(source, layer) for layer in layers)
        return
    with ThreadPoolExecutor(max_workers=ahead, thread_name_prefix="read") as readers:
        read = deque(readers.submit(_read, source, layer, device) for layer in layers[:ahead])
        for layer in layers:
            stored = read.popleft().result()
            if layer + ahead in layers:
                read.append(readers.submit(_read, source, layer + ahead, device))
            yield {name: _widened(stored.pop(name)) for name in [*stored]}


def _read(source: ModelSource, layer: int, device: torch.device) -> dict[str, Tensor]:
    """A block as it is stored, in memory that a GPU reads by itself, several times as fast as other memory."""
    with span("read ahead", block=layer):
        stored = {name: _as_stored(value) for name, value in source.block(layer).items()}
    if device.type != "cuda":
        return stored
    with torch.cuda.device(device), span("pin", block=layer):
        return {name: stored.pop(name).pin_memory() for name in [*stored]}


def with_linears_of(spec: DecoderSpec, weights: BlockWeights, dtype: torch.dtype) -> dict[str, Tensor]:
    """A block whose linears have factors of a type, which must hold fp32's range; `BlockRunner` multiplies by those."""
    linears = {f"{name}.weight" for name in spec.block.linears}
    return {name: value.to(dtype) if name in linears else value for name, value in weights.items()}
