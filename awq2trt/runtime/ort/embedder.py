"""What a decoder of embeddings reads, in ONNX Runtime: rows of tokens, and pieces of images in place of image tokens.

In: prepared images, then tokens. Out: embeddings, in fp32 for a decoder on the CPU, in its own type for one on a GPU: a
long prompt has millions of numbers, and NumPy would need longer to convert them than a GPU to read the prompt.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from awq2trt.artifact.manifest import Artifact
from awq2trt.errors import ArtifactError
from awq2trt.foreign_files import reading
from awq2trt.graph.beside_decoder import lower_beside_, narrow_rows_
from awq2trt.graph.read import DecoderSizes, load_model
from awq2trt.io_contract import (
    DECODER,
    EMBEDDING,
    IMAGE_EMBEDDINGS,
    INPUT_IDS,
    INPUTS_EMBEDS,
    VISION,
    weights_of,
)
from awq2trt.runtime.backend import Embeds
from awq2trt.runtime.bits import STORED, narrow, widen
from awq2trt.runtime.embedding import PlacingEmbedder
from awq2trt.runtime.ort.session import Execution, open_session, translated_errors
from awq2trt.runtime.tables import Tables, tables_of

if TYPE_CHECKING:
    import onnxruntime

_FLOATS: Final = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(bfloat16)": "bfloat16"}
"""The contract's names of types of floating point, by ONNX Runtime's."""

_TILES_ON_GPU: Final = 8
"""Most tiles in a call: one leaves most of a GPU idle, and the memory of a call grows with them."""

_ELEMENTS: Final = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "int64": ir.DataType.INT64,
}


class Embedder(PlacingEmbedder):
    """Graphs in ONNX Runtime.

    Args:
        embedding: Tokens -> rows, in the type of `dtype`.
        vision: Prepared images -> pieces, in any type.
        image_token: As of `PlacingEmbedder`.
        tables: As of `PlacingEmbedder`, like `deepstack`.
        deepstack: See there.
        on_gpu: What `dtype` is there, for a decoder on a GPU, where several tiles go through a call; None for the CPU.
    """

    def __init__(
        self,
        embedding: onnxruntime.InferenceSession,
        vision: onnxruntime.InferenceSession,
        image_token: int,
        tables: Tables | None = None,
        deepstack: int = 0,
        on_gpu: str | None = None,
    ) -> None:
        super().__init__(image_token, tables, deepstack, on_gpu or "float32")
        self._tiles = 1 if on_gpu is None else _TILES_ON_GPU
        self._embedding = embedding
        self._vision = vision

    def look(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Pieces of an image, or of tiles, [pieces, W]."""
        with translated_errors(where="the vision graph"):
            seen, dtype = _run(self._vision, inputs, IMAGE_EMBEDDINGS)
        pieces: NDArray[Any] = seen.reshape(-1, seen.shape[-1])
        return pieces if dtype == self._dtype else narrow(widen(pieces, dtype), self._dtype)

    def embed(self, tokens: Sequence[int]) -> NDArray[Any]:
        """Rows of tokens, [S, H]."""
        with translated_errors(where="the embedding graph"):
            made, _ = _run(self._embedding, {INPUT_IDS: np.asarray([tokens], np.int64)}, INPUTS_EMBEDS)
        rows: NDArray[Any] = made[0]
        return rows


def _run(
    session: onnxruntime.InferenceSession, inputs: Mapping[str, NDArray[Any]], output: str
) -> tuple[NDArray[Any], str]:
    """Runs a graph on arrays of the host, fp32 for any type of floating point; NumPy does not know all of these.

    Returns:
        What `STORED` has of the output, and its type.
    """
    binding = session.io_binding()
    types = {value.name: _FLOATS.get(value.type) for value in (*session.get_inputs(), *session.get_outputs())}
    fed = {}  # until the end of the call
    for name, array in inputs.items():
        given = types[name]
        fed[name] = np.ascontiguousarray(array if given is None else narrow(array, given))
        element = _ELEMENTS[given or array.dtype.name]
        binding.bind_input(name, "cpu", 0, element.value, array.shape, fed[name].ctypes.data)
    binding.bind_output(output, "cpu")
    session.run_with_iobinding(binding)
    (made,) = binding.get_outputs()
    dtype = types[output]
    assert dtype is not None  # since rows and pieces are no whole numbers
    stored, shape = STORED[dtype], made.shape()
    size = int(np.prod(shape)) * stored.itemsize
    memory = (ctypes.c_char * size).from_address(made.data_ptr())
    memory.owner = made  # type: ignore[attr-defined]  # so that it lives as long as the array
    return np.frombuffer(memoryview(memory), stored).reshape(shape), dtype


def open_embedder(artifact: Artifact, on_gpu: Execution | None = None) -> Embedder | None:
    """What makes what a model's decoder reads; None for a decoder of tokens.

    Args:
        artifact: The model's artifact.
        on_gpu: Where what it sees with runs; None for the CPU, where the embedding always does.

    Raises:
        ArtifactError: A graph is damaged, or ONNX Runtime refuses it.
    """
    contents = artifact.manifest.contents
    vision = contents.model.vision if contents.model else None
    if contents.model is None or vision is None or EMBEDDING not in contents.graphs:
        return None

    dtype = None if on_gpu is None else _rows_type(artifact)

    def opened(graph: str, execution: Execution | None) -> onnxruntime.InferenceSession:
        path = artifact.path(contents.graphs[graph].model)
        narrowed = dtype if graph == EMBEDDING else None
        if artifact.manifest.kind == "lowered" and narrowed is None:
            return open_session(None, path, execution)
        model = load_model(path)
        if artifact.manifest.kind != "lowered":
            lower_beside_(model, graph, on_cpu=execution is None)
        if narrowed is not None:
            narrow_rows_(model, _ELEMENTS[narrowed])
        return open_session(model, path, execution)

    with reading("sizes of what the decoder is given", artifact.directory, fix="export it again.", error=ArtifactError):
        io = contents.graphs[DECODER].io
        tables, deepstack = tables_of(contents.model, io.tables), io.deepstack
    return Embedder(opened(EMBEDDING, None), opened(VISION, on_gpu), vision.image_token, tables, deepstack, dtype)


def _rows_type(artifact: Artifact) -> str:
    """The contract's name of the type of rows that a decoder on a GPU reads."""
    inputs = artifact.manifest.contents.graphs[DECODER].io.inputs
    return next(tensor.dtype for tensor in inputs if tensor.name == INPUTS_EMBEDS)


def vision_bytes(artifact: Artifact) -> int:
    """Bytes of weights of what a model sees with; 0 for a model of text."""
    graph = artifact.manifest.contents.graphs.get(VISION)
    return artifact.manifest.files[weights_of(graph.model)].size_bytes if graph else 0


def require_embedder(sizes: DecoderSizes, embedder: Embeds | None, where: Path) -> None:
    """Refuses a decoder of embeddings without what makes them, or of tables without what fills them.

    Raises:
        ArtifactError: It is one.
    """
    lacks_tables = bool(sizes.tables) and (embedder is None or embedder.tables is None)
    if (sizes.hidden_size is not None and embedder is None) or lacks_tables:
        raise ArtifactError(
            "the decoder reads embeddings, and no graph beside it makes them of tokens.",
            where=str(where),
            fix="name the whole model's directory, with its manifest.json, or export the model again.",
        )
