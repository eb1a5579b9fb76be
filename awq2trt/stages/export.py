"""`awq2trt export`: a quantized checkpoint, ours or another tool's -> an ONNX model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from awq2trt.artifact.folder import same_place
from awq2trt.artifact.golden import FORMAT_VERSION as GOLDEN_VERSION
from awq2trt.artifact.manifest import MANIFEST_FILE, Artifact, fingerprint_of, record_files
from awq2trt.artifact.publish import create_artifact, require_replaceable
from awq2trt.artifact.records import (
    Contents,
    FileRecord,
    LayerSchemeRecord,
    ModelRecord,
    QuantizationRecord,
    SourceRecord,
)
from awq2trt.errors import UsageError
from awq2trt.io_contract import MODEL_FILE
from awq2trt.models.sources.base import copy_tokenizer
from awq2trt.models.vision.mosaic import PINPOINTS
from awq2trt.opset import CODE_BITS
from awq2trt.progress import Progress
from awq2trt.recipe import ExportOptions
from awq2trt.stages.opening import file_hashes, source_record
from awq2trt.stages.readiness import require_exportable, require_whole_model

_MOST_IMAGE_TOKENS: Final = 1280
"""Most tokens of an image unless asked otherwise: the default of Qwen2-VL's processor. Its published models allow
16,384, more than a cache of usual size holds, and the memory of the tower's attention to the whole image grows with
their square. LLaVA 1.6 has no such limit: its tower sees a tile at a time, and its smallest images may have more."""

_IMAGE_SHARE: Final = 0.75
"""Share of the cache that one image may fill, which leaves a quarter for what is said about it."""

if TYPE_CHECKING:
    from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
    from awq2trt.onnx_export import ExportResult
    from awq2trt.runtime import ChatTokenizer


@dataclass(frozen=True)
class ExportRequest:
    """`awq2trt export`.

    Attributes:
        checkpoint: Directory of a quantized checkpoint, ours or another tool's.
        output: Directory of the ONNX model.
        options: How to export.
        overwrite: Whether to replace anything that is in `output`.
    """

    checkpoint: Path
    output: Path
    options: ExportOptions
    overwrite: bool = False


def export_stage(request: ExportRequest, progress: Progress) -> Artifact:
    """Quantized checkpoint -> ONNX model."""
    if same_place(request.checkpoint, request.output):
        raise UsageError(
            "the output directory is the checkpoint's own.", where=str(request.output), fix="give another with -o."
        )
    made_by_us = (request.checkpoint / MANIFEST_FILE).is_file()
    return export_checkpoint(
        Artifact.open(request.checkpoint, kind="checkpoint") if made_by_us else None, request, progress
    )


def export_checkpoint(artifact: Artifact | None, request: ExportRequest, progress: Progress) -> Artifact:
    """Exports a checkpoint; `artifact` is None if another tool made it."""
    from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
    from awq2trt.graph.read import load_model, operators_of
    from awq2trt.onnx_export.graphs import export_graphs
    from awq2trt.runtime import ChatTokenizer

    checkpoint = QuantizedCheckpoint.open(request.checkpoint)
    options = request.options
    require_replaceable(request.output, "onnx", overwrite=request.overwrite)
    require_exportable(checkpoint, options)
    require_whole_model(checkpoint, progress)
    with create_artifact(
        request.output,
        "onnx",
        export_fingerprint(_checkpoint_files(checkpoint, artifact), options),
        overwrite=request.overwrite,
        expected_bytes=sum(path.stat().st_size for path in checkpoint.files),
    ) as draft:
        exported = export_graphs(checkpoint, draft.files, options, progress)
        result = exported.decoder
        _note_peculiarities(checkpoint, progress)
        if artifact is None:
            _prove_import(checkpoint, draft.files / MODEL_FILE, progress)
        copy_tokenizer(request.checkpoint, draft.files)
        tokenizer = ChatTokenizer.load(draft.files)
        _write_golden(checkpoint, tokenizer, draft.files, result, progress)
        source, quantization = _origin(checkpoint, artifact)
        contents = Contents(
            source=source,
            quantization=quantization.with_ends(
                result.dtype, checkpoint.head_scheme, tied=checkpoint.spec.tie_embeddings
            ),
            model=_limited_images(checkpoint, draft.files, result.contract.capacity, options, progress),
            tokens=tokenizer.special,
            graphs=exported.records,
            operators=operators_of(*(load_model(draft.files / graph.model) for graph in exported.records.values())),
        )
        return draft.publish(contents)


def _limited_images(
    checkpoint: QuantizedCheckpoint, directory: Path, capacity: int, options: ExportOptions, progress: Progress
) -> ModelRecord:
    """What a runtime must know of the model, after images of any size were limited to what the cache can hold.

    Args:
        checkpoint: The model.
        directory: The exported model's directory, whose image processor is limited.
        capacity: Positions of the cache.
        options: May have a limit.
        progress: Told where it is lower than the model's own.
    """
    from awq2trt.images.processor import limit_pieces_, processor_of

    record = checkpoint.model_spec.record()
    if record.vision is None or record.vision.tokens_per_image is not None:
        return record
    share = max(1, int(_IMAGE_SHARE * capacity))
    usual = share if PINPOINTS in record.vision.settings else min(_MOST_IMAGE_TOKENS, share)
    most = options.max_image_tokens or usual
    limited = limit_pieces_(directory, record.vision, most)
    if limited is None:
        return record
    if limited != processor_of(checkpoint):
        progress.note(
            f"images are made as small as {limited.largest}, although the model's own processor allows more; "
            "--max-image-tokens changes it"
        )
    settings = {**record.vision.settings, **limited.settings()}
    return record.model_copy(update={"vision": record.vision.model_copy(update={"settings": settings})})


def _note_peculiarities(checkpoint: QuantizedCheckpoint, progress: Progress) -> None:
    """Says where the exported model differs from what a user may expect of this checkpoint."""
    if checkpoint.scheme.bits < CODE_BITS:
        progress.note(
            f"{checkpoint.scheme.bits}-bit codes are exported as {CODE_BITS}-bit codes: the model computes the "
            "same, but is no smaller than one quantized to 4 bits"
        )
    if checkpoint.plain_linears:
        progress.note(
            f"{len(checkpoint.plain_linears)} linears are not quantized in the checkpoint and stay as they are; "
            f"the first of them is {checkpoint.plain_linears[0]}"
        )


def _write_golden(
    checkpoint: QuantizedCheckpoint,
    tokenizer: ChatTokenizer,
    directory: Path,
    result: ExportResult,
    progress: Progress,
) -> None:
    """Writes the answers that the model must give, computed from the checkpoint itself, beside the model."""
    from awq2trt.artifact.golden import write_golden
    from awq2trt.checking.golden import TEXT, make_golden

    tokens = tokenizer.encode(TEXT)
    golden = make_golden(checkpoint, tokens, result.contract, progress)
    write_golden(golden, directory)


def _prove_import(checkpoint: QuantizedCheckpoint, model: Path, progress: Progress) -> None:
    """Compares the model's weights with another tool's checkpoint, and reports the largest difference.

    Raises:
        ArtifactError: They differ by more than rounding explains.
    """
    from awq2trt.graph.read import open_decoder
    from awq2trt.onnx_export.proof import prove_import

    proof = prove_import(checkpoint, open_decoder(model)[0], progress)
    progress.note(f"largest dequantization difference: {proof.largest:g} ({proof.linears} linears)")
    if proof.largest:
        progress.note(
            f"it is in {proof.where}: the checkpoint stores step sizes in a type that the model's --dtype rounds; "
            "export with that type to keep them exact"
        )


def export_fingerprint(checkpoint: dict[str, FileRecord], options: ExportOptions) -> str:
    """Fingerprint of the ONNX model that a checkpoint's files and options produce."""
    # What is newer than the first artifacts counts only where it is given, so that those are still current.
    absent = {name for name in ("max_image_tokens", "max_images") if getattr(options, name) is None}
    given = options.model_dump(mode="json", exclude=absent)
    return fingerprint_of(kind="onnx", checkpoint=file_hashes(checkpoint), options=given, golden=GOLDEN_VERSION)


def _checkpoint_files(checkpoint: QuantizedCheckpoint, artifact: Artifact | None) -> dict[str, FileRecord]:
    if artifact is not None:
        return artifact.manifest.files
    return record_files((*checkpoint.files, *checkpoint.side_files))


def _origin(checkpoint: QuantizedCheckpoint, artifact: Artifact | None) -> tuple[SourceRecord, QuantizationRecord]:
    """Where a checkpoint comes from; for another tool's, only the checkpoint itself is known."""
    if artifact is not None:
        return artifact.manifest.contents.source, artifact.manifest.contents.quantization
    method = checkpoint.format.layout.tool.name
    plain = tuple(LayerSchemeRecord(layers=name, scheme=None) for name in checkpoint.plain_linears)
    record = QuantizationRecord(method=method, scheme=checkpoint.scheme, exceptions=plain)
    return source_record(checkpoint), record
