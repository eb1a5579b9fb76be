"""Texts from files and from data sets."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from awq2trt.errors import CalibrationError, ToolError, UsageError
from awq2trt.text import read
from awq2trt.text.read import read_text


def test_jsonl_documents_are_joined(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "one", "url": "x"}\n\n{"text": "two"}\n')
    assert read_text(str(path), characters=10) == "one\n\ntwo"


RECORDS = {
    '{"content": "x", "id": 1}': "x",
    '{"prompt": "a", "response": "b"}': "a\nb",
    '{"instruction": "a", "output": "b"}': "a\nb",
    '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}': "hi\nyo",
    '{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]}': "hi\nyo",
    '{"messages": [{"content": [{"type": "image"}, {"type": "text", "text": "see"}]}]}': "see",
}


@pytest.mark.parametrize("record", RECORDS)
def test_records_of_many_kinds_are_texts(record: str, tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text(record + "\n")
    assert read_text(str(tmp_path / "text.jsonl"), characters=10) == RECORDS[record]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", "Stra\u00dfe \U0001f600"), ("a.jsonl", '{"text": "Stra\u00dfe"}')]
)
def test_byte_order_marks_say_the_encoding(name: str, content: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.encode(encoding))
    assert read_text(str(tmp_path / name), characters=10).startswith("Stra\u00dfe")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "Stra\u00dfe"}'.encode("latin-1"), "expected text in UTF-8.*0xdf"),
        ('{"text": "x"}'.encode("utf-16-le"), "NUL|a JSON object"),
        (b'\xff\xfe{"text": "x"}', "expected text in UTF-8|a JSON object"),
    ],
    ids=["latin-1", "UTF-16 without its mark", "half a character"],
)
def test_other_encodings_are_refused_with_the_command_that_converts(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CalibrationError, match=message):
        read_text(str(tmp_path / name), characters=10)


def test_a_nul_in_a_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"text\0more")
    with pytest.raises(CalibrationError, match=r"a\.txt: expected text, got a NUL at character 4.*iconv"):
        read_text(str(tmp_path / "a.txt"), characters=10)


def test_half_a_character_in_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n{"text": "ab\\ud800c"}\n')
    with pytest.raises(CalibrationError, match=r"a\.jsonl, line 2: expected text, got half of .* at character 2"):
        read_text(str(tmp_path / "a.jsonl"), characters=10)


@pytest.mark.parametrize(
    "line", ["9" * 5000, "not json", '{"body": "x"}', '{"text": 3}', "[]", "{}", '{"messages": [3]}', '{"prompt": "x"}']
)
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
    with pytest.raises(UsageError, match=r"/dev/zero: expected a \.txt or \.jsonl file"):
        read_text("/dev/zero", characters=10)


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
    with pytest.raises(ToolError, match=r"pip install datasets, or name a \.txt or \.jsonl file as --calib"):
        read_text("wikitext", characters=25)


def test_a_jsonl_file_without_lines_is_refused_and_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "MAX_TEXT_BYTES", 1 << 20)
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "' + "x" * (1 << 20) + '"}')
    with pytest.raises(CalibrationError, match=r"text\.jsonl: .* got a line of more than 1 MiB"):
        read_text(str(path), characters=10)
