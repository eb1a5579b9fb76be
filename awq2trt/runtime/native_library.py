"""The C interface of the C++ library, through ctypes: structures, calls that raise, and memory that is freed.

In: `plugins/runtime/include/awq2trt/awq2trt.h`, which documents the calls; a test compares the structures with the
library's own layout. Out: Python values and the package's errors.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, ClassVar, Final

from awq2trt.errors import ArtifactError, Awq2trtError, NoGpuError, ToolError, UnsupportedError, UsageError
from awq2trt.machine.runtime_library import find_runtime_library

BAD_ARGUMENT, NOT_FOUND, MALFORMED, UNSUPPORTED, INVALID_UTF8, TEMPLATE_RAISED = 1, 2, 3, 4, 5, 6
LIMIT, INTERNAL, CHANGED_FILE, FUTURE_MANIFEST, NOT_A_MODEL, NO_TEMPLATE = 7, 8, 9, 10, 11, 12
WRONG_TOKENIZER, EMPTY_PROMPT, TOO_LONG, BUSY, NO_RUNTIME, NO_DRIVER = 13, 14, 15, 16, 17, 18
WRONG_DEVICE, OUT_OF_DEVICE_MEMORY, ENGINE_VERSION, REFUSED, RUN_FAILED = 19, 20, 21, 22, 23
OPERATORS_MISSING, OPERATORS_VERSION, OPERATORS_UNTRUSTED, WRONG_ANSWERS = 24, 25, 26, 27
"""Codes of `ErrorCode` in awq2trt.hpp."""

_USAGE: Final = (BAD_ARGUMENT, INVALID_UTF8, TEMPLATE_RAISED, NOT_A_MODEL, NO_TEMPLATE, EMPTY_PROMPT, TOO_LONG, BUSY)
_ARTIFACT: Final = (NOT_FOUND, MALFORMED, CHANGED_FILE, WRONG_TOKENIZER, REFUSED)
_NO_GPU: Final = (NO_DRIVER,)
_UNSUPPORTED: Final = (UNSUPPORTED, LIMIT, FUTURE_MANIFEST)

_FIX: Final = "\n  fix: "
"""The text before the last part of a message, as plugins/runtime/text/error.cpp writes it."""


class LoadOptionsStructure(ctypes.Structure):
    """`awq2trt_load_options`."""

    _fields_: ClassVar = [
        ("size", ctypes.c_size_t),
        ("verify", ctypes.c_int32),
        ("device", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("no_cuda_graph", ctypes.c_int32),
        ("trust_directory_library", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("onnxruntime_library", ctypes.c_char_p),
        ("operators_library", ctypes.c_char_p),
        ("stream", ctypes.c_void_p),
        ("allocate", ctypes.c_void_p),
        ("free", ctypes.c_void_p),
        ("allocator_context", ctypes.c_void_p),
        ("tensorrt_library", ctypes.c_char_p),
    ]


class MessageStructure(ctypes.Structure):
    """`awq2trt_message`."""

    _fields_: ClassVar = [
        ("role", ctypes.c_char_p),
        ("role_bytes", ctypes.c_size_t),
        ("content", ctypes.c_char_p),
        ("content_bytes", ctypes.c_size_t),
    ]


class TextStructure(ctypes.Structure):
    """`awq2trt_text`."""

    _fields_: ClassVar = [("data", ctypes.c_char_p), ("bytes", ctypes.c_size_t)]


class BiasStructure(ctypes.Structure):
    """`awq2trt_bias`."""

    _fields_: ClassVar = [("token", ctypes.c_int32), ("bias", ctypes.c_float)]


class GenerateOptionsStructure(ctypes.Structure):
    """`awq2trt_generate_options`."""

    _fields_: ClassVar = [
        ("size", ctypes.c_size_t),
        ("max_tokens", ctypes.c_int64),
        ("temperature", ctypes.c_float),
        ("top_k", ctypes.c_int32),
        ("top_p", ctypes.c_float),
        ("min_p", ctypes.c_float),
        ("repetition_penalty", ctypes.c_float),
        ("has_seed", ctypes.c_int32),
        ("seed", ctypes.c_uint64),
        ("logit_bias", ctypes.POINTER(BiasStructure)),
        ("logit_bias_count", ctypes.c_size_t),
        ("stop", ctypes.POINTER(TextStructure)),
        ("stop_count", ctypes.c_size_t),
        ("stop_tokens", ctypes.POINTER(ctypes.c_int32)),
        ("stop_tokens_count", ctypes.c_size_t),
        ("ignore_model_stops", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    ]


class ResultStructure(ctypes.Structure):
    """`awq2trt_result`."""

    _fields_: ClassVar = [
        ("text", ctypes.c_void_p),
        ("text_bytes", ctypes.c_size_t),
        ("tokens", ctypes.POINTER(ctypes.c_int32)),
        ("tokens_count", ctypes.c_size_t),
        ("finish_reason", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("prompt_tokens", ctypes.c_int64),
        ("new_tokens", ctypes.c_int64),
        ("prefill_ms", ctypes.c_double),
        ("decode_ms", ctypes.c_double),
    ]


class LayoutStructure(ctypes.Structure):
    """`awq2trt_layout`."""

    _fields_: ClassVar = [
        ("structure", ctypes.c_char_p),
        ("name", ctypes.c_char_p),
        ("offset", ctypes.c_size_t),
        ("bytes", ctypes.c_size_t),
    ]


STRUCTURES: Final = {
    "awq2trt_load_options": LoadOptionsStructure,
    "awq2trt_message": MessageStructure,
    "awq2trt_text": TextStructure,
    "awq2trt_bias": BiasStructure,
    "awq2trt_generate_options": GenerateOptionsStructure,
    "awq2trt_result": ResultStructure,
}

CALLBACK: Final = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
"""`awq2trt_callback`."""


@cache
def library() -> ctypes.CDLL:
    """Returns the library, which is loaded once.

    Raises:
        ToolError: The library is missing or cannot be loaded.
    """
    path = find_runtime_library()
    try:
        loaded = ctypes.CDLL(str(path))
        for name in ("version", "last_error", "model_title"):
            getattr(loaded, f"awq2trt_{name}").restype = ctypes.c_char_p
        for name in ("model_capacity", "model_vocab_size", "model_tokens_per_image", "session_capacity"):
            getattr(loaded, f"awq2trt_{name}").restype = ctypes.c_int64
        for name in ("free", "model_close", "session_close", "session_cancel", "result_free"):
            function = getattr(loaded, f"awq2trt_{name}")
            function.argtypes, function.restype = [ctypes.c_void_p], None
        for name in ("model_title", "model_capacity", "model_vocab_size", "model_tokens_per_image", "session_capacity"):
            getattr(loaded, f"awq2trt_{name}").argtypes = [ctypes.c_void_p]
        loaded.awq2trt_layouts.restype = ctypes.POINTER(LayoutStructure)
    except (OSError, AttributeError) as error:
        raise ToolError(f"{path.name} cannot be used: {error}.", where=str(path), fix="run `make runtime`.") from error
    return loaded


def call(name: str, *arguments: Any) -> None:
    """Calls a function that may fail.

    Raises:
        Awq2trtError: The function fails.
    """
    code = getattr(library(), f"awq2trt_{name}")(*arguments)
    if code != 0:
        raise error_of(code, library().awq2trt_last_error().decode("utf-8", "replace"))


def error_of(code: int, message: str) -> Awq2trtError:
    """Returns the package's error for one of the library; its attribute `code` is the library's code."""
    what, _, fix = message.partition(_FIX)
    kinds = (
        (UsageError, _USAGE),
        (ArtifactError, _ARTIFACT),
        (UnsupportedError, _UNSUPPORTED),
        (NoGpuError, _NO_GPU),
    )
    kind = next((kind for kind, codes in kinds if code in codes), ToolError)
    error = kind(what, fix=fix or None)
    error.__dict__["code"] = code
    return error


def take_tokens(name: str, *arguments: Any) -> list[int]:
    """Calls a function that returns tokens."""
    tokens, count = ctypes.POINTER(ctypes.c_int32)(), ctypes.c_size_t()
    call(name, *arguments, ctypes.byref(tokens), ctypes.byref(count))
    try:
        return tokens[: count.value]
    finally:
        library().awq2trt_free(ctypes.cast(tokens, ctypes.c_void_p))


def take_text(name: str, *arguments: Any) -> str:
    """Calls a function that returns text."""
    text, size = ctypes.c_void_p(), ctypes.c_size_t()
    call(name, *arguments, ctypes.byref(text), ctypes.byref(size))
    try:
        return ctypes.string_at(text, size.value).decode("utf-8")
    finally:
        library().awq2trt_free(text)


def layouts() -> dict[tuple[str, str], tuple[int, int]]:
    """The library's own layout: (structure, field) -> (offset, bytes); the field "" is the structure itself."""
    count = ctypes.c_size_t()
    first = library().awq2trt_layouts(ctypes.byref(count))
    return {
        (first[i].structure.decode(), first[i].name.decode()): (first[i].offset, first[i].bytes)
        for i in range(count.value)
    }
