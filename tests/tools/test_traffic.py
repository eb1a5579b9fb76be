"""Traffic by a tool, on a tiny model; `make traffic` takes ten thousand answers of it."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from native_sessions import require_runtime_library
from tiny_lowered import build_lowered

from awq2trt.errors import ToolError
from awq2trt.runtime.native import NativeModel, NativeSession

TOOL = Path(__file__).parents[2] / "tools" / "traffic.py"

ANSWERS = int(os.environ.get("AWQ2TRT_ANSWERS", "160"))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_lowered(tmp_path_factory.mktemp("built"), "cpu") / "cpu"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    require_runtime_library()
    spec = importlib.util.spec_from_file_location("traffic", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    spec.loader.exec_module(module)
    return module


def test_answers_in_traffic_are_those_of_one_thread_and_memory_stays_flat(
    tool: Any, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main([str(directory), "--answers", str(ANSWERS)]) == 0
    printed = capsys.readouterr().out
    print(printed)
    assert f"\n{ANSWERS} answers, 0 wrong; memory grew by " in printed
    assert printed.count("round ") == tool.ROUNDS + 1


def test_a_wrong_answer_is_seen(tool: Any, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traffic = tool.Traffic(NativeModel.load(directory), 8)
    assert traffic.round(0, 20, 2).wrong == []
    append = NativeSession.append
    monkeypatch.setattr(NativeSession, "append", lambda self, _: append(self, [{"role": "user", "content": "other"}]))
    done = traffic.round(0, 20, 2)
    assert done.answers == 20
    assert len(done.wrong) > 10
    assert "expected [" in done.wrong[0]


def test_an_error_of_a_thread_ends_the_round(tool: Any, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traffic = tool.Traffic(NativeModel.load(directory), 8)

    def fail(*_: object) -> None:
        raise ToolError("the GPU is gone.", where="test", fix="none.")

    monkeypatch.setattr(NativeSession, "generate", fail)
    with pytest.raises(ToolError, match="the GPU is gone"):
        traffic.round(0, 20, 2)


def test_memory_grows_where_host_or_device_does(tool: Any) -> None:
    cold, warm = tool.Round(), tool.Round(host_bytes=100, device_bytes=50)
    assert tool.growth_bytes([cold, warm, tool.Round(host_bytes=107, device_bytes=50)]) == 7
    assert tool.growth_bytes([cold, warm, tool.Round(host_bytes=90, device_bytes=59)]) == 9
