"""Which number format PyTorch's device multiplies fastest.

Products of bf16 factors, summed in fp32, take at most half as long as those of fp32 factors if the hardware has
instructions for them. Otherwise PyTorch computes them in ways that take longer.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

import torch

_CPU_FLAGS: Final = frozenset({"avx512_bf16", "amx_bf16"})
"""Linux's names of the x86 instructions, which PyTorch uses through oneDNN."""

_CUDA_CAPABILITY: Final = (8, 0)
"""Ampere: the first GPUs with such instructions."""


def narrow_type() -> torch.dtype:
    """Returns the type whose products PyTorch's device computes fastest: bf16 if it has instructions for it."""
    device = torch.get_default_device()
    if device.type == "cuda":
        quick = torch.cuda.get_device_capability(device) >= _CUDA_CAPABILITY
    else:
        quick = bool(_CPU_FLAGS & cpu_flags()) and torch.backends.mkldnn.is_available()
    return torch.bfloat16 if quick else torch.float32


@cache
def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Returns the features that Linux lists for the first CPU; empty if this is not Linux on x86."""
    if not cpuinfo.is_file():
        return frozenset()
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    flags = (line.partition(":")[2].split() for line in lines if line.startswith("flags"))
    return frozenset(next(flags, ()))
