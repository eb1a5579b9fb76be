"""Calibration text -> token windows [samples, seqlen]: from a file, a data set, or written by the model itself.

A file's windows are spread evenly over it, so that no part of it weighs more than another and nothing is drawn at
random. `self` needs no data at all: the model continues its own first tokens (the idea of LLM-QAT,
arXiv:2305.17888, section 3.1: text sampled from the model covers what it saw in training).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from awq2trt.decoder import BlockRunner, BlockWeights, Ends, KeyValueCache, load_block
from awq2trt.device import available_bytes
from awq2trt.errors import CalibrationError, CheckpointError, ToolError, UsageError
from awq2trt.families import DecoderSpec, family_named
from awq2trt.progress import Progress
from awq2trt.recipe import QuantizeOptions
from awq2trt.source import ModelSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SELF: Final = "self"

MAX_TEXT_BYTES: Final = 64 << 20
"""How much of a text file is read: some 15 million tokens, a thousand times what a search uses."""

CHARACTERS_PER_TOKEN: Final = 16
"""How much text of a data set is fetched per token wanted; English has 4 to 5, tables of numbers under 2."""

_GREEDY_START: Final = 4
"""First tokens written greedily after the random first one (LLM-QAT: 3 to 5), before sampling starts."""

_FP32_BYTES: Final = 4

_TOP_K: Final = 100
"""Tokens to draw from: the tail of a small model's distribution is noise, and one draw there derails the text."""


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer saved in `directory`.

    Raises:
        CheckpointError: transformers cannot load it.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError(
            f"transformers cannot load the tokenizer ({str(error).splitlines()[0]}).",
            where=str(directory),
            fix="put the model's own tokenizer.json and tokenizer_config.json there.",
        ) from error
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text, without special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def bos_of(tokenizer: PreTrainedTokenizerBase, family: str) -> int | None:
    """The token that windows of text begin with: BOS for a family that needs it, else none."""
    bos: int | None = tokenizer.bos_token_id if family_named(family).needs_bos else None
    return bos


