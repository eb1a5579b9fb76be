"""What a decoder of embeddings reads, in ONNX Runtime: rows of tokens, and pieces of images in place of image tokens.

In: prepared images, then tokens. Out: embeddings in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.artifact.manifest import Artifact
from awq2trt.errors import ArtifactError
from awq2trt.foreign_files import reading
from awq2trt.graph.beside_decoder import lower_beside_
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
from awq2trt.runtime.embedding import PlacingEmbedder
from awq2trt.runtime.ort.session import Execution, open_session, translated_errors
from awq2trt.runtime.tables import Tables, tables_of

if TYPE_CHECKING:
    import onnxruntime

_TYPES: Final = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


class Embedder(PlacingEmbedder):
    """Graphs in ONNX Runtime.

    Args:
        embedding: Tokens -> rows, in fp32.
        vision: Prepared images -> pieces, in fp32 or fp16.
        image_token: As of `PlacingEmbedder`.
        tables: As of `PlacingEmbedder`, like `deepstack`.
        deepstack: See there.
    """

    def __init__(
        self,
        embedding: onnxruntime.InferenceSession,
        vision: onnxruntime.InferenceSession,
        image_token: int,
        tables: Tables | None = None,
        deepstack: int = 0,
    ) -> None:
        super().__init__(image_token, tables, deepstack)
        self._embedding = embedding
        self._vision = vision

    def look(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Pieces of an image, or of a tile, [pieces, W]."""
        types = {value.name: _TYPES[value.type] for value in self._vision.get_inputs()}
        feed = {name: array.astype(types[name]) for name, array in inputs.items()}
        with translated_errors(where="the vision graph"):
            seen = self._vision.run([IMAGE_EMBEDDINGS], feed)[0]
        return np.asarray(seen.reshape(-1, seen.shape[-1]), np.float32)

    def embed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Rows of tokens, [S, H]."""
        with translated_errors(where="the embedding graph"):
            rows: NDArray[np.float32] = self._embedding.run(
                [INPUTS_EMBEDS], {INPUT_IDS: np.asarray([tokens], np.int64)}
            )[0][0]
        return rows


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

    def opened(graph: str, execution: Execution | None) -> onnxruntime.InferenceSession:
        path = artifact.path(contents.graphs[graph].model)
        if artifact.manifest.kind == "lowered":
            return open_session(None, path, execution)
        model = load_model(path)
        lower_beside_(model, graph, on_cpu=execution is None)
        return open_session(model, path, execution)

    with reading("sizes of what the decoder is given", artifact.directory, fix="export it again.", error=ArtifactError):
        io = contents.graphs[DECODER].io
        tables, deepstack = tables_of(contents.model, io.tables), io.deepstack
    return Embedder(opened(EMBEDDING, None), opened(VISION, on_gpu), vision.image_token, tables, deepstack)


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
