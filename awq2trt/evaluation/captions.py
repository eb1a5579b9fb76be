"""The perplexity of captions, given their pictures, for models that see images.

In: conversations about pictures (`awq2trt.images.pairs`) that end with an assistant's message. Out: exp of the mean
negative log-likelihood of the tokens in those last messages, over all pictures. Everything before them, including
pictures, is read but not scored. Texts are tokenized as in tasks (`awq2trt.evaluation.likelihood`).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from awq2trt.errors import UsageError
from awq2trt.evaluation.likelihood import TokenizedContinuation, tokenize, torch_scores
from awq2trt.evaluation.results import CaptionPerplexity
from awq2trt.evaluation.tasks import Continuation
from awq2trt.images.pairs import MARKER, ImageText
from awq2trt.images.processor import ImageProcessor, read_processor
from awq2trt.models.decoder import Ends
from awq2trt.models.sources.base import ModelSource
from awq2trt.models.vision.description import VisionSpec
from awq2trt.progress import Progress
from awq2trt.quantization.image_windows import Sight, conversation_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ASSISTANT: Final = "assistant"


@dataclass(frozen=True)
class CaptionedModel:
    """A model that sees images, run by PyTorch.

    Attributes:
        source: An original or a quantized checkpoint.
        vision: How it sees images.
        tokenizer: Its own.
        bos: Token that texts begin with; None if its family needs none.
    """

    source: ModelSource
    vision: VisionSpec
    tokenizer: PreTrainedTokenizerBase
    bos: int | None

    def perplexity(self, pairs: Sequence[ImageText], progress: Progress, description: str) -> CaptionPerplexity:
        """Measures the perplexity of the last messages of conversations.

        Args:
            pairs: The conversations.
            progress: Counts the blocks.
            description: Description of the task.

        Raises:
            UsageError: A conversation does not end with an assistant's text, or is longer than the model has positions;
                a picture cannot be read.
            CheckpointError: The model has no image processor.
        """
        requests = [caption_tokens(self.tokenizer, self.vision, pair, self.bos) for pair in pairs]
        sight = Sight.of(self.source, self.vision, _processor_of(self.source))
        ends = Ends(self.source)

        def embed(batch: Sequence[int]) -> Tensor:
            tokens = torch.tensor([requests[index].tokens for index in batch])
            hidden = ends.embed(tokens)
            for row, index in enumerate(batch):
                sight.place_(hidden[row], tokens[row], pairs[index].images)
            return hidden

        scores = torch_scores(self.source, requests, progress, description, embed=embed)
        losses = [-score.log_probability for score in scores]
        counts = [request.scored for request in requests]
        return CaptionPerplexity(
            math.exp(sum(losses) / sum(counts)),
            tuple(loss / count for loss, count in zip(losses, counts, strict=True)),
            sum(counts),
        )


def caption_tokens(
    tokenizer: PreTrainedTokenizerBase, vision: VisionSpec, pair: ImageText, bos: int | None = None
) -> TokenizedContinuation:
    """Returns the tokens of a conversation whose last message is scored.

    Args:
        tokenizer: The model's tokenizer.
        vision: How the model sees images.
        pair: The conversation.
        bos: Token that it begins with; None without one.

    Raises:
        UsageError: The last message is not an assistant's, is empty, has a picture in it, or is the only one.
    """
    *before, (role, caption) = pair.messages
    if role != _ASSISTANT or not caption.strip() or MARKER in caption or not before:
        raise UsageError(
            f"expected a question with a picture, then an assistant's text, which will be measured; "
            f"got {caption[:60]!r} of {role!r} at the end.",
            where=pair.where,
            fix="put the text about the picture into the last message.",
        )
    seen, _, question = pair.text.rpartition(MARKER)
    end = len(question) - len(caption)
    asked = tokenize(tokenizer, Continuation(question[:end], question[end:].rstrip()))
    begin = () if bos is None else (bos,)
    tokens = (*begin, *conversation_tokens(tokenizer, vision, seen + MARKER), *asked.tokens)
    return TokenizedContinuation(tokens, asked.scored)


def _processor_of(source: ModelSource) -> ImageProcessor:
    """Returns the image processor of a model."""
    with tempfile.TemporaryDirectory(prefix="awq2trt-") as directory:
        source.save_tokenizer(Path(directory))
        return read_processor(Path(directory))
