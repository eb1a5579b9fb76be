"""Source files that are too long to read at once; `make lint` fails where there are any.

    python tools/long_files.py

In: the files that git tracks here, or would track once they are added. Out: one line for each that has more than
`MOST_LINES` lines; exits with 1 if there is one.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

MOST_LINES: Final = 500
SUFFIXES: Final = (".py", ".cpp", ".cu", ".cuh", ".h", ".sh")
NOT_OURS: Final = "plugins/third_party/"
"""Sources that are kept as their authors publish them."""


def long_files(root: Path) -> Iterator[tuple[str, int]]:
    """Names, below the root of a repository, and lines of the source files that are too long."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in sorted(filter(None, listed.stdout.split("\0"))):
        path = root / name
        if path.suffix not in SUFFIXES or name.startswith(NOT_OURS) or not path.is_file():
            continue
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MOST_LINES:
            yield name, lines


def main() -> None:
    """Prints the names."""
    found = list(long_files(Path.cwd()))
    for name, lines in found:
        print(f"{name}: {lines} lines, at most {MOST_LINES} are wanted: split it by what a reader would look for")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
