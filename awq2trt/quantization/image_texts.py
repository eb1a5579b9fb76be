"""Texts that a model writes about images, with all of it in memory.

In: prompts with tokens of images, and the images. Out: the tokens that follow each of them. Prompts of one length are
continued side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from awq2trt.errors import UsageError
from awq2trt.images.pairs import END_OF_CHUNK
from awq2trt.machine.device import available_bytes
from awq2trt.models.block_weights import load_block
from awq2trt.models.decoder import Beginning, BlockRunner, Ends, KeyValueCache
from awq2trt.models.families import DecoderSpec
from awq2trt.models.sources.base import ModelSource
from awq2trt.progress import Advance
from awq2trt.quantization.image_windows import Sight

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CACHE_BYTES: Final = 1 << 30
"""Keys and values of the texts that are written at once, all of which follow prompts of one length."""

_FP32_BYTES: Final = 4

Choose = Callable[[Tensor], Tensor]
"""Chooses the next tokens, int64 [texts, 1], from logits, fp32 [texts, vocab]."""


def likeliest(logits: Tensor) -> Tensor:
    """The greedy choice."""
    return logits.argmax(dim=-1, keepdim=True)


@dataclass(frozen=True)
class ImagePrompts:
    """Prompts about images.

    Attributes:
        sight: How the model sees images.
        tokens: Tokens of each prompt.
        images: Image files of each prompt, in the order of their tokens.
    """

    sight: Sight
    tokens: Sequence[Sequence[int]]
    images: Sequence[Sequence[Path]]

    @cached_property
    def _ends(self) -> Ends:
        """Embedding and head, which are read once."""
        return Ends(self.sight.source)

    def begin(self, batch: Sequence[int], more: int = 0) -> Beginning:
        """What the first block reads.

        Args:
            batch: Indices of prompts of one length.
            more: Tokens of text that will follow.

        Raises:
            UsageError: An image cannot be read.
        """
        sight, ids = self.sight, torch.tensor([self.tokens[index] for index in batch])
        hidden, places = self._ends.embed(ids), []
        for row, index in enumerate(batch):
            sight.place_(hidden[row], ids[row], self.images[index])
            places.append(sight.positions(ids[row], self.images[index], more))
        placed = [positions for positions in places if positions is not None]
        media = sight.media(ids, [self.images[index] for index in batch], more)
        return Beginning(hidden, torch.stack(placed) if placed else None, media)

    def continued(self, longest: int, stops: set[int], advance: Advance, choose: Choose = likeliest) -> list[list[int]]:
        """Continues every prompt up to a stop.

        Args:
            longest: Most tokens of a continuation.
            stops: Tokens that end it, which are left out.
            advance: Told how many more are written.
            choose: Chooses tokens.

        Returns:
            The tokens of each continuation.
        """
        source, continuations = self.sight.source, [list[int]() for _ in self.tokens]
        runner = BlockRunner.for_positions(source.spec, max(map(len, self.tokens)) + longest)
        ends, blocks = self._ends, [load_block(source, layer) for layer in range(source.spec.num_layers)]
        for batch in _batches([len(prompt) for prompt in self.tokens], source.spec, longest):
            begun = self.begin(batch, longest)
            hidden, own = begun.hidden, runner.placed(begun.positions, begun.media)
            caches = [KeyValueCache.empty(source.spec, len(batch), hidden.shape[1] + longest) for _ in blocks]
            written = [continuations[index] for index in batch]
            for _ in range(longest):
                for layer, (weights, cache) in enumerate(zip(blocks, caches, strict=True)):
                    hidden = own.run(weights, hidden, layer=layer, cache=cache)
                chosen = choose(ends.logits(hidden[:, -1]))
                for tokens, token in zip(written, chosen[:, 0].tolist(), strict=True):
                    tokens.append(token)
                if all(stops & set(tokens) for tokens in written):
                    break
                hidden = ends.embed(chosen, start=caches[0].length)
            advance(len(batch))
        return [_before(tokens, stops) for tokens in continuations]


def stop_tokens(source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that end a text."""
    configured = source.text_config.get("eos_token_id")
    ends = configured if isinstance(configured, list) else [configured]
    of_chunk = tokenizer.get_vocab().get(END_OF_CHUNK)
    return {int(token) for token in (*ends, tokenizer.eos_token_id, of_chunk) if token is not None}


def first_line(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The first line of what was written."""
    lines = str(tokenizer.decode([*tokens], skip_special_tokens=True)).strip().splitlines()
    return lines[0].strip() if lines else ""


def require_memory(source: ModelSource, *, where: str, fix: str) -> None:
    """Refuses what would end in swapping or a kill.

    Raises:
        UsageError: The model does not fit in memory.
    """
    block = source.spec.block_size()
    outer = sum(math.prod(shape) for shape in source.spec.outer_shapes().values())
    needed, available = _FP32_BYTES * (source.spec.num_layers * block + outer) + _CACHE_BYTES, available_bytes()
    if needed > available:
        raise UsageError(
            f"to write captions, the whole model must be in memory in fp32, with its caches: {needed / 2**30:.1f} GiB "
            f"are needed, {available / 2**30:.1f} GiB are available.",
            where=where,
            fix=fix,
        )


def _before(tokens: list[int], stops: set[int]) -> list[int]:
    return tokens[: next((place for place, token in enumerate(tokens) if token in stops), len(tokens))]


def _batches(lengths: Sequence[int], spec: DecoderSpec, longest: int) -> Iterator[list[int]]:
    """Indices of equal lengths, whose caches together have `_CACHE_BYTES` at most; one index at least."""
    by_length: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        by_length.setdefault(length, []).append(index)
    position = 2 * _FP32_BYTES * spec.num_layers * spec.num_kv_heads * spec.head_dim
    for length, equal in by_length.items():
        together = max(1, _CACHE_BYTES // (position * (length + longest)))
        for start in range(0, len(equal), together):
            yield equal[start : start + together]
