"""An artifact: a directory with `manifest.json`, which says what it is, what it was made from, and every file's hash.

This module alone reads manifests, and `publish` alone writes them. A directory without a manifest is not an artifact.
Manifests hold no times, host names or paths of this machine: the same inputs and options give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

from pydantic import BaseModel, ValidationError, model_validator

from awq2trt import __version__
from awq2trt.artifact.records import Contents, FileRecord
from awq2trt.errors import ArtifactError, Awq2trtError

FORMAT_VERSION: Final = 1
"""Raised when older versions of awq2trt could not read what we write."""

MANIFEST_FILE: Final = "manifest.json"

SUMS_FILE: Final = "SHA256SUMS"
"""Of kits: hashes of all files and of the manifest, as `sha256sum --check` reads them where there is no Python."""

WORK_DIRECTORY: Final = ".work"

_HASH_CHUNK_BYTES: Final = 1 << 22

Kind = Literal["checkpoint", "onnx", "engine", "kit", "lowered"]

Verify = Literal["full", "size"]


class Manifest(BaseModel, frozen=True, extra="forbid"):
    """manifest.json.

    Attributes:
        kind: What the directory is.
        fingerprint: Of the inputs and options it was made from, see `fingerprint_of`.
        tool_version: Of awq2trt.
        contents: What it holds.
        files: Every file, by path relative to the directory.
    """

    format_version: Literal[1] = FORMAT_VERSION
    kind: Kind
    fingerprint: str
    tool_version: str
    contents: Contents
    files: dict[str, FileRecord]

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if (self.contents.io is None) != (self.kind == "checkpoint"):
            raise ValueError(f"kind {self.kind}: io must {'be absent' if self.contents.io else 'be given'}")
        if (self.contents.engine is None) != (self.kind != "engine"):
            raise ValueError(f"kind {self.kind}: engine must {'be absent' if self.contents.engine else 'be given'}")
        if (self.contents.kit is None) != (self.kind != "kit"):
            raise ValueError(f"kind {self.kind}: kit must {'be absent' if self.contents.kit else 'be given'}")
        if (self.contents.lowered is None) != (self.kind != "lowered"):
            raise ValueError(f"kind {self.kind}: lowered must {'be absent' if self.contents.lowered else 'be given'}")
        for name in self.files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or str(path) != name or name in (MANIFEST_FILE, SUMS_FILE):
                raise ValueError(f"file name {name!r} does not stay inside the directory")
        return self

    def to_bytes(self) -> bytes:
        """The file's bytes: sorted keys, so that equal manifests are equal bytes."""
        text = json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False)
        return f"{text}\n".encode()

    def sums_bytes(self) -> bytes:
        """Bytes of `SHA256SUMS`: every file and the manifest itself, by name."""
        sums = {name: record.sha256 for name, record in self.files.items()}
        sums[MANIFEST_FILE] = hashlib.sha256(self.to_bytes()).hexdigest()
        return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode()


@dataclass(frozen=True)
class Artifact:
    """A whole artifact on disk, its manifest read and its files verified."""

    directory: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """Path of the file `name`.

        Raises:
            ArtifactError: The manifest lists no such file.
        """
        if name not in self.manifest.files:
            raise ArtifactError(
                f"no {name} among its files ({', '.join(self.manifest.files)}).",
                where=str(self.directory),
                fix=_again(self.manifest.kind),
            )
        return self.directory / name

    @staticmethod
    def open(directory: Path, *, kind: Kind | None = None, verify: Verify = "full") -> Artifact:
        """Opens an artifact.

        Args:
            directory: Where it is.
            kind: What it must be; None for any kind.
            verify: `full` reads and hashes every file; `size` only looks whether each is there in its full length.

        Raises:
            ArtifactError: There is none, it is not of that kind, of another format version, or a file is missing or
                is not what was written.
        """
        manifest = read_manifest(directory, kind)
        for name, record in manifest.files.items():
            problem = _problem(directory / name, record, verify)
            if problem:
                raise ArtifactError(problem, where=str(directory / name), fix=_again(manifest.kind))
        sums = directory / SUMS_FILE
        if manifest.kind == "kit" and not (sums.is_file() and sums.read_bytes() == manifest.sums_bytes()):
            raise ArtifactError("missing, or not as it was written.", where=str(sums), fix=_again(manifest.kind))
        return Artifact(directory, manifest)


