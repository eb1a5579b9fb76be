"""Finds wording in documentation and comments that a reader would stumble over; `make lint` fails if there is any.

    python tools/plain_words.py

In: the Python, C++ and Markdown files that git tracks here, or would track once they are added. Out: one line for each
place, with the wording and what to write instead. Exits with 1 if there is one. It knows only a few patterns that were
frequent here once; a text that passes can still be bad.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from long_files import our_files

SUFFIXES: Final = (".py", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".md", ".sh")

PHRASES: Final = {
    r"\bbut for\b": "except for",
    r"\bis none of\b|None for none": "is not one of; None without a ...",
    r"\b(?:is|are) held to\b|\bholds (?:it|them|the \w+) to\b": "is compared with, must agree with",
    r"\bspeaks? of\b": "names, describes",
    r"\bfor want of\b": "for lack of",
    r"\bstands? beside\b": "is beside",
    r"\ba half of\b": "half of",
    r"\bat hand\b": "available, current",
    r"\bbegins? anew\b|\bstarts? anew\b": "starts again",
}
"""Patterns of wording, and what to write instead."""

NOT_READ: Final = ("tools/plain_words.py", "tests/tools/test_plain_words.py", "tests/data/")
"""Files that contain such wording for a reason: these patterns, and data that earlier versions wrote."""

FRAGMENTS: Final = re.compile(r"^(?:Of|That|So many|But)\b(?! (?:is|are)\b)")
"""How no summary and no description of an argument begins: this would be the rest of a missing sentence."""

_ENTRY: Final = re.compile(r"^ +[\w*]+: (.*)")
"""A line of `Args:` or `Attributes:`, or one of the same form."""


@dataclass(frozen=True)
class Stumble:
    """A place with bad wording.

    Attributes:
        where: File and line.
        wording: The text found there.
        instead: What to write instead.
    """

    where: str
    wording: str
    instead: str


def stumbles(root: Path) -> Iterator[Stumble]:
    """Yields all places with bad wording in the files below `root`."""
    for name in our_files(root):
        if not name.endswith(SUFFIXES) or name.startswith(NOT_READ):
            continue
        text = (root / name).read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), 1):
            for phrase, instead in PHRASES.items():
                if found := re.search(phrase, line):
                    yield Stumble(f"{name}:{number}", found[0], instead)
        if name.endswith(".py"):
            for number, opening in _fragments(text):
                yield Stumble(f"{name}:{number}", opening, "a complete phrase: what it is, not only of what")


def _fragments(source: str) -> Iterator[tuple[int, str]]:
    """Yields line and beginning of every summary and description of an argument that is only a rest of a sentence."""
    for node in ast.walk(ast.parse(source)):
        for statement in getattr(node, "body", ()) if not isinstance(node, ast.Lambda | ast.IfExp) else ():
            value = statement.value if isinstance(statement, ast.Expr) else None
            if not isinstance(value, ast.Constant) or not isinstance(value.value, str):
                continue
            for offset, line in enumerate(value.value.splitlines()):
                entry = _ENTRY.match(line)
                opening = line if offset == 0 else entry[1] if entry else ""
                if FRAGMENTS.match(opening):
                    yield value.lineno + offset, opening


def main() -> None:
    """Prints the places."""
    found = list(stumbles(Path.cwd()))
    for stumble in found:
        print(f"{stumble.where}: {stumble.wording!r}; write instead: {stumble.instead}")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
