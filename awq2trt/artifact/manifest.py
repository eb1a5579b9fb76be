"""An artifact: a directory whose `manifest.json` says what it is, what it was made from, and every file's hash.

Only this module reads manifests, and only `publish` writes them. A directory without a manifest is not an artifact.
Manifests hold no times, host names or paths of this machine: the same inputs and options give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from awq2trt.artifact.folder import no_directory
from awq2trt.artifact.format_1 import FORMAT_1, upgraded
from awq2trt.artifact.records import Contents, FileRecord
from awq2trt.artifact.verified import is_verified, note_verified
from awq2trt.errors import ArtifactError, Awq2trtError
from awq2trt.foreign_files import read_json, reading
from awq2trt.tracing import span
from awq2trt.version import __version__

FORMAT_VERSION: Final = 2
"""It increases when older versions of awq2trt cannot read what we write; manifests of format 1 can still be read."""

MINIMUM_RUNTIME: Final = "0.1.0"
"""The oldest awq2trt, in Python or C++, that opens what we write; it increases with what a graph needs of its
runtime."""

MANIFEST_FILE: Final = "manifest.json"

SUMS_FILE: Final = "SHA256SUMS"
"""A kit's file with the hashes of all files and of the manifest, for `sha256sum --check` where there is no Python."""

WORK_DIRECTORY: Final = ".work"

LOCK_FILE: Final = ".lock"

_RESERVED: Final = (MANIFEST_FILE, SUMS_FILE, WORK_DIRECTORY, LOCK_FILE)
"""Names that files of an artifact must not have."""

_HASH_CHUNK_BYTES: Final = 1 << 22

Kind = Literal["checkpoint", "onnx", "engine", "kit", "lowered"]

Verify = Literal["full", "first", "size"]
"""What is compared with the manifest: hashes, hashes unless they were right once and no file has changed, or sizes."""


class Manifest(BaseModel, frozen=True, extra="forbid"):
    """The content of manifest.json.

        manifest = awq2trt.load("out/onnx").artifact.manifest
        print(manifest.kind, manifest.contents.source.model, len(manifest.files))

    Attributes:
        minimum_runtime: The oldest awq2trt that opens the directory.
        kind: What the directory is.
        fingerprint: Fingerprint of the inputs and options that it was made from, see `fingerprint_of`.
        tool_version: The version of awq2trt that wrote it.
        contents: What the directory holds.
        files: Records of all files, by path relative to the directory.
    """

    format_version: Literal[2] = FORMAT_VERSION
    minimum_runtime: str = Field(default=MINIMUM_RUNTIME, pattern=r"^\d+\.\d+\.\d+$")
    kind: Kind
    fingerprint: str
    tool_version: str
    contents: Contents
    files: dict[str, FileRecord]

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        contents = self.contents
        _require_only(self.kind, "decoder", contents.decoder, wanted=self.kind != "checkpoint")
        for name, record in (("engine", contents.engine), ("kit", contents.kit), ("lowered", contents.lowered)):
            _require_only(self.kind, name, record, wanted=self.kind == name)
        # A kit's engines are made on the Jetson, so its manifest names them but has no records of them.
        engines = [graph.engine for graph in contents.graphs.values() if graph.engine is not None]
        listed = [graph.model for graph in contents.graphs.values()] + (engines if self.kind == "engine" else [])
        for name in listed:
            if name not in self.files:
                raise ValueError(f"{name!r} of a graph is not among the files")
        for name in (*self.files, *engines):
            path = PurePosixPath(name)
            inside = not path.is_absolute() and ".." not in path.parts and str(path) == name and "\0" not in name
            if not inside or not path.parts or path.parts[0] in _RESERVED:
                raise ValueError(f"file name {name!r} does not stay inside the directory")
        return self

    def to_bytes(self) -> bytes:
        """The file's bytes; keys are sorted, so that equal manifests have equal bytes."""
        text = json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False)
        return f"{text}\n".encode()

    def sums_bytes(self, manifest_sha256: str) -> bytes:
        """The content of `SHA256SUMS`: hashes of every file and of the manifest itself, by name.

        Args:
            manifest_sha256: Hash of the manifest as it is on disk, since format 1 has other bytes than `to_bytes`.
        """
        sums = {name: record.sha256 for name, record in self.files.items()}
        sums[MANIFEST_FILE] = manifest_sha256
        return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode()


