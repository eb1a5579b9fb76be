"""What a model that sees is shown: image files as its vision graph takes them, and their places in a prompt.

In: files, and a text or a conversation. Out: prepared images, and markers where they stand. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from awq2trt.artifact.manifest import Artifact
from awq2trt.artifact.records import VisionRecord
from awq2trt.errors import UnsupportedError, UsageError
from awq2trt.images.pairs import MARKER
from awq2trt.images.processor import ImageProcessor, read_processor
from awq2trt.images.read import read_image
from awq2trt.io_contract import VISION
from awq2trt.runtime.chat import Message

Image = str | PathLike[str]
"""An image file."""


@dataclass(frozen=True)
class Sight:
    """How a model is shown images.

    Attributes:
        record: What its manifest says.
        processor: What is done to an image first.
        shape: Shape of a prepared image: channels, height, width.
    """

    record: VisionRecord
    processor: ImageProcessor
    shape: tuple[int, ...]

    @classmethod
    def of(cls, artifact: Artifact) -> Sight | None:
        """Reads how an exported model is shown images; None for a model of text.

        Raises:
            CheckpointError: Its image processor is missing or damaged.
            UnsupportedError: It is of another kind than CLIP's.
        """
        contents = artifact.manifest.contents
        record = contents.model.vision if contents.model else None
        graph = contents.graphs.get(VISION)
        if record is None or graph is None:
            return None
        shape = tuple(int(axis) for axis in graph.io.inputs[0].shape[1:])
        return cls(record, read_processor(artifact.directory), shape)

    def prepare(self, images: Sequence[Image]) -> NDArray[np.float32]:
        """Reads and prepares images, at least one: float32 [images, channels, height, width].

        Raises:
            UsageError: A file is missing, no image, damaged, or of a size that makes no sense.
            UnsupportedError: The processor does not make what the vision graph takes.
        """
        prepared = [self.processor.prepare(read_image(Path(image))) for image in images]
        for path, pixels in zip(images, prepared, strict=True):
            if pixels.shape != self.shape:
                raise UnsupportedError(
                    f"the image processor makes {list(pixels.shape)}, and the vision graph takes {list(self.shape)}.",
                    where=str(path),
                    fix="export the model again with the preprocessor_config.json that it was published with.",
                )
        return np.stack(prepared)

    def place(self, tokens: Sequence[int], images: int) -> list[int]:
        """Tokens of a prompt, in which each image token is repeated for every piece of its image.

        Args:
            tokens: With one image token for an image.
            images: How many are shown.

        Raises:
            UsageError: There are more or fewer image tokens.
        """
        require_places(list(tokens).count(self.record.image_token), images)
        pieces = self.record.tokens_per_image or 1
        return [token for token in tokens for _ in range(pieces if token == self.record.image_token else 1)]


def require_places(places: int, images: int) -> None:
    """Refuses a prompt with more or fewer places than images.

    Args:
        places: How many images have one in the prompt.
        images: How many are shown.

    Raises:
        UsageError: There are more or fewer.
    """
    if places != images:
        raise UsageError(
            f"places for images in the prompt: {places}; images given: {images}.",
            where="--image",
            fix=f"give one image for every {MARKER} of the prompt; without any, the images come before the text.",
        )


def no_sight() -> UsageError:
    """The error that says that a model of text was given images."""
    return UsageError("this model does not see: it is a model of text.", where="--image", fix="leave --image out.")


def with_markers(messages: Sequence[Message], images: int) -> list[Message]:
    """A conversation with a marker for every image: before the last text of the user, where there are none."""
    marked = list(messages)
    asked = [index for index, message in enumerate(marked) if message["role"] == "user"]
    if images and asked and not any(MARKER in message["content"] for message in marked):
        last = marked[asked[-1]]
        marked[asked[-1]] = {**last, "content": f"{MARKER}\n" * images + last["content"]}
    return marked
