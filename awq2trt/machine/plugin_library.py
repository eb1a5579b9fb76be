"""The plugin library on this machine: where it is, what it was built for, and how runtimes load it.

In: the shared library that `plugins/` builds. Out: a `PluginLibrary` to print, its plugins in a TensorRT registry, or
its operators in a session of ONNX Runtime. It imports none of the runtimes: callers pass in the one that they use.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from awq2trt import opset
from awq2trt.errors import BuildError, ToolError

LIBRARY_NAME: Final = "libawq2trt_plugins.so"
PATH_VARIABLE: Final = "AWQ2TRT_PLUGIN_PATH"

_PACKAGE: Final = Path(__file__).parents[1]
_BUILD_COMMAND: Final = "run `make plugins`, or set AWQ2TRT_PLUGIN_PATH to a libawq2trt_plugins.so."


@dataclass(frozen=True)
class PluginLibrary:
    """A plugin library that was found and could be loaded.

    Attributes:
        path: The file.
        source: Where it was found: the variable's name, `package` or `build folder`.
        version: The version of awq2trt that it was built from.
        architectures: CUDA architectures inside, as CMake names them: `80-real`, `90-virtual` (PTX).
        cuda_version: CUDA runtime inside: 13000 is 13.0.
    """

    path: Path
    source: str
    version: str
    architectures: tuple[str, ...]
    cuda_version: int


def find_plugin_library() -> PluginLibrary:
    """Finds the library: `AWQ2TRT_PLUGIN_PATH`, or the one in the package, or the one in the build folder.

    Raises:
        ToolError: There is no library, or the one found cannot be loaded.
    """
    override = os.environ.get(PATH_VARIABLE)
    if override:
        if not Path(override).is_file():
            raise ToolError(
                f"{PATH_VARIABLE} names {override}, which is not a file.",
                fix=f"correct {PATH_VARIABLE}, or unset it to use the installed library.",
            )
        return _describe(Path(override), PATH_VARIABLE)
    candidates = dict(_candidates())
    for path, source in candidates.items():
        if path.is_file():
            return _describe(path, source)
    raise ToolError(
        f"no {LIBRARY_NAME}: looked in " + " and ".join(str(path.parent) for path in candidates) + ".",
        fix=_BUILD_COMMAND,
    )


def find_operators(version: str, trusted: Path | None = None) -> Path:
    """Returns the library with the operators that a lowered model calls: the installed one.

    A library beside a model is code that somebody else chose, and a hash beside it proves nothing.

    Args:
        version: The version that the model's manifest names.
        trusted: A directory whose library is loaded instead, because the user said so; otherwise None.

    Raises:
        ToolError: There is no library, or it has another version.
    """
    if trusted is not None and not (trusted / LIBRARY_NAME).is_file():
        raise ToolError(
            f"there is no {LIBRARY_NAME} beside the model.", where=str(trusted), fix="leave --trust-library out."
        )
    library = _describe(trusted / LIBRARY_NAME, "model") if trusted else find_plugin_library()
    if library.version != version:
        raise ToolError(
            f"the model calls operators of awq2trt {version}, but the library here has version {library.version}.",
            where=str(library.path),
            fix=f"build the model again, or pip install awq2trt=={version}",
        )
    return library.path


def load_into_registry(trt: Any, library: PluginLibrary) -> None:
    """Makes the plugins known to TensorRT's parser and runtime.

    Loading twice is harmless. For TensorRT-RTX this also makes `libtensorrt_rtx.so` resolvable, which its parser opens
    as soon as it meets a plugin node; it ends the process if that fails.

    Args:
        trt: The module `tensorrt` or `tensorrt_rtx`.
        library: The library to load.

    Raises:
        BuildError: TensorRT does not accept the library.
    """
    if trt.__name__.startswith("tensorrt_rtx"):
        ensure_unversioned_rtx_library()
    registry = trt.get_plugin_registry()
    name = (opset.W4A16_LINEAR, opset.PLUGIN_VERSION, opset.PLUGIN_NAMESPACE)
    if registry.get_creator(*name) is not None:
        return
    registry.load_library(str(library.path))
    if registry.get_creator(*name) is None:
        raise BuildError(
            f"TensorRT {trt.__version__} loaded the library but found no creator of {name[0]} version {name[1]}.",
            where=str(library.path),
            fix="rebuild the plugin library for this version of awq2trt: `make plugins`.",
        )


def register_custom_ops_(options: Any, library: Path) -> None:
    """Makes the operators known to a session of ONNX Runtime that is created later.

    They take precedence over function bodies of the same names, on the CPU and on CUDA. Registering twice is harmless.

    Args:
        options: `onnxruntime.SessionOptions`; changed.
        library: The library to load.

    Raises:
        ToolError: ONNX Runtime does not accept the library: it is too old, or the library has no operators for it.
    """
    try:
        options.register_custom_ops_library(str(library))
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise ToolError(
            f"ONNX Runtime does not accept the operators: {str(error).rstrip('.')}.",
            where=str(library),
            fix="pip install -U onnxruntime; and rebuild the library for this version of awq2trt: `make plugins`.",
        ) from error


@cache
def ensure_unversioned_rtx_library() -> None:
    """Makes `dlopen("libtensorrt_rtx.so")` succeed in this process without writing into site-packages.

    The wheel ships only `libtensorrt_rtx.so.1`. The dynamic linker remembers libraries by SONAME, so it is enough to
    load once a library whose SONAME is `libtensorrt_rtx.so` and that depends on the real one: an ELF file without code,
    a few hundred bytes, written here, loaded and deleted. `import tensorrt_rtx` must come first: it loads the real one.

    Raises:
        ToolError: The stub cannot be loaded.
    """
    try:
        ctypes.CDLL(_RTX_UNVERSIONED)
        return  # a full installation, or a symlink that somebody made
    except OSError:
        pass
    with tempfile.TemporaryDirectory(prefix="awq2trt-") as folder:
        stub = Path(folder) / _RTX_UNVERSIONED
        stub.write_bytes(_stub_library(soname=_RTX_UNVERSIONED, needed=_RTX_VERSIONED))
        try:
            ctypes.CDLL(str(stub), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise ToolError(
                f"{_RTX_UNVERSIONED} cannot be provided: {error}.",
                fix=f"make a symlink {_RTX_UNVERSIONED} to {_RTX_VERSIONED} in a folder on LD_LIBRARY_PATH.",
            ) from error


_RTX_UNVERSIONED: Final = "libtensorrt_rtx.so"
_RTX_VERSIONED: Final = "libtensorrt_rtx.so.1"


# The parts of ELF that a library without code needs: System V ABI, chapters 4 and 5.
_ELF_MACHINES: Final = {"x86_64": 62, "aarch64": 183}
_PT_LOAD, _PT_DYNAMIC = 1, 2
_READ_WRITE: Final = 6  # older dynamic linkers write addresses into the dynamic section
_DT_NULL, _DT_NEEDED, _DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_SYMENT, _DT_SONAME = 0, 1, 4, 5, 6, 10, 11, 14
_ET_DYN: Final = 3


def _stub_library(*, soname: str, needed: str) -> bytes:
    """Builds an ELF shared library without code: it has a name, and depends on one library."""
    header_bytes, program_header_bytes, symbol_bytes = 64, 56, 24
    strings = b"\0" + soname.encode() + b"\0" + needed.encode() + b"\0"
    symbols = bytes(symbol_bytes)  # the null symbol, with which every symbol table begins
    hash_table = struct.pack("<4I", 1, 1, 0, 0)  # one bucket and one chain, both empty

    # The file is loaded at address 0 as one segment, so its offsets are also addresses.
    dynamic_at = header_bytes + 2 * program_header_bytes
    dynamic_bytes = 16 * 8
    symbols_at = dynamic_at + dynamic_bytes
    hash_at = symbols_at + len(symbols)
    strings_at = hash_at + len(hash_table)
    size = strings_at + len(strings)
    dynamic = b"".join(
        struct.pack("<qQ", tag, value)
        for tag, value in (
            (_DT_SONAME, 1),
            (_DT_NEEDED, 1 + len(soname) + 1),
            (_DT_HASH, hash_at),
            (_DT_STRTAB, strings_at),
            (_DT_SYMTAB, symbols_at),
            (_DT_STRSZ, len(strings)),
            (_DT_SYMENT, symbol_bytes),
            (_DT_NULL, 0),
        )
    )
    identity = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)  # 64 bits, little-endian, version 1
    machine = _ELF_MACHINES[platform.machine()]
    header = identity + struct.pack(
        "<HHIQQQIHHHHHH", _ET_DYN, machine, 1, 0, header_bytes, 0, 0, header_bytes, program_header_bytes, 2, 0, 0, 0
    )
    load = struct.pack("<IIQQQQQQ", _PT_LOAD, _READ_WRITE, 0, 0, 0, size, size, 1 << 16)
    found = struct.pack(
        "<IIQQQQQQ", _PT_DYNAMIC, _READ_WRITE, dynamic_at, dynamic_at, dynamic_at, dynamic_bytes, dynamic_bytes, 8
    )
    return header + load + found + dynamic + symbols + hash_table + strings


def _candidates() -> Iterator[tuple[Path, str]]:
    yield _PACKAGE / "lib" / LIBRARY_NAME, "package"
    yield _PACKAGE.parent / "build" / "plugins" / LIBRARY_NAME, "build folder"


def _describe(path: Path, source: str) -> PluginLibrary:
    try:
        library = ctypes.CDLL(str(path))
        library.awq2trt_plugins_version.restype = ctypes.c_char_p
        library.awq2trt_plugins_architectures.restype = ctypes.c_char_p
        return PluginLibrary(
            path=path,
            source=source,
            version=library.awq2trt_plugins_version().decode(),
            architectures=tuple(library.awq2trt_plugins_architectures().decode().split(",")),
            cuda_version=library.awq2trt_cuda_version(),
        )
    except (OSError, AttributeError) as error:
        raise ToolError(f"this plugin library cannot be used: {error}.", where=str(path), fix=_BUILD_COMMAND) from error
