"""The perplexity of captions, given their pictures, for models that see images.

In: conversations about pictures (`awq2trt.images.pairs`) that end with an assistant's message. Out: exp of the mean
negative log-likelihood of the tokens in those last messages, over all pictures. Everything before them, including
pictures, is read but not scored. Texts are tokenized as in tasks (`awq2trt.evaluation.likelihood`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from awq2trt.errors import UsageError
from awq2trt.evaluation.likelihood import TokenizedContinuation, tokenize, torch_scores
from awq2trt.evaluation.results import CaptionPerplexity
from awq2trt.evaluation.tasks import Continuation, Score
from awq2trt.images.pairs import MARKER, ImageText
from awq2trt.images.processor import processor_of
from awq2trt.models.sources.base import ModelSource
from awq2trt.models.vision.description import SeeingSpec
from awq2trt.progress import Progress
from awq2trt.quantization.image_texts import ImagePrompts
from awq2trt.quantization.image_windows import Sight, conversation_tokens, written

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ASSISTANT: Final = "assistant"


@dataclass(frozen=True)
class CaptionedModel:
    """A model that sees images, run by PyTorch.

    Attributes:
        source: An original or a quantized checkpoint.
        sight: How it sees images; it remembers pictures.
        tokenizer: Its own.
        bos: Token that conversations begin with; None if there is no such token.
    """

    source: ModelSource
    sight: Sight
    tokenizer: PreTrainedTokenizerBase
    bos: int | None

    @staticmethod
    def of(
        source: ModelSource, vision: SeeingSpec, tokenizer: PreTrainedTokenizerBase, bos: int | None
    ) -> CaptionedModel:
        """The model with its image processor.

        Raises:
            CheckpointError: It has none.
        """
        return CaptionedModel(source, Sight(source, vision, processor_of(source)), tokenizer, bos)

    def longest(self, pairs: Sequence[ImageText]) -> int:
        """Tokens of the longest of conversations, the last message included; errors as of `caption_tokens`."""
        return max(len(self.tokens(pair).tokens) for pair in pairs)

    def perplexity(self, pairs: Sequence[ImageText], progress: Progress, description: str) -> CaptionPerplexity:
        """Measures the perplexity of the last messages of conversations.

        Args:
            pairs: The conversations.
            progress: Counts the blocks.
            description: Description of the task.

        Raises:
            UsageError: A conversation is longer than the model has positions; a picture cannot be read.
        """
        requests = [self.tokens(pair) for pair in pairs]
        losses = [-score.log_probability for score in self.scores(pairs, progress, description)]
        counts = [request.scored for request in requests]
        return CaptionPerplexity(
            math.exp(sum(losses) / sum(counts)),
            tuple(loss / count for loss, count in zip(losses, counts, strict=True)),
            sum(counts),
        )

    def scores(self, pairs: Sequence[ImageText], progress: Progress, description: str) -> list[Score]:
        """How likely the last messages of conversations are; arguments and errors as of `perplexity`."""
        requests = [self.tokens(pair) for pair in pairs]
        return torch_scores(self.source, requests, progress, description, begin=self.prompts(requests, pairs).begin)

    def tokens(self, pair: ImageText) -> TokenizedContinuation:
        """Tokens of a conversation, as `caption_tokens` gives them."""
        return caption_tokens(self.tokenizer, self.sight, pair, self.bos)

    def prompts(self, requests: Sequence[TokenizedContinuation], pairs: Sequence[ImageText]) -> ImagePrompts:
        """Conversations with their images."""
        return ImagePrompts(self.sight, [request.tokens for request in requests], [pair.images for pair in pairs])


def caption_tokens(
    tokenizer: PreTrainedTokenizerBase, sight: Sight, pair: ImageText, bos: int | None = None
) -> TokenizedContinuation:
    """Returns the tokens of a conversation whose last message is scored.

    Args:
        tokenizer: The model's tokenizer.
        sight: How the model sees images.
        pair: The conversation.
        bos: Token that it begins with; None without one.

    Raises:
        UsageError: The last message is not an assistant's, is empty, has a picture in it, or is the only one; or a
            picture cannot be read.
    """
    *before, (role, caption) = pair.messages
    if role != _ASSISTANT or not caption.strip() or MARKER in caption or not before:
        raise UsageError(
            f"expected a question with a picture, then an assistant's text, which will be measured; "
            f"got {caption[:60]!r} of {role!r} at the end.",
            where=pair.where,
            fix="put the text about the picture into the last message.",
        )
    seen, _, question = written(sight.vision, pair).rpartition(MARKER)
    end = len(question) - len(caption)
    asked = tokenize(tokenizer, Continuation(question[:end], question[end:].rstrip()))
    begin = () if bos is None else (bos,)
    tokens = (*begin, *conversation_tokens(tokenizer, sight, seen + MARKER, pair.images), *asked.tokens)
    return TokenizedContinuation(tokens, asked.scored)
