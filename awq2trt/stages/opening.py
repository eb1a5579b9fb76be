"""What several commands do before any work: refuse what cannot be done, say what they were given, find what is current.

In: what a user names, and directories. Out: records and hashes for manifests, or an artifact that is as it should be.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from awq2trt.artifact.folder import same_place
from awq2trt.artifact.manifest import Artifact, Kind, current_artifact, record_file
from awq2trt.artifact.records import Contents, FileRecord, SourceRecord
from awq2trt.errors import UsageError
from awq2trt.models.sources.base import ModelSource
from awq2trt.models.spec import ModelSpec
from awq2trt.progress import Progress
from awq2trt.recipe import DEFAULT_DEVICE


def refuse_missing_device(name: str) -> None:
    """Refuses a device that is not there before any work. PyTorch need not be loaded to know that the CPU is."""
    if name != DEFAULT_DEVICE:
        from awq2trt.machine.device import require_device

        require_device(name)


def source_record(source: ModelSource) -> SourceRecord:
    """What the manifest says of a model; hashes its weight files."""
    return SourceRecord(
        model=portable_name(source.name),
        family=source.spec.family,
        files={path.name: record_file(path) for path in source.files},
    )


def exported_contents(onnx: Artifact, spec: ModelSpec) -> Contents:
    """What an exported model's manifest says; what one of format 1 did not say is read off the files."""
    from awq2trt.runtime import ChatTokenizer

    contents = onnx.manifest.contents
    tokens = contents.tokens or ChatTokenizer.load(onnx.directory).special
    return contents.model_copy(update={"model": contents.model or spec.record(), "tokens": tokens})


def cache_error(spec: ModelSpec) -> float:
    """How much further off than others a model with a cache of codes may be."""
    from awq2trt.checking.tolerance import cache_limit

    return cache_limit(spec.decoder.head_dim, spec.decoder.num_layers + 1)


def file_hashes(files: Mapping[str, FileRecord]) -> dict[str, str]:
    """What a fingerprint takes of an artifact's files."""
    return {name: record.sha256 for name, record in files.items()}


def current_or_none(directory: Path, kind: Kind, fingerprint: str, progress: Progress) -> Artifact | None:
    """What is in a directory, which is then said, if it is what would be made again; else None."""
    current = current_artifact(directory, kind, fingerprint)
    if current is not None:
        progress.note(f"{directory} is current")
    return current


def portable_name(name: str) -> str:
    """A local path's last part; anything else as it is."""
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() else name


def refuse_writing_over_source(source: ModelSource, output: Path) -> None:
    """Refuses an output directory that holds the model itself."""
    if any(same_place(output, path.resolve().parent) for path in source.files):
        raise UsageError(
            "the output directory is the model's own.", where=str(output), fix="give another directory with -o."
        )
