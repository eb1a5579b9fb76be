"""What is printed when something fails, in whatever encoding the terminal has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from awq2trt.errors import UsageError
from awq2trt.report.failure import explain

_PRINTS = "import awq2trt.report.failure as f; f.print_anything_(); print('a \N{GREEK SMALL LETTER PI} b')"


@pytest.mark.parametrize(("encoding", "expected"), [("ascii", rb"a \u03c0 b"), ("utf-8", b"a \xcf\x80 b")])
def test_a_character_that_the_terminal_lacks_is_an_escape(encoding: str, expected: bytes) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _PRINTS],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        stdout=subprocess.PIPE,
        check=True,
    )
    assert ran.stdout.strip() == expected


def test_the_command_line_prints_anything(tmp_path: Path) -> None:
    name = tmp_path / "\N{GREEK SMALL LETTER PI}"
    ran = subprocess.run(
        [sys.executable, "-m", "awq2trt", "inspect", name],
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict"},
        capture_output=True,
        check=False,
    )
    assert (ran.returncode, rb"/\u03c0" in ran.stderr, b"Traceback" in ran.stderr) == (1, True, False)


def test_a_name_that_is_no_utf8_is_no_bug(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnicodeEncodeError) as raised:
        os.fsdecode(b"gr\xf6\xdfe").encode()
    assert explain(raised.value) == 1
    said = capsys.readouterr().err
    assert "bytes that are not UTF-8" in said
    assert "bug" not in said


def test_commands_to_the_terminal_are_shown_and_not_given(capsys: pytest.CaptureFixture[str]) -> None:
    explain(UsageError("got \x1b]0;pwned\x07.", where="a\x00b\u202ec", fix="\u00fcber"))
    assert capsys.readouterr().err == ("error: got \\x1b]0;pwned\\x07.\n  where: a\\x00b\\u202ec\n  fix: \u00fcber\n")
