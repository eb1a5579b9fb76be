"""Which numbers the device that PyTorch computes on is quick at.

Products of bf16 factors, summed in fp32, take half of the time of fp32 ones or less where the hardware has
instructions for them. Elsewhere PyTorch computes them by detours that take longer.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

import torch

_CPU_FLAGS: Final = frozenset({"avx512_bf16", "amx_bf16"})
"""How Linux calls the instructions of x86; PyTorch uses them by oneDNN."""

_CUDA_CAPABILITY: Final = (8, 0)
"""Ampere, the first GPUs with them."""


def narrow_type() -> torch.dtype:
    """The type whose products are quickest on the device that PyTorch computes on: bf16 if it has instructions."""
    device = torch.get_default_device()
    if device.type == "cuda":
        quick = torch.cuda.get_device_capability(device) >= _CUDA_CAPABILITY
    else:
        quick = bool(_CPU_FLAGS & cpu_flags()) and torch.backends.mkldnn.is_available()
    return torch.bfloat16 if quick else torch.float32


@cache
def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What Linux says that the first CPU can do; nothing where it is not Linux on x86."""
    if not cpuinfo.is_file():
        return frozenset()
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    flags = (line.partition(":")[2].split() for line in lines if line.startswith("flags"))
    return frozenset(next(flags, ()))
