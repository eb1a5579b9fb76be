"""The tool that compares the C++ library with the package, on a tiny model."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from native_sessions import require_runtime_library
from tiny_lowered import build_lowered

from awq2trt.runtime.native import NativeSession

TOOL = Path(__file__).parents[2] / "tools" / "compare_runtimes.py"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    require_runtime_library()
    spec = importlib.util.spec_from_file_location("compare_runtimes", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    spec.loader.exec_module(module)
    return module


def test_prompts_are_answered_alike_and_what_differs_is_seen(
    tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = build_lowered(tmp_path / "built", "cpu") / "cpu"
    assert len(set(tool.PROMPTS)) == 50
    found = list(tool.compare(directory, ["hello", "Zürich 🙂"], 12))
    assert len(found) == 4
    assert all(comparison.same for comparison in found)
    assert len({tuple(comparison.native) for comparison in found}) == 4

    append = NativeSession.append
    monkeypatch.setattr(NativeSession, "append", lambda self, _: append(self, [{"role": "user", "content": "other"}]))
    assert not any(comparison.same for comparison in tool.compare(directory, ["hello"], 12))