def _require_only(kind: Kind, name: str, record: object, *, wanted: bool) -> None:
    """Checks that a part of the contents is present for the kinds that have it, and absent for all others."""
    if (record is not None) != wanted:
        raise ValueError(f"kind {kind}: {name} must {'be given' if wanted else 'be absent'}")


@dataclass(frozen=True)
class Artifact:
    """A complete artifact on disk, whose manifest was read and whose files were verified.

        artifact = awq2trt.load("out/onnx").artifact
        print(artifact.directory, artifact.path("model.onnx"))

    Attributes:
        directory: Its directory.
        manifest: Its manifest.
    """

    directory: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """Returns the path of the file `name`.

        Raises:
            ArtifactError: The manifest lists no such file.
        """
        if name not in self.manifest.files:
            raise ArtifactError(
                f"the manifest lists no {name} among its files ({', '.join(self.manifest.files)}).",
                where=str(self.directory),
                fix=_again(self.manifest.kind),
            )
        return self.directory / name

    @staticmethod
    def open(directory: Path, *, kind: Kind | None = None, verify: Verify = "full") -> Artifact:
        """Opens an artifact.

        Args:
            directory: Its directory.
            kind: The kind that it must have; None for any kind.
            verify: `full` reads and hashes every file; `size` only checks that each exists with its full length;
                `first` hashes them unless it found them right before and no time of change differs since.

        Raises:
            ArtifactError: There is no artifact, or it is of another kind or format version, or a file is missing or was
                changed.
        """
        manifest = read_manifest(directory, kind)
        known = verify == "first" and is_verified(directory, manifest.files)
        for name, record in manifest.files.items():
            problem = _problem(directory / name, record, "size" if known else verify)
            if problem:
                raise ArtifactError(problem, where=str(directory / name), fix=_again(manifest.kind))
        sums = directory / SUMS_FILE
        if manifest.kind == "kit":
            expected = manifest.sums_bytes(record_file(directory / MANIFEST_FILE).sha256)
            if not (sums.is_file() and sums.read_bytes() == expected):
                raise ArtifactError(
                    "the file is missing, or was changed since it was written.",
                    where=str(sums),
                    fix=_again(manifest.kind),
                )
        if verify == "first" and not known:
            note_verified(directory, manifest.files)
        return Artifact(directory, manifest)


def current_artifact(directory: Path, kind: Kind, fingerprint: str) -> Artifact | None:
    """Returns the artifact in `directory` if it is complete and has the same inputs and options, otherwise None."""
    try:
        artifact = Artifact.open(directory, kind=kind, verify="size")
    except ArtifactError:
        return None
    return artifact if artifact.manifest.fingerprint == fingerprint else None


def fingerprint_of(**inputs: object) -> str:
    """Hash of everything that an artifact is made from: hashes of input files, options, and awq2trt's version.

    Args:
        inputs: JSON values, which may contain frozen pydantic models.
    """
    values = {"awq2trt": __version__, **inputs}
    canonical = json.dumps(values, sort_keys=True, default=_to_json, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def record_file(path: Path) -> FileRecord:
    """Size and hash of a file."""
    digest = hashlib.sha256()
    size_bytes = 0
    with span("hash", file=path.name), path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
    return FileRecord(size_bytes=size_bytes, sha256=digest.hexdigest())


Records = Callable[[], dict[str, FileRecord]]


@contextmanager
def recording(paths: Iterable[Path]) -> Iterator[Records]:
    """Does `record_file` of several files, as many at once as there are CPUs, while the caller does something else.

    Yields:
        What waits for the records of all, by name. If the caller fails instead, files that are not begun are left out.
    """
    pool = ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="hash")
    records = {path.name: pool.submit(record_file, path) for path in paths}
    try:
        yield lambda: {name: record.result() for name, record in records.items()}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def record_files(paths: Iterable[Path]) -> dict[str, FileRecord]:
    """`record_file` of several files, by name; large models have many shards."""
    with recording(paths) as records:
        return records()


