"""Inputs that are almost valid, for the fuzzers: a valid file with a few changes, by hypothesis.

In: valid contents. Out: strategies of bytes. JSON is changed as a tree and as text, since most randomly changed text is
not JSON and does not get past the parser.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, Final, NamedTuple

from hypothesis import strategies as st

Json = Any

LENGTH_BYTES: Final = 8
"""Bytes for the length of a safetensors header."""

_NUMBERS: Final = (
    *(0, 1, -1, 2, 3, 7, 8, 64, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**40, 2**60, 2**63 - 1, 2**63),
    *(2**64 - 1, 2**64, -(2**63), 10**400, 0.0, -0.0, 0.5, 1e-300, 1e300, float("inf"), float("nan")),
)
_ODD: Final[tuple[Json, ...]] = (
    *(
        None,
        True,
        False,
        "",
        "a",
        "\x00",
        "\ud800",
        "../victim",
        "/etc/passwd",
        "9" * 5000,
        "float16",
        "default",
        "auto",
    ),
    *([], {}, [[]], [None], [0], [""], [{}], {"": None}, {"a": {"a": {"a": []}}}, list(range(300)), ["x"] * 300),
)
_DEEP: Final = 3000
_DEEPEST: Final = 12
"""Depth of a tree down to which values are changed."""

odd_values: Final = st.one_of(st.sampled_from(_NUMBERS), st.sampled_from(_ODD), st.integers(), st.text(max_size=8))


def json_like(seeds: Sequence[Json]) -> st.SearchStrategy[bytes]:
    """JSON files similar to the valid ones."""

    @st.composite
    def cases(draw: st.DrawFn) -> bytes:
        value = _changed(draw, draw(st.sampled_from(seeds)))
        content = _dumped(value)
        return _maybe(draw, content)

    return cases()


def safetensors_like(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Safetensors files similar to the valid ones, with headers changed as JSON, or with anything changed as bytes."""

    @st.composite
    def cases(draw: st.DrawFn) -> bytes:
        content = draw(st.sampled_from(seeds))
        if draw(st.booleans()):
            return _changed_bytes(draw, content)
        length = struct.unpack("<Q", content[:LENGTH_BYTES])[0]
        header = json.loads(content[LENGTH_BYTES : LENGTH_BYTES + length])
        text = _dumped(_changed(draw, header))
        return struct.pack("<Q", len(text)) + text + content[LENGTH_BYTES + length :]

    return cases()


def bytes_like(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Files similar to the valid ones, with pieces removed, doubled, or overwritten by numbers that could be sizes."""

    @st.composite
    def cases(draw: st.DrawFn) -> bytes:
        return _changed_bytes(draw, draw(st.sampled_from(seeds)))

    return cases()


def text_like(seeds: Sequence[bytes], words: Sequence[str]) -> st.SearchStrategy[bytes]:
    """Text files similar to the valid ones: their lines in any order, and words with a meaning in their language."""
    lines = sorted({line for seed in seeds for line in seed.decode().splitlines()})

    @st.composite
    def cases(draw: st.DrawFn) -> bytes:
        part = st.one_of(st.sampled_from(lines), st.sampled_from(words), st.text(max_size=6))
        text = "\n".join("".join(draw(st.lists(part, max_size=3))) for _ in range(draw(st.integers(0, 12))))
        return _maybe(draw, text.encode("utf-8", errors="surrogatepass"))

    return cases()


def _dumped(value: Json) -> bytes:
    """JSON text, also for values that JSON cannot express."""
    return json.dumps(value).encode()


def _maybe(draw: st.DrawFn, content: bytes) -> bytes:
    """The same cases, of which every fourth is also changed as bytes."""
    return _changed_bytes(draw, content) if draw(st.integers(0, 3)) == 3 else content


def _changed(draw: st.DrawFn, value: Json) -> Json:
    """A copy of a JSON value with one to four changes."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 4))):
        places = _places(value)
        if not places:
            return deepcopy(draw(odd_values))
        place = draw(st.sampled_from(places))
        draw(st.sampled_from(_CHANGES))(draw, place, places)
    return value


class _Place(NamedTuple):
    """The place of a value: in a dict or a list, under a key."""

    holder: Json
    key: Any

    @property
    def value(self) -> Json:
        return self.holder[self.key]


def _places(value: Json, depth: int = 0) -> list[_Place]:
    """All places in a tree, but only some of a long list."""
    if depth > _DEEPEST:
        return []
    keys: list[Any] = list(value) if isinstance(value, dict) else []
    if isinstance(value, list):
        keys = list(range(min(len(value), 6)))
    return [_Place(value, key) for key in keys] + [at for key in keys for at in _places(value[key], depth + 1)]


def _replace(draw: st.DrawFn, at: _Place, others: list[_Place]) -> None:
    del others
    at.holder[at.key] = deepcopy(draw(odd_values))


def _remove(draw: st.DrawFn, at: _Place, others: list[_Place]) -> None:
    del draw, others
    del at.holder[at.key]


def _rename(draw: st.DrawFn, at: _Place, others: list[_Place]) -> None:
    del others
    if isinstance(at.holder, dict):
        name = draw(st.one_of(st.text(max_size=6), st.sampled_from([odd for odd in _ODD if isinstance(odd, str)])))
        at.holder[name] = at.holder.pop(at.key)


def _nudge(draw: st.DrawFn, at: _Place, others: list[_Place]) -> None:
    del others
    value = at.value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        near = (value + 1, value - 1, -value, value * 2, value * 2**20, str(value), [value])
        at.holder[at.key] = draw(st.sampled_from(near))
    else:
        at.holder[at.key] = [value]


def _swap(draw: st.DrawFn, at: _Place, others: list[_Place]) -> None:
    at.holder[at.key] = json.loads(json.dumps(draw(st.sampled_from(others)).value))


def _deepen(draw: st.DrawFn, at: _Place, others: list[_Place]) -> None:
    del others
    for _ in range(draw(st.sampled_from([3, 60, 300]))):
        at.holder[at.key] = [at.value] if draw(st.booleans()) else {"a": at.value}


_CHANGES: Final[tuple[Callable[[st.DrawFn, _Place, list[_Place]], None], ...]] = (
    *(_replace, _replace, _remove, _rename, _nudge, _nudge, _swap, _deepen),
)


def _changed_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Makes one to five changes of bytes."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.integers(0, 5))
        if kind == 0:
            del data[at:]
        elif kind == 1:
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=4))
        elif kind == 2:
            size = draw(st.sampled_from([1, 2, 4, 8]))
            number = int(draw(st.sampled_from([n for n in _NUMBERS if isinstance(n, int) and abs(n) < 2**70])))
            data[at : at + size] = (number % 2 ** (8 * size)).to_bytes(size, "little")
        elif kind == 3:
            del data[at : at + draw(st.integers(1, 64))]
        elif kind == 4:
            data[at:at] = data[at : at + draw(st.integers(1, 64))]
        else:
            data[at:at] = draw(
                st.sampled_from([b"[" * _DEEP, b'{"a":' * _DEEP, b"\xff\xfe", b"\x00" * 16, b"{{", b"*a"])
            )
    return bytes(data)
