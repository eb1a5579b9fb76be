"""Runs a decoder for polygraphy: takes calls with `input_ids` and `cache_position`, gives every block and the logits.

In: a model, as weights or as a graph, then the calls. Out: arrays by name, for polygraphy to compare.

Two runners, one for PyTorch and one for ONNX Runtime, with the same outputs under the same names: `block_output(i)`,
the residual stream after block i [1, S, H], and the logits of every position [1, S, V]. polygraphy's own `OnnxrtRunner`
does not handle a cache, so ours keeps it between calls, as an executor does. The backends of `awq2trt run`, and engines
(`engine_runner`), give only logits.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from polygraphy.backend.base import BaseRunner
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.common import TensorMetadata

from awq2trt.checking.beside import begun, exported_embedder, noise_shown, prepared_noise, seen_by_torch
from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.errors import ArtifactError
from awq2trt.graph import ort_lowering
from awq2trt.graph.read import DecoderSizes, open_decoder
from awq2trt.io_contract import (
    CACHE_POSITION,
    EMBEDDING,
    INPUT_IDS,
    INPUTS_EMBEDS,
    LOGITS,
    VISION,
    cache_names,
)
from awq2trt.models.block_weights import load_block
from awq2trt.models.decoder import Ends
from awq2trt.models.families import DecoderSpec
from awq2trt.models.sources.base import ModelSource
from awq2trt.models.spec import ModelSpec
from awq2trt.models.vision.description import SeeingSpec
from awq2trt.models.vision.prepared import PreparedImage
from awq2trt.runtime.backend import SeeingBackend
from awq2trt.runtime.embedding import parted
from awq2trt.runtime.ort.embedder import Embedder
from awq2trt.runtime.ort.session import Execution, open_session

Arrays = OrderedDict[str, NDArray[Any]]

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"

DECODE_CALLS: Final = 4
"""Number of tokens at the end of the text that are passed one by one."""

SPARE_SLOTS: Final = 3
"""Empty slots of the cache behind the text, which reveal a mask that reads too far, or a write at a wrong place."""


def block_output(layer: int) -> str:
    """Name of the residual stream after block `layer`."""
    return f"block_{layer}"


def block_update(layer: int) -> str:
    """Name of the summand that block `layer` adds to the residual stream."""
    return f"update_{layer}"


def first_call(tokens: Sequence[int]) -> int:
    """Length of the call that takes most of the text at once; at least one token."""
    return max(1, len(tokens) - DECODE_CALLS)


def calls_of(tokens: Sequence[int]) -> list[dict[str, NDArray[np.int64]]]:
    """Inputs of a conversation's calls: all but the last `DECODE_CALLS` tokens at once, then those one by one."""
    first = first_call(tokens)
    spans = [(0, first), *((index, index + 1) for index in range(first, len(tokens)))]
    return [
        {
            INPUT_IDS: np.asarray([tokens[start:end]], np.int64),
            CACHE_POSITION: np.asarray([start], np.int64),
        }
        for start, end in spans
    ]


class DecoderRunner(BaseRunner):  # type: ignore[misc]  # polygraphy has no type hints
    """The base of all runners: checks the calls, which are those of `calls_of`."""

    def get_input_metadata_impl(self) -> Any:
        metadata = TensorMetadata()
        metadata.add(INPUT_IDS, dtype=np.int64, shape=(1, None))
        metadata.add(CACHE_POSITION, dtype=np.int64, shape=(1,))
        return metadata


