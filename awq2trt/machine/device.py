"""Where PyTorch computes: on the CPU, or on a GPU that the user names.

Below this, tensors are made on the default device. GPTQ and the descent on codes go back to the CPU: a column at a time
is too little work for anything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Final

import torch

from awq2trt.errors import ToolError, UsageError
from awq2trt.machine.memory import read_memory, resident_bytes

CPU: Final = "cpu"
_CUDA: Final = "cuda"

_LIBRARIES_BYTES: Final = 700 << 20
"""Python with PyTorch, transformers, their threads and freed memory that is kept: what quantizing a small model took at
most beside its plan, 640 MB (torch 2.13.0, 2 cores). Not all of it is there when the plan is made."""

_CONTEXT_BYTES: Final = 600 << 20
"""What CUDA, cuBLAS and their kernels take of a GPU beside PyTorch's tensors: 0.5 GB on recent ones, and some more."""


@contextmanager
def computing_on(name: str) -> Iterator[str]:
    """Makes PyTorch compute on a device while it lasts: new tensors are there.

    Args:
        name: `cpu`, `cuda`, or `cuda:N` for the Nth GPU from 0.

    Yields:
        What the device is called.

    Raises:
        UsageError: There is no such device.
        ToolError: Its memory does not suffice for what is done there.
    """
    device = require_device(name)
    title = torch.cuda.get_device_name(device) if device.type == _CUDA else "CPU"
    try:
        # Not for the CPU: a default device, even this one, costs every call of PyTorch some microseconds.
        with device if device.type == _CUDA else nullcontext():
            yield title
    except torch.OutOfMemoryError as error:
        raise ToolError(
            f"the memory of {title} does not suffice. {str(error).splitlines()[0]}",
            where=f"--device {name}",
            fix="less text at a time, by --samples or --windows; or --device cpu, which has the machine's memory.",
        ) from error


def available_bytes() -> int:
    """Memory that is free on the device that PyTorch computes on."""
    device = torch.get_default_device()
    return torch.cuda.mem_get_info(device)[0] if device.type == _CUDA else read_memory().available_bytes


def held_bytes() -> int:
    """Memory that this process holds on the device that PyTorch computes on; on a GPU, with what CUDA itself takes."""
    device = torch.get_default_device()
    if device.type == _CUDA:
        return _CONTEXT_BYTES + torch.cuda.memory_allocated(device)
    return max(resident_bytes(), _LIBRARIES_BYTES)


def bound_memory(limit_bytes: int) -> None:
    """Lets PyTorch take no more of a GPU's memory; the CPU's has no such bound, and is only planned for."""
    device = torch.get_default_device()
    if device.type == _CUDA:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, max(0, limit_bytes - _CONTEXT_BYTES) / total), device)


def own_device(name: str, local_rank: int) -> str:
    """The device of one of several ranks: the CPU, which they share, or a GPU for each.

    Raises:
        UsageError: One GPU is named for all.
    """
    if name not in (CPU, _CUDA):
        raise UsageError(
            "each of several ranks computes on a GPU of its own.",
            where=f"--device {name}",
            fix="--device cuda: every rank takes the GPU of its number. CUDA_VISIBLE_DEVICES says which there are.",
        )
    return name if name == CPU else f"{_CUDA}:{local_rank}"


def require_device(name: str) -> torch.device:
    """A device that is there.

    Raises:
        UsageError: It is not.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in (CPU, _CUDA):
        raise UsageError(
            f"expected cpu, cuda or cuda:N, got {name!r}.", where="--device", fix="cuda is the first NVIDIA GPU."
        )
    if device.type == CPU:
        return device
    gpus = torch.cuda.device_count()
    if not gpus:
        raise UsageError(
            f"PyTorch {torch.__version__} finds no GPU here.",
            where=f"--device {name}",
            fix="leave the option out, to compute on the CPU; or install a driver, and a PyTorch built with CUDA.",
        )
    index = device.index or 0
    if index >= gpus:
        fix = f"one from cuda:0 to cuda:{gpus - 1}."
        raise UsageError(f"there is no GPU {index} here.", where=f"--device {name}", fix=fix)
    return torch.device(_CUDA, index)
