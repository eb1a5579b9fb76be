"""Writes an artifact in such a way that nothing mistakes a partial artifact for a complete one.

This holds whatever stops a build (an error, Ctrl-C, `kill -9`, a full disk):

1. `create_artifact` locks the directory (`.lock`, flock: the kernel releases it when the process dies).
2. The stage writes into `.work/files`, on the same file system, and keeps whatever a resumed run needs in
   `.work/scratch`.
3. `Draft.publish` hashes and syncs the files, removes the old manifest and the old files, moves the new ones into
   place, ending with those that other tools look for (`ENTRY_FILES`), and then the manifest.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from awq2trt.artifact.folder import Folder, open_folder, open_plain, refuse_links
from awq2trt.artifact.manifest import (
    LOCK_FILE,
    MANIFEST_FILE,
    SUMS_FILE,
    WORK_DIRECTORY,
    Artifact,
    Kind,
    Manifest,
    manifest_of,
    read_manifest,
    record_file,
)
from awq2trt.artifact.records import Contents
from awq2trt.errors import ArtifactError, Awq2trtError, UsageError
from awq2trt.foreign_files import read_json, reading
from awq2trt.tracing import span
from awq2trt.version import __version__

_FILES: Final = "files"

_SCRATCH: Final = "scratch"

_FINGERPRINT: Final = "fingerprint"

_FINGERPRINT_BYTES: Final = 64
"""Length of a SHA-256 in hexadecimal."""

_OLD_MANIFEST: Final = "old-manifest.json"

ENTRY_FILES: Final = ("model.onnx", "model.engine", "config.json")
"""Files that other tools open first, and whose presence tells them that the rest is there, too."""


@dataclass
class Draft:
    """An artifact that is being written.

    Attributes:
        files: Directory for the artifact's files; it is empty at the start.
        scratch: Directory for files that a resumed run can use, which are not part of the artifact. It survives a
            failure, and is removed when the artifact is published.
    """

    directory: Path
    kind: Kind
    fingerprint: str
    files: Path = field(init=False)
    scratch: Path = field(init=False)

    def __post_init__(self) -> None:
        self.files = self.directory / WORK_DIRECTORY / _FILES
        self.scratch = self.directory / WORK_DIRECTORY / _SCRATCH

    def adopt(self, file: Path) -> None:
        """Adds a copy of another artifact's file, not a hard link: onnx refuses external data that has several."""
        shutil.copyfile(file, self.files / file.name)

    def publish(self, contents: Contents) -> Artifact:
        """Moves the files into place and writes the manifest.

        Args:
            contents: What the artifact holds.

        Raises:
            ArtifactError: The files cannot be moved.
        """
        paths = list(_files_below(self.files))
        with (
            ThreadPoolExecutor(max_workers=1, thread_name_prefix="sync") as disk,
            ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="hash") as pool,
        ):
            synced = disk.map(_sync, paths)  # while the CPU hashes
            names = (_relative(path, self.files) for path in paths)
            records = dict(zip(names, pool.map(record_file, paths), strict=True))
            list(synced)  # raises what a file raised
        manifest = Manifest(
            kind=self.kind,
            fingerprint=self.fingerprint,
            tool_version=__version__,
            contents=contents,
            files=records,
        )
        work = self.directory / WORK_DIRECTORY
        with open_folder(self.directory) as folder:
            for name in records:
                folder.require_no_link_before(name)
            _write_synced(work / MANIFEST_FILE, manifest.to_bytes())
            _remove_artifact(folder)
            for name in sorted(records, key=_entry_first, reverse=True):
                folder.take(self.files / name, name)
            if self.kind == "kit":
                _write_synced(work / SUMS_FILE, manifest.sums_bytes(record_file(work / MANIFEST_FILE).sha256))
                folder.take(work / SUMS_FILE, SUMS_FILE)
            folder.take(work / MANIFEST_FILE, MANIFEST_FILE)
            folder.sync()
        shutil.rmtree(work)
        return Artifact(self.directory, manifest)


