"""ONNX Runtime on an NVIDIA GPU: a decoder whose cache, tokens and scores stay there.

In: a model that was lowered for CUDA (`graph.provider_file`), and memory of the GPU. Out: an `awq2trt.runtime.Backend`
that can also choose the best token itself.

One session serves both phases, so weights are there once. Its CUDA provider captures graphs: a call of one token, whose
buffers never move, is captured once and replayed (run option `gpu_graph_id` 1), a prompt's chunks of any length run
node by node (`gpu_graph_id` -1). All that outlives a call, caches first, is bound to memory that we own: what is free
in ONNX Runtime's arena between calls is memory of the captured graph's intermediate tensors.

ONNX Runtime, "CUDA graphs": https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from awq2trt.errors import UsageError
from awq2trt.graph.read import DecoderSizes
from awq2trt.io_contract import CACHE_POSITION, INPUT_IDS, LOGITS, NEXT_TOKEN
from awq2trt.runtime.backend import Conversation
from awq2trt.runtime.bits import STORED, widen
from awq2trt.runtime.ort.session import translated_errors

if TYPE_CHECKING:
    import onnxruntime

PREFILL_CHUNK: Final = 512
"""New tokens a call: enough to keep the matrix units busy; bounds the scores (heads x chunk x capacity) and, where all
are asked for, the logits."""

_CAPTURED: Final = "1"
_NODE_BY_NODE: Final = "-1"
"""Values of the run option `gpu_graph_id`; -1 is the one that captures nothing."""

_INT64_BYTES: Final = 8


class DeviceMemory(Protocol):
    """Memory where the model runs; `machine.gpu.CudaMemory` is that of a GPU."""

    device_type: str
    device_index: int

    def allocate(self, size_bytes: int) -> int:
        """Address of new memory, filled with zeros."""

    def free(self, address: int) -> None:
        """Gives memory back."""

    def write_(self, address: int, array: NDArray[Any]) -> None:
        """Copies a contiguous array there."""

    def read(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Copies memory from there to a new array."""


@dataclass(frozen=True)
class CudaOptions:
    """What a session on a GPU is for.

    Attributes:
        all_logits: The model gives logits of every position, and no `next_token`.
        graph: The session captures CUDA graphs.
        batch: Conversations at once, which all get the same tokens: for measurements.
        chunk: New tokens a call, at most.
    """

    all_logits: bool = False
    graph: bool = True
    batch: int = 1
    chunk: int = PREFILL_CHUNK


