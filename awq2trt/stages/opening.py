"""What several commands do before any work: refuse the impossible, describe their inputs, find current results.

In: what a user named, and directories. Out: records and hashes for manifests, or an artifact that is current.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from awq2trt.artifact.folder import same_place
from awq2trt.artifact.manifest import Artifact, Kind, current_artifact, record_files
from awq2trt.artifact.records import Contents, FileRecord, SourceRecord
from awq2trt.errors import UsageError
from awq2trt.models.sources.base import ModelSource
from awq2trt.models.spec import ModelSpec
from awq2trt.progress import Progress
from awq2trt.recipe import DEFAULT_DEVICE


def refuse_missing_device(name: str) -> None:
    """Refuses a missing device before any work. The CPU is known to exist without loading PyTorch."""
    if name != DEFAULT_DEVICE:
        from awq2trt.machine.device import require_device

        require_device(name)


def source_record(source: ModelSource, records: Mapping[str, FileRecord] | None = None) -> SourceRecord:
    """What the manifest says about a model; hashes its weight files, unless their records are there already."""
    return SourceRecord(
        model=portable_name(source.name),
        family=source.spec.family,
        files=record_files(source.files) if records is None else dict(records),
    )


def exported_contents(onnx: Artifact, spec: ModelSpec) -> Contents:
    """What an exported model's manifest says; what format 1 did not record is read from the files."""
    from awq2trt.runtime import ChatTokenizer

    contents = onnx.manifest.contents
    tokens = contents.tokens or ChatTokenizer.load(onnx.directory).special
    return contents.model_copy(update={"model": contents.model or spec.record(), "tokens": tokens})


def cache_error(spec: ModelSpec) -> float:
    """How much further from the golden outputs a model may be because its cache holds codes."""
    from awq2trt.checking.tolerance import cache_limit

    return cache_limit(spec.decoder.head_dim, spec.decoder.num_layers + 1)


def file_hashes(files: Mapping[str, FileRecord]) -> dict[str, str]:
    """Hashes of an artifact's files, as fingerprints include them."""
    return {name: record.sha256 for name, record in files.items()}


def current_or_none(directory: Path, kind: Kind, fingerprint: str, progress: Progress) -> Artifact | None:
    """Returns the artifact in a directory, and reports it, if making it again would give the same; else None."""
    current = current_artifact(directory, kind, fingerprint)
    if current is not None:
        progress.note(f"{directory} is current")
    return current


def portable_name(name: str) -> str:
    """The last part of a local path; anything else unchanged."""
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() else name


def refuse_writing_over_source(source: ModelSource, output: Path) -> None:
    """Refuses an output directory that contains the model itself."""
    if any(same_place(output, path.resolve().parent) for path in source.files):
        raise UsageError(
            "the output directory is the model's own.", where=str(output), fix="give another directory with -o."
        )
