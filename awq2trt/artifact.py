"""An artifact: a directory with `manifest.json`, which says what it is, what it was made from, and every file's hash.

This module alone reads and writes manifests. A directory without a manifest is not an artifact, and the manifest is
written last, so that whatever stops a build (an error, Ctrl-C, `kill -9`, a full disk), no later run takes a half of
one for whole:

1. `Artifact.create` locks the directory (`.lock`, flock: the kernel lets go of it when the process dies).
2. The stage writes into `.work/files`, on the same file system, and keeps what a resumed run needs in `.work/scratch`.
3. `Draft.publish` hashes and syncs the files, removes the old manifest and the old files, moves the new ones into
   place, those that other tools look for last (`ENTRY_FILES`), and then the manifest.

Manifests hold no times, host names or paths of this machine: the same inputs and options give the same bytes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from awq2trt import __version__
from awq2trt.errors import ArtifactError, Awq2trtError, UsageError
from awq2trt.io_contract import IoContract
from awq2trt.scheme import QuantScheme

FORMAT_VERSION: Final = 1
"""Raised when older versions of awq2trt could not read what we write."""

MANIFEST_FILE: Final = "manifest.json"
SUMS_FILE: Final = "SHA256SUMS"
"""Of kits: hashes of all files and of the manifest, as `sha256sum --check` reads them where there is no Python."""

LOCK_FILE: Final = ".lock"
WORK_DIRECTORY: Final = ".work"
_FILES: Final = "files"
_SCRATCH: Final = "scratch"
_FINGERPRINT: Final = "fingerprint"
_OLD_MANIFEST: Final = "old-manifest.json"

ENTRY_FILES: Final = ("model.onnx", "model.engine", "config.json")
"""What other tools open first, and so take as the sign that the rest is there."""

_HASH_CHUNK_BYTES: Final = 1 << 22

Kind = Literal["checkpoint", "onnx", "engine", "kit"]
Verify = Literal["full", "size"]


class FileRecord(BaseModel, frozen=True, extra="forbid"):
    """Size and hash of one file."""

    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class SourceRecord(BaseModel, frozen=True, extra="forbid"):
    """The model that the artifact comes from.

    Attributes:
        model: What the user called it.
        family: Its family, e.g. `llama`.
        files: Its weight files, by name.
    """

    model: str
    family: str
    files: dict[str, FileRecord]


class CalibrationRecord(BaseModel, frozen=True, extra="forbid"):
    """The text that the scales were searched on.

    Attributes:
        text: As `--calib` names it.
        sha256: Of the token ids, as int64 little-endian bytes.
        samples: Windows used.
        seqlen: Tokens in a window.
        seed: Of what was drawn at random.
    """

    text: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    samples: int
    seqlen: int
    seed: int


class QuantizationRecord(BaseModel, frozen=True, extra="forbid"):
    """How the weights were quantized.

    Attributes:
        method: As the recipe names it, or as the checkpoint of another tool names it.
        scheme: Bits, group size, zero points.
        calibration: None where the method uses no text, or the text is not known.
        effort: Of the search; None where there was none, or it is not known.
    """

    method: str
    scheme: QuantScheme
    calibration: CalibrationRecord | None = None
    effort: str | None = None


class ProfileRecord(BaseModel, frozen=True, extra="forbid"):
    """An optimization profile: how many new tokens a call of it may have.

    Attributes:
        name: `prefill` or `decode`.
        typical: What kernels were chosen for.
    """

    name: str
    shortest: int
    typical: int
    longest: int


class EngineRecord(BaseModel, frozen=True, extra="forbid"):
    """What the engine runs on.

    Attributes:
        target: Name in the target table.
        compute_capabilities: Of the GPUs it runs on, as TensorRT names them, e.g. `SM86`.
        flavour: `tensorrt` or `tensorrt-rtx`.
        tensorrt_version: That built it, and runs it.
        plugin_version: Of the plugin library inside the engine; None if it has none.
        profiles: In the engine's order.
    """

    target: str
    compute_capabilities: tuple[str, ...]
    flavour: str
    tensorrt_version: str
    plugin_version: str | None
    profiles: tuple[ProfileRecord, ...]


class KitRecord(BaseModel, frozen=True, extra="forbid"):
    """What a kit is for, and what its script holds the machine to.

    Attributes:
        target: Name in the target table.
        compute_capability: Of its GPU, as NVIDIA writes it: `8.7`.
        cpu: As `uname -m` says it.
        jetpack: Release that the kit is for.
        minimum_tensorrt: Lowest TensorRT that takes the model.
        plugin_version: Of the plugin library, or of its sources.
        plugin_cuda: CUDA runtime in the library; None where the kit has sources.
        profiles: Of the engine to be, in its order.
        build_bytes: Memory that building takes, predicted.
        run_bytes: Memory that running takes, predicted.
        disk_bytes: Disk that the engine takes, predicted.
    """

    target: str
    compute_capability: str
    cpu: str
    jetpack: str
    minimum_tensorrt: tuple[int, int]
    plugin_version: str
    plugin_cuda: tuple[int, int] | None
    profiles: tuple[ProfileRecord, ...]
    build_bytes: int
    run_bytes: int
    disk_bytes: int


class Contents(BaseModel, frozen=True, extra="forbid"):
    """What a stage says about the artifact it made.

    Attributes:
        io: Inputs and outputs of the graph; of all kinds but `checkpoint`.
        engine: Of kind `engine`.
        kit: Of kind `kit`.
    """

    source: SourceRecord
    quantization: QuantizationRecord
    io: IoContract | None = None
    engine: EngineRecord | None = None
    kit: KitRecord | None = None


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
        manifest = _read_manifest(directory, kind)
        for name, record in manifest.files.items():
            problem = _problem(directory / name, record, verify)
            if problem:
                raise ArtifactError(problem, where=str(directory / name), fix=_again(manifest.kind))
        sums = directory / SUMS_FILE
        if manifest.kind == "kit" and not (sums.is_file() and sums.read_bytes() == manifest.sums_bytes()):
            raise ArtifactError("missing, or not as it was written.", where=str(sums), fix=_again(manifest.kind))
        return Artifact(directory, manifest)

    @staticmethod
    @contextmanager
    def create(
        directory: Path,
        kind: Kind,
        fingerprint: str,
        *,
        resume: bool = False,
        overwrite: bool = False,
        expected_bytes: int = 0,
    ) -> Iterator[Draft]:
        """Locks `directory` and gives the stage a place to write; `Draft.publish` makes the artifact.

        If the block ends without `publish`, the directory is as it was, but for what a resumed run can use.

        Args:
            directory: Where the artifact will be; made if it is not there.
            kind: What it will be.
            fingerprint: Of its inputs and options.
            resume: Keep the scratch files of an interrupted run with the same fingerprint.
            overwrite: Replace a directory that is not an artifact of this kind.
            expected_bytes: Space that the stage needs at least.

        Raises:
            ArtifactError: The directory is in use, is something else, cannot be written, or the disk is full.
            UsageError: `resume`, and the interrupted run had other inputs or options.
        """
        with _explained(directory, expected_bytes), _made(directory), _locked(directory):
            _refuse_foreign(directory, kind, overwrite=overwrite)
            try:
                _undo_interrupted_publish(directory)
                draft = _start(directory, kind, fingerprint, resume=resume)
                _require_space(directory, expected_bytes)
                yield draft
            finally:
                _undo_interrupted_publish(directory)
                _clear(directory)


@dataclass
class Draft:
    """An artifact that is being written.

    Attributes:
        files: Directory for the artifact's files, empty at the start.
        scratch: Directory for what a resumed run can use; not part of the artifact. It survives a failure, and is
            removed when the artifact is published.
        resumed: Whether `scratch` holds files of an interrupted run.
    """

    directory: Path
    kind: Kind
    fingerprint: str
    resumed: bool
    files: Path = field(init=False)
    scratch: Path = field(init=False)

    def __post_init__(self) -> None:
        self.files = self.directory / WORK_DIRECTORY / _FILES
        self.scratch = self.directory / WORK_DIRECTORY / _SCRATCH

    def adopt(self, file: Path) -> None:
        """Takes a copy of another artifact's file. Not a hard link: onnx refuses external data that has several."""
        shutil.copyfile(file, self.files / file.name)

    def publish(self, contents: Contents) -> Artifact:
        """Moves the files into place and writes the manifest.

        Args:
            contents: What the artifact holds.

        Raises:
            ArtifactError: The files cannot be moved.
        """
        records = {_relative(path, self.files): _synced_record(path) for path in _files_below(self.files)}
        manifest = Manifest(
            kind=self.kind,
            fingerprint=self.fingerprint,
            tool_version=__version__,
            contents=contents,
            files=records,
        )
        work = self.directory / WORK_DIRECTORY
        _write_synced(work / MANIFEST_FILE, manifest.to_bytes())
        _remove_artifact(self.directory)
        for name in sorted(records, key=_entry_first, reverse=True):
            destination = self.directory / name
            destination.parent.mkdir(parents=True, exist_ok=True)
            (self.files / name).replace(destination)
        if self.kind == "kit":
            _write_synced(work / SUMS_FILE, manifest.sums_bytes())
            (work / SUMS_FILE).replace(self.directory / SUMS_FILE)
        (work / MANIFEST_FILE).replace(self.directory / MANIFEST_FILE)
        _sync_directory(self.directory)
        shutil.rmtree(work)
        return Artifact(self.directory, manifest)


