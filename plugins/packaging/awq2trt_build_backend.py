"""The build backend of pyproject.toml: scikit-build-core, after deciding whether the wheel contains the plugin library.

A wheel contains it if a CUDA compiler and a host compiler are installed; AWQ2TRT_PLUGINS=1 or 0 decides instead. If the
variable is not set and the library does not build, the wheel is pure Python, and pip's output (-v) says why. Editable
installs are pure Python unless the variable is 1: a clone builds the library with `make plugins`.

pip calls every hook in a process of its own, so each one repeats the decision, with the same result.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

VARIABLE = "AWQ2TRT_PLUGINS"  # pyproject.toml's override reads it
CUDA_FOLDER = "/usr/local/cuda/bin"
_YES, _NO = ("1", "true", "on", "yes"), ("0", "false", "off", "no")


def wants_plugins(environ: Mapping[str, str], has_compilers: Callable[[Mapping[str, str]], bool]) -> bool:
    """Whether a wheel contains the plugin library.

    Raises:
        ValueError: The variable is neither 1 nor 0.
    """
    asked = environ.get(VARIABLE, "").lower()
    if asked in (*_YES, *_NO):
        return asked in _YES
    if asked:
        raise ValueError(f"{VARIABLE} is {environ[VARIABLE]!r}; set it to 1 or 0, or unset it.")
    return has_compilers(environ)


def has_compilers(environ: Mapping[str, str]) -> bool:
    """Whether nvcc and a C++ compiler are where plugins/cmake and CMake look for them."""
    path = environ.get("PATH", os.defpath)
    cuda_homes = [environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if environ.get(name)]
    nvcc_path = os.pathsep.join([*(str(Path(home) / "bin") for home in cuda_homes), path, CUDA_FOLDER])
    nvcc = shutil.which(environ.get("CUDACXX") or "nvcc", path=nvcc_path)
    cxx = environ.get("CXX", "").split(" ")[0]
    hosts = [cxx] if cxx else ["c++", "g++", "clang++"]
    return nvcc is not None and any(shutil.which(host, path=path) for host in hosts)


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """PEP 517."""
    _decide()
    return list(_scikit_build().get_requires_for_build_wheel(config_settings))


def build_wheel(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    """PEP 517."""
    asked = bool(os.environ.get(VARIABLE))
    plugins = _decide()
    try:
        return str(_scikit_build().build_wheel(wheel_directory, config_settings, metadata_directory))
    except (Exception, SystemExit) as error:
        if asked or not plugins:
            raise
        print(f"The plugin library did not build ({error}); installing pure Python.", file=sys.stderr)
        os.environ[VARIABLE] = "0"
        return str(_scikit_build().build_wheel(wheel_directory, config_settings, metadata_directory))


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    """PEP 660."""
    os.environ.setdefault(VARIABLE, "0")
    return list(_scikit_build().get_requires_for_build_editable(config_settings))


def build_editable(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    """PEP 660."""
    os.environ.setdefault(VARIABLE, "0")
    return str(_scikit_build().build_editable(wheel_directory, config_settings, metadata_directory))


def get_requires_for_build_sdist(config_settings: dict[str, Any] | None = None) -> list[str]:
    """PEP 517."""
    os.environ.setdefault(VARIABLE, "0")
    return list(_scikit_build().get_requires_for_build_sdist(config_settings))


def build_sdist(sdist_directory: str, config_settings: dict[str, Any] | None = None) -> str:
    """PEP 517."""
    os.environ.setdefault(VARIABLE, "0")
    return str(_scikit_build().build_sdist(sdist_directory, config_settings))


def _decide() -> bool:
    plugins = wants_plugins(os.environ, has_compilers)
    os.environ[VARIABLE] = "1" if plugins else "0"
    return plugins


def _scikit_build() -> Any:
    from scikit_build_core import build

    return build