class CudaBackend(Conversation):
    """A decoder on a GPU; `start` makes one that is ready.

    Args:
        session: On a model lowered for CUDA.
        sizes: Of the model.
        memory: Of the GPU.
        options: What the session is for.
    """

    _ids: int
    _slot: int
    _token: int  # next_token of one call, input_ids of the next
    _logits: int
    _decode: onnxruntime.IOBinding
    _prefill: onnxruntime.IOBinding

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        sizes: DecoderSizes,
        memory: DeviceMemory,
        options: CudaOptions,
    ) -> None:
        super().__init__(sizes.capacity, sizes.vocab_size)
        self._session = session
        self._sizes = sizes
        self._memory = memory
        self._all_logits = options.all_logits
        self._graph = options.graph
        self._batch = options.batch
        self._chosen: int | None = None  # the token in the buffer of `input_ids`, put there by the last call
        self._buffers: list[int] = []
        self._longest = min(options.chunk, sizes.capacity)
        self._logit_type = STORED[dtype_name(sizes)]

    @classmethod
    def start(
        cls,
        session: onnxruntime.InferenceSession,
        sizes: DecoderSizes,
        memory: DeviceMemory,
        options: CudaOptions | None = None,
    ) -> CudaBackend:
        """A backend that has its memory and has captured its graph; arguments are those of the class.

        Raises:
            OutOfMemoryError: The GPU's memory does not suffice.
            ArtifactError: ONNX Runtime fails on the model.
        """
        backend = cls(session, sizes, memory, options or CudaOptions())
        try:
            backend._allocate_all()
            backend._warm_up()
        except BaseException:
            backend.close()
            raise
        return backend

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Appends tokens; returns the scores of the next, float32 [V]."""
        scores: NDArray[np.float32] = self._read_logits(self._append(tokens))[-1]
        return scores

    def choose(self, tokens: Sequence[int]) -> int:
        """Appends tokens; returns the one with the largest score, found on the GPU.

        Raises:
            UsageError: The cache cannot hold them.
        """
        if self._all_logits:  # the graph finds no token
            return int(self.forward(tokens).argmax())
        self._append(tokens)
        self._chosen = int(self._memory.read(self._token, (1,), np.dtype(np.int64))[0])
        return self._chosen

    def logits(self, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """Scores after every token of a new conversation, in order.

        Args:
            tokens: At most `capacity`.

        Yields:
            float32 [s, V]; all s add up to `len(tokens)`.
        """
        if not self._all_logits:
            raise UsageError(
                "this backend keeps the last position only.", where="logits", fix="load it with all_logits=True."
            )
        self.reset()
        self._require_room(tokens)
        for start in range(0, len(tokens), self._longest):
            yield self._read_logits(self._append(tokens[start : start + self._longest]))

    def close(self) -> None:
        """Gives the memory of the conversation back; the session's goes with the session."""
        while self._buffers:
            self._memory.free(self._buffers.pop())

    def _append(self, tokens: Sequence[int]) -> int:
        """Runs all chunks; returns how many rows of logits the last one gave."""
        self._require_room(tokens)
        length = 0
        for start in range(0, len(tokens), self._longest):
            chunk = tokens[start : start + self._longest]
            self._write_position(self._position)
            self._run(chunk)
            self._position += len(chunk)
            length = len(chunk)
        return length if self._all_logits else 1

    def _run(self, chunk: Sequence[int]) -> None:
        if len(chunk) == 1:
            if self._chosen != chunk[0]:
                self._memory.write_(self._token, self._for_all(chunk))
            self._call(self._decode, _CAPTURED)
        else:
            self._memory.write_(self._ids, self._for_all(chunk))
            self._bind_tokens(self._prefill, self._ids, len(chunk))
            self._call(self._prefill, _NODE_BY_NODE)
        self._chosen = None

    def _call(self, binding: onnxruntime.IOBinding, graph: str) -> None:
        from onnxruntime import RunOptions

        options = RunOptions()
        if self._graph:
            options.add_run_config_entry("gpu_graph_id", graph)
        with translated_errors(where=f"cuda:{self._memory.device_index}"):
            self._session.run_with_iobinding(binding, options)

    def _warm_up(self) -> None:
        """The longest chunk, for which the arena grows once and for all, then one token, which is captured."""
        for chunk in ([0] * self._longest, [0]):
            self._write_position(0)
            self._run(chunk)

    def _write_position(self, position: int) -> None:
        self._memory.write_(self._slot, np.full(self._batch, position, np.int64))

    def _for_all(self, tokens: Sequence[int]) -> NDArray[np.int64]:
        """int64 [B, S]."""
        return np.ascontiguousarray(np.tile(np.asarray(tokens, np.int64), (self._batch, 1)))

    def _allocate_all(self) -> None:
        """Takes the memory of a conversation and binds it."""
        sizes, batch = self._sizes, self._batch
        rows = self._longest if self._all_logits else 1
        self._ids = self._allocate(_INT64_BYTES * batch * self._longest)
        self._slot = self._allocate(_INT64_BYTES * batch)
        self._token = self._allocate(_INT64_BYTES * batch)
        self._logits = self._allocate(self._logit_type.itemsize * batch * rows * sizes.vocab_size)
        caches = [self._allocate(batch * cache.nbytes) for cache in sizes.caches]
        self._decode, self._prefill = (self._bind(caches) for _ in range(2))
        self._bind_tokens(self._decode, self._token, 1)

    def _allocate(self, size_bytes: int) -> int:
        self._buffers.append(self._memory.allocate(size_bytes))
        return self._buffers[-1]

    def _bind(self, caches: Sequence[int]) -> onnxruntime.IOBinding:
        """A binding with everything in it that is the same for every call; each cache is past and present at once."""
        binding = self._session.io_binding()
        where = (self._memory.device_type, self._memory.device_index)
        for tensor, address in zip(self._sizes.caches, caches, strict=True):
            shape = (self._batch, *tensor.shape[1:])
            binding.bind_input(tensor.past, *where, tensor.dtype.value, shape, address)
            binding.bind_output(tensor.present, *where, tensor.dtype.value, shape, address)
        binding.bind_input(CACHE_POSITION, *where, ir.DataType.INT64.value, (self._batch,), self._slot)
        if not self._all_logits:
            binding.bind_output(NEXT_TOKEN, *where, ir.DataType.INT64.value, (self._batch, 1), self._token)
        return binding

    def _bind_tokens(self, binding: onnxruntime.IOBinding, address: int, length: int) -> None:
        where = (self._memory.device_type, self._memory.device_index)
        rows = length if self._all_logits else 1
        shape = (self._batch, rows, self.vocab_size)
        binding.bind_input(INPUT_IDS, *where, ir.DataType.INT64.value, (self._batch, length), address)
        binding.bind_output(LOGITS, *where, self._sizes.dtype.value, shape, self._logits)

    def _read_logits(self, rows: int) -> NDArray[np.float32]:
        """Of the first conversation, float32 [rows, V]."""
        return widen(
            self._memory.read(self._logits, (rows, self.vocab_size), self._logit_type), dtype_name(self._sizes)
        )


def dtype_name(sizes: DecoderSizes) -> str:
    """The contract's name of the type of the logits."""
    return str(sizes.dtype.numpy().name)
