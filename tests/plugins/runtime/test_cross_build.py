"""`make runtime-aarch64`: the library needs nothing that a Jetson lacks, and samples there as it does here."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest
from varied_scores import varied_sampling, varied_scores

from awq2trt.runtime.sampling import Sampler, Sampling, single

BUILD: Final = Path(__file__).parents[3] / "build" / "runtime-aarch64"
AARCH64_ROOT: Final = Path("/usr/aarch64-linux-gnu")
SYSTEM_LIBRARIES: Final = {"libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6", "ld-linux-aarch64.so.1"}

UBUNTU_22_04: Final = {"GLIBC": (2, 35), "GLIBCXX": (3, 4, 30), "CXXABI": (1, 3, 13), "GCC": (12, 0, 0)}
"""Newest symbol versions of the C and C++ libraries in Ubuntu 22.04, and so in JetPack 6; JetPack 7 has later ones."""

SIZE: Final = 500
ROWS: Final = 5


@pytest.fixture
def library() -> Path:
    path = BUILD / "libawq2trt.so"
    if not path.is_file():
        pytest.skip("needs the aarch64 library: make runtime-aarch64")
    return path


def _readelf(*arguments: str) -> str:
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("needs readelf, of binutils")
    return subprocess.run([readelf, *arguments], capture_output=True, text=True, check=True).stdout


def test_it_needs_nothing_that_a_jetson_lacks(library: Path) -> None:
    assert "AArch64" in _readelf("--file-header", str(library))
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", _readelf("--dynamic", "--wide", str(library)))
    assert set(needed) <= SYSTEM_LIBRARIES
    versions = re.findall(
        r"Name: (GLIBC|GLIBCXX|CXXABI|GCC)_([\d.]+)", _readelf("--version-info", "--wide", str(library))
    )
    assert versions
    for name, number in versions:
        assert tuple(map(int, number.split("."))) <= UBUNTU_22_04[name], (name, number)


def test_its_sampler_picks_what_it_picks_here(library: Path) -> None:
    emulator = shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("needs qemu-user-static")
    given, expected = b"", []
    for case in range(300):
        sampling = varied_sampling(case)
        rows = [varied_scores(case * ROWS + row, SIZE) for row in range(ROWS)]
        given += _line(sampling) + b"".join(row.tobytes() for row in rows)
        sampler = Sampler(sampling)
        expected.append([sampler.pick(row) for row in rows])
    command = [emulator, "-L", str(AARCH64_ROOT), str(BUILD / "tests" / "sample_rows")]
    printed = subprocess.run(command, input=given, capture_output=True, check=True).stdout.decode().splitlines()
    assert [[int(token) for token in line.split()] for line in printed] == expected


def _line(sampling: Sampling) -> bytes:
    """A case in the form that sample_rows reads."""
    temperature, top_p, min_p, penalty = (
        single(value).hex()
        for value in (sampling.temperature, sampling.top_p, sampling.min_p, sampling.repetition_penalty)
    )
    words = [SIZE, ROWS, temperature, sampling.top_k, top_p, min_p, penalty, sampling.seed]
    for token, bias in sampling.logit_bias.items():
        words += [token, single(bias).hex()]
    return " ".join(map(str, words)).encode() + b"\n"


def test_an_example_builds_against_what_a_kit_carries_and_runs(library: Path, tmp_path: Path) -> None:
    """Everything is as on a Jetson, except for the compiler, which is the cross-compiler."""
    package, emulator = library.parent / "package", shutil.which("qemu-aarch64-static")
    if emulator is None or not package.is_dir():
        pytest.skip("needs qemu-user-static, and the package: make runtime-aarch64")
    example = package / "share" / "doc" / "awq2trt" / "examples" / "chat"
    settings = {
        "CMAKE_PREFIX_PATH": package,
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_CXX_COMPILER": "aarch64-linux-gnu-g++",
    }
    command = [
        "cmake",
        "-S",
        str(example),
        "-B",
        str(tmp_path),
        *(f"-D{key}={value}" for key, value in settings.items()),
    ]
    subprocess.run(command, capture_output=True, check=True)
    subprocess.run(["cmake", "--build", str(tmp_path)], capture_output=True, check=True)
    command = [emulator, "-L", str(AARCH64_ROOT), str(tmp_path / "chat"), str(tmp_path)]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "there is no manifest.json, so awq2trt did not write this directory" in refused.stderr
