"""Source files and Python functions that are too long to read at once; `make lint` fails if there are any.

    python tools/long_files.py

In: the files that git tracks here, or would track once they are added. Out: one line for each file that has more than
`MOST_LINES` lines, and for each Python function whose body has more than `MOST_BODY_LINES`. Exits with 1 if there is
one.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

MOST_LINES: Final = 500
MOST_BODY_LINES: Final = 40
"""Lines of a function's body, without its docstring and its parameters: a command has one for every flag."""

SUFFIXES: Final = (".py", ".cpp", ".cu", ".cuh", ".h", ".sh")
NOT_OURS: Final = "plugins/third_party/"
"""Sources that are kept as their authors publish them."""


def long_files(root: Path) -> Iterator[tuple[str, int]]:
    """Yields the name, relative to `root`, and the number of lines of every source file that is too long."""
    for name in our_files(root):
        if not name.endswith(SUFFIXES):
            continue
        lines = len((root / name).read_text(encoding="utf-8").splitlines())
        if lines > MOST_LINES:
            yield name, lines


def long_functions(root: Path) -> Iterator[tuple[str, int]]:
    """Yields `file:line function` and the number of lines of every Python function whose body is too long."""
    for name in our_files(root):
        if not name.endswith(".py"):
            continue
        for node in ast.walk(ast.parse((root / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = _body_lines(node)
                if lines > MOST_BODY_LINES:
                    yield f"{name}:{node.lineno} {node.name}", lines


def _body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the first statement behind the docstring to the last, comments and empty lines included."""
    has_docstring = ast.get_docstring(function, clean=False) is not None
    statements = function.body[1 if has_docstring else 0 :]
    if not statements:
        return 0
    return (statements[-1].end_lineno or 0) - statements[0].lineno + 1


def our_files(root: Path) -> Iterator[str]:
    """Yields the names of our files, relative to `root`, in order."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in sorted(filter(None, listed.stdout.split("\0"))):
        if not name.startswith(NOT_OURS) and (root / name).is_file():
            yield name


def main() -> None:
    """Prints what is too long."""
    files, functions = list(long_files(Path.cwd())), list(long_functions(Path.cwd()))
    for name, lines in files:
        print(f"{name}: {lines} lines, more than the {MOST_LINES} allowed: split it by what a reader would look for")
    for name, lines in functions:
        print(f"{name}: {lines} lines, more than the {MOST_BODY_LINES} allowed: split it where a reader would")
    sys.exit(1 if files or functions else 0)


if __name__ == "__main__":
    main()
