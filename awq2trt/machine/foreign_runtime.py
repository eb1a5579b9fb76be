"""The C++ library of a kit. It is for another CPU than this machine's, as `make runtime-aarch64` installs it.

In: a folder with the shared library, its headers, its CMake package, licences and examples. Out: its files, by their
path in it. Without such a folder, a kit has no C++ library, but the Jetson can still make its engine.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from awq2trt.errors import ToolError
from awq2trt.machine.foreign_library import require_aarch64
from awq2trt.version import __version__

PATH_VARIABLE: Final = "AWQ2TRT_RUNTIME_PATH_AARCH64"

BUILD_COMMAND: Final = "make runtime-aarch64"

_PACKAGE: Final = Path(__file__).parents[1]
_CONFIG_VERSION: Final = "lib/cmake/awq2trt/awq2trt-config-version.cmake"
_VERSION: Final = re.compile(r'set\(PACKAGE_VERSION "([^"]*)"\)')


def find_runtime_package() -> dict[str, Path]:
    """Finds the folder: `AWQ2TRT_RUNTIME_PATH_AARCH64`, or the one in the package, or the one in the build folder.

    Returns:
        Its files by their relative paths, sorted; symbolic links are left out. Empty if there is no such folder.

    Raises:
        ToolError: The variable names something else, or the library is for another CPU or of another version.
    """
    override = os.environ.get(PATH_VARIABLE)
    if override and not (Path(override) / _CONFIG_VERSION).is_file():
        raise ToolError(
            f"{PATH_VARIABLE} names {override}, which has no {_CONFIG_VERSION}.",
            fix=f"correct {PATH_VARIABLE}, or unset it to use what `{BUILD_COMMAND}` builds.",
        )
    for folder in (Path(override),) if override else _candidates():
        if (folder / _CONFIG_VERSION).is_file():
            return _files(folder)
    return {}


def _candidates() -> tuple[Path, ...]:
    return (_PACKAGE / "lib" / "aarch64" / "runtime", _PACKAGE.parent / "build" / "runtime-aarch64" / "package")


def _files(folder: Path) -> dict[str, Path]:
    found = _VERSION.search((folder / _CONFIG_VERSION).read_text(encoding="utf-8"))
    version = found[1] if found else "unknown"
    if not re.match(rf"{re.escape(version)}\b", __version__):
        raise ToolError(
            f"the C++ library for aarch64 has version {version}, expected {__version__}.",
            where=str(folder),
            fix=f"run `{BUILD_COMMAND}`.",
        )
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    for path in paths:
        if path.parent.name == "lib":
            require_aarch64(path.read_bytes(), path, fix=f"run `{BUILD_COMMAND}`.")
    return {path.relative_to(folder).as_posix(): path for path in paths}
