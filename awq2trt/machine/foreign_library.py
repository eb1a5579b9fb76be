"""The plugin library of a kit. It is for another CPU than this machine's, so it is read but never loaded.

`make plugins-aarch64` builds it here. For JetPack 6 it cannot be built, because PyPI has no compiler for its CUDA 12.
There a kit carries the sources (`library_sources`), and the Jetson's own nvcc compiles them.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from awq2trt.errors import ToolError, UnsupportedError
from awq2trt.machine.plugin_library import LIBRARY_NAME
from awq2trt.target import JetPack, Target

PATH_VARIABLE: Final = "AWQ2TRT_PLUGIN_PATH_AARCH64"

_PACKAGE: Final = Path(__file__).parents[1]
_BUILD_COMMAND: Final = f"run `make plugins-aarch64`, or set {PATH_VARIABLE} to a {LIBRARY_NAME} for aarch64."

_DESCRIPTION: Final = re.compile(rb"awq2trt plugins: version=(\S+) architectures=(\S+) cuda=(\d+)\0")
"""The structure that `awq2trt_plugins_description` of plugins/library/c_api.cpp returns."""

# ELF header (System V ABI): first the identity, and at byte 18 the machine.
_ELF_64_LITTLE_ENDIAN: Final = b"\x7fELF\x02\x01"
_ELF_MACHINE_AT: Final = 18
_EM_AARCH64: Final = 183

SOURCE_FOLDERS: Final = ("kernels", "library", "ops", "trt")
"""Folders of plugins/ whose sources make up the library."""

_SOURCE_SUFFIXES: Final = (".cpp", ".cu", ".cuh", ".h")


@dataclass(frozen=True)
class ForeignLibrary:
    """A plugin library for aarch64, as its file describes itself.

    Attributes:
        path: The file.
        version: The version of awq2trt that it was built from.
        architectures: CUDA architectures inside, as CMake names them: `87-real`.
        cuda: CUDA runtime inside, (major, minor).
    """

    path: Path
    version: str
    architectures: tuple[str, ...]
    cuda: tuple[int, int]


@dataclass(frozen=True)
class KitPlugin:
    """What a kit carries of the plugin library: either the library or its sources.

    Attributes:
        library: The library.
        sources: Its sources, by path relative to plugins/.
    """

    library: ForeignLibrary | None
    sources: Mapping[str, Path]


def choose_plugin(target: Target, jetpack: JetPack) -> KitPlugin:
    """Returns the library if the Jetson's driver and GPU can run it, otherwise its sources.

    A driver runs CUDA runtimes of its own major version and of earlier ones.

    Raises:
        ToolError: There is no library, although one can be built for that JetPack.
        UnsupportedError: The library that the user named is not for that Jetson.
    """
    named = bool(os.environ.get(PATH_VARIABLE))
    major, minor = target.compute_capabilities[0]
    try:
        library = find_aarch64_library()
    except ToolError:
        if named or jetpack.cuda[0] >= _OLDEST_CROSS_CUDA:
            raise
        return KitPlugin(None, library_sources())
    reasons = []
    if library.cuda[0] > jetpack.cuda[0]:
        reasons.append(f"it has CUDA {library.cuda[0]}, but JetPack {jetpack.version} has CUDA {jetpack.cuda[0]}")
    if not any(name.startswith(f"{major}{minor}") for name in library.architectures):
        reasons.append(f"it has no kernels for compute capability {major}.{minor}")
    if not reasons:
        return KitPlugin(library, {})
    if named or jetpack.cuda[0] >= _OLDEST_CROSS_CUDA:
        raise UnsupportedError(
            f"the plugin library does not run on a {target.title}: {'; '.join(reasons)}.",
            where=str(library.path),
            fix=_BUILD_COMMAND,
        )
    return KitPlugin(None, library_sources())


_OLDEST_CROSS_CUDA: Final = 13
"""PyPI has no compiler driver and no static runtime for aarch64 in earlier versions (12.6 and 12.9 were examined)."""


def find_aarch64_library() -> ForeignLibrary:
    """Finds the library: `AWQ2TRT_PLUGIN_PATH_AARCH64`, or the one in the package, or the one in the build folder.

    Raises:
        ToolError: There is no library, or the one found is for another CPU.
    """
    override = os.environ.get(PATH_VARIABLE)
    if override:
        if not Path(override).is_file():
            raise ToolError(
                f"{PATH_VARIABLE} names {override}, which is not a file.",
                fix=f"correct {PATH_VARIABLE}, or unset it to use the library that `make plugins-aarch64` builds.",
            )
        return describe_library(Path(override))
    candidates = tuple(_candidates())
    for path in candidates:
        if path.is_file():
            return describe_library(path)
    raise ToolError(
        f"no {LIBRARY_NAME} for aarch64: looked in " + " and ".join(str(path.parent) for path in candidates) + ".",
        fix=_BUILD_COMMAND,
    )


def describe_library(path: Path) -> ForeignLibrary:
    """Reads how a library describes itself, without loading it.

    Raises:
        ToolError: It is not a plugin library, or not for aarch64.
    """
    content = path.read_bytes()
    require_aarch64(content, path, fix=_BUILD_COMMAND)
    found = _DESCRIPTION.search(content)
    if found is None:
        raise ToolError(
            "this is not a plugin library of awq2trt, or one of an older version.", where=str(path), fix=_BUILD_COMMAND
        )
    version, architectures, cuda = (text.decode() for text in found.groups())
    return ForeignLibrary(path, version, tuple(architectures.split(",")), (int(cuda) // 1000, int(cuda) % 1000 // 10))


def require_aarch64(content: bytes, path: Path, *, fix: str) -> None:
    """Refuses a file that is not a library for aarch64.

    Args:
        content: The file's content, or its beginning.
        path: The file.
        fix: How to get the right one.

    Raises:
        ToolError: It is not such a library.
    """
    if not content.startswith(_ELF_64_LITTLE_ENDIAN):
        raise ToolError("this is not a shared library.", where=str(path), fix=fix)
    machine = int.from_bytes(content[_ELF_MACHINE_AT : _ELF_MACHINE_AT + 2], "little")
    if machine != _EM_AARCH64:
        raise ToolError(
            f"expected a library for aarch64 (ELF machine {_EM_AARCH64}), got one for ELF machine {machine}.",
            where=str(path),
            fix=fix,
        )


def library_sources() -> dict[str, Path]:
    """Returns the library's sources by path relative to plugins/, sorted by name.

    Raises:
        ToolError: They are not on this machine.
    """
    for folder in (_PACKAGE / "plugins", _PACKAGE.parent / "plugins"):
        sources = {
            path.relative_to(folder).as_posix(): path
            for below in SOURCE_FOLDERS
            for path in sorted((folder / below).rglob("*"))
            if path.suffix in _SOURCE_SUFFIXES
        }
        if sources:
            return sources
    raise ToolError(
        "this machine does not have the sources of the plugin library.", fix="run this in a clone of awq2trt."
    )


def _candidates() -> Iterator[Path]:
    yield _PACKAGE / "lib" / "aarch64" / LIBRARY_NAME
    yield _PACKAGE.parent / "build" / "plugins-aarch64" / LIBRARY_NAME
    if platform.machine() == "aarch64":  # this machine's own will do
        yield _PACKAGE / "lib" / LIBRARY_NAME
        yield _PACKAGE.parent / "build" / "plugins" / LIBRARY_NAME
