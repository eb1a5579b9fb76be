"""A directory that someone else may have prepared: what is written and removed in it stays in it.

In: a directory's path, and names of files below it. Out: files moved and removed by handles of the folders they are in
(openat(2) with O_NOFOLLOW), so that no symbolic link below the directory leads anywhere else. The directory itself may
be a link: the user named it.
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
    """A directory, held open; `open_folder` makes it."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self.handle = handle

    def unlink(self, name: str) -> None:
        """Removes a file or a link below the directory, if it is there.

        Raises:
            ArtifactError: A link is on the way to it.
        """
        with suppress(FileNotFoundError), self._parent(name) as (parent, last):
            os.unlink(last, dir_fd=parent)

    def take(self, path: Path, name: str) -> None:
        """Moves a file of the same file system into the directory, in place of what has the name there.

        Raises:
            ArtifactError: A link is on the way to where it goes.
        """
        with self._parent(name, make=True) as (parent, last):
            os.replace(path, last, dst_dir_fd=parent)

    def require_no_link_before(self, name: str) -> None:
        """Refuses a name on the way to which there is a symbolic link.

        Raises:
            ArtifactError: There is one.
        """
        with suppress(FileNotFoundError), self._parent(name):
            pass

    def sync(self) -> None:
        """Makes renames in the directory survive a power cut."""
        os.fsync(self.handle)

    @contextmanager
    def _parent(self, name: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """A handle of the folder that a name is in, and the name's last part.

        Raises:
            FileNotFoundError: There is no such folder.
            ArtifactError: A link, or a file, is on the way to it.
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
    """Holds a directory open.

    Raises:
        OSError: It is none, or may not be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Folder(path, handle)
    finally:
        os.close(handle)


def same_place(one: Path, other: Path) -> bool:
    """Whether two paths lead to the same, links followed; either may lead nowhere, as a link to itself does."""
    return os.path.realpath(one) == os.path.realpath(other)


def no_directory(path: Path) -> str:
    """What there is where a directory should be, a sentence for errors."""
    return "expected a directory, got a file." if path.exists() else "no such directory."


def refuse_links(path: Path) -> None:
    """Refuses a file or a folder, with all that is in it, that leads to something outside when it is written.

    Args:
        path: Where something of ours is to be written; it need not be there.

    Raises:
        ArtifactError: It is, or holds, a symbolic link, a file that has a second name, or a device or the like.
    """
    refuse_link(path)
    if path.is_dir():
        for below in sorted(path.iterdir()):
            refuse_links(below)


def refuse_link(path: Path) -> None:
    """The same for a file or a folder by itself, whatever is in it.

    Raises:
        ArtifactError: It is a symbolic link, a file that has a second name, or a device or the like.
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
    """Opens a file that is to be a plain one, made if it is not there; returns its descriptor.

    Raises:
        ArtifactError: It is a link, has a second name, or is a device or the like.
        OSError: It cannot be opened.
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
    """The refusal of what would have us write somewhere else."""
    return ArtifactError(
        f"expected {expected}, got {_kind(path)}: through it something outside the directory would be written.",
        where=str(path),
        fix="remove it, or give another directory with -o.",
    )


def _kind(path: Path) -> str:
    """What is at a path, in words."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return "something that cannot be looked at"
    if stat.S_ISLNK(mode):
        return f"a symbolic link to {path.readlink()}"
    if stat.S_ISREG(mode):
        return "a file that has a second name elsewhere"
    return "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
