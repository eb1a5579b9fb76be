"""What a decoder of embeddings reads, in ONNX Runtime: rows of tokens, and pieces of images in place of image tokens.

In: prepared images, then tokens. Out: embeddings in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.artifact.manifest import Artifact
from awq2trt.errors import ArtifactError
from awq2trt.graph.beside_decoder import lower_beside_
from awq2trt.graph.read import DecoderSizes, load_model
from awq2trt.io_contract import (
    EMBEDDING,
    IMAGE_EMBEDDINGS,
    INPUT_IDS,
    INPUTS_EMBEDS,
    PIXEL_VALUES,
    VISION,
    weights_of,
)
from awq2trt.runtime.backend import Embeds
from awq2trt.runtime.ort.session import Execution, open_session, translated_errors

if TYPE_CHECKING:
    import onnxruntime

_PIXEL_TYPES: Final = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Embedder:
    """Rows for a decoder.

    Args:
        embedding: Tokens -> rows, in fp32.
        vision: Prepared images -> pieces, in fp32 or fp16.
        image_token: Stands for a piece of an image among the tokens.
    """

    def __init__(
        self, embedding: onnxruntime.InferenceSession, vision: onnxruntime.InferenceSession, image_token: int
    ) -> None:
        self._embedding = embedding
        self._vision = vision
        self._image_token = image_token
        self._shown: list[NDArray[np.float32]] = []  # pieces whose tokens are still to come, [pieces, H] each

    def see(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Pieces of images.

        Args:
            pixels: Prepared images, [images, 3, side, side].

        Returns:
            [images, pieces, H].
        """
        dtype = _PIXEL_TYPES[self._vision.get_inputs()[0].type]
        with translated_errors(where="the vision graph"):
            seen = [
                self._vision.run([IMAGE_EMBEDDINGS], {PIXEL_VALUES: image[None].astype(dtype)})[0] for image in pixels
            ]  # one at a time, which bounds the memory
        return np.concatenate(seen).astype(np.float32)

    def show(self, pixels: NDArray[np.float32]) -> None:
        """Looks at images whose tokens are among those that come next, in their order."""
        self._shown += [*self.see(pixels)]

    def forget(self) -> None:
        """Forgets images whose tokens did not come."""
        self._shown.clear()

    def rows(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """What the decoder reads of the next tokens, [S, H].

        An image token of no image has its own row, as in transformers: a model may write one, though it means nothing.
        """
        ids = np.asarray([tokens], np.int64)
        rows: NDArray[np.float32] = self._embedding.run([INPUTS_EMBEDS], {INPUT_IDS: ids})[0][0]
        places = np.flatnonzero(ids[0] == self._image_token)
        while len(places) and self._shown:
            count = min(len(places), len(self._shown[0]))
            rows[places[:count]] = self._shown[0][:count]
            places, rest = places[count:], self._shown[0][count:]
            self._shown[:1] = [rest] if len(rest) else []
        return rows


def open_embedder(artifact: Artifact, on_gpu: Execution | None = None) -> Embedder | None:
    """What makes what a model's decoder reads; None for a decoder of tokens.

    Args:
        artifact: Of the model.
        on_gpu: Where what it sees with runs; None for the CPU, where the embedding always does.

    Raises:
        ArtifactError: A graph is damaged, or ONNX Runtime refuses it.
    """
    contents = artifact.manifest.contents
    vision = contents.model.vision if contents.model else None
    if vision is None or EMBEDDING not in contents.graphs:
        return None

    def opened(graph: str, execution: Execution | None) -> onnxruntime.InferenceSession:
        path = artifact.path(contents.graphs[graph].model)
        if artifact.manifest.kind == "lowered":
            return open_session(None, path, execution)
        model = load_model(path)
        lower_beside_(model, graph, on_cpu=execution is None)
        return open_session(model, path, execution)

    return Embedder(opened(EMBEDDING, None), opened(VISION, on_gpu), vision.image_token)


def vision_bytes(artifact: Artifact) -> int:
    """Bytes of weights of what a model sees with; 0 for a model of text."""
    graph = artifact.manifest.contents.graphs.get(VISION)
    return artifact.manifest.files[weights_of(graph.model)].size_bytes if graph else 0


def require_embedder(sizes: DecoderSizes, embedder: Embeds | None, where: Path) -> None:
    """Refuses a decoder of embeddings without what makes them.

    Raises:
        ArtifactError: It is one.
    """
    if sizes.hidden_size is not None and embedder is None:
        raise ArtifactError(
            "the decoder reads embeddings, and no graph beside it makes them of tokens.",
            where=str(where),
            fix="name the whole model's directory, with its manifest.json, or export the model again.",
        )