def text_windows(
    tokenizer: PreTrainedTokenizerBase, text: str, samples: int, seqlen: int, *, where: str, bos: int | None = None
) -> Tensor:
    """Windows spread evenly over a text.

    Args:
        tokenizer: Of the model.
        text: Everything there is.
        samples: Windows wanted.
        seqlen: Tokens in a window.
        where: Name of the text, for errors.
        bos: Begins every window, in place of its first token; None for text alone.

    Returns:
        int64 [samples, seqlen]; fewer windows, none overlapping, if the text is too short for all.

    Raises:
        CalibrationError: The text is shorter than one window.
    """
    ids = encode(tokenizer, text)
    if len(ids) < seqlen:
        raise CalibrationError(
            f"expected at least one window of {seqlen} tokens, got a text of {len(ids)}.",
            where=where,
            fix=f"name a longer text, or use --seqlen {max(8, len(ids))} or less.",
        )
    count = min(samples, len(ids) // seqlen)
    step = (len(ids) - seqlen) // max(count - 1, 1)
    windows = torch.tensor([ids[index * step : index * step + seqlen] for index in range(count)])
    if bos is not None:
        windows[:, 0] = bos
    return windows


def read_text(calib: str, *, characters: int) -> str:
    """Text of a `.txt` or `.jsonl` file, or of a data set of the `datasets` package.

    Args:
        calib: A path, or `NAME`, `NAME:CONFIG`, `NAME:CONFIG:SPLIT`.
        characters: How much text of a data set is enough.

    Raises:
        UsageError: There is no such file, or it is of another kind.
        CalibrationError: It holds no text.
        ToolError: `datasets` is not installed.
    """
    path = Path(calib).expanduser()
    if path.suffix not in (".txt", ".raw", ".jsonl"):
        if path.is_file():
            raise UsageError("expected a .txt or .jsonl file.", where=calib, fix="rename it, or convert it to text.")
        return _join(_dataset_texts(calib), characters)
    if not path.is_file():
        raise UsageError("no such file.", where=calib, fix="check the path given as --calib.")
    if path.suffix == ".jsonl":
        return _join(_jsonl_texts(path), MAX_TEXT_BYTES)
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(MAX_TEXT_BYTES)


def self_written(source: ModelSource, samples: int, seqlen: int, seed: int, progress: Progress) -> Tensor:
    """Text sampled from the model: all sequences side by side, whole model in memory.

    Args:
        source: The model, which must fit in memory once in fp32.
        samples: Sequences.
        seqlen: Tokens in each.
        seed: Of the draws; the same seed gives the same text.
        progress: Counts tokens of a sequence.

    Returns:
        int64 [samples, seqlen].

    Raises:
        CalibrationError: The model does not fit in memory.
    """
    _require_memory(source.spec, samples, seqlen)
    generator = torch.Generator("cpu").manual_seed(seed)
    ends, runner = Ends(source), BlockRunner.for_positions(source.spec, seqlen)
    blocks = [load_block(source, layer) for layer in range(source.spec.num_layers)]
    caches = [KeyValueCache.empty(source.spec, samples, seqlen) for _ in blocks]
    tokens = _first_tokens(source, samples, generator)
    with progress.task("model writes its calibration text", total=seqlen - 1) as advance:
        while tokens.shape[1] < seqlen:
            logits = _next_logits(runner, ends, blocks, caches, tokens[:, caches[0].length :])
            kept = logits.cpu().topk(1 if tokens.shape[1] <= _GREEDY_START else _TOP_K, dim=-1)
            drawn = torch.multinomial(kept.values.softmax(dim=-1), 1, generator=generator)
            tokens = torch.cat((tokens, kept.indices.gather(1, drawn)), dim=1)
            advance(1)
    return tokens


def _require_memory(spec: DecoderSpec, samples: int, seqlen: int) -> None:
    """Refuses before the first block is loaded what would end in swapping or a kill."""
    block = sum(math.prod(shape) for shape in spec.block_shapes().values())
    outer = sum(math.prod(shape) for shape in spec.outer_shapes().values())
    cache = 2 * samples * seqlen * spec.num_kv_heads * spec.head_dim
    needed = _FP32_BYTES * (spec.num_layers * (block + cache) + outer)
    available = available_bytes()
    if needed > available:
        raise CalibrationError(
            f"for the model to write its own text, all of it must be in memory in fp32: {needed / 2**30:.1f} GiB "
            f"are needed, {available / 2**30:.1f} GiB are available.",
            where="--calib self",
            fix="name a .txt or .jsonl file with --calib: calibration on a text holds one block in memory at a time.",
        )


def _next_logits(
    runner: BlockRunner, ends: Ends, blocks: Sequence[BlockWeights], caches: list[KeyValueCache], new: Tensor
) -> Tensor:
    """Logits after the newest tokens of every sequence: int64 [samples, S] -> fp32 [samples, vocab]."""
    hidden = ends.embed(new, start=caches[0].length)
    for layer, (weights, cache) in enumerate(zip(blocks, caches, strict=True)):
        hidden = runner.run(weights, hidden, layer=layer, cache=cache)
    return ends.logits(hidden[:, -1])


def _first_tokens(source: ModelSource, samples: int, generator: torch.Generator) -> Tensor:
    """One ordinary token to start each sequence: distinct draws from the vocabulary, after BOS if the family needs it.

    Returns:
        int64 [samples, 1 or 2].
    """
    drawn = torch.randperm(source.spec.vocab_size, generator=generator, device="cpu")[:samples].unsqueeze(1)
    bos = source.config.get("bos_token_id")
    return F.pad(drawn, (1, 0), value=bos) if family_named(source.spec.family).needs_bos and bos is not None else drawn


def _jsonl_texts(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield _text_of(json.loads(line))
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise CalibrationError(
                    'expected a JSON object with a string "text".',
                    where=f"{path}, line {number}",
                    fix='write one {"text": "..."} a line.',
                ) from error


def _dataset_texts(calib: str) -> Iterator[str]:
    """Texts of a data set, streamed. NAME, NAME:CONFIG or NAME:CONFIG:SPLIT; the split is `train` by default."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ToolError(
            "no such file, and the package `datasets` that could load it by name is not installed.",
            where=calib,
            fix="pip install datasets, or name a .txt or .jsonl file, or use --calib self.",
        ) from error
    name, config, split = ([*calib.split(":"), "", ""])[:3]
    try:
        for record in load_dataset(name, config or None, split=split or "train", streaming=True):
            yield _text_of(record)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise CalibrationError(
            f"cannot read this data set ({str(error).strip().splitlines()[0]}).",
            where=calib,
            fix="check name, config and split (NAME:CONFIG:SPLIT); its records need a string column `text`.",
        ) from error


def _text_of(record: Any) -> str:
    text = record["text"]
    if not isinstance(text, str):
        raise TypeError(f"text is {type(text).__name__}")
    return text


def _join(texts: Iterator[str], characters: int) -> str:
    """Documents with a blank line between, until there is enough."""
    parts: list[str] = []
    length = 0
    for text in texts:
        parts.append(text)
        length += len(text)
        if length >= characters:
            break
    return "\n\n".join(parts)


def calibration_tokens(
    source: ModelSource, tokenizer_directory: Path, options: QuantizeOptions, progress: Progress
) -> Tensor:
    """Calibration windows from whatever `options.calib` names.

    Args:
        source: The model; runs if it is to write the text itself.
        tokenizer_directory: Where its tokenizer is saved.
        options: Text, number and length of windows, seed.
        progress: Of the model's own text.

    Returns:
        int64 [samples, seqlen], fewer samples if the text is short.
    """
    samples, seqlen = options.samples, options.seqlen
    if options.calib == SELF:
        return self_written(source, samples, seqlen, options.seed, progress)
    text = read_text(options.calib, characters=samples * seqlen * CHARACTERS_PER_TOKEN)
    tokenizer = load_tokenizer(tokenizer_directory)
    bos = bos_of(tokenizer, source.spec.family)
    return text_windows(tokenizer, text, samples, seqlen, where=options.calib, bos=bos)
