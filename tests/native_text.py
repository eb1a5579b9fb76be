"""The text half of the C++ library, by ctypes over its C interface (plugins/runtime/text/c_api.h).

Nothing is loaded before a test asks for it; tests are skipped where `make runtime` has not built the library.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

BUILD: Final = Path(os.environ.get("AWQ2TRT_RUNTIME_BUILD") or Path(__file__).parents[1] / "build" / "runtime")
"""Where `make runtime` builds; `make test-sanitizers` sets the variable to other builds of the same library."""

LIBRARY: Final = BUILD / "libawq2trt_text_c.so"

BAD_ARGUMENT, NOT_FOUND, MALFORMED, UNSUPPORTED, INVALID_UTF8, TEMPLATE_RAISED, LIMIT, RUN_FAILED = (
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    23,
)


class NativeError(Exception):
    """An error of the library.

    Attributes:
        code: One of awq2trt.hpp.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@cache
def library() -> ctypes.CDLL:
    """The library, or a skip."""
    if not LIBRARY.is_file():
        pytest.skip("the C++ library is not built: make runtime")
    loaded = ctypes.CDLL(str(LIBRARY))
    loaded.awq2trt_text_last_error.restype = ctypes.c_char_p
    for name in ("free", "tokenizer_close", "stream_close", "template_close"):
        function = getattr(loaded, f"awq2trt_text_{name}")
        function.argtypes, function.restype = [ctypes.c_void_p], None
    return loaded


def _call(name: str, *arguments: Any) -> None:
    loaded = library()
    code = getattr(loaded, f"awq2trt_text_{name}")(*arguments)
    if code != 0:
        raise NativeError(code, loaded.awq2trt_text_last_error().decode("utf-8", "replace"))


def _text(name: str, *arguments: Any) -> str:
    text, size = ctypes.c_void_p(), ctypes.c_size_t()
    _call(name, *arguments, ctypes.byref(text), ctypes.byref(size))
    try:
        return ctypes.string_at(text, size.value).decode("utf-8")
    finally:
        library().awq2trt_text_free(text)


def _ids(name: str, *arguments: Any) -> list[int]:
    ids, count = ctypes.POINTER(ctypes.c_int32)(), ctypes.c_size_t()
    _call(name, *arguments, ctypes.byref(ids), ctypes.byref(count))
    try:
        return ids[: count.value]
    finally:
        library().awq2trt_text_free(ctypes.cast(ids, ctypes.c_void_p))


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


class NativeTokenizer:
    """The tokenizer of a directory with a tokenizer.json."""

    def __init__(self, directory: Path) -> None:
        self.handle = ctypes.c_void_p()
        _call("tokenizer_open", str(directory).encode(), ctypes.byref(self.handle))

    def __del__(self) -> None:
        if self.handle.value:
            library().awq2trt_text_tokenizer_close(self.handle)

    @property
    def size(self) -> int:
        return int(library().awq2trt_text_tokenizer_size(self.handle))

    def token_id(self, token: str) -> int:
        return int(library().awq2trt_text_token_id(self.handle, token.encode()))

    def encode(self, text: str | bytes, *, allow_special: bool = False, add_special_tokens: bool = False) -> list[int]:
        data = _bytes(text)
        size = ctypes.c_size_t(len(data))
        return _ids("encode", self.handle, data, size, int(allow_special), int(add_special_tokens))

    def encode_parts(self, parts: Sequence[tuple[str, bool]]) -> list[int]:
        """Ids of a text in parts, each of which is trusted or not."""
        data = [text.encode() for text, _ in parts]
        texts = (ctypes.c_char_p * len(data))(*data)
        sizes = (ctypes.c_size_t * len(data))(*map(len, data))
        trusted = (ctypes.c_int32 * len(data))(*(int(flag) for _, flag in parts))
        return _ids("encode_parts", self.handle, texts, sizes, trusted, ctypes.c_size_t(len(data)), 0)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        array = (ctypes.c_int32 * len(ids))(*ids)
        return _text("decode", self.handle, array, ctypes.c_size_t(len(ids)), int(skip_special))

    def stream(self, ids: Sequence[int], *, skip_special: bool = True) -> list[str]:
        """The pieces of text that a stream returns for one id after another, and at its end."""
        handle = ctypes.c_void_p()
        _call("stream_open", self.handle, int(skip_special), ctypes.byref(handle))
        try:
            pieces = [_text("stream_push", handle, ctypes.c_int32(token)) for token in ids]
            return [*pieces, _text("stream_finish", handle)]
        finally:
            library().awq2trt_text_stream_close(handle)


class NativeTemplate:
    """A chat template: its source, or the one of a directory."""

    def __init__(self, source: str | Path, bos: str | None = None, eos: str | None = None) -> None:
        self.handle = ctypes.c_void_p()
        if isinstance(source, Path):
            _call("template_open", str(source).encode(), ctypes.byref(self.handle))
        else:
            names = [None if name is None else name.encode() for name in (bos, eos)]
            _call("template_parse", source.encode(), *names, ctypes.byref(self.handle))

    def __del__(self) -> None:
        if self.handle.value:
            library().awq2trt_text_template_close(self.handle)

    def parts(
        self,
        messages: object,
        tokenizer: NativeTokenizer | None = None,
        *,
        add_generation_prompt: bool = True,
        now: int = 0,
    ) -> list[tuple[str, bool]]:
        """The rendered text in parts, each with whether the template wrote it. `messages` is a list, or JSON text."""
        text = messages if isinstance(messages, str) else json.dumps(messages)
        rendered = _text(
            "template_render",
            self.handle,
            tokenizer.handle if tokenizer else None,
            text.encode(),
            int(add_generation_prompt),
            ctypes.c_int64(now),
        )
        return [(part, trusted) for part, trusted in json.loads(rendered)]

    def render(self, messages: object, *, add_generation_prompt: bool = True, now: int = 0) -> str:
        parts = self.parts(messages, add_generation_prompt=add_generation_prompt, now=now)
        return "".join(text for text, _ in parts)
