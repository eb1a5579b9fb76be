"""Tasks of models that see: captions that a model writes, scored by CIDEr, and questions with answers to choose from.

In: conversations about pictures (`awq2trt.images.pairs`). Out: a `CaptionScore`, or a `TaskScore`. A caption is written
greedily after all that stands before the last message, and ends where the model ends it, or its line. Of answers, the
likeliest is chosen, as in tasks of text (`awq2trt.evaluation.tasks`). Shots stand before the question in the same
conversation (`ImageText.behind`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch

from awq2trt.errors import UsageError
from awq2trt.evaluation.captions import CaptionedModel
from awq2trt.evaluation.cider import cider
from awq2trt.evaluation.results import CAPTION, CHOICE, CaptionScore
from awq2trt.evaluation.tasks import Continuation, Example, TaskScore, score_task
from awq2trt.images.pairs import ImageText
from awq2trt.progress import Progress
from awq2trt.quantization.image_texts import first_line, require_memory, stop_tokens

LONGEST_CAPTION: Final = 32
"""Tokens of a caption at most; those of COCO have about 12."""


def require_rows(task: str | None, pairs: Sequence[ImageText]) -> None:
    """Refuses conversations that a task cannot be made of.

    Args:
        task: A name in `results.IMAGE_TASKS`; None for perplexity, which takes all.
        pairs: The conversations.

    Raises:
        UsageError: One has choices where a caption is wanted, or none where one is to be chosen; or there are only
            pictures.
    """
    for pair in pairs:
        if pair.bare:
            raise UsageError(
                "expected a caption, got a picture alone.",
                where=pair.where,
                fix=f"put its caption into {pair.images[0].with_suffix('.txt').name} beside it.",
            )
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
    require_memory(
        model.source,
        where=f"{model.source.name}, --task caption",
        fix="leave --task out: perplexity of captions holds one block in memory at a time.",
    )
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
    asked = [
        replace(request, tokens=request.tokens[: len(request.tokens) - request.scored], scored=0)
        for request in requests
    ]
    stops = stop_tokens(model.source, model.tokenizer)
    with torch.inference_mode(), progress.task(description, total=len(pairs)) as advance:
        written = model.prompts(asked, pairs).continued(LONGEST_CAPTION, stops, advance)
    return [first_line(model.tokenizer, tokens) for tokens in written]
