"""Opens an exported decoder: the graph in memory, with its weights on disk, after checking that everything is there.

In: `model.onnx`, or the directory that holds it. Out: the model, and its sizes. `run` and `build` both begin here, and
trust no file before it is checked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

import onnx_ir as ir

from awq2trt import opset
from awq2trt.errors import ArtifactError
from awq2trt.foreign_files import reading
from awq2trt.io_contract import (
    CACHE_POSITION,
    DEEPSTACK_EMBEDS,
    INPUT_IDS,
    INPUTS_EMBEDS,
    LOGITS,
    MODEL_FILE,
    TABLES,
    cache_names,
    scale_name,
)

_EXPORT_AGAIN: Final = "export the model again: awq2trt export CHECKPOINT -o DIR"

_LAYER: Final = re.compile(r"past_key_\d+")
"""A layer's keys among the inputs."""


@dataclass(frozen=True)
class CacheTensor:
    """A tensor of the cache, which a call reads as `past` and writes as `present`; both may be the same memory.

    Attributes:
        past: Name of the input.
        present: Name of the output.
        dtype: Type of its elements.
        shape: Its shape for one conversation; the third axis is the capacity.
    """

    past: str
    present: str
    dtype: ir.DataType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return math.prod(self.shape) * int(self.dtype.itemsize)


@dataclass(frozen=True)
class Table:
    """An input that is the same in every call until another image is shown.

    Attributes:
        dtype: Type of its elements.
        shape: Its shape.
    """

    dtype: ir.DataType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return math.prod(self.shape) * int(self.dtype.itemsize)


@dataclass(frozen=True)
class DecoderSizes:
    """Sizes of an exported decoder, from its inputs and outputs.

    Attributes:
        capacity: Positions that the cache holds.
        dtype: Type of the logits, and of the scales of a cache of codes.
        cache_dtype: Type of keys and values in the cache.
        hidden_size: Width of the embeddings that it reads; None where it reads tokens.
        tables: By name, the inputs that are the same in every call until another image is shown.
        deepstack: Channels that it reads beside embeddings, of what is added behind its first blocks.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    capacity: int
    vocab_size: int
    dtype: ir.DataType
    cache_dtype: ir.DataType
    hidden_size: int | None = None
    tables: Mapping[str, Table] = field(default_factory=dict)
    deepstack: int = 0

    @property
    def new_channels(self) -> dict[str, int]:
        """Channels of all that it reads of new tokens, by name; empty where it reads tokens."""
        if self.hidden_size is None:
            return {}
        return {INPUTS_EMBEDS: self.hidden_size} | ({DEEPSTACK_EMBEDS: self.deepstack} if self.deepstack else {})

    @property
    def table_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of its tables by name."""
        return {name: table.shape for name, table in self.tables.items()}

    @property
    def table_bytes(self) -> int:
        """Bytes of all its tables."""
        return sum(table.nbytes for table in self.tables.values())

    @property
    def caches(self) -> tuple[CacheTensor, ...]:
        """All tensors of one conversation's cache, layer by layer; any scales come after all codes."""
        shape = (1, self.num_kv_heads, self.capacity, self.head_dim)
        names = list(zip(cache_names("past", self.num_layers), cache_names("present", self.num_layers), strict=True))
        kept = tuple(CacheTensor(past, present, self.cache_dtype, shape) for past, present in names)
        if self.cache_dtype is not ir.DataType.INT8:
            return kept
        scales = (CacheTensor(scale_name(past), scale_name(present), self.dtype, shape[:3]) for past, present in names)
        return (*kept, *scales)

    @property
    def cache_bytes(self) -> int:
        """Bytes of all these tensors."""
        return sum(cache.nbytes for cache in self.caches)


def open_decoder(path: Path, *, capacity: int | None = None) -> tuple[ir.Model, DecoderSizes]:
    """Reads an exported decoder.

    Args:
        path: `model.onnx`, or the directory that holds it.
        capacity: Capacity of a lowered model, whose caches may have any length up to it; None to read it from the
            caches.

    Raises:
        ArtifactError: Files are missing or damaged, or this is another kind of ONNX model.
    """
    path = path / MODEL_FILE if path.is_dir() else path
    model = load_model(path)
    with reading("an exported decoder", path, fix=_EXPORT_AGAIN, error=ArtifactError):
        return model, read_sizes(model, path, capacity)


def load_model(path: Path) -> ir.Model:
    """Reads a graph whose weights are beside it, in files or behind links (to the hub's cache, or another disk).

    Raises:
        ArtifactError: Files are missing or damaged.
    """
    if not path.is_file():
        raise ArtifactError("no such model.", where=str(path), fix=_EXPORT_AGAIN)
    with reading("an ONNX model", path, fix=_EXPORT_AGAIN, error=ArtifactError):
        model = ir.load(path)
        for value in model.graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                _check_external(value.const_value)
                value.const_value = _without_link(value.const_value)
    return model


