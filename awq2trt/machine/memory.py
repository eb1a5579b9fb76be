"""How much memory this machine has, from /proc/meminfo (proc(5))."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


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
    """Reads what the kernel says now."""
    kibibytes = dict(re.findall(r"^(Mem\w+): +(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE))
    return Memory(1024 * int(kibibytes["MemTotal"]), 1024 * int(kibibytes["MemAvailable"]))
