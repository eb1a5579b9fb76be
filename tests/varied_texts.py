"""Texts that tokenizers trip over: all scripts, emoji, control characters, spaces of all kinds, invalid bytes."""

from __future__ import annotations

import random
import unicodedata
from typing import Final

# Blocks of scripts, by their first and last characters; only assigned characters of each are used.
_BLOCKS: Final = (
    (0x20, 0x7E), (0x20, 0x7E), (0x61, 0x7A), (0xA0, 0xFF), (0x100, 0x24F), (0x300, 0x36F), (0x370, 0x3FF),
    (0x400, 0x4FF), (0x530, 0x58F), (0x590, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x10A0, 0x10FF),
    (0x1100, 0x11FF), (0x1E00, 0x1EFF), (0x1F00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x218F), (0x2460, 0x24FF),
    (0x2500, 0x27BF), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xF900, 0xFAFF), (0xFB00, 0xFDFF),
    (0xFE00, 0xFE6F), (0xFF00, 0xFFEF), (0x10400, 0x1044F), (0x12000, 0x1236F), (0x1D400, 0x1D7FF), (0x1F300, 0x1F64F),
)  # fmt: skip
_SPACES: Final = " \t\n\r\x0b\x0c\x85\xa0\u1680\u2000\u2009\u2028\u2029\u202f\u205f\u3000\u200b\u200d\ufeff"
_FRAGMENTS: Final = (
    "Hello", " world", "I'm", "we'LL", "don't", " 's", "12345", "3.14", "  ", "   ", "\n", "\n\n", "\n\n\n", "\r\n", "\t",
    " \n ", "...", "!!", "--", "==", "://", "</s>", "<s>", "<unk>", "▁", "▁▁", "<0x41>", "Ġ", "👨‍👩‍👧‍👦", "🇩🇪", "👍🏽", "é", "e\u0301",
    "ﬁ", "½", "①", "İ", "ß", "ẞ", "Σς", "นี้", "नमस्ते", "한국어", "你好世界", "こんにちは", "שלום", "مرحبا", "Привет", "word", " the",
    "\x00", "\x01", "\x1b[0m", "\x7f", "\ufffd", "<think>", "[MASK]", "if (x) {\n    return;\n}",
)  # fmt: skip


def _in_blocks(drawn: random.Random) -> str:
    first, last = drawn.choice(_BLOCKS)
    characters = (chr(drawn.randint(first, last)) for _ in range(drawn.randint(1, 12)))
    return "".join(c for c in characters if unicodedata.category(c) != "Cn")


def _piece(drawn: random.Random) -> str:
    kind = drawn.random()
    if kind < 0.45:
        return drawn.choice(_FRAGMENTS)
    if kind < 0.8:
        return _in_blocks(drawn)
    if kind < 0.9:
        return "".join(drawn.choices(_SPACES, k=drawn.randint(1, 4)))
    return drawn.randbytes(drawn.randint(1, 8)).decode("utf-8", "replace")


def varied_texts(count: int, seed: int = 16) -> list[str]:
    """`count` texts of about 40 characters each, the same ones every time."""
    drawn = random.Random(seed)
    texts = ["", " ", "  ", "\n", "▁", "a", "\x00", *_FRAGMENTS]
    while len(texts) < count:
        texts.append("".join(_piece(drawn) for _ in range(drawn.randint(1, 10))))
    return texts[:count]


def long_words() -> list[str]:
    """Words of 200 kB and the like, in which there is nothing to split at."""
    return ["a" * 200_000, "你好" * 33_000, " " * 200_000 + "x", "ab1" * 70_000, "=" * 200_000, "\n" * 50_000]
