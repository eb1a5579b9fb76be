"""Quantized checkpoint -> `model.onnx` and `model.onnx.data` in a directory that the caller owns.

Weights go to disk one tensor at a time while the graph is built, so memory stays that of the largest tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)
import onnx_ir as ir

from awq2trt.errors import UsageError
from awq2trt.io_contract import MODEL_FILE, WEIGHTS_FILE, IoContract
from awq2trt.onnx_export.decoder_graph import GraphPlan, build_decoder, decoder_contract
from awq2trt.onnx_export.external_data import ExternalDataWriter, write_graph
from awq2trt.onnx_export.streamed_weights import Checkpoint, StreamedWeights
from awq2trt.progress import Progress, SilentProgress
from awq2trt.recipe import ActivationDtype, ExportOptions

DEFAULT_MAX_SEQ_LEN: Final = 4096
"""Cache capacity unless asked otherwise: longer contexts cost cache memory that few runs use."""

DEFAULT_MAX_IMAGES: Final = 8
"""Images of a conversation unless asked otherwise: a question with seven shots. In the published OpenFlamingo models an
image has keys and values of 1 to 3 MB, all of which every token reads, whichever image it attends to."""

DTYPES: Final[tuple[str, ...]] = get_args(ActivationDtype)


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        contract: The model's inputs and outputs, for the manifest.
        dtype: Type of activations in the graph, by NumPy's name.
    """

    contract: IoContract
    dtype: str


def export_onnx(
    checkpoint: Checkpoint,
    directory: Path,
    *,
    options: ExportOptions | None = None,
    all_logits: bool = False,
    embeds: bool = False,
    progress: Progress | None = None,
) -> ExportResult:
    """Writes the decoder and its weights into `directory`.

    Nothing is visible under its final name before it is complete.

    Args:
        checkpoint: What to export.
        directory: Where `model.onnx` and its weights go.
        options: Capacity, type of activations, function bodies; None for the defaults.
        all_logits: Whether the model gives logits of every position rather than only of the last.
        embeds: Whether the decoder reads embeddings instead of tokens, as it must in a model that sees images.
        progress: Counts blocks.

    Raises:
        UsageError: `max_seq_len` exceeds the positions that the model was made for.
        ArtifactError: The files cannot be written.
    """
    plan = _plan(options or ExportOptions(), checkpoint, all_logits=all_logits, embeds=embeds)
    model_path, weights_path = directory / MODEL_FILE, directory / WEIGHTS_FILE
    spec = checkpoint.spec

    def build(writer: ExternalDataWriter) -> ir.Model:
        with (progress or SilentProgress()).task("exporting", spec.num_layers) as advance:
            weights = StreamedWeights(checkpoint, writer, plan.dtype)
            return build_decoder(spec, weights, plan, on_block=lambda: advance(1))

    write_graph(model_path, weights_path, build)
    contract = decoder_contract(spec, plan)
    return ExportResult(contract, dtype=plan.dtype.name.lower())


def _plan(options: ExportOptions, checkpoint: Checkpoint, *, all_logits: bool, embeds: bool) -> GraphPlan:
    """Settles the options for this checkpoint."""
    limit = checkpoint.spec.max_positions
    capacity = options.max_seq_len or min(limit, DEFAULT_MAX_SEQ_LEN)
    if capacity > limit:
        raise UsageError(
            f"got {capacity}, but the model was made for at most {limit} positions.",
            where="--max-seq-len",
            fix=f"use --max-seq-len {limit} or less.",
        )
    said = checkpoint.config.get("torch_dtype") or checkpoint.config.get("dtype")
    dtype = options.dtype or (said if said in DTYPES else DTYPES[0])
    images = options.max_images or DEFAULT_MAX_IMAGES
    return GraphPlan(capacity, ir.DataType[dtype.upper()], all_logits, options.function_bodies, embeds, images)