def can_resume(directory: Path, fingerprint: str) -> bool:
    """Whether `directory` holds scratch files of an interrupted run with the same inputs and options."""
    mark = directory / WORK_DIRECTORY / _FINGERPRINT
    return mark.is_file() and mark.read_text(encoding="utf-8") == fingerprint


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


def _read_manifest(directory: Path, kind: Kind | None) -> Manifest:
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


@contextmanager
def _made(directory: Path) -> Iterator[None]:
    """Makes the directory, and removes it if it is empty in the end and was not there before."""
    was_there = directory.is_dir()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if not was_there:
            with suppress(OSError):
                directory.rmdir()


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Holds the directory's lock. The lock file holds the process id meanwhile, and is removed at the end."""
    handle = _lock(directory)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        (directory / LOCK_FILE).unlink(missing_ok=True)
        os.close(handle)


def _lock(directory: Path) -> int:
    """Opens and locks the lock file."""
    path = directory / LOCK_FILE
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before us may have removed the file between our open and our lock; then it locks nothing.
            if _is_file_at(path, handle):
                return handle
        except BlockingIOError:
            owner = os.read(handle, 32).decode(errors="replace").strip()
            os.close(handle)
            raise ArtifactError(
                f"directory in use by another build (pid {owner or 'unknown'}).",
                where=str(directory),
                fix="wait for it, or give another directory with -o.",
            ) from None
        except OSError as error:
            os.close(handle)
            raise ArtifactError(
                f"cannot lock the directory: {error.strerror}.",
                where=str(directory),
                fix="give a directory on a local disk with -o.",
            ) from error
        os.close(handle)