class TorchRunner(DecoderRunner):
    """A model in PyTorch, fp32, with one block in memory at a time. All positions are computed when it starts.

    So it needs no cache, and every call's outputs are parts of one causal pass over the text.

    Args:
        source: The model.
        tokens: Tokens of the complete text.
        name: Name of the stage.
        teacher: A model whose residual streams are also given to each block; then `block_update(i)` is what the block
            adds to them, which measures a block regardless of the blocks before it. None leaves that out.
    """

    def __init__(
        self, source: ModelSource, tokens: Sequence[int], name: str, teacher: ModelSource | None = None
    ) -> None:
        super().__init__(name=name)
        self._source = source
        self._tokens = list(tokens)
        self._teacher = teacher
        self._outputs: Arrays = OrderedDict()
        self._seen: Arrays = OrderedDict()

    def activate_impl(self) -> None:
        started = time.monotonic()
        source = self._source
        with torch.inference_mode():
            ends = Ends(source)
            hidden, runner = begun(source, ends, self._tokens)
            self._outputs[EMBEDDING] = hidden.numpy()
            if (seen := seen_by_torch(source)) is not None:
                self._seen[VISION] = seen[None]
            given, taught = hidden, runner
            if self._teacher:  # images, too, are what the teacher sees
                given, taught = begun(self._teacher, Ends(self._teacher), self._tokens)
            for layer in range(source.spec.num_layers):
                weights = load_block(source, layer)
                hidden = runner.run(weights, hidden, layer=layer)
                self._outputs[block_output(layer)] = hidden.numpy()
                if self._teacher:
                    self._outputs[block_update(layer)] = (taught.run(weights, given, layer=layer) - given).numpy()
                    given = taught.run(load_block(self._teacher, layer), given, layer=layer)
            self._outputs[LOGITS] = torch.cat(list(ends.logits_in_pieces(hidden[0])))[None].numpy()
        self.inference_time = time.monotonic() - started

    def infer_impl(self, feed_dict: Mapping[str, Any]) -> Arrays:
        start = int(feed_dict[CACHE_POSITION][0])
        end = start + feed_dict[INPUT_IDS].shape[1]
        named = OrderedDict((name, value[:, start:end]) for name, value in self._outputs.items())
        return OrderedDict(named | self._seen)

    def deactivate_impl(self) -> None:
        self._outputs, self._seen = OrderedDict(), OrderedDict()


@dataclass(frozen=True)
class GraphExecution:
    """How ONNX Runtime executes an exported model's graphs.

    Attributes:
        length: Positions of the cache.
        provider: Execution provider.
        model: The description of a model that sees, whose decoder reads embeddings; None for a model of text.
    """

    length: int
    provider: str = CPU
    model: ModelSpec | None = None

    @classmethod
    def of(cls, checkpoint: QuantizedCheckpoint, length: int, provider: str = CPU) -> GraphExecution:
        """How the graphs of a checkpoint are executed."""
        return cls(length, provider, checkpoint.model_spec if checkpoint.vision is not None else None)


class CachedOnnxRunner(OnnxrtRunner):  # type: ignore[misc]
    """An exported decoder in ONNX Runtime, with a cache that lasts until the next call at position 0.

    Of a model that sees, its calls also give the embeddings that went in, and what the vision graph makes of an image.

    Args:
        model: The model, with the outputs that are wanted and a dynamic capacity.
        sizes: Sizes of the model.
        path: The directory that it was read from, with its weights and the graphs beside it.
        execution: How it is executed.
        name: Name of the stage.

    Attributes:
        last_inputs: Inputs of the last call, including caches.
    """

    def __init__(
        self, model: ir.Model, sizes: DecoderSizes, path: Path, execution: GraphExecution, *, name: str
    ) -> None:
        super().__init__(lambda: open_session(model, path, Execution(execution.provider)), name=name)
        self._sizes = sizes
        self._path = path
        self._execution = execution
        self._caches: Arrays = OrderedDict()
        self._embedder: Embedder | None = None
        self._seen: Arrays = OrderedDict()
        self.last_inputs: dict[str, NDArray[Any]] = {}

    def get_input_metadata_impl(self) -> Any:
        return DecoderRunner.get_input_metadata_impl(self)

    def activate_impl(self) -> None:
        super().activate_impl()
        model = self._execution.model
        if model is not None and model.vision is not None:
            shapes = self._sizes.table_shapes
            self._embedder = exported_embedder(self._path, model, shapes, self._execution.provider)
            self._seen[VISION] = self._embedder.see(prepared_noise(model.vision))[None]

    def infer_impl(self, feed_dict: Mapping[str, Any]) -> Arrays:
        layers, feed, given = self._sizes.num_layers, dict(feed_dict), OrderedDict(self._seen)
        inputs = {value.name: value.type for value in self.sess.get_inputs()}
        if feed_dict[CACHE_POSITION][0] == 0:
            if self._embedder is not None and self._execution.model is not None:
                self._embedder.forget()
                self._embedder.show(noise_shown(self._execution.model.vision, feed[INPUT_IDS][0].tolist()))
            shape = (1, self._sizes.num_kv_heads, self._execution.length, self._sizes.head_dim)
            self._caches = OrderedDict(
                (name, np.zeros(shape, _NUMPY_DTYPE[inputs[name]])) for name in cache_names("past", layers)
            )
        if self._embedder is not None:
            rows = self._embedder.rows(feed.pop(INPUT_IDS)[0].tolist())[None]
            feed |= parted(rows, self._sizes.new_channels)
            given[EMBEDDING] = feed[INPUTS_EMBEDS]
            tables = self._embedder.tables.arrays if self._embedder.tables is not None else {}
            feed |= {name: table.astype(_NUMPY_DTYPE[inputs[name]]) for name, table in tables.items()}
        self.last_inputs = {**feed, **self._caches}
        outputs = super().infer_impl(OrderedDict(self.last_inputs))
        for past, present in zip(cache_names("past", layers), cache_names("present", layers), strict=True):
            self._caches[past] = outputs.pop(present)
        return OrderedDict((name, value.astype(np.float32)) for name, value in {**given, **outputs}.items())

    def deactivate_impl(self) -> None:
        self._caches, self._seen, self._embedder = OrderedDict(), OrderedDict(), None
        super().deactivate_impl()


