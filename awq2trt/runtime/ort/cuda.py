"""ONNX Runtime on an NVIDIA GPU: a decoder whose cache, tokens and scores stay there.

In: a model that was lowered for CUDA (`graph.provider_file`), and memory of the GPU. Out: an `awq2trt.runtime.Backend`
that can also choose the best token itself.

One session serves both phases, so that weights exist once. Its CUDA provider captures graphs: a call of one token,
whose buffers never move, is captured once and replayed (run option `gpu_graph_id` 1); a prompt's chunks, which have any
length, run node by node (`gpu_graph_id` -1). Everything that outlives a call, above all the caches, is bound to memory
that we own, because memory that is free in ONNX Runtime's arena between calls belongs to intermediate tensors of the
captured graph.

ONNX Runtime, "CUDA graphs": https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from awq2trt.errors import UsageError
from awq2trt.graph.read import DecoderSizes
from awq2trt.io_contract import CACHE_POSITION, INPUT_IDS, LOGITS, NEXT_TOKEN
from awq2trt.models.vision.prepared import PreparedImage
from awq2trt.runtime.backend import Conversation, Embeds
from awq2trt.runtime.bits import STORED, narrow, narrow_table, widen
from awq2trt.runtime.embedding import parted
from awq2trt.runtime.ort.session import translated_errors

if TYPE_CHECKING:
    import onnxruntime

PREFILL_CHUNK: Final = 512
"""New tokens in a call: enough to keep the matrix units busy. It bounds the scores (heads x chunk x capacity) and, if
all are wanted, the logits."""

_CAPTURED: Final = "1"
_NODE_BY_NODE: Final = "-1"
"""Values of the run option `gpu_graph_id`; -1 captures nothing."""

_INT64_BYTES: Final = 8


class DeviceMemory(Protocol):
    """Memory of the model's device; for a GPU it is `machine.gpu.CudaMemory`."""

    device_type: str
    device_index: int

    def allocate(self, size_bytes: int) -> int:
        """Allocates memory filled with zeros and returns its address."""

    def free(self, address: int) -> None:
        """Frees memory."""

    def write_(self, address: int, array: NDArray[Any]) -> None:
        """Copies a contiguous array to the device."""

    def read(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Copies memory from the device to a new array."""


@dataclass(frozen=True)
class CudaOptions:
    """How a session on a GPU is used.

    Attributes:
        all_logits: Whether the model gives logits of every position, and no `next_token`.
        graph: Whether the session captures CUDA graphs.
        batch: Number of conversations at once, which all get the same tokens, for measurements.
        chunk: Most new tokens in a call.
    """

    all_logits: bool = False
    graph: bool = True
    batch: int = 1
    chunk: int = PREFILL_CHUNK


class CudaBackend(Conversation):
    """A decoder on a GPU; `start` makes one that is ready.

    Args:
        session: A session with a model lowered for CUDA.
        sizes: Sizes of the model.
        memory: Memory of the GPU.
        options: How the session is used.
        embedder: What makes what a decoder of embeddings reads; None for one of tokens.
    """

    _many: Mapping[str, int]  # tokens of a chunk, or their embeddings and what else the decoder reads of them, by input
    _one: Mapping[str, int]  # the same of one token
    _slot: int
    _token: int  # next_token of one call is input_ids of the next
    _logits: int
    _decode: onnxruntime.IOBinding
    _prefill: onnxruntime.IOBinding

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        sizes: DecoderSizes,
        memory: DeviceMemory,
        options: CudaOptions,
        embedder: Embeds | None = None,
    ) -> None:
        super().__init__(sizes.capacity, sizes.vocab_size, embedder)
        self._session = session
        self._sizes = sizes
        self._memory = memory
        self._all_logits = options.all_logits
        self._graph = options.graph
        self._batch = options.batch
        self._chosen: int | None = None  # the token that the last call put into the buffer of `input_ids`
        self._buffers: list[int] = []
        self._table_buffers: dict[str, int] = {}
        self._written: int | None = None  # their version on the device
        self._longest = min(options.chunk, sizes.capacity)
        self._logit_type = STORED[dtype_name(sizes)]

    @classmethod
    def start(
        cls,
        session: onnxruntime.InferenceSession,
        sizes: DecoderSizes,
        memory: DeviceMemory,
        options: CudaOptions | None = None,
        embedder: Embeds | None = None,
    ) -> CudaBackend:
        """Makes a backend that has its memory and has captured its graph; arguments are those of the class.

        Raises:
            OutOfMemoryError: The GPU has too little memory.
            ArtifactError: ONNX Runtime fails on the model.
        """
        backend = cls(session, sizes, memory, options or CudaOptions(), embedder)
        try:
            backend._allocate_all()
            backend._warm_up()
        except BaseException:
            backend.close()
            raise
        return backend

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Appends tokens; returns the scores of the next token, float32 [V]."""
        scores: NDArray[np.float32] = self._read_logits(self._append(tokens))[-1]
        return scores

    def choose(self, tokens: Sequence[int]) -> int:
        """Appends tokens; returns the token with the largest score, which is found on the GPU.

        Raises:
            UsageError: The cache cannot hold them.
        """
        if self._all_logits:  # this graph has no output with the token
            return int(self.forward(tokens).argmax())
        self._append(tokens)
        self._chosen = int(self._memory.read(self._token, (1,), np.dtype(np.int64))[0])
        return self._chosen

    def logits(self, tokens: Sequence[int], images: Sequence[PreparedImage] = ()) -> Iterator[NDArray[np.float32]]:
        """Yields the scores after every token of a new conversation, in order.

        Args:
            tokens: At most `capacity`.
            images: Prepared images, whose tokens are among these.

        Yields:
            float32 [s, V]; all s add up to `len(tokens)`.
        """
        if not self._all_logits:
            raise UsageError(
                "this backend keeps only the last position.", where="logits", fix="load it with all_logits=True."
            )
        self.reset()
        if images:
            self.show(images)
        self._require_room(tokens)
        for part in self._calls(tokens, self._longest):
            yield self._read_logits(self._append(part))

    def close(self) -> None:
        """Frees the memory of the conversation; the session's memory is freed with the session."""
        while self._buffers:
            self._memory.free(self._buffers.pop())

    def _append(self, tokens: Sequence[int]) -> int:
        """Runs all chunks; returns how many rows of logits the last one gave."""
        self._require_room(tokens)
        length = 0
        for chunk in self._calls(tokens, self._longest):
            self._write_position(self._position)
            self._run(chunk)
            self._position += len(chunk)
            length = len(chunk)
        return length if self._all_logits else 1

    def _run(self, chunk: Sequence[int]) -> None:
        if self._embedder is not None:
            rows = narrow(self._embedder.rows(chunk), dtype_name(self._sizes))
            self._write_tables()
            self._run_on(rows)
            return
        self._run_on(np.asarray(chunk, np.int64), written=[self._chosen] == [*chunk])

    def _run_on(self, new: NDArray[Any], *, written: bool = False) -> None:
        """A call on tokens [S], or on their embeddings [S, W], as of `parted`.

        Args:
            new: What the decoder reads.
            written: One token, which is in the buffer of `input_ids` already.
        """
        if len(new) == 1:
            if not written:
                self._write_new(self._one, new)
            self._call(self._decode, _CAPTURED)
        else:
            self._write_new(self._many, new)
            self._bind_new(self._prefill, self._many, len(new))
            self._call(self._prefill, _NODE_BY_NODE)
        self._chosen = None

    def _write_new(self, buffers: Mapping[str, int], new: NDArray[Any]) -> None:
        channels = self._sizes.new_channels
        for name, part in (parted(new, channels) if channels else {INPUT_IDS: new}).items():
            self._memory.write_(buffers[name], self._for_all(part))

    def _call(self, binding: onnxruntime.IOBinding, graph: str) -> None:
        from onnxruntime import RunOptions

        options = RunOptions()
        if self._graph:
            options.add_run_config_entry("gpu_graph_id", graph)
        with translated_errors(where=f"cuda:{self._memory.device_index}"):
            self._session.run_with_iobinding(binding, options)

    def _warm_up(self) -> None:
        """Runs the longest chunk, for which the arena grows to its final size, then one token, which is captured."""
        width = sum(self._sizes.new_channels.values())
        self._write_tables()
        for length in (self._longest, 1):
            self._write_position(0)
            self._run_on(np.zeros((length, width), self._logit_type) if width else np.zeros(length, np.int64))

    def _write_tables(self) -> None:
        """Copies tables that have changed."""
        tables = self._tables
        if not self._sizes.tables or tables is None or tables.version == self._written:
            return
        for name, table in tables.arrays.items():
            self._memory.write_(self._table_buffers[name], narrow_table(table, dtype_name(self._sizes)))
        self._written = tables.version

    def _write_position(self, position: int) -> None:
        self._memory.write_(self._slot, np.full(self._batch, position, np.int64))

    def _for_all(self, new: NDArray[Any]) -> NDArray[Any]:
        """[B, S], or [B, S, channels]."""
        return np.ascontiguousarray(np.broadcast_to(new, (self._batch, *new.shape)))

    def _allocate_all(self) -> None:
        """Allocates the memory of a conversation and binds it."""
        sizes, batch = self._sizes, self._batch
        rows = self._longest if self._all_logits else 1
        channels = sizes.new_channels.items()
        new_bytes = {name: width * self._logit_type.itemsize for name, width in channels} or {INPUT_IDS: _INT64_BYTES}
        self._many = {name: self._allocate(size * batch * self._longest) for name, size in new_bytes.items()}
        self._slot = self._allocate(_INT64_BYTES * batch)
        self._token = self._allocate(_INT64_BYTES * batch)
        self._one = {name: self._allocate(size * batch) for name, size in new_bytes.items() if name != INPUT_IDS}
        self._one = self._one or {INPUT_IDS: self._token}
        self._logits = self._allocate(self._logit_type.itemsize * batch * rows * sizes.vocab_size)
        self._table_buffers = {name: self._allocate(table.nbytes) for name, table in sizes.tables.items()}
        caches = [self._allocate(batch * cache.nbytes) for cache in sizes.caches]
        self._decode, self._prefill = (self._bind(caches) for _ in range(2))
        self._bind_new(self._decode, self._one, 1)

    def _allocate(self, size_bytes: int) -> int:
        self._buffers.append(self._memory.allocate(size_bytes))
        return self._buffers[-1]

    def _bind(self, caches: Sequence[int]) -> onnxruntime.IOBinding:
        """Makes a binding with everything that is the same in every call; each cache is both past and present."""
        binding = self._session.io_binding()
        where = (self._memory.device_type, self._memory.device_index)
        for tensor, address in zip(self._sizes.caches, caches, strict=True):
            shape = (self._batch, *tensor.shape[1:])
            binding.bind_input(tensor.past, *where, tensor.dtype.value, shape, address)
            binding.bind_output(tensor.present, *where, tensor.dtype.value, shape, address)
        for name, address in self._table_buffers.items():
            table = self._sizes.tables[name]
            binding.bind_input(name, *where, table.dtype.value, table.shape, address)
        binding.bind_input(CACHE_POSITION, *where, ir.DataType.INT64.value, (self._batch,), self._slot)
        if not self._all_logits:
            binding.bind_output(NEXT_TOKEN, *where, ir.DataType.INT64.value, (self._batch, 1), self._token)
        return binding

    def _bind_new(self, binding: onnxruntime.IOBinding, buffers: Mapping[str, int], length: int) -> None:
        where = (self._memory.device_type, self._memory.device_index)
        rows = length if self._all_logits else 1
        shape = (self._batch, rows, self.vocab_size)
        channels = self._sizes.new_channels
        for name, address in buffers.items():
            new = (self._batch, length, *([channels[name]] if channels else []))
            dtype = self._sizes.dtype if channels else ir.DataType.INT64
            binding.bind_input(name, *where, dtype.value, new, address)
        binding.bind_output(LOGITS, *where, self._sizes.dtype.value, shape, self._logits)

    def _read_logits(self, rows: int) -> NDArray[np.float32]:
        """Reads the logits of the first conversation, float32 [rows, V]."""
        return widen(
            self._memory.read(self._logits, (rows, self.vocab_size), self._logit_type), dtype_name(self._sizes)
        )


def dtype_name(sizes: DecoderSizes) -> str:
    """The contract's name of the type of the logits."""
    return str(sizes.dtype.numpy().name)
