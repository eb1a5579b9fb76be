"""Calibration windows of pictures and text: the inputs that the decoder of a model with images reads for both.

In: `ImageText`s. Out: token windows with image tokens in place of a picture's pieces, and the residual stream before
the first block, with the pieces in their places; or, for a decoder that attends to pictures, what it attends to. So
statistics see what the decoder sees in use (arXiv:2306.00978, section 5.2, calibrates vision-language models on
pictures with captions in the same way).

A window begins with a conversation and continues with the next ones until it is full. Its last conversation is cut,
even within a picture: a decoder reads from left to right, so a cut does not affect what is before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from awq2trt.errors import CalibrationError
from awq2trt.images.pairs import END_OF_CHUNK, MARKER, ImageText
from awq2trt.images.processor import Processor
from awq2trt.images.read import read_image
from awq2trt.models.decoder import Ends, Shown
from awq2trt.models.image_blocks import ImageBlocks
from awq2trt.models.sources.base import ModelSource
from awq2trt.models.vision.arranging import arranged, tokens_around
from awq2trt.models.vision.description import AttendedSpec, SeeingSpec
from awq2trt.models.vision.linears import VisionWeights
from awq2trt.models.vision.mixed_positions import MixedPositions
from awq2trt.models.vision.prepared import Pixels, PreparedImage
from awq2trt.models.vision.seeing import pieces_seen, shown_to_blocks
from awq2trt.models.vision.tower import load_vision
from awq2trt.progress import Progress
from awq2trt.text.tokenizer import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_REMEMBERED_BYTES: Final = 1 << 28
"""Features of the pictures seen last, which are not looked at anew: shots that stand before every question, a picture
whose choices are compared. These are 28 pictures of LLaVA-1.5-7B, 576 x 4096 fp32 each."""

_LOOKING: Final = "looking at the images"

_TEXT_TOKEN: Final = -1
"""Stands for any token of text, where only its position matters."""


@dataclass(frozen=True)
class Sight:
    """How a model sees images, with everything that it needs to see.

    Attributes:
        source: The model.
        vision: The description of how it sees images.
        processor: Prepares a picture.
    """

    source: ModelSource
    vision: SeeingSpec
    processor: Processor
    _seen: dict[Path, Tensor] = field(default_factory=dict, repr=False, compare=False)
    _shown: dict[Path, PreparedImage] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def _weights(self) -> VisionWeights:
        return load_vision(self.source)

    def shape(self, path: Path) -> PreparedImage:
        """What a picture becomes, without its numbers; where that depends on its size, it is read once.

        Raises:
            UsageError: It cannot be read.
        """
        record = self.vision.record()
        if record.tokens_per_image is not None and not self.source.spec.image_blocks:
            return PreparedImage({}, record.tokens_per_image)
        if path not in self._shown:
            prepared = arranged(record, self.processor.pixels(read_image(path)))
            self._shown[path] = replace(prepared, inputs={})
        return self._shown[path]

    def place_(self, hidden: Tensor, tokens: Tensor, images: Sequence[Path]) -> None:
        """Puts the features of pictures in place of the image tokens, unless the decoder attends to them (`media`).

        Args:
            hidden: Embeddings, fp32 [S, hidden_size]; they are changed.
            tokens: int64 [S].
            images: The pictures in the order of their tokens; the last one may be cut.

        Raises:
            UsageError: A picture cannot be read.
        """
        if images and not isinstance(self.vision, AttendedSpec):
            places = (tokens == self.vision.image_token).to(hidden.device)
            seen = [self.features(path) for path in images]
            hidden[places] = torch.cat(seen)[: int(places.sum()), : hidden.shape[-1]]

    @property
    def shows_blocks(self) -> bool:
        """Whether blocks see images other than in the places of image tokens."""
        return isinstance(self.vision, AttendedSpec) or self.source.spec.deepstack > 0

    def media(self, tokens: Tensor, images: Iterable[Sequence[Path]], more: int = 0) -> Shown | None:
        """What blocks see of images; None if the decoder only reads images.

        Args:
            tokens: int64 [texts, S].
            images: The pictures of each text in the order of their tokens; the last one may be cut.
            more: Tokens of text that will follow.

        Raises:
            UsageError: A picture cannot be read.
        """
        if self.source.spec.image_blocks:
            return ImageBlocks.of_texts(tokens, self.vision.image_token, more)
        if not self.shows_blocks:
            return None
        return shown_to_blocks(self.source, tokens, [[*map(self.features, shown)] for shown in images], more)

    def positions(self, tokens: Tensor, images: Sequence[Path], more: int = 0) -> Tensor | None:
        """Positions of a conversation's tokens, int64 [3, S + more]; None if the decoder counts tokens one by one.

        Args:
            tokens: int64 [S].
            images: The pictures in the order of their tokens; the last one may be cut.
            more: Tokens of text that will follow.
        """
        if all(rope.sections is None for rope in self.source.spec.ropes):
            return None
        grids = [grid for path in images if (grid := self.shape(path).grid) is not None]
        counted = MixedPositions(self.vision.image_token, grids)
        found = counted.of([*tokens.tolist(), *[_TEXT_TOKEN] * more])
        return torch.as_tensor(found)

    def pixels(self, path: Path) -> Pixels:
        """A picture, prepared.

        Raises:
            UsageError: It cannot be read.
        """
        return self.processor.pixels(read_image(path))

    def features(self, path: Path) -> Tensor:
        """What is seen in a picture, fp32 [pieces, channels]; those seen last are remembered.

        Raises:
            UsageError: It cannot be read.
        """
        seen = self._seen.pop(path, None)
        if seen is None:
            seen = pieces_seen(self.vision, self._weights, self.pixels(path))
        self._seen[path] = seen
        if sum(one.nbytes for one in self._seen.values()) > _REMEMBERED_BYTES:
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

    @property
    def pictures(self) -> tuple[Path, ...]:
        """All images, each once, in the order in which they come first."""
        return tuple(dict.fromkeys(path for window in self.images for path in window))

    def embed(self, sight: Sight, progress: Progress) -> Tensor:
        """The residual stream before the first block, fp32 [samples, seqlen, hidden_size]."""
        hidden = Ends(sight.source).embed(self.tokens)
        if isinstance(sight.vision, AttendedSpec):
            return hidden
        with progress.task(_LOOKING, total=len(self.images)) as advance:
            for row, (tokens, images) in enumerate(zip(self.tokens, self.images, strict=True)):
                sight.place_(hidden[row], tokens, images)
                advance(1)
        return hidden

    def media(self, sight: Sight, progress: Progress) -> Shown | None:
        """What blocks see, as of `Sight.media`."""
        if sight.source.spec.image_blocks:
            return sight.media(self.tokens, ())
        if not sight.shows_blocks:
            return None
        with progress.task(_LOOKING, total=len(self.images)) as advance:
            return sight.media(self.tokens, _counted(self.images, advance))

    def positions(self, sight: Sight) -> Tensor | None:
        """Positions of all tokens, as of `Sight.positions`: int64 [samples, 3, seqlen]."""
        found = [sight.positions(*window) for window in zip(self.tokens, self.images, strict=True)]
        placed = [positions for positions in found if positions is not None]
        return torch.stack(placed) if placed else None


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
    tokenizer: PreTrainedTokenizerBase, sight: Sight, pairs: Sequence[ImageText], sizes: WindowSizes, *, where: str
) -> ImageWindows:
    """Makes windows from conversations about pictures.

    Args:
        tokenizer: The model's tokenizer.
        sight: How the model sees images.
        pairs: The conversations; only as many as needed are used, from the first.
        sizes: The windows.
        where: Name of the conversations, for errors.

    Raises:
        CalibrationError: The conversations do not fill one window.
        UsageError: A picture cannot be read.
    """
    seqlen, start = sizes.seqlen, [] if sizes.bos is None else [sizes.bos]
    windows: list[list[int]] = []
    images: list[tuple[Path, ...]] = []
    tokens, shown, found = [*start], list[Path](), 0
    end = END_OF_CHUNK if isinstance(sight.vision, AttendedSpec) else "\n"
    for pair in pairs:
        if len(windows) == sizes.samples:
            break
        ids = list(conversation_tokens(tokenizer, sight, written(sight.vision, pair) + end, pair.images))
        tokens += ids
        shown += pair.images
        found += len(ids)
        if len(tokens) >= seqlen:
            windows.append(tokens[:seqlen])
            images.append(tuple(_begun(sight, shown, windows[-1].count(sight.vision.image_token))))
            tokens, shown = [*start], []
    if not windows:
        raise CalibrationError(
            f"expected at least one window of {seqlen} tokens, got {found} tokens in {len(pairs)} conversations.",
            where=where,
            fix=f"add pictures, or use --seqlen {max(8, found)} or less.",
        )
    return ImageWindows(torch.tensor(windows), tuple(images))


def written(vision: SeeingSpec, pair: ImageText) -> str:
    """A conversation as text, in the form that a model was trained on."""
    return pair.chunks if isinstance(vision, AttendedSpec) else pair.text


def _begun(sight: Sight, images: Sequence[Path], tokens: int) -> Iterator[Path]:
    """Those of some images to which so many image tokens belong; one that is cut counts."""
    for image in images:
        if tokens <= 0:
            return
        yield image
        tokens -= sight.shape(image).pieces


def conversation_tokens(
    tokenizer: PreTrainedTokenizerBase, sight: Sight, text: str, images: Sequence[Path]
) -> Iterator[int]:
    """Tokens of a text with markers, in which every picture has as many image tokens as it has pieces.

    Raises:
        UsageError: A picture cannot be read.
    """
    before, after = tokens_around(sight.vision.record())
    first, *rest = text.split(MARKER)
    yield from encode(tokenizer, first)
    for text, image in zip(rest, images, strict=True):
        yield from before
        yield from _image_tokens(tokenizer, sight, image)
        yield from after
        yield from encode(tokenizer, text)


def _image_tokens(tokenizer: PreTrainedTokenizerBase, sight: Sight, image: Path) -> Iterator[int]:
    """Tokens that stand for a picture, with those of the texts around its tiles if it has them."""
    shape, token = sight.shape(image), sight.vision.image_token
    if not shape.texts:
        yield from [token] * shape.pieces
        return
    first, *rest = shape.texts
    yield from encode(tokenizer, first)
    for text in rest:
        yield from [token] * (shape.pieces // shape.tiles)
        yield from encode(tokenizer, text)


def _counted(images: Iterable[tuple[Path, ...]], advance: Callable[[int], None]) -> Iterator[tuple[Path, ...]]:
    """The same, counted when the next one is asked for."""
    for shown in images:
        yield shown
        advance(1)
