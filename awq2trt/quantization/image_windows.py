"""Calibration windows of pictures and text: the inputs that the decoder of a model with images reads for both.

In: `ImageText`s. Out: token windows with image tokens in place of a picture's pieces, and the residual stream before
the first block, with the pieces in their places; or, for a decoder that attends to pictures, what it attends to. So
statistics see what the decoder sees in use (arXiv:2306.00978,
section 5.2, calibrates vision-language models on pictures with captions in the same way).

A window begins with a conversation and continues with the next ones until it is full. Its last conversation is cut,
even within a picture: a decoder reads from left to right, so a cut does not affect what is before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from awq2trt.errors import CalibrationError
from awq2trt.images.pairs import END_OF_CHUNK, MARKER, ImageText
from awq2trt.images.processor import ImageProcessor
from awq2trt.images.read import read_image
from awq2trt.models.cross_attention import Media
from awq2trt.models.decoder import Ends
from awq2trt.models.sources.base import ModelSource
from awq2trt.models.vision.description import AttendedSpec, StillSpec
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
    """How a model sees images, with everything that it needs to see.

    Attributes:
        vision: The description of how it sees images.
        weights: Weights of its tower and projector.
        processor: Prepares a picture.
    """

    vision: StillSpec
    weights: VisionWeights
    processor: ImageProcessor
    _seen: dict[Path, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, source: ModelSource, vision: StillSpec, processor: ImageProcessor) -> Sight:
        """Reads the tower of a model."""
        return cls(vision, load_vision(source), processor)

    def show_(self, hidden: Tensor, tokens: Tensor, images: Iterable[Sequence[Path]]) -> Media | None:
        """Shows pictures to texts: puts their pieces in place of image tokens, or gives blocks something to attend to.

        Args:
            hidden: Embeddings, fp32 [texts, S, hidden_size]; they are changed, unless blocks attend to pictures.
            tokens: int64 [texts, S].
            images: The pictures of each text in the order of their tokens; the last one may be cut.

        Returns:
            What the blocks attend to; None if they read the pictures' pieces.

        Raises:
            UsageError: A picture cannot be read.
        """
        if isinstance(self.vision, AttendedSpec):
            return Media.of_texts(tokens, self.vision.image_token, [self._pieces(shown) for shown in images])
        for row, ids, shown in zip(hidden, tokens, images, strict=True):
            if shown:
                places = (ids == self.vision.image_token).to(hidden.device)
                row[places] = self._pieces(shown).flatten(0, 1)[: int(places.sum())]
        return None

    def _pieces(self, images: Sequence[Path]) -> Tensor:
        """The pieces of several pictures, fp32 [pictures, pieces, channels]."""
        if images:
            return torch.cat([self.features(path) for path in images])
        assert isinstance(self.vision, AttendedSpec)
        return torch.zeros(0, self.vision.resampler.num_latents, self.vision.resampler.width)

    def features(self, path: Path) -> Tensor:
        """What is seen in a picture, fp32 [1, pieces, channels]; those seen last are remembered.

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
        images: The images of each window, in the order of their image tokens; the last one of a window may be cut.
    """

    tokens: Tensor
    images: tuple[tuple[Path, ...], ...]

    def first(self, count: int) -> ImageWindows:
        """Returns the first `count` windows."""
        return ImageWindows(self.tokens[:count], self.images[:count])

    def embed(
        self, source: ModelSource, vision: StillSpec, processor: ImageProcessor, progress: Progress
    ) -> tuple[Tensor, Media | None]:
        """What the first block reads, fp32 [samples, seqlen, hidden_size], and what blocks attend to."""
        hidden = Ends(source).embed(self.tokens)
        sight = Sight.of(source, vision, processor)
        with progress.task("looking at the images", total=len(self.images)) as advance:
            media = sight.show_(hidden, self.tokens, _counted(self.images, advance))
        return hidden, media


@dataclass(frozen=True)
class WindowSizes:
    """The sizes of the windows that are wanted.

    Attributes:
        samples: Number of windows; there are fewer if the conversations do not fill them.
        seqlen: Tokens of a window.
        bos: The token that begins every window; None without one.
    """

    samples: int
    seqlen: int
    bos: int | None = None


def image_windows(
    tokenizer: PreTrainedTokenizerBase,
    vision: StillSpec,
    pairs: Sequence[ImageText],
    sizes: WindowSizes,
    *,
    where: str,
) -> ImageWindows:
    """Makes windows from conversations about pictures.

    Args:
        tokenizer: The model's tokenizer.
        vision: How the model sees images.
        pairs: The conversations; only as many as needed are used, from the first.
        sizes: The windows.
        where: Name of the conversations, for errors.

    Raises:
        CalibrationError: The conversations do not fill one window.
    """
    seqlen, start = sizes.seqlen, [] if sizes.bos is None else [sizes.bos]
    windows: list[list[int]] = []
    images: list[tuple[Path, ...]] = []
    tokens, shown, found = [*start], list[Path](), 0
    end = END_OF_CHUNK if isinstance(vision, AttendedSpec) else "\n"
    for pair in pairs:
        if len(windows) == sizes.samples:
            break
        ids = list(conversation_tokens(tokenizer, vision, written(vision, pair) + end))
        tokens += ids
        shown += pair.images
        found += len(ids)
        if len(tokens) >= seqlen:
            windows.append(tokens[:seqlen])
            seen = -(-windows[-1].count(vision.image_token) // vision.tokens_per_image)  # a cut image counts
            images.append(tuple(shown[:seen]))
            tokens, shown = [*start], []
    if not windows:
        raise CalibrationError(
            f"expected at least one window of {seqlen} tokens, got {found} tokens in {len(pairs)} conversations.",
            where=where,
            fix=f"add pictures, or use --seqlen {max(8, found)} or less.",
        )
    return ImageWindows(torch.tensor(windows), tuple(images))


def written(vision: StillSpec, pair: ImageText) -> str:
    """A conversation as text, in the form that a model was trained on."""
    return pair.chunks if isinstance(vision, AttendedSpec) else pair.text


def conversation_tokens(tokenizer: PreTrainedTokenizerBase, vision: StillSpec, text: str) -> Iterator[int]:
    """Tokens of a text with markers, in which every picture has as many image tokens as it has pieces."""
    first, *rest = text.split(MARKER)
    yield from encode(tokenizer, first)
    for text in rest:
        yield from [vision.image_token] * vision.tokens_per_image
        yield from encode(tokenizer, text)


def _counted(images: Iterable[tuple[Path, ...]], advance: Callable[[int], None]) -> Iterator[tuple[Path, ...]]:
    """The same, counted when the next one is asked for."""
    for shown in images:
        yield shown
        advance(1)
