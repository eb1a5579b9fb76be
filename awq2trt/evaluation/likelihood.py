"""Computes how likely a model finds continuations of texts, as log-probabilities, for tasks and for lm-eval.

As in lm-evaluation-harness, texts are tokenized completely and cut where the context ends, and trailing spaces of a
context go to the continuation, since a token is a word with the space before it. No special tokens are added, except
BOS for families that need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from awq2trt.errors import UsageError
from awq2trt.evaluation.tasks import Continuation, Score
from awq2trt.models.block_weights import load_block
from awq2trt.models.decoder import Beginning, BlockRunner, Ends
from awq2trt.models.positions import require_positions
from awq2trt.models.sources.base import ModelSource
from awq2trt.progress import Progress
from awq2trt.text.tokenizer import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK_BYTES: Final = 1 << 30
"""Size of residual streams in memory at once: 65,536 tokens of hidden size 4096. Each chunk reads all blocks once."""

BATCH_TOKENS: Final = 4096
"""Number of tokens that run through a block together, in sequences of one length; few would leave a GPU idle."""

_FP32_BYTES: Final = 4


class LogitsBackend(Protocol):
    """A backend that gives logits of a complete text: `OrtBackend` loaded with `all_logits`."""

    def logits(self, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """Yields the scores after every token, float32 [s, V] at a time."""


@dataclass(frozen=True)
class TokenizedContinuation:
    """A text whose end is scored, in tokens.

    Attributes:
        tokens: Context and continuation.
        scored: How many tokens at the end are the continuation; there is at least one token before them.
    """

    tokens: tuple[int, ...]
    scored: int


def tokenize(
    tokenizer: PreTrainedTokenizerBase, continuation: Continuation, bos: int | None = None
) -> TokenizedContinuation:
    """Returns the tokens of a text, and where its context ends.

    Args:
        tokenizer: The model's tokenizer.
        continuation: Context and continuation.
        bos: Token that texts begin with, for a family that needs it.

    Raises:
        UsageError: The context has no tokens.
    """
    stripped = continuation.context.rstrip()
    text = continuation.context[len(stripped) :] + continuation.text
    whole, context = encode(tokenizer, stripped + text), encode(tokenizer, stripped)
    if not context:
        raise UsageError("the context has no tokens.", where=repr(continuation.text), fix="give some text before it.")
    start = () if bos is None else (bos,)
    return TokenizedContinuation((*start, *whole), len(whole) - len(context))


def torch_scores(
    source: ModelSource,
    requests: Sequence[TokenizedContinuation],
    progress: Progress,
    description: str,
    *,
    begin: Callable[[Sequence[int]], Beginning] | None = None,
) -> list[Score]:
    """Scores texts with the PyTorch decoder, in fp32, with one block in memory at a time.

    Args:
        source: An original or quantized model.
        requests: What to score.
        progress: Counts the blocks.
        description: Description of the task.
        begin: Says what the first block reads, for indices of requests of one length; None for their tokens'
            embeddings.

    Raises:
        UsageError: A text is longer than the model has positions.
    """
    longest = max((len(request.tokens) for request in requests), default=0)
    require_positions(source.spec, longest, where=f"{description}: the longest text", fix="leave it out.")
    chunks = list(_chunks(requests, CHUNK_BYTES // (_FP32_BYTES * source.spec.hidden_size)))
    scores: dict[int, Score] = {}
    ends = Ends(source)
    begin = begin or (lambda batch: Beginning(ends.embed(torch.tensor([requests[index].tokens for index in batch]))))
    with torch.inference_mode(), progress.task(description, len(chunks) * source.spec.num_layers) as advance:
        for chunk in chunks:
            batches = list(_batches(requests, chunk))
            runner = BlockRunner.for_positions(source.spec, max(len(requests[index].tokens) for index in chunk))
            begun = [begin(batch) for batch in batches]
            runners = [runner.placed(one.positions, one.media) for one in begun]
            hidden = [one.hidden for one in begun]
            for layer in range(source.spec.num_layers):
                weights = load_block(source, layer)
                hidden = [own.run(weights, batch, layer=layer) for own, batch in zip(runners, hidden, strict=True)]
                advance(1)
            for batch, outputs in zip(batches, hidden, strict=True):
                for index, output in zip(batch, outputs, strict=True):
                    scores[index] = _score(requests[index], ends.logits(_before_scored(output, requests[index])))
    return [scores[index] for index in range(len(requests))]


def backend_scores(
    backend: LogitsBackend, requests: Sequence[TokenizedContinuation], progress: Progress, description: str
) -> list[Score]:
    """Scores texts with ONNX Runtime.

    Args:
        backend: The model.
        requests: What to score.
        progress: Counts the requests.
        description: Description of the task.
    """
    scores = []
    with progress.task(description, len(requests)) as advance:
        for request in requests:
            logits = torch.cat([torch.from_numpy(rows) for rows in backend.logits(request.tokens)])
            scores.append(_score(request, _before_scored(logits, request)))
            advance(1)
    return scores


def _before_scored(rows: Tensor, request: TokenizedContinuation) -> Tensor:
    """Returns rows [S, ...] of the positions that predict the scored tokens, which are those just before them."""
    start = len(request.tokens) - request.scored - 1
    return rows[start : start + request.scored]


def _score(request: TokenizedContinuation, logits: Tensor) -> Score:
    """Scores the last tokens, from the logits before each, fp32 [scored, V]."""
    targets = torch.tensor(request.tokens[len(request.tokens) - request.scored :], dtype=torch.int64)
    chosen = logits.float().log_softmax(dim=-1).gather(1, targets.unsqueeze(1))
    return Score(float(chosen.sum()), bool((logits.argmax(dim=-1) == targets).all()))


def _chunks(requests: Sequence[TokenizedContinuation], most: int) -> Iterator[list[int]]:
    """Splits indices of requests, sorted by length, into pieces of at most `most` tokens, or one request."""
    chunk: list[int] = []
    used = 0
    for index in sorted(range(len(requests)), key=lambda index: len(requests[index].tokens)):
        if chunk and used + len(requests[index].tokens) > most:
            yield chunk
            chunk, used = [], 0
        chunk.append(index)
        used += len(requests[index].tokens)
    if chunk:
        yield chunk


def _batches(requests: Sequence[TokenizedContinuation], chunk: Sequence[int]) -> Iterator[list[int]]:
    """Splits indices of requests of equal length into batches of at most `BATCH_TOKENS` tokens, or one request."""
    for length, group in groupby(chunk, key=lambda index: len(requests[index].tokens)):
        equal, together = list(group), max(1, BATCH_TOKENS // length)
        for start in range(0, len(equal), together):
            yield equal[start : start + together]
