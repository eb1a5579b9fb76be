"""Spans: nested as they were opened, in a file that opens; nothing is written without one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from awq2trt.tracing import span, traced


def test_spans_lie_within_the_one_around_them(tmp_path: Path) -> None:
    path, settled = tmp_path / "trace.json", []
    with traced(path, lambda: settled.append(1)), span("block", block=3), span("round", linear="q_proj"):
        pass
    inner, outer, whole, end = json.loads(path.read_text())
    assert (inner["name"], inner["ph"], inner["args"]) == ("round", "X", {"linear": "q_proj"})
    assert (outer["name"], outer["args"], whole["name"], end) == ("block", {"block": 3}, "quantize", {})
    assert whole["ts"] <= outer["ts"] <= inner["ts"]
    assert inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"] <= whole["ts"] + whole["dur"]
    assert len(settled) == 6  # at both ends of each


def test_what_a_killed_run_left_opens_with_a_bracket(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with traced(path):
        with span("block"):
            pass
        left = path.read_text()
    assert [event["name"] for event in json.loads(left.rstrip(",\n") + "]")] == ["block"]


def test_a_span_that_fails_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x"), traced(tmp_path / "trace.json"), span("block"):
        raise ValueError("x")
    assert json.loads((tmp_path / "trace.json").read_text())[0]["name"] == "block"


def test_without_a_file_nothing_is_written(tmp_path: Path) -> None:
    with traced(None), span("block"):
        pass
    assert not list(tmp_path.iterdir())
