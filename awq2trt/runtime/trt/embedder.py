"""Inputs of a decoder of embeddings, from the engines beside it, which `check` compares with their golden outputs.

In: an engine's directory, or that of a finished kit. Out: an `awq2trt.runtime.backend.Embeds`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awq2trt.artifact.manifest import Artifact
from awq2trt.errors import ArtifactError, ToolError
from awq2trt.foreign_files import reading
from awq2trt.io_contract import DECODER, EMBEDDING, IMAGE_EMBEDDINGS, INPUT_IDS, INPUTS_EMBEDS, VISION
from awq2trt.runtime.embedding import PlacingEmbedder
from awq2trt.runtime.tables import Tables, tables_of
from awq2trt.runtime.trt.engine import EngineBuild, engine_of
from awq2trt.runtime.trt.session import EngineSession, TrtSession


class EngineEmbedder(PlacingEmbedder):
    """Engines of a vision graph and an embedding.

    Args:
        vision: Takes an image at a time.
        embedding: Takes as many tokens as the decoder's, in its last profile one.
        longest: Tokens that a call of the embedding may have.
        image_token: As of `PlacingEmbedder`.
        tables: As of `PlacingEmbedder`, like `deepstack`.
        deepstack: See there.
    """

    def __init__(
        self,
        vision: EngineSession,
        embedding: EngineSession,
        longest: int,
        image_token: int,
        tables: Tables | None = None,
        deepstack: int = 0,
    ) -> None:
        super().__init__(image_token, tables, deepstack)
        self._vision = vision
        self._embedding = embedding
        self._longest = longest

    def look(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Pieces of an image, or of a tile, [pieces, W]."""
        halves = {name: array.astype(np.float16) for name, array in inputs.items() if array.dtype == np.float32}
        outputs = self._vision.infer({**inputs, **halves}, 0)
        seen = self._vision.read(outputs[IMAGE_EMBEDDINGS])
        return seen.reshape(-1, seen.shape[-1]).copy()

    def close(self) -> None:
        """Gives all memory back."""
        self._vision.close()
        self._embedding.close()

    def embed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Rows of tokens, [S, H]."""
        rows = []
        for start in range(0, len(tokens), self._longest):
            ids = np.asarray([tokens[start : start + self._longest]], np.int64)
            rows.append(self._embedding.read(self._embedding.infer({INPUT_IDS: ids}, 0)[INPUTS_EMBEDS])[0].copy())
        return np.concatenate(rows)


def open_engine_embedder(
    artifact: Artifact, opener: Callable[[EngineBuild], EngineSession] = TrtSession.open
) -> EngineEmbedder | None:
    """Loads the engines beside a decoder's; None for a decoder of tokens.

    Args:
        artifact: An engine's, or a finished kit's.
        opener: Loads one.

    Raises:
        ToolError: TensorRT refuses one, or it is not what was built.
        ArtifactError: The manifest is damaged.
    """
    contents = artifact.manifest.contents
    vision = contents.model.vision if contents.model else None
    if contents.model is None or vision is None or not contents.beside:
        return None
    sessions, longest = {}, 1
    for name in (VISION, EMBEDDING):
        build = engine_of(artifact, name)
        if build is None or build.problem:
            raise ToolError(
                build.problem if build and build.problem else f"there is no engine of the {name} graph.",
                where=str(artifact.directory),
                fix="build the model again; a kit's engines come from its finish.sh.",
            )
        sessions[name] = opener(build)
        if name == EMBEDDING:
            longest = max(profile.tokens.longest for profile in build.profiles)
    with reading("sizes of what the decoder is given", artifact.directory, fix="export it again.", error=ArtifactError):
        io = contents.graphs[DECODER].io
        tables, deepstack = tables_of(contents.model, io.tables), io.deepstack
    return EngineEmbedder(sessions[VISION], sessions[EMBEDDING], longest, vision.image_token, tables, deepstack)
