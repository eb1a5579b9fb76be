"""How much memory this machine has and this process holds, from /proc (proc(5)); and sizes as people write them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from awq2trt.errors import UsageError

_UNITS: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class Memory:
    """Memory of this machine.

    Attributes:
        total_bytes: All of it.
        available_bytes: What a new process can have without swapping.
    """

    total_bytes: int
    available_bytes: int


def read_memory() -> Memory:
    """Reads the kernel's current numbers."""
    kibibytes = dict(re.findall(r"^(Mem\w+): +(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE))
    return Memory(1024 * int(kibibytes["MemTotal"]), 1024 * int(kibibytes["MemAvailable"]))


def resident_bytes() -> int:
    """Memory that this process holds now."""
    found = re.search(r"^VmRSS:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


def parse_size(text: str, where: str) -> int:
    """Parses a size like `8G`, `7.5GiB` or `900M` into bytes; units are powers of 1024.

    Args:
        text: What the user wrote.
        where: The flag, for errors.

    Raises:
        UsageError: The text is not a size, or is 0.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT])(?:iB|i|B)?", text.strip(), re.ASCII | re.IGNORECASE)
    size = round(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if size <= 0:
        raise UsageError(
            f"expected a number and K, M, G or T, got {text!r}.", where=where, fix="write for example 8G or 900M."
        )
    return size
