"""A directory that someone else may have prepared: writing and removing files in it never affects other places.

In: a directory's path, and names of files below it. Out: files that are moved and removed through handles of their
folders (openat(2) with O_NOFOLLOW), so that no symbolic link below the directory is followed. The directory itself may
be a link, because the user named it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Final

from awq2trt.errors import ArtifactError

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Folder:
    """A directory that is held open; use `open_folder` to make one."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self.handle = handle

    def unlink(self, name: str) -> None:
        """Removes a file or a link below the directory, if it exists.

        Raises:
            ArtifactError: Its path leads through a link.
        """
        try:
            with self._parent(name) as (parent, last):
                os.unlink(last, dir_fd=parent)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:  # no file can have such a name
                raise

    def take(self, path: Path, name: str) -> None:
        """Moves a file of the same file system into the directory; it replaces whatever has that name.

        Raises:
            ArtifactError: Its new path leads through a link.
        """
        with self._parent(name, make=True) as (parent, last):
            os.replace(path, last, dst_dir_fd=parent)

    def require_no_link_before(self, name: str) -> None:
        """Refuses a name whose path leads through a symbolic link.

        Raises:
            ArtifactError: It does.
        """
        with suppress(FileNotFoundError), self._parent(name):
            pass

    def sync(self) -> None:
        """Makes sure that renames in the directory survive a power cut."""
        os.fsync(self.handle)

    @contextmanager
    def _parent(self, name: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """Yields a handle of the folder that a name is in, and the last part of the name.

        Raises:
            FileNotFoundError: There is no such folder.
            ArtifactError: The path leads through a link or a file.
        """
        *folders, last = PurePosixPath(name).parts
        handle = os.dup(self.handle)
        try:
            for depth, folder in enumerate(folders, start=1):
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(folder, dir_fd=handle)
                try:
                    below = os.open(folder, _FOLDER, dir_fd=handle)
                except OSError as error:
                    if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                        raise
                    raise _not_ours(self.path.joinpath(*folders[:depth]), f"a folder for {name}") from error
                os.close(handle)
                handle = below
            yield handle, last
        finally:
            os.close(handle)


@contextmanager
def open_folder(path: Path) -> Iterator[Folder]:
    """Yields a directory that is held open.

    Raises:
        OSError: The path is not a directory, or may not be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Folder(path, handle)
    finally:
        os.close(handle)


def same_place(one: Path, other: Path) -> bool:
    """Whether two paths lead to the same place, following links; either may be a dead link."""
    return os.path.realpath(one) == os.path.realpath(other)


def no_directory(path: Path) -> str:
    """Says what is there instead of a directory, as a sentence for errors."""
    return "expected a directory, got a file." if path.exists() else "no such directory."


def refuse_links(path: Path) -> None:
    """Refuses a file or folder if writing it, or anything in it, would change something outside.

    Args:
        path: The place to write to; it need not exist.

    Raises:
        ArtifactError: It is, or holds, a symbolic link, a file that has a second name, a device or the like.
    """
    refuse_link(path)
    if path.is_dir():
        for below in sorted(path.iterdir()):
            refuse_links(below)


def refuse_link(path: Path) -> None:
    """Refuses a file or folder like `refuse_links`, but looks at nothing inside it.

    Raises:
        ArtifactError: It is a symbolic link, a file that has a second name, a device or the like.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISDIR(status.st_mode):
        return
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        raise _not_ours(path, "a folder or a file of our own")


def open_plain(path: Path, flags: int) -> int:
    """Opens a regular file, creating it if it does not exist; returns its descriptor.

    Raises:
        ArtifactError: The file is a link, has a second name, or is a device or the like.
        OSError: The file cannot be opened.
    """
    try:
        handle = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        raise _not_ours(path, "a file of our own") from error
    status = os.fstat(handle)
    if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
        return handle
    os.close(handle)
    raise _not_ours(path, "a file of our own")


def _not_ours(path: Path, expected: str) -> ArtifactError:
    """The error for a path that would make us write somewhere else."""
    return ArtifactError(
        f"expected {expected}, got {_kind(path)}: writing to it would change something outside the directory.",
        where=str(path),
        fix="remove it, or give another directory with -o.",
    )


def _kind(path: Path) -> str:
    """Describes in words what is at a path."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return "something that cannot be inspected"
    if stat.S_ISLNK(mode):
        return f"a symbolic link to {path.readlink()}"
    if stat.S_ISREG(mode):
        return "a file that has a second name elsewhere"
    return "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