def current_artifact(directory: Path, kind: Kind, fingerprint: str) -> Artifact | None:
    """The artifact in `directory` if it is whole and was made from the same inputs and options, else None."""
    try:
        artifact = Artifact.open(directory, kind=kind, verify="size")
    except ArtifactError:
        return None
    return artifact if artifact.manifest.fingerprint == fingerprint else None


def fingerprint_of(**inputs: object) -> str:
    """Hash of what an artifact is made from: hashes of input files, options, and awq2trt's version.

    Args:
        inputs: JSON values, frozen pydantic models included.
    """
    values = {"awq2trt": __version__, **inputs}
    canonical = json.dumps(values, sort_keys=True, default=_to_json, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def record_file(path: Path) -> FileRecord:
    """Size and hash of a file."""
    digest = hashlib.sha256()
    size_bytes = 0
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
    return FileRecord(size_bytes=size_bytes, sha256=digest.hexdigest())


def read_manifest(directory: Path, kind: Kind | None) -> Manifest:
    """The manifest of a directory; its files are not looked at.

    Raises:
        ArtifactError: There is none, it is damaged, or the directory is not of that kind.
    """
    path = directory / MANIFEST_FILE
    if not path.is_file():
        raise _no_manifest(directory, kind)
    try:
        value = json.loads(path.read_bytes())
        version = value["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"not a manifest of awq2trt ({type(error).__name__}: {error}).", where=str(path), fix=_again(kind)
        ) from error
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"format version {version!r}, expected {FORMAT_VERSION}.",
            where=str(path),
            fix=f"use the awq2trt that wrote it ({value.get('tool_version', 'unknown version')}), or make it again.",
        )
    try:
        manifest = Manifest.model_validate(value)
    except (ValidationError, Awq2trtError) as error:
        reason = error.what if isinstance(error, Awq2trtError) else _first_problem(error)
        raise ArtifactError(f"not a valid manifest: {reason}", where=str(path), fix=_again(kind)) from error
    if kind is not None and manifest.kind != kind:
        raise ArtifactError(
            f"expected a directory of kind {kind!r}, got one of kind {manifest.kind!r}.",
            where=str(directory),
            fix=f"name the directory that `awq2trt {_COMMAND[kind]}` wrote.",
        )
    return manifest


_COMMAND: Final[Mapping[str, str]] = {
    "checkpoint": "quantize",
    "onnx": "export",
    "engine": "build",
    "kit": "build",
    "lowered": "build",
}
"""What makes a kind of artifact."""


def _again(kind: Kind | None) -> str:
    return f"make it again with `awq2trt {_COMMAND[kind]}`." if kind else "make it again."


def _no_manifest(directory: Path, kind: Kind | None) -> ArtifactError:
    if not directory.is_dir():
        return ArtifactError("no such directory.", where=str(directory), fix="check the path.")
    if (directory / WORK_DIRECTORY).is_dir():
        return ArtifactError(
            "incomplete: the run that was to write it did not finish.",
            where=str(directory),
            fix="run the same command again (quantize and build go on where they stopped with --resume).",
        )
    return ArtifactError(
        f"no {MANIFEST_FILE}: not a directory that awq2trt wrote.", where=str(directory), fix=_again(kind)
    )


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}."


def _problem(path: Path, record: FileRecord, verify: Verify) -> str | None:
    """What is wrong with a file, one sentence; None if nothing is."""
    if not path.is_file():
        return "the manifest lists this file, and it is missing."
    size_bytes = path.stat().st_size
    if size_bytes != record.size_bytes:
        return f"expected {record.size_bytes} bytes, got {size_bytes}."
    if verify == "full":
        sha256 = record_file(path).sha256
        if sha256 != record.sha256:
            return f"its sha256 is {sha256[:12]}..., but {record.sha256[:12]}... was written: it was changed since."
    return None


def _to_json(value: object) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"expected JSON values or pydantic models, got {type(value).__name__}")