class ScoringBackend(SeeingBackend, Protocol):
    """A backend that can also give logits of every position."""

    def logits(self, tokens: Sequence[int], images: Sequence[PreparedImage] = ()) -> Iterator[NDArray[np.float32]]:
        """Returns the scores after every token of a new conversation with images, float32 [s, V] at a time."""


class RuntimeRunner(DecoderRunner):
    """A backend of `awq2trt run`: ONNX Runtime with a lowered model, on the CPU or a GPU; it gives only logits.

    Args:
        open_backend: Loads the model, for logits of every position.
        name: Name of the stage.
        vision: How the model sees; None for a model of text.
    """

    def __init__(self, open_backend: Callable[[], ScoringBackend], name: str, vision: SeeingSpec | None = None) -> None:
        super().__init__(name=name)
        self._open_backend = open_backend
        self._vision = vision
        self._seen: Arrays = OrderedDict()

    def activate_impl(self) -> None:
        self._backend = self._open_backend()
        if self._vision is not None:
            self._seen[VISION] = self._backend.see(prepared_noise(self._vision))[None]

    def infer_impl(self, feed_dict: Mapping[str, Any]) -> Arrays:
        started = time.monotonic()
        tokens = feed_dict[INPUT_IDS][0].tolist()
        if feed_dict[CACHE_POSITION][0] == 0:
            rows = np.concatenate(list(self._backend.logits(tokens, noise_shown(self._vision, tokens))))
        else:
            rows = np.stack([self._backend.forward([token]) for token in tokens])
        self.inference_time = time.monotonic() - started
        return OrderedDict({**self._seen, LOGITS: rows[None]})

    def deactivate_impl(self) -> None:
        del self._backend
        self._seen = OrderedDict()


_NUMPY_DTYPE: Final = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


def open_runnable(path: Path) -> tuple[ir.Model, DecoderSizes]:
    """Opens an exported decoder so that ONNX Runtime can run it: bf16, which it has no kernels for, is widened to fp32.

    Graph, function bodies and weights stay the same; only the arithmetic is finer than an engine's.

    Raises:
        ArtifactError: The model is damaged, or not a decoder.
    """
    model, sizes = open_decoder(path)
    if sizes.dtype is ir.DataType.BFLOAT16:
        ort_lowering.widen_to_fp32_(model)
        sizes = replace(sizes, dtype=ir.DataType.FLOAT)
    return model, sizes


def open_with_blocks(path: Path, spec: DecoderSpec) -> tuple[ir.Model, DecoderSizes]:
    """Opens an exported decoder that also gives the residual stream after every block, and logits of every position.

    Raises:
        ArtifactError: The model is damaged, or not the decoder of `spec`.
    """
    model, sizes = open_runnable(path)
    for layer, value in enumerate(block_values(model, spec)):
        expose_(model, value, block_output(layer))
    ort_lowering.keep_all_positions_(model)
    ort_lowering.free_capacity_(model)
    return model, sizes


def block_values(model: ir.Model, spec: DecoderSpec) -> list[ir.Value]:
    """Finds the output of every block: that of the last node with the block's name.

    Raises:
        ArtifactError: A block has no named node.
    """
    last: dict[int, ir.Value] = {}
    prefixes = {spec.prefix(layer): layer for layer in range(spec.num_layers)}
    for node in model.graph:
        for prefix, layer in prefixes.items():
            if (node.name or "").startswith(prefix):
                last[layer] = node.outputs[0]
    missing = [prefix for prefix, layer in prefixes.items() if layer not in last]
    if missing:
        raise ArtifactError(
            f"the graph has no node named after {missing[0].rstrip('.')}.",
            where="model.onnx",
            fix="export the model again, and check it against the checkpoint it was made from.",
        )
    return [last[layer] for layer in range(spec.num_layers)]


def expose_(model: ir.Model, value: ir.Value, name: str) -> None:
    """Makes a value of the graph an output under a new name."""
    copy = ir.node("Identity", [value], name=f"exposed/{name}")
    copy.outputs[0].name = name
    copy.outputs[0].type = value.type
    model.graph.append(copy)
    model.graph.outputs.append(copy.outputs[0])
