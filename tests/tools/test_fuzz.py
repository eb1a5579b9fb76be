"""Fuzzing: earlier findings stay fixed, valid files are accepted, and a planted fault is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fuzz
import pytest
from fuzz_readers import READERS, ROOT
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from awq2trt.foreign_files import reading

FOUND = sorted((ROOT / "tests" / "data" / "fuzz").glob("*/*"))


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_once_is_refused_with_a_message(path: Path) -> None:
    said = fuzz.read_case(READERS[path.parent.name], path.read_bytes())
    assert said is not None
    assert "Fix: " in said


@pytest.mark.parametrize("name", READERS)
def test_valid_files_are_taken(name: str) -> None:
    seeds = READERS[name].seeds()
    assert seeds
    for content in seeds:
        assert fuzz.read_case(READERS[name], content) is None


@pytest.mark.parametrize("name", READERS)
def test_files_that_are_nearly_right_are_read_or_refused(name: str) -> None:
    reader, refused = READERS[name], []

    @settings(
        max_examples=30,
        database=None,
        deadline=None,
        derandomize=True,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(reader.cases(reader.seeds()))
    def holds(content: bytes) -> None:
        refused.append(fuzz.read_case(reader, content))

    holds()
    assert any(refused)


def test_a_fault_is_found_and_its_smallest_file_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(content: bytes, folder: Path) -> None:
        assert folder.is_dir()
        if b"\x07" in content:
            raise IndexError("list index out of range")

    planted = replace(READERS["recipe"], read=read, cases=lambda seeds: st.binary(max_size=200))
    monkeypatch.setitem(READERS, "recipe", planted)
    found = fuzz.fuzz("recipe", 60, 1, findings=tmp_path)
    assert found is not None
    assert found.read_bytes() == b"\x07"
    assert "recipe: FOUND" in capsys.readouterr().out


@pytest.mark.parametrize(("content", "error"), [(b"slow", fuzz.TooSlowError), (b"large", fuzz.TooMuchMemoryError)])
def test_time_and_memory_have_limits(
    content: bytes, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(content: bytes, folder: Path) -> None:
        if content == b"slow":
            while True:
                pass
        with reading("a file", folder):
            raise MemoryError

    monkeypatch.setattr(fuzz, "SECONDS_PER_CASE", 1)
    with pytest.raises(error):
        fuzz.read_case(replace(READERS["recipe"], read=read), content)
