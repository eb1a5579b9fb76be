"""Panels of columns: where the parts of quantizing that go column by column are done, and what compiles them for CPUs.

In: a weight. Out: whether there are kernels that take a whole panel on its device (`awq2trt.quantization.gpu_panels`).
Without them these parts run on the CPU as compiled loops, since one column at a time is too little work for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Final

from torch import Tensor

PANEL: Final = 128
"""Columns whose changes are collected before they are applied to the rest of the matrix (GPTQ, section 3.3, step 2)."""


def has_kernels(weight: Tensor) -> bool:
    """Whether kernels take panels of a weight where it is: on a GPU, with the Triton that PyTorch comes with there."""
    return weight.is_cuda and _triton_is_there()


@cache
def compiled(loop: Callable[..., None]) -> Callable[..., None]:
    """A loop over numpy arrays as machine code. Only efforts that need one wait the second that loading numba takes."""
    import numba

    machine_code: Callable[..., None] = numba.njit(cache=True, nogil=True)(loop)
    return machine_code


@cache
def _triton_is_there() -> bool:
    return find_spec("triton") is not None
