"""The C++ library of a kit: where it is looked for, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from stand_in_orin import fake_runtime_package

from awq2trt.errors import ToolError
from awq2trt.machine import foreign_runtime
from awq2trt.machine.foreign_runtime import PATH_VARIABLE, find_runtime_package


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = fake_runtime_package(tmp_path / "package")
    monkeypatch.setenv(PATH_VARIABLE, str(folder))
    return folder


def test_files_are_found_by_their_place_without_links(package: Path) -> None:
    names = ["include/awq2trt.h", "lib/cmake/awq2trt/awq2trt-config-version.cmake", "lib/libawq2trt.so.0.1"]
    assert find_runtime_package() == {name: package / name for name in names}


def test_without_one_there_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PATH_VARIABLE, raising=False)
    monkeypatch.setattr(foreign_runtime, "_PACKAGE", tmp_path / "clone" / "awq2trt")
    assert find_runtime_package() == {}
    made = fake_runtime_package(tmp_path / "clone" / "build" / "runtime-aarch64" / "package")
    assert find_runtime_package()["include/awq2trt.h"] == made / "include/awq2trt.h"


def test_a_folder_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATH_VARIABLE, str(tmp_path))
    with pytest.raises(ToolError, match=r"which has no lib/cmake/awq2trt/awq2trt-config-version.cmake"):
        find_runtime_package()


def test_one_of_another_version(package: Path) -> None:
    config = package / "lib/cmake/awq2trt/awq2trt-config-version.cmake"
    for text in ('set(PACKAGE_VERSION "99.0.0")\n', ""):
        config.write_text(text)
        with pytest.raises(ToolError, match=r"version (99\.0\.0|unknown), expected .*") as caught:
            find_runtime_package()
        assert caught.value.fix == "run `make runtime-aarch64`."


def test_one_for_another_cpu(package: Path) -> None:
    library = package / "lib" / "libawq2trt.so.0.1"
    content = bytearray(library.read_bytes())
    content[18] = 62
    library.write_bytes(content)
    with pytest.raises(ToolError, match="got one for ELF machine 62"):
        find_runtime_package()
