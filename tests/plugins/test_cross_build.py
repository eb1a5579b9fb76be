"""`make plugins-aarch64`: the library is for an Orin and loads there, which an emulator of its CPU shows."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import awq2trt
from awq2trt import opset
from awq2trt.errors import ToolError
from awq2trt.machine import foreign_library, plugin_library
from awq2trt.machine.foreign_library import PATH_VARIABLE, describe_library, find_aarch64_library, library_sources

REPOSITORY = Path(__file__).parents[2]
BUILD_FOLDER = REPOSITORY / "build" / "plugins-aarch64"
AARCH64_ROOT = Path("/usr/aarch64-linux-gnu")

UBUNTU_22_04 = {"GLIBC": (2, 35), "GLIBCXX": (3, 4, 30), "CXXABI": (1, 3, 13), "GCC": (12, 0, 0)}
"""Newest symbol versions of the C and C++ libraries in Ubuntu 22.04, and so in JetPack 6; JetPack 7 has later ones."""


@pytest.fixture
def library() -> Path:
    path = BUILD_FOLDER / plugin_library.LIBRARY_NAME
    if not path.is_file():
        pytest.skip("needs the aarch64 plugin library: make plugins-aarch64")
    return path


def test_file_says_aarch64(library: Path) -> None:
    file = shutil.which("file")
    if file is None:
        pytest.skip("needs file(1)")
    said = subprocess.run([file, "--brief", library], capture_output=True, text=True, check=True).stdout
    assert "ELF 64-bit LSB shared object, ARM aarch64" in said


PLUGINS = sorted((*opset.FUSED_OPERATORS, *opset.QUANTIZED_OPERATORS))


def test_it_loads_on_aarch64_and_lists_its_creators(library: Path) -> None:
    emulator = shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("needs qemu-user-static")
    command = [emulator, "-L", str(AARCH64_ROOT), str(BUILD_FOLDER / "list_creators"), str(library)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    described = describe_library(library)
    assert said == [
        f"version {awq2trt.__version__}",
        "architectures 87-real",
        f"cuda {described.cuda[0] * 1000 + described.cuda[1] * 10}",
        *(f"creator {name} {opset.PLUGIN_VERSION} {opset.PLUGIN_NAMESPACE}" for name in PLUGINS),
    ]


def test_its_libraries_are_those_of_ubuntu_22_04(library: Path) -> None:
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("needs readelf, of binutils")
    said = subprocess.run([readelf, "-d", "-V", "-W", library], capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"\(NEEDED\).*\[(.+)\]", said)) <= {
        "libstdc++.so.6",
        "libgcc_s.so.1",
        "libm.so.6",
        "libc.so.6",
    }
    versions = re.findall(r"Name: ([A-Z]+)_([\d.]+)", said)
    assert versions
    for name, version in versions:
        assert tuple(int(part) for part in version.split(".")) <= UBUNTU_22_04[name], f"{name}_{version}"


def test_it_describes_itself_without_being_loaded(library: Path) -> None:
    described = describe_library(library)
    assert (described.version, described.architectures) == (awq2trt.__version__, ("87-real",))
    assert described.cuda[0] >= 12


def test_variable_comes_first_and_must_name_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(PATH_VARIABLE, str(tmp_path / "missing.so"))
    with pytest.raises(ToolError, match=rf"missing\.so, which is not a file.*{PATH_VARIABLE}"):
        find_aarch64_library()


def test_none_found_says_where_it_looked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(PATH_VARIABLE, raising=False)
    monkeypatch.setattr(foreign_library, "_PACKAGE", tmp_path / "awq2trt")
    with pytest.raises(ToolError, match=r"awq2trt/lib/aarch64 and .*build/plugins-aarch64.*make plugins-aarch64"):
        find_aarch64_library()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"not ELF", "not a shared library", id="text"),
        pytest.param(b"\x7fELF\x02\x01" + bytes(12) + b"\x3e\x00" + bytes(44), "machine 62", id="x86-64"),
        pytest.param(b"\x7fELF\x02\x01" + bytes(12) + b"\xb7\x00" + bytes(44), "not a plugin library", id="some-other"),
    ],
)
def test_a_file_that_is_something_else_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "some.so").write_bytes(content)
    with pytest.raises(ToolError, match=rf"some\.so: .*{message}.*make plugins-aarch64"):
        describe_library(tmp_path / "some.so")


def test_sources_are_those_that_cmake_compiles() -> None:
    cmake = (REPOSITORY / "plugins/CMakeLists.txt").read_text()
    listed = re.findall(r"^ +((?:kernels/\w+|library|ops|trt)/\w+\.(?:cu|cpp))", cmake, re.M)
    assert len(listed) >= 12
    assert set(listed) <= set(library_sources())
    compiled = {name for name in library_sources() if name.endswith((".cpp", ".cu"))}
    assert compiled - set(listed) == {"kernels/w4a16_linear/reference.cpp"}, "of tests, which does no harm"


def test_a_kit_compiles_kernels_of_other_gpus_to_nothing() -> None:
    kernels = [REPOSITORY / "plugins" / name for name in library_sources() if name.endswith(".cu")]
    hopper = [path for path in kernels if 'device/wgmma.cuh"' in path.read_text()]
    assert len(hopper) >= 2
    for path in hopper:
        code = [line for line in path.read_text().splitlines() if line and not line.startswith("//")]
        assert (code[0], code[-1]) == ("#ifdef AWQ2TRT_HOPPER", "#endif  // AWQ2TRT_HOPPER"), path
