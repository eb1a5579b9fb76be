"""Where the C++ library and ONNX Runtime's own are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from awq2trt.errors import ToolError
from awq2trt.machine.runtime_library import find_onnxruntime_library, find_runtime_library, find_tensorrt_library
from awq2trt.target import Flavour


def test_the_variable_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "libawq2trt.so"
    monkeypatch.setenv("AWQ2TRT_RUNTIME_PATH", str(file))
    with pytest.raises(ToolError, match="which is not a file"):
        find_runtime_library()
    file.touch()
    assert find_runtime_library() == file


def test_onnxruntime_comes_with_its_package_unless_the_user_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWQ2TRT_ONNXRUNTIME", raising=False)
    found = find_onnxruntime_library()
    assert found is not None
    assert found.name.startswith("libonnxruntime.so")
    monkeypatch.setenv("AWQ2TRT_ONNXRUNTIME", "/elsewhere/libonnxruntime.so")
    assert find_onnxruntime_library() is None


@pytest.mark.trt
def test_tensorrt_comes_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWQ2TRT_TENSORRT", raising=False)
    found = find_tensorrt_library(Flavour.TENSORRT_RTX)
    assert found is not None
    assert found.name.startswith("libtensorrt_rtx.so.")
