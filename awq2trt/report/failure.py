"""What the command line says when a command fails: what happened, where, and how to fix it, on stderr."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper
from typing import Final

from awq2trt.errors import Awq2trtError, PeerFailedError
from awq2trt.foreign_files import UNPAIRED, reason

DEBUG_VARIABLE: Final = "AWQ2TRT_DEBUG"
"""Set, it shows the traceback of every error, as --debug does."""


def print_anything_() -> None:
    """Lets stdout and stderr print what their encoding has no character for, as its escape: models write any text."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def explain(error: Exception) -> int:
    """Prints an error in its three parts; returns the exit code."""
    if isinstance(error, PeerFailedError):
        return error.exit_code
    if isinstance(error, Awq2trtError):
        print(f"error: {error.what}", file=sys.stderr)
        if error.where:
            print(f"  where: {error.where}", file=sys.stderr)
        if error.fix:
            print(f"  fix: {error.fix}", file=sys.stderr)
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has seen enough. Python would complain when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, OSError) and error.strerror:
        print(f"error: {error.strerror.lower()}", file=sys.stderr)
        if error.filename:
            print(f"  where: {error.filename}", file=sys.stderr)
        return 1
    if isinstance(error, UnicodeEncodeError) and error.reason == UNPAIRED:
        print(f"error: {reason(error)}", file=sys.stderr)
        print("  fix: rename the file, or set the locale that its name was written in.", file=sys.stderr)
        return 1
    if isinstance(error, MemoryError):
        print("error: out of memory\n  fix: close other programs, or use a machine with more memory.", file=sys.stderr)
        return 1
    print(
        f"error: {type(error).__name__}: {error}\n"
        "  This is a bug in awq2trt. Please report it with the output of the same command with\n"
        f"  {DEBUG_VARIABLE}=1 set, which shows where it happened.",
        file=sys.stderr,
    )
    return 1
