"""Memory of the machine and of this process, and sizes as people write them."""

from __future__ import annotations

import numpy as np
import pytest

from awq2trt.errors import UsageError
from awq2trt.machine.memory import parse_size, read_memory, resident_bytes


def test_what_is_held_grows_with_what_is_filled() -> None:
    before = resident_bytes()
    filled = np.ones(50 << 20, np.uint8)
    assert resident_bytes() - before > 0.9 * filled.nbytes
    assert before < read_memory().total_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8G", 8 << 30),
        ("8 GiB", 8 << 30),
        ("1.5g", 3 << 29),
        ("900MB", 900 << 20),
        (" 64k ", 64 << 10),
        ("1Ti", 1 << 40),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, "--max-memory") == size


@pytest.mark.parametrize("text", ["", "8", "0G", "-8G", "G", "8X", "8G8", "1e3G", "nan", "\u0668G"])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected a number and K, M, G or T"):
        parse_size(text, "--max-memory")
