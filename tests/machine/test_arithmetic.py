"""Which type's products are fastest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from awq2trt.machine import arithmetic


def test_the_flags_of_the_first_cpu_are_read(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nflags\t\t: fpu avx512_bf16 sse\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert arithmetic.cpu_flags(path) == {"fpu", "avx512_bf16", "sse"}


@pytest.mark.parametrize("text", ["", "processor\t: 0\nFeatures\t: fp asimd\n"])
def test_a_cpu_without_flags_has_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cpuinfo"
    assert arithmetic.cpu_flags(path) == frozenset()
    path.write_text(text)
    arithmetic.cpu_flags.cache_clear()
    assert arithmetic.cpu_flags(path) == frozenset()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"avx512_bf16"}, torch.bfloat16),
        ({"amx_bf16", "avx512f"}, torch.bfloat16),
        ({"avx512f"}, torch.float32),
        (set(), torch.float32),
    ],
)
def test_products_are_narrow_where_the_cpu_has_instructions_for_them(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], expected: torch.dtype
) -> None:
    monkeypatch.setattr(arithmetic, "cpu_flags", lambda: frozenset(flags))
    assert arithmetic.narrow_type() == expected