def read_manifest(directory: Path, kind: Kind | None) -> Manifest:
    """Reads the manifest of a directory without looking at its files.

    Raises:
        ArtifactError: The manifest is missing or damaged, has a later format or needs a later runtime, or the directory
            is of another kind.
    """
    path = directory / MANIFEST_FILE
    if not path.is_file():
        raise _no_manifest(directory, kind)
    with reading("a manifest of awq2trt", path, fix=_again(kind), error=ArtifactError):
        value = read_json(path, what="a manifest of awq2trt", fix=_again(kind), error=ArtifactError)
        _refuse_later(value, value["format_version"], path)
        try:
            manifest = manifest_of(value)
        except (ValidationError, Awq2trtError) as error:
            raise ArtifactError(f"not a valid manifest: {_reason(error)}", where=str(path), fix=_again(kind)) from error
    if kind is not None and manifest.kind != kind:
        raise ArtifactError(
            f"expected a directory of kind {kind!r}, got one of kind {manifest.kind!r}.",
            where=str(directory),
            fix=f"name the directory that `awq2trt {_COMMAND[kind]}` wrote.",
        )
    return manifest


def manifest_of(value: Mapping[str, Any]) -> Manifest:
    """Makes a manifest from a JSON value of any format so far.

    Raises:
        Awq2trtError: Its content is contradictory.
        LookupError, TypeError, AttributeError: It has format 1 and is damaged.
        ValidationError: It is damaged.
    """
    return Manifest.model_validate(upgraded(value) if value["format_version"] == FORMAT_1 else value)


def _refuse_later(value: Mapping[str, Any], version: object, path: Path) -> None:
    """Refuses a manifest of a later awq2trt, which would otherwise look damaged."""
    newer = f"use the awq2trt that wrote it ({value.get('tool_version', 'unknown version')}), or make it again."
    if version not in (FORMAT_1, FORMAT_VERSION):
        raise ArtifactError(
            f"format version {version!r}, expected {FORMAT_1} or {FORMAT_VERSION}.", where=str(path), fix=newer
        )
    needed = str(value.get("minimum_runtime", MINIMUM_RUNTIME))
    if _release(needed) > _release(__version__):
        raise ArtifactError(
            f"it needs awq2trt {needed} or later, but this is {__version__}.", where=str(path), fix=newer
        )


def _release(version: str) -> tuple[int, ...]:
    """`0.10.0` -> (0, 10, 0), so that versions are compared as numbers."""
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


_COMMAND: Final[Mapping[str, str]] = {
    "checkpoint": "quantize",
    "onnx": "export",
    "engine": "build",
    "kit": "build",
    "lowered": "build",
}
"""The command that makes each kind of artifact."""


def _again(kind: Kind | None) -> str:
    return f"make it again with `awq2trt {_COMMAND[kind]}`." if kind else "make it again."


def _no_manifest(directory: Path, kind: Kind | None) -> ArtifactError:
    if not directory.is_dir():
        return ArtifactError(no_directory(directory), where=str(directory), fix="check the path.")
    if (directory / WORK_DIRECTORY).is_dir():
        return ArtifactError(
            "the directory is incomplete: the run that should have written it did not finish.",
            where=str(directory),
            fix="run the same command again: build continues where it stopped, and so does quantize with --resume.",
        )
    return ArtifactError(
        f"there is no {MANIFEST_FILE}, so awq2trt did not write this directory.", where=str(directory), fix=_again(kind)
    )


def _reason(error: ValidationError | Awq2trtError) -> str:
    """Says what is wrong with a manifest."""
    if isinstance(error, Awq2trtError):
        return error.what
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}."


def _problem(path: Path, record: FileRecord, verify: Verify) -> str | None:
    """Says what is wrong with a file, in one sentence; None if nothing is."""
    if not path.is_file():
        return "the manifest lists this file, but it is missing."
    size_bytes = path.stat().st_size
    if size_bytes != record.size_bytes:
        return f"expected {record.size_bytes} bytes, got {size_bytes}."
    if verify != "size":
        sha256 = record_file(path).sha256
        if sha256 != record.sha256:
            return f"its sha256 is {sha256[:12]}..., but {record.sha256[:12]}... was written, so it was changed since."
    return None


def _to_json(value: object) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"expected JSON values or pydantic models, got {type(value).__name__}")
