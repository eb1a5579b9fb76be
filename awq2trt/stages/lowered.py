"""The last step of `awq2trt build` for `cpu` and `cuda`: an ONNX model -> the same as a provider runs it best."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from awq2trt import __version__
from awq2trt.artifact.manifest import Artifact, current_artifact, fingerprint_of
from awq2trt.artifact.publish import create_artifact
from awq2trt.artifact.records import LoweredRecord
from awq2trt.errors import ArtifactError
from awq2trt.io_contract import MODEL_FILE, WEIGHTS_FILE
from awq2trt.progress import Progress
from awq2trt.target import MINIMUM_CAPABILITY, Target

_GROWTH: Final = 2
"""A lowered model on disk is at most so many times as large as the exported one: half precision became fp32."""


def lower_stage(
    onnx: Artifact, target: Target, output: Path, *, plugin: bool, overwrite: bool, progress: Progress
) -> Artifact:
    """The model of an exported decoder for a provider; made only where it is not current.

    Args:
        onnx: The exported decoder.
        target: `cpu` or `cuda`.
        output: Directory of the model.
        plugin: For `cuda`: quantized linears are left to our operators, not to ONNX Runtime's own.
        overwrite: Replace what is in `output`, whatever it is.
        progress: Counts tensors.
    """
    from awq2trt.graph.provider_file import Lowering, lowered_contract, write_lowered

    lowering = Lowering.CPU if target.cuda is None else Lowering.CUDA_PLUGIN if plugin else Lowering.CUDA_ORT
    record = LoweredRecord(
        target=target.name,
        lowering=lowering.value,
        minimum_onnxruntime=target.minimum_version,
        minimum_capability=MINIMUM_CAPABILITY if target.cuda else None,
        operators_version=__version__ if lowering is Lowering.CUDA_PLUGIN else None,
    )
    files = onnx.manifest.files
    fingerprint = fingerprint_of(
        kind="lowered", onnx={name: file.sha256 for name, file in files.items()}, record=record
    )
    current = current_artifact(output, "lowered", fingerprint)
    if current is not None:
        progress.note(f"{output} is current")
        return current
    contents = onnx.manifest.contents
    if contents.io is None:
        raise ArtifactError("the manifest has no I/O contract.", where=str(onnx.directory), fix="export it again.")
    expected_bytes = _GROWTH * sum(file.size_bytes for file in files.values())
    with create_artifact(output, "lowered", fingerprint, overwrite=overwrite, expected_bytes=expected_bytes) as draft:
        write_lowered(onnx.directory, lowering, draft.files, progress)
        for name in files:
            if name not in (MODEL_FILE, WEIGHTS_FILE):
                draft.adopt(onnx.path(name))
        io = lowered_contract(contents.io, lowering)
        return draft.publish(contents.model_copy(update={"lowered": record, "io": io}))
