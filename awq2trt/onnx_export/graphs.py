"""All graphs of a model: the decoder, and of a model that sees what it sees with and its embedding.

In: a checkpoint. Out: their files in a directory that the caller owns, and what a manifest says of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from awq2trt.artifact.records import GraphRecord
from awq2trt.io_contract import DECODER, EMBEDDING, EMBEDDING_FILE, MODEL_FILE, VISION, VISION_FILE
from awq2trt.models.vision.description import AttendedSpec, SeeingSpec
from awq2trt.onnx_export.embedding_graph import export_embedding
from awq2trt.onnx_export.model import ExportResult, export_onnx
from awq2trt.onnx_export.streamed_weights import Checkpoint
from awq2trt.onnx_export.tower_graph import TowerCodes
from awq2trt.onnx_export.vision_graph import export_vision
from awq2trt.progress import Progress, SilentProgress
from awq2trt.recipe import ExportOptions

_VISION_DTYPE: Final = ir.DataType.FLOAT16
"""Whatever the decoder's: towers are published in it, and ONNX Runtime's GPU kernels for them take no bf16."""


class SeeingCheckpoint(Checkpoint, Protocol):
    """A checkpoint that may be of a model that sees."""

    @property
    def vision(self) -> SeeingSpec | None:
        """How it sees; None for a model of text."""

    @property
    def vision_linears(self) -> tuple[str, ...]:
        """Full names of the linears that it sees with and that are quantized."""

    def vision_tensors(self, without: Collection[str] = ()) -> Mapping[str, NDArray[np.generic]]:
        """Tensors of its tower and projector, by full name; without those of some linears."""


@dataclass(frozen=True)
class ExportedGraphs:
    """What was written.

    Attributes:
        decoder: What the decoder's export wrote.
        records: Records of all graphs, by name.
    """

    decoder: ExportResult
    records: dict[str, GraphRecord]


def export_graphs(
    checkpoint: SeeingCheckpoint, directory: Path, options: ExportOptions, progress: Progress | None = None
) -> ExportedGraphs:
    """Writes all graphs of a model.

    Args:
        checkpoint: What to export.
        directory: Where the files go.
        options: Capacity, type of activations, function bodies.
        progress: Counts blocks, and names the graphs beside the decoder.

    Raises:
        UsageError: `max_seq_len` is beyond what the model was made for.
        UnsupportedError: A weight is beyond what the type of activations holds.
        ArtifactError: The files cannot be written.
    """
    progress = progress or SilentProgress()
    vision = checkpoint.vision
    decoder = export_onnx(checkpoint, directory, options=options, embeds=vision is not None, progress=progress)
    records = {DECODER: GraphRecord(model=MODEL_FILE, io=decoder.contract)}
    if vision is not None:
        dtype = ir.DataType[decoder.dtype.upper()]
        with progress.task("exporting what it sees with", 2) as advance:
            codes = TowerCodes(checkpoint, frozenset(checkpoint.vision_linears), options.function_bodies)
            io = export_vision(vision, _vision_tensors(checkpoint, vision), directory, _VISION_DTYPE, codes)
            records[VISION] = GraphRecord(model=VISION_FILE, io=io)
            advance(1)
            io = export_embedding(checkpoint, directory, dtype, function_bodies=options.function_bodies)
            records[EMBEDDING] = GraphRecord(model=EMBEDDING_FILE, io=io)
            advance(1)
    return ExportedGraphs(decoder, records)


def _vision_tensors(checkpoint: SeeingCheckpoint, vision: SeeingSpec) -> Mapping[str, NDArray[np.generic]]:
    """Plain tensors of the vision graph, by full name: also the decoder's that read an image, once for all tokens."""
    readers = vision.readers if isinstance(vision, AttendedSpec) else ()
    names = [f"{reader}.weight" for reader in readers]
    return {**checkpoint.vision_tensors(checkpoint.vision_linears), **{name: checkpoint.tensor(name) for name in names}}
