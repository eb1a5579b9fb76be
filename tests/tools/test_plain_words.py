"""Wording that a reader would stumble over: it is found where it stands, and this repository has none of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from plain_words import stumbles

ROOT = Path(__file__).parents[2]


def test_this_repository_has_no_such_wording() -> None:
    assert [(stumble.where, stumble.wording) for stumble in stumbles(ROOT)] == []


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("page.md", "# Title\n\nThe same but for ties.\n", 3),
        ("kernel.cu", "int n;  // held to nothing\n// codes are held to their weights\n", 2),
        ("code.py", '"""Good."""\n\n\ndef width() -> int:\n    """Of a code."""\n    return 4\n', 5),
        ("entry.py", '"""Good.\n\nArgs:\n    path: That names it.\n"""\n', 4),
        ("constant.py", 'WIDTH = 4\n"""Of a code."""\n', 2),
    ],
)
def test_bad_wording_is_named_with_its_line(tmp_path: Path, name: str, content: str, line: int) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / name).write_text(content)
    assert [stumble.where for stumble in stumbles(tmp_path)] == [f"{name}:{line}"]


@pytest.mark.parametrize(
    "content",
    [
        '"""Office hours of a model."""\n',
        '"""Thatched roofs."""\n',
        '"""Good.\n\nArgs:\n    path: The path, of a file.\n"""\n',
        'SOURCE = """Of a model."""\n',
    ],
)
def test_good_wording_is_left_alone(tmp_path: Path, content: str) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "code.py").write_text(content)
    assert list(stumbles(tmp_path)) == []
