"""Texts from files and from data sets."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from awq2trt.errors import CalibrationError, ToolError, UsageError
from awq2trt.text.read import read_text


def test_jsonl_documents_are_joined(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "one", "url": "x"}\n\n{"text": "two"}\n')
    assert read_text(str(path), characters=10) == "one\n\ntwo"


@pytest.mark.parametrize("line", ["not json", '{"body": "x"}', '{"text": 3}', "[]"])
def test_a_bad_jsonl_line_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "one"}\n' + line + "\n")
    with pytest.raises(CalibrationError, match=r"text\.jsonl, line 2"):
        read_text(str(path), characters=10)


def test_missing_files_and_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_text(str(tmp_path / "missing.txt"), characters=10)
    (tmp_path / "text.pdf").write_bytes(b"x")
    with pytest.raises(UsageError, match="jsonl"):
        read_text(str(tmp_path / "text.pdf"), characters=10)


def test_a_data_set_is_streamed_until_there_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    read: list[int] = []

    def load_dataset(name: str, config: str | None, *, split: str, streaming: bool) -> Any:
        asked.append((name, config, split, streaming))
        for index in range(1000):
            read.append(index)
            yield {"text": f"document {index}"}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    text = read_text("allenai/c4:en:validation", characters=25)
    assert asked == [("allenai/c4", "en", "validation", True)]
    assert text == "document 0\n\ndocument 1\n\ndocument 2"
    assert len(read) == 3


def test_a_data_set_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("no such dataset on the hub")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(CalibrationError, match="nobody/nothing"):
        read_text("nobody/nothing", characters=25)


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ToolError, match="pip install datasets"):
        read_text("wikitext", characters=25)