def _is_file_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _refuse_foreign(directory: Path, kind: Kind, *, overwrite: bool) -> None:
    """Refuses a directory that holds something else than an artifact of this kind, or the rests of one."""
    if overwrite:
        return
    if (directory / MANIFEST_FILE).is_file():
        found = _read_manifest(directory, None).kind
        if found != kind:
            raise ArtifactError(
                f"it holds a finished {found}, which this command would replace by its {kind}.",
                where=str(directory),
                fix="give another directory with -o, or --overwrite to replace what is there.",
            )
    elif not (directory / WORK_DIRECTORY).is_dir():
        others = [path.name for path in directory.iterdir() if path.name != LOCK_FILE]
        if others:
            raise ArtifactError(
                f"the directory is not empty ({', '.join(sorted(others)[:3])}), and awq2trt did not write it.",
                where=str(directory),
                fix="give another directory with -o, or --overwrite to put the result beside what is there.",
            )


def _undo_interrupted_publish(directory: Path) -> None:
    """Removes what a run that was stopped between removing the old artifact and writing the manifest left.

    The work directory then has the manifest that was to come, and the old one if there was one; together they
    name every file that may be there.
    """
    work = directory / WORK_DIRECTORY
    if (directory / MANIFEST_FILE).is_file():
        return
    for manifest in (work / MANIFEST_FILE, work / _OLD_MANIFEST):
        for name in sorted(_named_files(manifest), key=_entry_first):
            (directory / name).unlink(missing_ok=True)
        manifest.unlink(missing_ok=True)


