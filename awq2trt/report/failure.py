"""Reports on stderr why a command failed: what happened, where, and how to fix it."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper
from typing import Final

from awq2trt.errors import Awq2trtError, PeerFailedError
from awq2trt.foreign_files import UNPAIRED, reason

DEBUG_VARIABLE: Final = "AWQ2TRT_DEBUG"
"""If this variable is set, every error shows its traceback, as with --debug."""


def print_anything_() -> None:
    """Lets stdout and stderr print characters that their encoding lacks as escapes, since models write any text."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _shown(text: object) -> str:
    """A text with escapes for what would not be seen, or would be a command to the terminal: names come from files."""
    return "".join(one if one.isprintable() or one == "\n" else ascii(one)[1:-1] for one in str(text))


def explain(error: Exception) -> int:
    """Prints an error in its three parts and returns the exit code."""
    if isinstance(error, PeerFailedError):
        return error.exit_code
    if isinstance(error, Awq2trtError):
        print(f"error: {_shown(error.what)}", file=sys.stderr)
        if error.where:
            print(f"  where: {_shown(error.where)}", file=sys.stderr)
        if error.fix:
            print(f"  fix: {_shown(error.fix)}", file=sys.stderr)
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        # The reader of our output closed it. Python would complain when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, OSError) and error.strerror:
        print(f"error: {error.strerror.lower()}", file=sys.stderr)
        if error.filename:
            print(f"  where: {_shown(error.filename)}", file=sys.stderr)
        return 1
    if isinstance(error, UnicodeEncodeError) and error.reason == UNPAIRED:
        print(f"error: {reason(error)}", file=sys.stderr)
        print("  fix: rename the file, or set the locale that its name was written in.", file=sys.stderr)
        return 1
    if isinstance(error, MemoryError):
        print("error: out of memory\n  fix: close other programs, or use a machine with more memory.", file=sys.stderr)
        return 1
    print(
        f"error: {type(error).__name__}: {_shown(error)}\n"
        "  This is a bug in awq2trt. Please report it with the output of the same command with\n"
        f"  {DEBUG_VARIABLE}=1 set, which shows where it happened.",
        file=sys.stderr,
    )
    return 1