@contextmanager
def create_artifact(
    directory: Path,
    kind: Kind,
    fingerprint: str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    expected_bytes: int = 0,
) -> Iterator[Draft]:
    """Locks `directory` and gives the stage a place to write in; `Draft.publish` makes the artifact.

    If the block ends without `publish`, the directory is left as it was, apart from files that a resumed run can use.

    Args:
        directory: Where the artifact will be; it is created if necessary.
        kind: The kind of artifact.
        fingerprint: Fingerprint of its inputs and options.
        resume: Whether to keep the scratch files of an interrupted run with the same fingerprint.
        overwrite: Whether to replace a directory that is not an artifact of this kind.
        expected_bytes: The least space that the stage needs.

    Raises:
        ArtifactError: The directory is in use, holds something else, or cannot be written, or the disk is full.
        UsageError: `resume` is set, but the interrupted run had other inputs or options.
    """
    with (
        _explained(directory, expected_bytes),
        _made(directory),
        _locked(directory),
        open_folder(directory) as folder,
    ):
        _refuse_links(folder)
        _refuse_foreign(directory, kind, overwrite=overwrite)
        try:
            _undo_interrupted_publish(folder)
            draft = _start(directory, kind, fingerprint, resume=resume)
            _require_space(directory, expected_bytes - _size(draft.scratch))
            yield draft
        finally:
            _undo_interrupted_publish(folder)
            _clear(directory)


def can_resume(directory: Path, fingerprint: str) -> bool:
    """Whether `directory` holds scratch files of an interrupted run with the same inputs and options."""
    return _made_from(directory) == fingerprint


def _made_from(directory: Path) -> str | None:
    """Fingerprint of the interrupted run that left scratch files; None if there are none."""
    mark = directory / WORK_DIRECTORY / _FINGERPRINT
    if not mark.is_file() or mark.is_symlink():
        return None
    with mark.open("rb") as file:
        return file.read(_FINGERPRINT_BYTES).decode("ascii", errors="replace")


