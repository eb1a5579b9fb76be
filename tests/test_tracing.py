"""Spans: nested as they were opened, in a file that opens; nothing is written without one."""

from __future__ import annotations

import json
import threading
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


def test_threads_have_numbers_and_names_and_do_not_wait_for_a_gpu(tmp_path: Path) -> None:
    path, waited = tmp_path / "trace.json", list[str]()

    def work(number: int) -> None:
        with span("read", block=number):
            pass

    with traced(path, lambda: waited.append(threading.current_thread().name)), span("block"):
        for name in ("one", "other"):  # the second may have the identifier of the first
            thread = threading.Thread(target=work, args=(1,), name=name)
            thread.start()
            thread.join()
    events = json.loads(path.read_text())
    named = {event["tid"]: event["args"]["name"] for event in events if event.get("ph") == "M"}
    assert named == {1: "one", 2: "other"}
    assert [event["tid"] for event in events if event.get("name") == "read"] == [1, 2]
    assert set(waited) == {threading.current_thread().name}


def test_a_thread_may_outlive_the_trace(tmp_path: Path) -> None:
    path, ended, begun = tmp_path / "trace.json", threading.Event(), threading.Event()

    def work() -> None:
        with span("read"):
            begun.set()
            ended.wait(60)

    thread = threading.Thread(target=work)
    with traced(path):
        thread.start()
        begun.wait(60)
    ended.set()
    thread.join()
    assert [event.get("name") for event in json.loads(path.read_text())] == ["quantize", None]


def test_without_a_file_nothing_is_written(tmp_path: Path) -> None:
    with traced(None), span("block"):
        pass
    assert not list(tmp_path.iterdir())