def weights_folder(model: ir.Model, default: Path) -> Path:
    """Returns the folder of the files with a graph's weights; links beside the model may lead to another."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    folders = (Path(tensor.base_dir) for tensor in tensors if isinstance(tensor, ir.ExternalTensor) and tensor.base_dir)
    return next(folders, default)


def operators_of(*models: ir.Model) -> dict[str, str]:
    """Our operators in graphs, by name, with the version of each; fused ones do not store theirs."""
    nodes = [node for model in models for node in model.graph if node.domain == opset.DOMAIN]
    said = {node.op_type: node.attributes.get(opset.ATTR_PLUGIN_VERSION) for node in nodes}
    return {name: opset.PLUGIN_VERSION if version is None else version.as_string() for name, version in said.items()}


def _without_link(tensor: ir.ExternalTensor) -> ir.ExternalTensor:
    """Points a tensor to the file behind a link, since `onnx_ir` and ONNX Runtime follow no links out of the folder.

    Whoever made the directory made the link; the manifest has a hash of the file's content.
    """
    path = Path(tensor.path)
    if not path.is_symlink():
        return tensor
    real = path.resolve()
    return ir.ExternalTensor(
        real.name,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=tensor.shape,
        name=tensor.name or "",
        base_dir=real.parent,
    )


def _check_external(tensor: ir.ExternalTensor) -> None:
    path, location = Path(tensor.path), PurePosixPath(tensor.location)
    if location.is_absolute() or ".." in location.parts:
        raise ArtifactError(
            f"expected the weights of {tensor.name} beside the model, got {tensor.location!r}.",
            where=str(path),
            fix=_EXPORT_AGAIN,
        )
    if not path.is_file():
        raise ArtifactError("the file with the weights is missing.", where=str(path), fix=_EXPORT_AGAIN)
    needed = (tensor.offset or 0) + (tensor.length or 0)
    size = path.stat().st_size
    if size < needed:
        raise ArtifactError(
            f"the file with the weights is truncated: {tensor.name} ends at byte {needed}, but the file has {size}.",
            where=str(path),
            fix=_EXPORT_AGAIN,
        )


def read_sizes(model: ir.Model, path: Path, free_capacity: int | None = None) -> DecoderSizes:
    """Reads the sizes of a decoder from its inputs and outputs.

    Args:
        model: The decoder.
        path: Its path, for errors.
        free_capacity: The capacity if the graph leaves it free; None to read it from the caches.

    Raises:
        ArtifactError: It is another kind of model.
    """
    values = {value.name: value for value in (*model.graph.inputs, *model.graph.outputs)}
    layers = sum(1 for name in values if name is not None and _LAYER.fullmatch(name))
    caches = (*cache_names("past", layers), *cache_names("present", layers))
    cache, logits = values.get("past_key_0"), values.get(LOGITS)
    scales = map(scale_name, caches if cache is not None and cache.dtype is ir.DataType.INT8 else ())
    new = INPUTS_EMBEDS if INPUTS_EMBEDS in values else INPUT_IDS
    missing = [name for name in (new, CACHE_POSITION, LOGITS, *caches, *scales) if name not in values]
    if missing or cache is None or logits is None or cache.shape is None or logits.shape is None:
        raise ArtifactError(
            f"this is not a decoder that awq2trt exported: it has no {', '.join(missing) or 'cache'}.",
            where=str(path),
            fix=_EXPORT_AGAIN,
        )
    _, heads, capacity, head_dim = cache.shape
    capacity = free_capacity or capacity
    vocab_size = logits.shape[2]
    if not (
        isinstance(heads, int)
        and isinstance(capacity, int)
        and isinstance(head_dim, int)
        and isinstance(vocab_size, int)
        and cache.dtype is not None
        and logits.dtype is not None
    ):
        raise ArtifactError(
            f"expected fixed heads, capacity and head size, got {cache.shape}, {cache.dtype}.",
            where=f"{path}: past_key_0",
            fix=_EXPORT_AGAIN,
        )
    hidden, deepstack = (_channels(values.get(name), path) for name in (INPUTS_EMBEDS, DEEPSTACK_EMBEDS))
    tables: dict[str, Table] = {name: _table(values[name], path) for name in TABLES if name in values}
    return DecoderSizes(
        layers, heads, head_dim, capacity, vocab_size, logits.dtype, cache.dtype, hidden, tables, deepstack or 0
    )


def _channels(value: ir.Value | None, path: Path) -> int | None:
    """Channels of embeddings [B, S, channels]; None without them."""
    if value is None:
        return None
    if value.shape is None or len(value.shape) != 3 or not isinstance(value.shape[2], int):
        raise ArtifactError(
            f"expected a fixed number of channels, got {value.shape}.", where=f"{path}: {value.name}", fix=_EXPORT_AGAIN
        )
    return value.shape[2]


def _table(value: ir.Value, path: Path) -> Table:
    shape = [] if value.shape is None else [axis for axis in value.shape if isinstance(axis, int)]
    if value.dtype is None or value.shape is None or len(shape) != len(value.shape):
        raise ArtifactError(
            f"expected fixed sizes, got {value.shape}, {value.dtype}.", where=f"{path}: {value.name}", fix=_EXPORT_AGAIN
        )
    return Table(value.dtype, tuple(shape))
