"""ONNX Runtime on the CPU: a decoder with an in-place cache that grows with the conversation.

In: the directory of a decoder, then tokens. Out: logits. An exported model is lowered in memory when it is loaded, to
fast linears and fp32 (`ort_lowering`); a kit's model, which is fused, is first converted to standard operators; a model
built for the target `cpu` is used unchanged. Each cache is bound as both input and output, so that `TensorScatter`
writes into it and nothing is copied between calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.errors import UsageError
from awq2trt.graph import ort_lowering
from awq2trt.graph.read import DecoderSizes, open_decoder, read_sizes
from awq2trt.io_contract import CACHE_POSITION, INPUT_IDS, LOGITS
from awq2trt.models.vision.prepared import PreparedImage
from awq2trt.onnx_export.fused_bodies import unfuse_
from awq2trt.runtime.backend import Conversation, Embeds
from awq2trt.runtime.embedding import parted
from awq2trt.runtime.ort.embedder import require_embedder
from awq2trt.runtime.ort.session import Execution, open_session, shared

if TYPE_CHECKING:
    import onnxruntime

PREFILL_CHUNK: Final = 256
"""New tokens in a call: bounds the attention scores (heads x chunk x cache, fp32) and the logits of an evaluation."""

FIRST_CACHE_LENGTH: Final = 256
"""Positions in the cache of a new conversation; doubled when it is full, up to the capacity."""


class OrtBackend(Conversation):
    """A decoder in ONNX Runtime; `load` makes one."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        sizes: DecoderSizes,
        *,
        all_logits: bool,
        grows: bool,
        embedder: Embeds | None = None,
    ) -> None:
        super().__init__(sizes.capacity, sizes.vocab_size, embedder)
        self._session = session
        self._binding = session.io_binding()
        self._sizes = sizes
        self._all_logits = all_logits  # whether a call returns a row for every token, or only for the last
        self._grows = grows
        self._caches: list[NDArray[Any]] = []
        if sizes.tables and self._tables is not None:
            for name, table in self._tables.arrays.items():
                self._binding.bind_ortvalue_input(name, shared(table))

    @staticmethod
    def load_lowered(
        directory: Path, capacity: int, *, all_logits: bool = False, embedder: Embeds | None = None
    ) -> OrtBackend:
        """Loads a model that was built for the target `cpu`.

        Args:
            directory: Directory of the model.
            capacity: The capacity from its manifest; the graph leaves it free.
            all_logits: The same as in `load`.
            embedder: As for `load`.

        Raises:
            ArtifactError: Files are missing or damaged, or do not contain a decoder.
        """
        model, sizes = open_decoder(directory, capacity=capacity)
        require_embedder(sizes, embedder, directory)
        rows = all_logits or not ort_lowering.keeps_last_position(model)
        if all_logits:
            ort_lowering.keep_all_positions_(model)
        session = open_session(model if all_logits else None, directory)
        grows = ort_lowering.has_free_capacity(model)
        return OrtBackend(session, sizes, all_logits=rows, grows=grows, embedder=embedder)

    @staticmethod
    def load(
        path: Path, *, all_logits: bool = False, threads: int | None = None, embedder: Embeds | None = None
    ) -> OrtBackend:
        """Loads an exported model, or a kit's model.

        Args:
            path: `model.onnx`, or its directory.
            all_logits: Whether to compute logits of every position, for `logits`; `forward` works either way.
            threads: Threads of ONNX Runtime; None for its own choice.
            embedder: What makes what a decoder of embeddings reads; None for one of tokens.

        Raises:
            ArtifactError: Files are missing or damaged, or do not contain an exported decoder.
            ToolError: ONNX Runtime is not installed.
        """
        model, exported = open_decoder(path)
        require_embedder(exported, embedder, path)
        if all_logits:
            ort_lowering.keep_all_positions_(model)
        elif not ort_lowering.keeps_last_position(model):
            all_logits = True  # exported so
        unfuse_(model)
        ort_lowering.lower_linears_(model, widened=True)
        ort_lowering.widen_to_fp32_(model)
        grows = ort_lowering.has_free_capacity(model)
        if grows:
            ort_lowering.free_capacity_(model)
        sizes = read_sizes(model, path, exported.capacity)
        session = open_session(model, path, Execution(threads=threads))
        return OrtBackend(session, sizes, all_logits=all_logits, grows=grows, embedder=embedder)

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Appends tokens; returns the scores of the next token, float32 [V]."""
        for rows in self._run_chunks(tokens):
            last: NDArray[np.float32] = rows[-1]
        return last

    def logits(self, tokens: Sequence[int], images: Sequence[PreparedImage] = ()) -> Iterator[NDArray[np.float32]]:
        """Yields the scores after every token of a new conversation, in order.

        Args:
            tokens: At most `capacity`.
            images: Prepared images, whose tokens are among these.

        Yields:
            float32 [s, V] with s at most `PREFILL_CHUNK`; all s add up to `len(tokens)`.
        """
        if not self._all_logits:
            raise UsageError(
                "this backend keeps only the last position.", where="logits", fix="load it with all_logits=True."
            )
        self.reset()
        if images:
            self.show(images)
        yield from self._run_chunks(tokens)

    def _run_chunks(self, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        self._require_room(tokens)
        for part in self._calls(tokens, PREFILL_CHUNK):
            yield self._run(part)

    def _run(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Runs the session once: returns logits, float32 [rows, V]."""
        self._reserve(self._position + len(tokens))
        if self._embedder is None:
            self._binding.bind_cpu_input(INPUT_IDS, np.asarray([tokens], dtype=np.int64))
        else:
            new = self._embedder.rows(tokens)[None]
            for name, part in parted(new, self._sizes.new_channels).items():
                self._binding.bind_cpu_input(name, np.ascontiguousarray(part))
        self._binding.bind_cpu_input(CACHE_POSITION, np.asarray([self._position], dtype=np.int64))
        rows = len(tokens) if self._all_logits else 1
        logits = np.empty(
            (1, rows, self.vocab_size), np.float32
        )  # a new array, since the caller may keep earlier results
        self._binding.bind_ortvalue_output(LOGITS, shared(logits))
        self._session.run_with_iobinding(self._binding)
        self._position += len(tokens)
        scores: NDArray[np.float32] = logits[0]
        return scores

    def _reserve(self, length: int) -> None:
        """Makes the caches hold at least `length` positions, and keeps their content."""
        held = self._caches[0].shape[ort_lowering.CAPACITY_AXIS] if self._caches else 0
        if length <= held:
            return
        sizes = self._sizes
        new = max(held, FIRST_CACHE_LENGTH)
        while new < length:
            new *= 2
        new = min(new, sizes.capacity) if self._grows else sizes.capacity
        old, self._caches = self._caches, []
        for index, tensor in enumerate(sizes.caches):
            batch, heads, _, *channels = tensor.shape
            cache = np.zeros((batch, heads, new, *channels), tensor.dtype.numpy())
            if old:
                cache[:, :, :held] = old[index]
            self._caches.append(cache)
        self._bind_caches()

    def _bind_caches(self) -> None:
        """Binds every cache as both past and present."""
        for tensor, cache in zip(self._sizes.caches, self._caches, strict=True):
            value = shared(cache)
            self._binding.bind_ortvalue_input(tensor.past, value)
            self._binding.bind_ortvalue_output(tensor.present, value)