def _named_files(manifest: Path) -> list[str]:
    """The files that belong to a manifest; none if it is not there, or was cut short while it was written."""
    try:
        read = Manifest.model_validate_json(manifest.read_bytes())
        return [*read.files, *[SUMS_FILE] * (read.kind == "kit")]
    except (OSError, ValidationError, Awq2trtError):
        return []


def _entry_first(name: str) -> tuple[bool, str]:
    """Sort key: files that make a directory look whole to other tools, then the rest."""
    return (name not in ENTRY_FILES, name)


def _start(directory: Path, kind: Kind, fingerprint: str, *, resume: bool) -> Draft:
    """Empties the work directory, all but the scratch files of a run that is to be resumed."""
    work = directory / WORK_DIRECTORY
    mark = work / _FINGERPRINT
    made_from = mark.read_text(encoding="utf-8") if mark.is_file() else None
    if resume and made_from not in (None, fingerprint):
        raise UsageError(
            "the interrupted run had another model or other options, so it cannot be resumed with these.",
            where=str(directory),
            fix="give the options it had, or leave out --resume to start again.",
        )
    shutil.rmtree(work / _FILES, ignore_errors=True)
    if not resume or made_from is None:
        shutil.rmtree(work, ignore_errors=True)
    draft = Draft(directory, kind, fingerprint, resumed=resume and made_from is not None)
    draft.files.mkdir(parents=True)
    draft.scratch.mkdir(exist_ok=True)
    mark.write_text(fingerprint, encoding="utf-8")
    return draft


def _clear(directory: Path) -> None:
    """Removes what a failed or finished run left, all but scratch files that a resumed run can use."""
    work = directory / WORK_DIRECTORY
    shutil.rmtree(work / _FILES, ignore_errors=True)
    scratch = work / _SCRATCH
    if not (scratch.is_dir() and any(scratch.iterdir())):
        shutil.rmtree(work, ignore_errors=True)


def _remove_artifact(directory: Path) -> None:
    """Removes the artifact that is there, manifest first, so that its rest is not taken for whole."""
    path = directory / MANIFEST_FILE
    if not path.is_file():
        return
    names = _named_files(path)
    path.replace(directory / WORK_DIRECTORY / _OLD_MANIFEST)
    _sync_directory(directory)
    for name in sorted(names, key=_entry_first):
        (directory / name).unlink(missing_ok=True)


def _require_space(directory: Path, expected_bytes: int) -> None:
    if shutil.disk_usage(directory).free < expected_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def _explained(directory: Path, expected_bytes: int) -> Iterator[None]:
    """Turns what the operating system says about the directory into an `ArtifactError`."""
    try:
        yield
    except Exception as error:
        if _is_disk_full(error):
            free = shutil.disk_usage(_existing(directory)).free
            needed = f", and at least {_megabytes(expected_bytes)} are needed" if expected_bytes else ""
            raise ArtifactError(
                f"the disk is full: {_megabytes(free)} are free{needed}.",
                where=str(directory),
                fix="free some space, or give a directory on another disk with -o.",
            ) from error
        if isinstance(error, OSError) and error.errno in _NOT_WRITABLE and _concerns(directory, error.filename):
            raise ArtifactError(
                f"cannot write here: {error.strerror} ({error.filename}).",
                where=str(directory),
                fix="give a directory that you may write to with -o.",
            ) from error
        raise


_NOT_WRITABLE: Final = frozenset(
    (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
)


def _concerns(directory: Path, filename: object) -> bool:
    """Whether a file is the directory, above it or in it."""
    path = Path(str(filename))
    return path.is_relative_to(directory) or directory.is_relative_to(path)


def _is_disk_full(error: BaseException | None) -> bool:
    """Whether the error, or what caused it, is a full disk. safetensors' Rust writer has it in its text only."""
    if error is None:
        return False
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or os.strerror(errno.ENOSPC) in str(error) or _is_disk_full(error.__cause__)


def _existing(path: Path) -> Path:
    """The nearest directory at or above `path` that exists."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.is_dir())


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"


def _files_below(directory: Path) -> Iterator[Path]:
    return (path for path in sorted(directory.rglob("*")) if path.is_file())


def _relative(path: Path, directory: Path) -> str:
    return path.relative_to(directory).as_posix()


def _synced_record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return record_file(path)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    """Makes renames in a directory survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _to_json(value: object) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"expected JSON values or pydantic models, got {type(value).__name__}")
