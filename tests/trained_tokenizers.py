"""Tokenizers in the styles of published models, trained in a second on a text made here, as Hugging Face writes them.

In: nothing. Out: `tokenizers.Tokenizer` objects with a few thousand tokens. Their regular expressions, normalizers,
decoders and flags are those of the models they are named after.
"""

from __future__ import annotations

import base64
import json
import random
import struct
from collections.abc import Callable
from typing import Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

LLAMA3_PATTERN: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2_PATTERN: Final = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
O200K_PATTERN: Final = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
DEEPSEEK_PATTERNS: Final = (
    r"\p{N}{1,3}",
    "[一-龥\u0800-\u4e00\uac00-\ud7ff]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)

_SYLLABLES: Final = [
    "the",
    "qu",
    "ick",
    "brown",
    "fox",
    "er",
    "ing",
    "ed",
    "Hello",
    "World",
    "'ll",
    "'s",
    "can",
    "not",
    "2024",
    "10",
    "3.14",
    "==",
    "(",
    ")",
    "{",
    "}",
    "->",
    "//",
    "\n\t",
    "é",
    "ü",
    "ñ",
    "ß",
    "ção",
    "при",
    "вет",
    "мир",
    "как",
    "дела",
    "हिन्दी",
    "नमस्ते",
    "สวัสดี",
    "你好",
    "世界",
    "我们",
    "こんにちは",
    "日本",
    "語",
    "한국",
    "어",
    "שלום",
    "مرحبا",
    "😀",
    "👍🏽",
    "ﬁ",
    "½",
    "Ⅷ",
    "ｆｕｌｌ",
]


def training_text() -> list[str]:
    """3000 lines of words made of syllables from many scripts; words repeat as in a language."""
    drawn = random.Random(16)
    words = ["".join(drawn.choices(_SYLLABLES, k=drawn.randint(1, 3))) for _ in range(1500)]
    weights = [1 / (rank + 3) for rank in range(len(words))]
    lines = [" ".join(drawn.choices(words, weights, k=drawn.randint(3, 20))) for _ in range(2900)]
    return lines + ["    " * depth + "return x  # indented\n" for depth in range(100)]


def _trained_bpe(tokenizer: Tokenizer, special: list[str], size: int, alphabet: list[str]) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(training_text(), trainer)
    return tokenizer


def _byte_level(
    pre_tokenizer: pre_tokenizers.PreTokenizer, special: list[str], *, ignore_merges: bool = False
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    return _trained_bpe(tokenizer, special, 3000, pre_tokenizers.ByteLevel.alphabet())


def _split(*patterns: str) -> pre_tokenizers.Sequence:
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def gpt2() -> Tokenizer:
    return _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True), ["<|endoftext|>"])


def falcon() -> Tokenizer:
    """ByteLevel is not the last step: later steps see its alphabet."""
    steps = [
        pre_tokenizers.Punctuation("contiguous"),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
    ]
    return _byte_level(pre_tokenizers.Sequence(steps), ["<|endoftext|>"])


def llama3() -> Tokenizer:
    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = _byte_level(_split(LLAMA3_PATTERN), special, ignore_merges=True)
    begin = [("<|begin_of_text|>", 0)]
    template = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=begin)
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def qwen2() -> Tokenizer:
    tokenizer = _byte_level(_split(QWEN2_PATTERN), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("<think>", normalized=False)])
    return tokenizer


def o200k() -> Tokenizer:
    return _byte_level(_split(O200K_PATTERN), ["<|endoftext|>", "<|endofprompt|>"])


