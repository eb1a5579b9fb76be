"""Lets the model write the calibration text itself, so that calibration needs no data.

The model continues its own first tokens (the idea of LLM-QAT, arXiv:2305.17888, section 3.1: text sampled from the
model covers what it saw in training). Its weights are bf16 if that is faster (`machine.arithmetic`), which is good
enough for text that is drawn at random; the model computes statistics of that text in fp32.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from awq2trt.errors import CalibrationError
from awq2trt.machine.arithmetic import narrow_type
from awq2trt.machine.device import available_bytes
from awq2trt.models.block_weights import BlockWeights, load_blocks, with_linears_of
from awq2trt.models.decoder import BlockRunner, Ends, KeyValueCache
from awq2trt.models.families import DecoderSpec, family_named
from awq2trt.models.sources.base import ModelSource
from awq2trt.progress import Progress

_GREEDY_START: Final = 4
"""Number of tokens after the random first one that are written greedily (LLM-QAT: 3 to 5) before sampling starts."""

_FP32_BYTES: Final = 4

TEXT_TOKENS: Final = 128
"""Length of a text, at least: a longer window has several, one after another. A step for twice as many sequences takes
much less than twice as long, since most of the time goes into reading the weights, and more beginnings make the text
more varied."""

_TOP_K: Final = 100
"""Number of tokens to draw from: the tail of a small model's distribution is noise, and one draw there derails the
text."""


def self_written(
    source: ModelSource, ordinary: Collection[int], samples: int, seqlen: int, seed: int, progress: Progress
) -> Tensor:
    """Samples texts from the model: all of them side by side, with the complete model in memory.

    Args:
        source: The model, which must fit in memory once, in bf16 or fp32.
        ordinary: Ids that a text may begin with, see `ordinary_tokens`.
        samples: Number of windows.
        seqlen: Number of tokens in each.
        seed: Seed of the draws; the same seed gives the same text.
        progress: Counts the tokens of a text.

    Returns:
        int64 [samples, seqlen].

    Raises:
        CalibrationError: The model does not fit in memory.
    """
    dtype = narrow_type()
    texts, length = _texts(samples, seqlen, len(ordinary))
    _require_memory(source.spec, texts, length, dtype)
    generator = torch.Generator("cpu").manual_seed(seed)
    ends, runner = Ends(source, head_type=dtype), BlockRunner.for_positions(source.spec, length)
    blocks = [with_linears_of(source.spec, stored, dtype) for stored in load_blocks(source)]
    caches = [KeyValueCache.empty(source.spec, texts, length, dtype) for _ in blocks]
    tokens = _first_tokens(source, ordinary, texts, generator)
    with progress.task("model writes its calibration text", total=length - 1) as advance:
        while tokens.shape[1] < length:
            logits = _next_logits(runner, ends, blocks, caches, tokens[:, caches[0].length :])
            among = 1 if tokens.shape[1] <= _GREEDY_START else _TOP_K
            tokens = torch.cat((tokens, drawn_tokens(logits, generator, among)), dim=1)
            advance(1)
    return tokens.view(-1, length * (texts // samples))[:, :seqlen]


def drawn_tokens(logits: Tensor, generator: torch.Generator, among: int = _TOP_K) -> Tensor:
    """Draws a token for every text.

    Args:
        logits: [texts, vocab].
        generator: Draws, on the CPU.
        among: From how many of the likeliest.

    Returns:
        int64 [texts, 1], on the CPU.
    """
    kept = logits.cpu().topk(min(among, logits.shape[-1]), dim=-1)
    drawn = torch.multinomial(kept.values.softmax(dim=-1), 1, generator=generator)
    return kept.indices.gather(1, drawn)


def _texts(samples: int, seqlen: int, ordinary: int) -> tuple[int, int]:
    """How many texts are written for some windows, and how long they are; none begins like another."""
    each = max(1, min(seqlen // TEXT_TOKENS, ordinary // samples))
    return samples * each, -(-seqlen // each)


def _require_memory(spec: DecoderSpec, texts: int, length: int, dtype: torch.dtype) -> None:
    """Refuses a model that does not fit in memory at once; loading it would end in swapping or a kill."""
    block = spec.block_size()
    outer = sum(math.prod(shape) for shape in spec.outer_shapes().values())
    cache = 2 * texts * length * spec.num_kv_heads * spec.head_dim
    needed = spec.num_layers * dtype.itemsize * (block + cache) + (_FP32_BYTES + dtype.itemsize) * outer
    available = available_bytes()
    if needed > available:
        raise CalibrationError(
            f"a model that writes its own text must fit in memory: {needed / 2**30:.1f} GiB "
            f"are needed, {available / 2**30:.1f} GiB are available.",
            where="--calib self",
            fix="name a .txt or .jsonl file with --calib: then only one block at a time is in memory.",
        )


def _next_logits(
    runner: BlockRunner, ends: Ends, blocks: Sequence[BlockWeights], caches: list[KeyValueCache], new: Tensor
) -> Tensor:
    """Computes the logits after the newest tokens of every text: int64 [texts, S] -> fp32 [texts, vocab]."""
    hidden = ends.embed(new, start=caches[0].length)
    for layer, (weights, cache) in enumerate(zip(blocks, caches, strict=True)):
        hidden = runner.run(weights, hidden, layer=layer, cache=cache)
    return ends.logits(hidden[:, -1])


def _first_tokens(source: ModelSource, ordinary: Collection[int], texts: int, generator: torch.Generator) -> Tensor:
    """Draws a different ordinary token to start each text, after BOS if the family needs it.

    Returns:
        int64 [texts, 1 or 2].
    """
    shuffled = torch.randperm(source.spec.vocab_size, generator=generator, device="cpu").tolist()
    drawn = torch.tensor([token for token in shuffled if token in ordinary][:texts], device="cpu").unsqueeze(1)
    bos = source.text_config.get("bos_token_id")
    return F.pad(drawn, (1, 0), value=bos) if family_named(source.spec.family).needs_bos and bos is not None else drawn
