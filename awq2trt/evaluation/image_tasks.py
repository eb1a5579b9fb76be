"""Tasks of models that see: captions that a model writes, scored by CIDEr, and questions with answers to choose from.

In: conversations about pictures (`awq2trt.images.pairs`). Out: a `CaptionScore`, or a `TaskScore`. A caption is written
greedily after all that stands before the last message, and ends where the model ends it, or its line. Of answers, the
likeliest is chosen, as in tasks of text (`awq2trt.evaluation.tasks`). Shots stand before the question in the same
conversation (`ImageText.behind`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

import torch

from awq2trt.errors import UsageError
from awq2trt.evaluation.captions import CaptionedModel
from awq2trt.evaluation.cider import cider
from awq2trt.evaluation.results import CAPTION, CHOICE, CaptionScore
from awq2trt.evaluation.tasks import Continuation, Example, TaskScore, score_task
from awq2trt.images.pairs import ImageText
from awq2trt.machine.device import available_bytes
from awq2trt.models.block_weights import load_block
from awq2trt.models.decoder import BlockRunner, Ends, KeyValueCache
from awq2trt.models.families import DecoderSpec
from awq2trt.models.sources.base import ModelSource
from awq2trt.progress import Progress

LONGEST_CAPTION: Final = 32
"""Tokens of a caption at most; those of COCO have about 12."""

_CACHE_BYTES: Final = 1 << 30
"""Keys and values of the captions that are written at once, all of which follow prompts of one length."""

_FP32_BYTES: Final = 4


def require_rows(task: str | None, pairs: Sequence[ImageText]) -> None:
    """Refuses conversations that a task cannot be made of.

    Args:
        task: A name in `results.IMAGE_TASKS`; None for perplexity, which takes all.
        pairs: The conversations.

    Raises:
        UsageError: One has choices where a caption is wanted, or none where one is to be chosen.
    """
    for pair in pairs:
        if task == CHOICE and not pair.choices:
            raise UsageError(
                "expected a question with answers to choose from, got none.",
                where=pair.where,
                fix="give the row `question`, `choices`, and in `answer` the place of the right one, from 0.",
            )
        if task == CAPTION and pair.choices:
            raise UsageError(
                "expected a caption, got a question with answers to choose from.",
                where=pair.where,
                fix="give the row `captions`, or measure with --task choice.",
            )


def choose(model: CaptionedModel, pairs: Sequence[ImageText], progress: Progress, description: str) -> TaskScore:
    """Accuracy in questions with answers to choose from.

    Args:
        model: Who chooses.
        pairs: Questions with choices.
        progress: Counts blocks.
        description: Name of the task, shown with the progress.

    Raises:
        UsageError: A conversation is longer than the model has positions; a picture cannot be read.
        CheckpointError: The model has no image processor.
    """
    scores = model.scores([pair.saying(choice) for pair in pairs for choice in pair.choices], progress, description)
    return score_task(CHOICE, [_example(pair) for pair in pairs], scores)


def write_captions(
    model: CaptionedModel, pairs: Sequence[ImageText], progress: Progress, description: str
) -> CaptionScore:
    """CIDEr of the captions that a model writes.

    Args:
        model: Who writes.
        pairs: Conversations whose last message is a caption.
        progress: Counts conversations.
        description: Name of the task, shown with the progress.

    Raises:
        UsageError: A conversation is longer than the model has positions; a picture cannot be read, or the model does
            not fit in memory.
        CheckpointError: The model has no image processor.
    """
    _require_memory(model.source)
    captions = _written(model, pairs, progress, description)
    scored = cider(captions, [pair.captions or (pair.messages[-1][1],) for pair in pairs])
    return CaptionScore(scored.mean, scored.scores, tuple(captions))


def _example(pair: ImageText) -> Example:
    """A question as tasks of text have them."""
    texts, answer = pair.choices, pair.messages[-1][1]
    continuations = tuple(Continuation(pair.where, text) for text in texts)
    return Example(continuations, tuple(len(text) for text in texts), texts.index(answer))


def _written(model: CaptionedModel, pairs: Sequence[ImageText], progress: Progress, description: str) -> list[str]:
    """A caption of each conversation."""
    requests = [model.tokens(pair) for pair in pairs]
    prompts = [request.tokens[: len(request.tokens) - request.scored] for request in requests]
    source, captions = model.source, [""] * len(pairs)
    longest = max(len(prompt) for prompt in prompts) + LONGEST_CAPTION
    runner, ends = BlockRunner.for_positions(source.spec, longest), Ends(source)
    blocks = [load_block(source, layer) for layer in range(source.spec.num_layers)]
    begin, stops = model.beginning(prompts, [pair.images for pair in pairs], LONGEST_CAPTION), _stops(model)
    with torch.inference_mode(), progress.task(description, total=len(pairs)) as advance:
        for batch in _batches([len(prompt) for prompt in prompts], _bytes_per_position(source.spec)):
            begun = begin(batch)
            hidden, own = begun.hidden, runner.placed(begun.positions, begun.media)
            caches = [KeyValueCache.empty(source.spec, len(batch), hidden.shape[1] + LONGEST_CAPTION) for _ in blocks]
            written: list[list[int]] = [[] for _ in batch]
            for _ in range(LONGEST_CAPTION):
                for layer, (weights, cache) in enumerate(zip(blocks, caches, strict=True)):
                    hidden = own.run(weights, hidden, layer=layer, cache=cache)
                best = ends.logits(hidden[:, -1]).argmax(dim=-1, keepdim=True)  # [captions, 1]
                for tokens, token in zip(written, best[:, 0].tolist(), strict=True):
                    tokens.append(token)
                if all(stops & set(tokens) for tokens in written):
                    break
                hidden = ends.embed(best, start=caches[0].length)
            for index, tokens in zip(batch, written, strict=True):
                captions[index] = _text(model, tokens, stops)
            advance(len(batch))
    return captions


def _text(model: CaptionedModel, tokens: list[int], stops: set[int]) -> str:
    """What was written before the first stop, its first line."""
    end = next((place for place, token in enumerate(tokens) if token in stops), len(tokens))
    lines = str(model.tokenizer.decode(tokens[:end], skip_special_tokens=True)).strip().splitlines()
    return lines[0].strip() if lines else ""


def _stops(model: CaptionedModel) -> set[int]:
    """Tokens that end a text."""
    configured = model.source.text_config.get("eos_token_id")
    ends = configured if isinstance(configured, list) else [configured]
    return {int(token) for token in (*ends, model.tokenizer.eos_token_id) if token is not None}


def _batches(lengths: Sequence[int], position_bytes: int) -> Iterator[list[int]]:
    """Indices of equal lengths, whose caches together have `_CACHE_BYTES` at most; one index at least."""
    by_length: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        by_length.setdefault(length, []).append(index)
    for length, equal in by_length.items():
        together = max(1, _CACHE_BYTES // (position_bytes * (length + LONGEST_CAPTION)))
        for start in range(0, len(equal), together):
            yield equal[start : start + together]


def _bytes_per_position(spec: DecoderSpec) -> int:
    """Bytes of one position's keys and values in all layers."""
    return 2 * _FP32_BYTES * spec.num_layers * spec.num_kv_heads * spec.head_dim


def _require_memory(source: ModelSource) -> None:
    """Refuses what would end in swapping or a kill."""
    block = source.spec.block_size()
    outer = sum(math.prod(shape) for shape in source.spec.outer_shapes().values())
    needed, available = _FP32_BYTES * (source.spec.num_layers * block + outer) + _CACHE_BYTES, available_bytes()
    if needed > available:
        raise UsageError(
            f"to write captions, the whole model must be in memory in fp32, with its caches: {needed / 2**30:.1f} GiB "
            f"are needed, {available / 2**30:.1f} GiB are available.",
            where=f"{source.name}, --task caption",
            fix="leave --task out: perplexity of captions holds one block in memory at a time.",
        )