@contextmanager
def _made(directory: Path) -> Iterator[None]:
    """Creates the directory, and removes it again if it did not exist and is empty in the end."""
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
    """Holds the directory's lock. Meanwhile the lock file has the process id; it is removed at the end."""
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
        handle = open_plain(path, os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The previous holder may have removed the file between our open and our lock; then our lock is worthless.
            if _is_file_at(path, handle):
                return handle
        except BlockingIOError:
            owner = os.read(handle, 32).decode(errors="replace").strip()
            os.close(handle)
            raise ArtifactError(
                f"the directory is in use by another build (pid {owner or 'unknown'}).",
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
        return os.path.samestat(path.lstat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _refuse_links(folder: Folder) -> None:
    """Refuses links where we write, and on the paths of files that a manifest names and that would be removed.

    Raises:
        ArtifactError: There is such a link.
    """
    work = folder.path / WORK_DIRECTORY
    for path in (work, folder.path / MANIFEST_FILE, folder.path / SUMS_FILE):
        refuse_links(path)
    for manifest in (folder.path / MANIFEST_FILE, work / MANIFEST_FILE, work / _OLD_MANIFEST):
        for name in _named_files(manifest):
            folder.require_no_link_before(name)


def _refuse_foreign(directory: Path, kind: Kind, *, overwrite: bool) -> None:
    """Refuses a directory that holds anything but an artifact of this kind, or parts of one."""
    if overwrite:
        return
    if (directory / MANIFEST_FILE).is_file():
        found = read_manifest(directory, None).kind
        if found != kind:
            raise ArtifactError(
                f"it holds a finished {found}, which this command would replace with its {kind}.",
                where=str(directory),
                fix="give another directory with -o, or use --overwrite to replace its contents.",
            )
    elif not (directory / WORK_DIRECTORY).is_dir():
        others = [path.name for path in directory.iterdir() if path.name != LOCK_FILE]
        if others:
            raise ArtifactError(
                f"the directory is not empty ({', '.join(sorted(others)[:3])}), and awq2trt did not write it.",
                where=str(directory),
                fix="give another directory with -o, or use --overwrite to add the result to the files there.",
            )


def _undo_interrupted_publish(folder: Folder) -> None:
    """Removes the remains of a run that was stopped after removing the old artifact, before writing the manifest.

    The work directory then has the new manifest, and the old one if there was one; together they name every file that
    may be there.
    """
    work = folder.path / WORK_DIRECTORY
    if (folder.path / MANIFEST_FILE).is_file():
        return
    for manifest in (work / MANIFEST_FILE, work / _OLD_MANIFEST):
        for name in sorted(_named_files(manifest), key=_entry_first):
            folder.unlink(name)
        manifest.unlink(missing_ok=True)


def _named_files(manifest: Path) -> list[str]:
    """The files that belong to a manifest; none if it is missing, or was cut short while it was written."""
    if not manifest.is_file():
        return []
    try:
        with reading("a manifest", manifest, error=ArtifactError):
            read = manifest_of(read_json(manifest))
    except Awq2trtError:
        return []
    return [*read.files, *[SUMS_FILE] * (read.kind == "kit")]


def _entry_first(name: str) -> tuple[bool, str]:
    """Sort key: first files that make a directory look complete to other tools, then the others."""
    return (name not in ENTRY_FILES, name)


def _start(directory: Path, kind: Kind, fingerprint: str, *, resume: bool) -> Draft:
    """Empties the work directory, except for the scratch files of a run that will be resumed."""
    work = directory / WORK_DIRECTORY
    made_from = _made_from(directory)
    if resume and made_from not in (None, fingerprint):
        raise UsageError(
            "the interrupted run had another model or other options, so it cannot be resumed with these.",
            where=str(directory),
            fix="use the options that it had, or leave out --resume to start again.",
        )
    shutil.rmtree(work / _FILES, ignore_errors=True)
    if not resume or made_from is None:
        shutil.rmtree(work, ignore_errors=True)
    draft = Draft(directory, kind, fingerprint)
    draft.files.mkdir(parents=True)
    draft.scratch.mkdir(exist_ok=True)
    (work / _FINGERPRINT).write_text(fingerprint, encoding="ascii")
    return draft


def _clear(directory: Path) -> None:
    """Removes what a failed or finished run left, except for scratch files that a resumed run can use."""
    work = directory / WORK_DIRECTORY
    shutil.rmtree(work / _FILES, ignore_errors=True)
    scratch = work / _SCRATCH
    if not (scratch.is_dir() and any(scratch.iterdir())):
        shutil.rmtree(work, ignore_errors=True)


def _remove_artifact(folder: Folder) -> None:
    """Removes the current artifact, its manifest first, so that the rest never looks complete."""
    path = folder.path / MANIFEST_FILE
    if not path.is_file():
        return
    names = _named_files(path)
    path.replace(folder.path / WORK_DIRECTORY / _OLD_MANIFEST)
    folder.sync()
    for name in sorted(names, key=_entry_first):
        folder.unlink(name)


def _size(folder: Path) -> int:
    """Bytes of all files below a folder, which a resumed run needs and already has."""
    return sum(path.stat().st_size for path in _files_below(folder))


def require_replaceable(directory: Path, kind: Kind, *, overwrite: bool) -> None:
    """Refuses at once what `create_artifact` would refuse when there is a result to write.

    Raises:
        ArtifactError: The directory holds something else, or there are links where we write.
    """
    if directory.is_dir():
        with open_folder(directory) as folder:
            _refuse_links(folder)
        _refuse_foreign(directory, kind, overwrite=overwrite)


def require_space(directory: Path, expected_bytes: int) -> None:
    """Refuses at once what will not fit on the disk.

    Args:
        directory: Where to write; it need not exist.
        expected_bytes: Bytes to write; whatever an interrupted run left in the directory is subtracted.

    Raises:
        ArtifactError: There is too little space, or the directory cannot be written.
    """
    existing = _existing(directory)
    with _explained(directory, expected_bytes):
        if not os.access(existing, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(existing))
        _require_space(existing, expected_bytes - (_size(directory) if directory.is_dir() else 0))


def _require_space(directory: Path, expected_bytes: int) -> None:
    if shutil.disk_usage(directory).free < expected_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def _explained(directory: Path, expected_bytes: int) -> Iterator[None]:
    """Turns an error of the operating system about the directory into an `ArtifactError`."""
    try:
        yield
    except Exception as error:
        if _is_disk_full(error):
            free = shutil.disk_usage(_existing(directory)).free
            needed = f", but at least {_megabytes(expected_bytes)} are needed" if expected_bytes else ""
            raise ArtifactError(
                f"the disk is too full: {_megabytes(free)} are free{needed}.",
                where=str(directory),
                fix="free some space, or give a directory on another disk with -o.",
            ) from error
        if isinstance(error, OSError) and error.errno in _NOT_WRITABLE and _concerns(directory, error.filename):
            raise ArtifactError(
                f"cannot write here: {error.strerror} ({error.filename}).",
                where=str(directory),
                fix="with -o, give a directory that you may write to.",
            ) from error
        raise


_NOT_WRITABLE: Final = frozenset(
    (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
)


def _concerns(directory: Path, filename: object) -> bool:
    """Whether a file is the directory, is above it, or is in it."""
    path = Path(str(filename))
    return path.is_relative_to(directory) or directory.is_relative_to(path)


def _is_disk_full(error: BaseException | None) -> bool:
    """Whether the error, or its cause, is a full disk. safetensors' Rust writer mentions that only in its text."""
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


def _sync(path: Path) -> None:
    with span("sync", file=path.name), path.open("rb") as file:
        os.fsync(file.fileno())


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
