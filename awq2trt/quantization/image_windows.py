"""Calibration windows of pictures and text: what the decoder of a model that sees reads of both.

In: `ImageText`s. Out: token windows in which image tokens stand where a picture's pieces do, and the residual stream
before the first block, with the pieces in their places. Statistics then see what the decoder sees in use
(arXiv:2306.00978, section 5.2, calibrates vision-language models on pictures with captions in the same way).

A window begins with a conversation and goes on with the next ones until it is full. Its last conversation is cut,
within a picture if need be: a decoder reads from left to right, so what stands before the cut is what it would be
without one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from awq2trt.errors import CalibrationError
from awq2trt.images.pairs import MARKER, ImageText
from awq2trt.images.processor import ImageProcessor
from awq2trt.images.read import read_image
from awq2trt.models.decoder import Ends
from awq2trt.models.sources.base import ModelSource
from awq2trt.models.vision.description import VisionSpec
from awq2trt.models.vision.tower import VisionWeights, image_features, load_vision
from awq2trt.progress import Progress
from awq2trt.text.tokenizer import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_REMEMBERED_BYTES: Final = 1 << 28
"""Features of the pictures seen last, which are not looked at anew: shots that stand before every question, a picture
whose choices are compared. These are 28 pictures of LLaVA-1.5-7B, 576 x 4096 fp32 each."""


@dataclass(frozen=True)
class Sight:
    """How a model sees, and all that it sees with.

    Attributes:
        vision: How it sees.
        weights: Of its tower and projector.
        processor: What is done to a picture first.
    """

    vision: VisionSpec
    weights: VisionWeights
    processor: ImageProcessor
    _seen: dict[Path, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, source: ModelSource, vision: VisionSpec, processor: ImageProcessor) -> Sight:
        """Of a model, whose tower is read now."""
        return cls(vision, load_vision(source), processor)

    def place_(self, hidden: Tensor, tokens: Tensor, images: Sequence[Path]) -> None:
        """Puts what is seen in pictures where the image tokens stand.

        Args:
            hidden: Embeddings, fp32 [S, hidden_size], changed.
            tokens: int64 [S].
            images: In the order of their tokens; the last one may be cut.

        Raises:
            UsageError: A picture cannot be read.
        """
        if images:
            places = (tokens == self.vision.image_token).to(hidden.device)
            seen = [self.features(path) for path in images]
            hidden[places] = torch.cat(seen, dim=1)[0, : int(places.sum())]

    def features(self, path: Path) -> Tensor:
        """What is seen in a picture, fp32 [1, tokens, hidden_size]; those seen last are remembered.

        Raises:
            UsageError: It cannot be read.
        """
        seen = self._seen.pop(path, None)
        if seen is None:
            # Not from_numpy(), which knows nothing of the device that PyTorch computes on.
            pixels = torch.as_tensor(self.processor.prepare(read_image(path)))
            seen = image_features(self.vision, self.weights, pixels[None])
        self._seen[path] = seen
        if len(self._seen) * seen.nbytes > _REMEMBERED_BYTES:
            del self._seen[next(iter(self._seen))]
        return seen


@dataclass(frozen=True)
class ImageWindows:
    """Windows of calibration.

    Attributes:
        tokens: int64 [samples, seqlen].
        images: Of each window, in the order of their image tokens; the last one of a window may be cut.
    """

    tokens: Tensor
    images: tuple[tuple[Path, ...], ...]

    def first(self, count: int) -> ImageWindows:
        """The first `count` of them."""
        return ImageWindows(self.tokens[:count], self.images[:count])

    def embed(self, source: ModelSource, vision: VisionSpec, processor: ImageProcessor, progress: Progress) -> Tensor:
        """The residual stream before the first block, fp32 [samples, seqlen, hidden_size]."""
        hidden = Ends(source).embed(self.tokens)
        sight = Sight.of(source, vision, processor)
        with progress.task("looking at the images", total=len(self.images)) as advance:
            for row, (tokens, images) in enumerate(zip(self.tokens, self.images, strict=True)):
                sight.place_(hidden[row], tokens, images)
                advance(1)
        return hidden


@dataclass(frozen=True)
class WindowSizes:
    """Which windows are wanted.

    Attributes:
        samples: How many; there are fewer if the conversations do not fill them.
        seqlen: Tokens of a window.
        bos: Begins every window; None for none.
    """

    samples: int
    seqlen: int
    bos: int | None = None


def image_windows(
    tokenizer: PreTrainedTokenizerBase,
    vision: VisionSpec,
    pairs: Sequence[ImageText],
    sizes: WindowSizes,
    *,
    where: str,
) -> ImageWindows:
    """Windows of conversations about pictures.

    Args:
        tokenizer: Of the model.
        vision: How it sees.
        pairs: The conversations, of which as many are taken as the windows need, from the first on.
        sizes: The windows.
        where: Name of the conversations, for errors.

    Raises:
        CalibrationError: They do not fill one window.
    """
    seqlen, start = sizes.seqlen, [] if sizes.bos is None else [sizes.bos]
    windows: list[list[int]] = []
    images: list[tuple[Path, ...]] = []
    tokens, shown, found = [*start], list[Path](), 0
    for pair in pairs:
        if len(windows) == sizes.samples:
            break
        ids = list(conversation_tokens(tokenizer, vision, f"{pair.text}\n"))
        tokens += ids
        shown += pair.images
        found += len(ids)
        if len(tokens) >= seqlen:
            windows.append(tokens[:seqlen])
            seen = -(-windows[-1].count(vision.image_token) // vision.tokens_per_image)  # a cut one counts
            images.append(tuple(shown[:seen]))
            tokens, shown = [*start], []
    if not windows:
        raise CalibrationError(
            f"expected at least one window of {seqlen} tokens, got {found} tokens in {len(pairs)} conversations.",
            where=where,
            fix=f"add pictures, or use --seqlen {max(8, found)} or less.",
        )
    return ImageWindows(torch.tensor(windows), tuple(images))


def conversation_tokens(tokenizer: PreTrainedTokenizerBase, vision: VisionSpec, text: str) -> Iterator[int]:
    """Tokens of a text with markers, with as many image tokens for each picture as it has pieces."""
    first, *rest = text.split(MARKER)
    yield from encode(tokenizer, first)
    for text in rest:
        yield from [vision.image_token] * vision.tokens_per_image
        yield from encode(tokenizer, text)
