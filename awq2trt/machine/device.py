"""Where PyTorch computes: on the CPU, or on a GPU that the user names.

Callees create tensors on the default device. GPTQ and the descent on codes return to the CPU if there are no kernels
for them (`awq2trt.quantization.panels`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import torch
from numpy.typing import NDArray
from torch import Tensor

from awq2trt.errors import ToolError, UsageError
from awq2trt.machine.memory import read_memory, resident_bytes

CPU: Final = "cpu"
_CUDA: Final = "cuda"

_LIBRARIES_BYTES: Final = 820 << 20
"""Python with PyTorch, transformers, numba's compiler, their threads and freed memory that is kept: what quantizing a
small model took at most in addition to its plan, 765 MB (torch 2.13.0, 2 cores). Not all of it is there when the plan
is made."""

_CONTEXT_BYTES: Final = 600 << 20
"""GPU memory that CUDA, cuBLAS and their kernels take in addition to PyTorch's tensors: 0.5 GB on recent GPUs, and a
reserve."""


@contextmanager
def computing_on(name: str) -> Iterator[str]:
    """Makes PyTorch compute on a device inside the block: new tensors are created there.

    Args:
        name: `cpu`, `cuda`, or `cuda:N` for the Nth GPU from 0.

    Yields:
        The name of the device.

    Raises:
        UsageError: There is no such device.
        ToolError: The device has too little memory for the work in the block.
    """
    device = require_device(name)
    title = torch.cuda.get_device_name(device) if device.type == _CUDA else "CPU"
    try:
        # The CPU is not set, because a default device, even this one, costs every call of PyTorch some microseconds.
        with device if device.type == _CUDA else nullcontext():
            yield title
    except torch.OutOfMemoryError as error:
        raise ToolError(
            f"{title} has too little memory. {str(error).splitlines()[0]}",
            where=f"--device {name}",
            fix="use less text at a time, with --samples or --windows; or --device cpu, with the machine's memory.",
        ) from error


def host_array(tensor: Tensor) -> NDArray[Any]:
    """A tensor's values as NumPy has them; shared with a tensor that is in the machine's memory.

    Those of a GPU come into memory that it writes by itself, several times as fast as into other memory.
    """
    if tensor.device.type != _CUDA:
        return tensor.numpy(force=True)
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, device=CPU, pin_memory=True)
    return pinned.copy_(tensor).numpy()


def available_bytes() -> int:
    """Bytes of memory that are free on the device where PyTorch computes."""
    device = torch.get_default_device()
    return torch.cuda.mem_get_info(device)[0] if device.type == _CUDA else read_memory().available_bytes


def held_bytes() -> int:
    """Bytes of memory that this process holds on PyTorch's device; on a GPU including CUDA's own."""
    device = torch.get_default_device()
    if device.type == _CUDA:
        return _CONTEXT_BYTES + torch.cuda.memory_allocated(device)
    return max(resident_bytes(), _LIBRARIES_BYTES)


def bound_memory(limit_bytes: int) -> None:
    """Limits the GPU memory that PyTorch may take; on the CPU there is no such limit, only the plan."""
    device = torch.get_default_device()
    if device.type == _CUDA:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, max(0, limit_bytes - _CONTEXT_BYTES) / total), device)


def own_device(name: str, local_rank: int) -> str:
    """Returns the device for one of several ranks: the CPU, which they share, or a GPU for each.

    Raises:
        UsageError: One GPU was named for all ranks.
    """
    if name not in (CPU, _CUDA):
        raise UsageError(
            "each of several ranks needs a GPU of its own.",
            where=f"--device {name}",
            fix="use --device cuda: every rank takes the GPU with its number. CUDA_VISIBLE_DEVICES selects GPUs.",
        )
    return name if name == CPU else f"{_CUDA}:{local_rank}"


def require_device(name: str) -> torch.device:
    """Returns a device that exists.

    Raises:
        UsageError: The device does not exist.
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
            fix="leave the option out to compute on the CPU, or install a driver and a PyTorch built with CUDA.",
        )
    index = device.index or 0
    if index >= gpus:
        fix = f"use one of cuda:0 to cuda:{gpus - 1}."
        raise UsageError(f"there is no GPU {index} here.", where=f"--device {name}", fix=fix)
    return torch.device(_CUDA, index)
