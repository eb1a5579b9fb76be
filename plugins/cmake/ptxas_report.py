"""Stores ptxas's report of each object; checks that hot kernels neither spill registers nor serialize products.

ptxas_report.py keep NVCC ARGUMENTS...   runs the compiler; what ptxas says goes into OBJECT.ptxas
ptxas_report.py check FOLDER             prints a line per kernel; exit 1 if a hot one spills or serializes, or if none
                                         was found
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# What ptxas says where it cannot let products run asynchronously (wgmma), which halves their speed.
SERIALIZED = "wgmma.mma_async instructions are serialized"

HOT_KERNELS = ("decode_kernel", "decode_once_kernel", "tile_kernel", "warpgroup_kernel", "warpgroup_attention_kernel")

# ptxas -v prints three lines for a kernel: its name and target, its stack and spills, its registers.
_ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")


@dataclass(frozen=True)
class Usage:
    """What one kernel needs on one target."""

    kernel: str
    target: str
    registers: int
    spill_bytes: int


def keep(command: list[str]) -> int:
    """Runs the compiler and returns its exit status."""
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    lines = result.stderr.splitlines(keepends=True)
    report = [line for line in lines if "ptxas info" in line or "bytes spill" in line]
    sys.stderr.writelines(line for line in lines if line not in report and line.strip())
    if "-o" in command:
        Path(command[command.index("-o") + 1] + ".ptxas").write_text("".join(report))
    return result.returncode


def read_usage(text: str) -> Iterator[Usage]:
    """Reads the kernels of one report."""
    kernel, target, spill_bytes = "", "", 0
    for line in text.splitlines():
        if entry := _ENTRY.search(line):
            kernel, target = entry.groups()
            spill_bytes = 0
        elif (spills := _SPILLS.search(line)) and kernel:
            spill_bytes += sum(map(int, spills.groups()))
        elif (registers := _REGISTERS.search(line)) and kernel:
            yield Usage(kernel, target, int(registers.group(1)), spill_bytes)
            kernel = ""


def check(folder: Path) -> int:
    """Prints the table; returns the exit status."""
    reports = {path: path.read_text() for path in sorted(folder.rglob("*.ptxas"))}
    usages = [usage for text in reports.values() for usage in read_usage(text)]
    hot = [usage for usage in usages if any(name in usage.kernel for name in HOT_KERNELS)]
    for usage in hot:
        print(f"{usage.target:>7} {usage.registers:>4} registers {usage.spill_bytes:>5} bytes spilled  {usage.kernel}")
    spilling = [usage for usage in hot if usage.spill_bytes]
    print(f"{len(hot)} hot kernels, {len(spilling)} of them spill")
    serialized = [path for path, text in reports.items() if SERIALIZED in text]
    for path in serialized:
        print(f"{path}: {SERIALIZED}")
    return 1 if spilling or serialized or not hot else 0


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["keep", *command] if command:
            sys.exit(keep(command))
        case ["check", folder]:
            sys.exit(check(Path(folder)))
        case _:
            sys.exit(__doc__)
