"""The sampler of the C++ library, by ctypes over its C interface (plugins/runtime/generation/c_api.h).

Nothing is loaded before a test asks for it; tests are skipped where `make runtime` has not built the library.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from native_text import BUILD, NativeError
from numpy.typing import NDArray

from awq2trt.runtime.sampling import Sampling


class _Options(ctypes.Structure):
    """awq2trt_sampling."""

    _fields_ = (
        ("temperature", ctypes.c_float),
        ("top_k", ctypes.c_int32),
        ("top_p", ctypes.c_float),
        ("min_p", ctypes.c_float),
        ("repetition_penalty", ctypes.c_float),
        ("seed", ctypes.c_uint64),
        ("bias_ids", ctypes.POINTER(ctypes.c_int32)),
        ("biases", ctypes.POINTER(ctypes.c_float)),
        ("bias_count", ctypes.c_size_t),
    )


@cache
def library() -> ctypes.CDLL:
    """The library, or a skip."""
    path = BUILD / "libawq2trt_sampler_c.so"
    if not path.is_file():
        pytest.skip("the C++ library is not built: make runtime")
    loaded = ctypes.CDLL(str(path))
    loaded.awq2trt_sampler_last_error.restype = ctypes.c_char_p
    loaded.awq2trt_sampler_close.argtypes, loaded.awq2trt_sampler_close.restype = [ctypes.c_void_p], None
    return loaded


def _checked(code: int) -> int:
    if code < 0:
        raise NativeError(-code, library().awq2trt_sampler_last_error().decode("utf-8", "replace"))
    return code


class NativeSampler:
    """A sampler for scores of a given size. The settings need a seed."""

    def __init__(self, sampling: Sampling, vocab_size: int) -> None:
        ids, biases = list(sampling.logit_bias), list(sampling.logit_bias.values())
        options = _Options(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            seed=sampling.seed,
            bias_ids=(ctypes.c_int32 * len(ids))(*ids),
            biases=(ctypes.c_float * len(ids))(*biases),
            bias_count=len(ids),
        )
        self.handle = ctypes.c_void_p()
        size = ctypes.c_int64(vocab_size)
        _checked(library().awq2trt_sampler_open(ctypes.byref(options), size, ctypes.byref(self.handle)))

    def __del__(self) -> None:
        if self.handle.value:
            library().awq2trt_sampler_close(self.handle)

    def see(self, tokens: Sequence[int]) -> None:
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        _checked(library().awq2trt_sampler_see(self.handle, array, ctypes.c_size_t(len(tokens))))

    def pick(self, logits: NDArray[np.float32]) -> int:
        return _checked(
            library().awq2trt_sampler_pick(self.handle, np.ascontiguousarray(logits).ctypes.data_as(ctypes.c_void_p))
        )
