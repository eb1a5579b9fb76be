"""The layout of the sources: tests mirror the code, every room has some, and no file or function is too long."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

from long_files import MOST_BODY_LINES, MOST_LINES, long_files, long_functions

ROOT = Path(__file__).parents[1]
TESTS, PACKAGE = ROOT / "tests", ROOT / "awq2trt"

BESIDE_THE_PACKAGE = {"plugins", "tools"}
"""Folders of tests that mirror a folder beside the package."""

NO_MIRROR = {"e2e", "data"}
"""Tests of everything together, and files that tests read."""


def _rooms(folder: Path) -> list[Path]:
    """Folders at any depth, relative to `folder`, that hold source files."""
    names = {path.parent.relative_to(folder) for pattern in ("*.py", "*.cpp", "*.cu") for path in folder.rglob(pattern)}
    return sorted(name for name in names if name != Path() and "__pycache__" not in name.parts)


def _test_rooms() -> list[Path]:
    return [room for room in _rooms(TESTS) if room.parts[0] not in BESIDE_THE_PACKAGE | NO_MIRROR]


def _modules_of(room: Path) -> set[str]:
    """Names of a room's modules, packages and scripts."""
    return {path.stem for path in (PACKAGE / room).iterdir() if path.is_dir() or path.suffix in (".py", ".sh")}


def _misplaced() -> Iterator[str]:
    for room in _test_rooms():
        if not (PACKAGE / room).is_dir():
            yield f"tests/{room}: there is no awq2trt/{room}"
            continue
        for path in sorted((TESTS / room).glob("test_*.py")):
            if path.stem.removeprefix("test_") not in _modules_of(room):
                yield f"{path.relative_to(ROOT)}: awq2trt/{room} has no such module"


def test_tests_lie_where_their_module_lies() -> None:
    assert list(_misplaced()) == []


def test_tests_of_plugins_and_tools_lie_in_the_same_folders() -> None:
    beside = [room for room in _rooms(TESTS) if room.parts[0] in BESIDE_THE_PACKAGE]
    assert {room.parts[0] for room in beside} == BESIDE_THE_PACKAGE
    assert [room for room in beside if not (ROOT / room).is_dir()] == []


def test_every_room_has_tests() -> None:
    rooms = {room.parts[0] for room in _rooms(PACKAGE)}
    assert rooms
    assert rooms == {room.parts[0] for room in _test_rooms()}


def test_no_source_file_is_too_long() -> None:
    assert list(long_files(ROOT)) == []


def test_a_file_that_is_too_long_is_named(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("ignored.py\n")
    for name, lines in (("long.cu", MOST_LINES + 1), ("right.cu", MOST_LINES), ("ignored.py", 999), ("data.txt", 999)):
        (tmp_path / name).write_text("line\n" * lines)
    assert list(long_files(tmp_path)) == [("long.cu", MOST_LINES + 1)]


def test_no_function_is_too_long() -> None:
    assert list(long_functions(ROOT)) == []


def test_a_function_that_is_too_long_is_named_and_its_head_does_not_count(tmp_path: Path) -> None:
    def source(lines: int) -> str:
        head = 'def function(\n    a: int,\n    b: int,\n) -> None:\n    """One line.\n\n    More.\n    """\n'
        return "import ast\n\n\n" + head + "    a = b\n" * (lines - 1) + "    return\n"

    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "long.py").write_text(source(MOST_BODY_LINES + 1))
    (tmp_path / "right.py").write_text(source(MOST_BODY_LINES))
    assert list(long_functions(tmp_path)) == [("long.py:4 function", MOST_BODY_LINES + 1)]