def deepseek() -> Tokenizer:
    return _byte_level(_split(*DEEPSEEK_PATTERNS), ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"])


def _spell_bytes(tokenizer: Tokenizer, **flags: bool) -> Tokenizer:
    """Gives a BPE tokenizer the tokens <0x00> to <0xFF>, as SentencePiece numbers them, and its flags."""
    definition = json.loads(tokenizer.to_str())
    special = [token["content"] for token in definition["added_tokens"]]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    rest = sorted(definition["model"]["vocab"], key=definition["model"]["vocab"].__getitem__)
    pieces += [piece for piece in rest if piece not in set(pieces)]
    definition["model"]["vocab"] = {piece: index for index, piece in enumerate(pieces)}
    definition["model"].update(unk_token="<unk>", byte_fallback=True, fuse_unk=True, **flags)
    return Tokenizer.from_str(json.dumps(definition))


def llama2() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # for training alone
    _trained_bpe(tokenizer, ["<unk>", "<s>", "</s>"], 2500, [])
    tokenizer.pre_tokenizer = None
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _spell_bytes(tokenizer)


def mistral() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    _trained_bpe(tokenizer, ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"], 2500, [])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _spell_bytes(tokenizer)


def gemma() -> Tokenizer:
    """Merges cross spaces, and runs of spaces and line ends are added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    _trained_bpe(tokenizer, ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"], 2500, [])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = _spell_bytes(tokenizer)
    tokenizer.add_tokens([AddedToken("\n" * count, normalized=False) for count in (2, 3, 4)])
    return tokenizer


def _trained_unigram(tokenizer: Tokenizer, special: list[str]) -> Tokenizer:
    trainer = trainers.UnigramTrainer(
        vocab_size=2000, special_tokens=special, unk_token="<unk>", show_progress=False, n_sub_iterations=1
    )
    tokenizer.train_from_iterator(training_text(), trainer)
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _trained_unigram(tokenizer, ["<pad>", "</s>", "<unk>"])


def albert() -> Tokenizer:
    """Accents and case are removed; digits and punctuation stand alone."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Metaspace(prepend_scheme="always"),
        ]
    )
    tokenizer.decoder = decoders.Metaspace()
    _trained_unigram(tokenizer, ["[CLS]", "[SEP]", "<unk>"])
    tokenizer.add_special_tokens([AddedToken("[MASK]", lstrip=True), AddedToken("word", single_word=True)])
    return tokenizer


def compiled_table(replacements: dict[str, str]) -> str:
    """SentencePiece's table of replacements, in base64: a double array over the bytes of the keys, then the texts.

    Its format: https://github.com/s-yata/darts-clone, and normalizer.cc of SentencePiece.
    """
    texts, values = b"", {}
    for key, text in replacements.items():
        values[key.encode()] = len(texts)
        texts += text.encode() + b"\0"
    units: dict[int, int] = {}
    free_from = 1

    def place(prefix: bytes, position: int) -> int:
        """Places the children of a prefix, whose own unit is `position`. Returns the offset to them."""
        nonlocal free_from
        following = sorted({key[len(prefix)] for key in values if key.startswith(prefix) and key != prefix})
        labels = ([0] if prefix in values else []) + following
        base = free_from
        # Offsets above 2^21 would need the flag that multiplies them by 256; these tables are small.
        while any(base ^ label in units or base ^ label == position for label in labels):
            base += 1
        for label in labels:
            units[base ^ label] = label
        if prefix in values:
            units[base] = values[prefix] | 1 << 31
        for label in following:
            child = prefix + bytes([label])
            offset = place(child, base ^ label) ^ (base ^ label)
            units[base ^ label] = label | offset << 10 | (child in values) << 8
        return base

    units[0] = 0
    units[0] = place(b"", 0) << 10
    array = struct.pack(f"<{max(units) + 256}I", *(units.get(i, 0) for i in range(max(units) + 256)))
    return base64.b64encode(struct.pack("<I", len(array)) + array + texts).decode()


def t5() -> Tokenizer:
    """Unigram behind SentencePiece's compiled table of replacements."""
    table = {"ﬁ": "fi", "½": "1/2", "ｆ": "f", "é": "é", "\t": " ", "\u200b": " ", "①": "1", "e\u0301": "é", "\r": ""}
    definition = json.loads(unigram().to_str())
    definition["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Precompiled", "precompiled_charsmap": compiled_table(table)},
            {"type": "Strip", "strip_left": False, "strip_right": True},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"},
        ],
    }
    return Tokenizer.from_str(json.dumps(definition))


STYLES: Final[dict[str, Callable[[], Tokenizer]]] = {
    style.__name__: style
    for style in (gpt2, falcon, llama3, qwen2, o200k, deepseek, llama2, mistral, gemma, unigram, albert, t5)
}
