"""What a model that sees is shown: image files as its vision graph takes them, and their places in a prompt.

In: files, and a text or a conversation. Out: prepared images, and markers where they stand. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from awq2trt.artifact.manifest import Artifact
from awq2trt.artifact.records import VisionRecord
from awq2trt.errors import ArtifactError, UnsupportedError, UsageError
from awq2trt.foreign_files import reading
from awq2trt.images.pairs import MARKER
from awq2trt.images.processor import Processor, read_processor, require_recorded
from awq2trt.images.read import read_image
from awq2trt.io_contract import VISION, IoContract
from awq2trt.models.vision.arranging import arranged, require_settings, tokens_around
from awq2trt.models.vision.pooled import BEFORE_IMAGE, IMAGE_BLOCKS
from awq2trt.models.vision.prepared import PreparedImage
from awq2trt.runtime.chat import Message

Image = str | PathLike[str]
"""An image file."""


@dataclass(frozen=True)
class Sight:
    """How a model is shown images.

    Attributes:
        record: What its manifest says.
        processor: What is done to an image first.
        io: Inputs and outputs of its vision graph.
    """

    record: VisionRecord
    processor: Processor
    io: IoContract

    @classmethod
    def of(cls, artifact: Artifact) -> Sight | None:
        """Reads how an exported model is shown images; None for a model of text.

        Raises:
            CheckpointError: Its image processor is missing or damaged.
            UnsupportedError: It is of an unknown kind, or makes something else than the vision graph takes.
            ArtifactError: The manifest does not say how images of any size are divided.
        """
        contents = artifact.manifest.contents
        record = contents.model.vision if contents.model else None
        graph = contents.graphs.get(VISION)
        if record is None or graph is None:
            return None
        sight = cls(record, read_processor(artifact.directory), graph.io)
        with reading("how a model sees", artifact.directory, fix="export it again.", error=ArtifactError):
            require_settings(record)
        require_recorded(sight.processor, record, where=str(artifact.directory))
        return sight

    @property
    def around(self) -> tuple[list[int], list[int]]:
        """Tokens that this model wants before and after those of an image."""
        return tokens_around(self.record)

    def prepare(self, images: Sequence[Image]) -> list[PreparedImage]:
        """Reads and prepares images.

        Raises:
            UsageError: A file is missing, no image, damaged, or of a size that makes no sense.
            UnsupportedError: The processor does not make what the vision graph takes.
        """
        prepared = [arranged(self.record, self.processor.pixels(read_image(Path(image)))) for image in images]
        for path, image in zip(images, prepared, strict=True):
            self._require_taken(image, str(path))
        return prepared

    def _require_taken(self, image: PreparedImage, where: str) -> None:
        """Refuses what the vision graph does not take, as of a preprocessor_config.json that was changed."""
        for tensor in self.io.inputs:
            shape = image.inputs[tensor.name].shape if tensor.name in image.inputs else ()
            fits = len(shape) == len(tensor.shape) and all(
                size == axis for size, axis in zip(shape, tensor.shape, strict=True) if isinstance(axis, int)
            )
            if not fits:
                raise UnsupportedError(
                    f"the image processor makes {tensor.name} of {list(shape)}, and the vision graph takes "
                    f"{list(tensor.shape)}.",
                    where=where,
                    fix="export the model again with the preprocessor_config.json that it was published with.",
                )

    def spell(self, prompt: str, images: Sequence[PreparedImage]) -> str:
        """A prompt in which markers have become what is written for their images, where the model has such texts.

        Raises:
            UsageError: There are more or fewer markers.
        """
        if IMAGE_BLOCKS in self.record.settings:
            prompt = prompt.replace(BEFORE_IMAGE, MARKER)
        if not any(image.texts for image in images):
            return prompt
        first, *rest = prompt.split(MARKER)
        require_places(len(rest), len(images))
        spelled = (image.written(MARKER) + text for image, text in zip(images, rest, strict=True))
        return first + "".join(spelled)

    def place(self, tokens: Sequence[int], images: Sequence[PreparedImage]) -> list[int]:
        """Tokens of a prompt, in which each image token is repeated for every piece of its image.

        Args:
            tokens: With one image token for an image, or those of a spelled prompt.
            images: What is shown.

        Raises:
            UsageError: There are more or fewer image tokens.
        """
        found = list(tokens).count(self.record.image_token)
        if images and all(image.texts for image in images) and found == sum(image.pieces for image in images):
            return list(tokens)
        require_places(found, len(images))
        pieces = iter(images)
        return [
            token for token in tokens for _ in range(next(pieces).pieces if token == self.record.image_token else 1)
        ]


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
            fix=f"give one image for every {MARKER} of the prompt; without any, the images come before the text, "
            "except with --raw.",
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
