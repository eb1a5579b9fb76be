"""A model that is ready to answer: its backend and its tokenizer, which together turn text into text.

In: a directory that `export` or `build` wrote, then prompts or conversations. Out: text, piece by piece or at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from awq2trt.artifact.manifest import Artifact
from awq2trt.artifact.opening import open_model
from awq2trt.errors import UsageError
from awq2trt.models.vision.prepared import PreparedImage
from awq2trt.progress import Progress, SilentProgress
from awq2trt.runtime.backend import Backend
from awq2trt.runtime.chat import ChatTokenizer, Message, stream_text, user_message
from awq2trt.runtime.first_run import check_first_run
from awq2trt.runtime.generation import generate
from awq2trt.runtime.ort.loading import DeviceOptions, open_backend
from awq2trt.runtime.sampling import Sampler, Sampling
from awq2trt.runtime.sight import Image, Sight, no_sight, with_markers

DEFAULT_BACKEND: Final = "ort"
"""ONNX Runtime, on the CPU or on a GPU."""

NATIVE: Final = "native"
"""The C++ library; `native.NativeModel` uses it."""

AUTO: Final = "auto"
"""The C++ library if it can run the model, otherwise ONNX Runtime; `choice.load_model` decides."""


@dataclass(frozen=True)
class Model:
    """An exported model, loaded; `awq2trt.load` makes one.

        model = awq2trt.load("out/onnx")
        print(model.generate_text("The sea is", raw=True, max_new_tokens=8))

    It holds the cache of one conversation, so it generates one answer at a time: a new call takes the cache away from
    an answer that was not read to its end.

    Attributes:
        artifact: The artifact that it was loaded from, with its manifest.
        backend: The backend that runs the decoder.
        tokenizer: Its tokenizer, with chat template and stop tokens.
        sight: How it is shown images; None for a model of text.
    """

    artifact: Artifact
    backend: Backend
    tokenizer: ChatTokenizer
    sight: Sight | None = None

    @classmethod
    def load(
        cls,
        directory: Path,
        options: DeviceOptions | None = None,
        *,
        backend: str = DEFAULT_BACKEND,
        golden: bool = True,
        progress: Progress | None = None,
    ) -> Model:
        """Loads a model.

        Args:
            directory: An ONNX model, a model built for `cpu` or `cuda`, or an engine's directory, which contains one.
            options: Where it runs; None for the fastest available device.
            backend: What runs it; only `DEFAULT_BACKEND` is possible here, see `NATIVE` for the other.
            golden: Check the golden outputs on the first run on a GPU.
            progress: Receives what runs the model; None for silence.

        Raises:
            ArtifactError: The directory holds no complete model.
            ToolError: This machine lacks something that the device needs.
            UsageError: The directory contains several models, or a checkpoint; or the backend or device is unknown.
        """
        if backend != DEFAULT_BACKEND:
            raise UsageError(
                f"unknown backend {backend!r}, expected {AUTO}, {DEFAULT_BACKEND} or {NATIVE}.",
                where="--runtime",
                fix=f"leave it out, or name {DEFAULT_BACKEND}, which runs everywhere.",
            )
        progress = progress or SilentProgress()
        artifact = open_model(directory, verify="first")  # reading all of an 8B model takes seconds
        tokenizer, sight = ChatTokenizer.load(artifact.directory), Sight.of(artifact)
        opened = open_backend(artifact, options or DeviceOptions())
        progress.note(f"running in {opened.title}")
        if opened.memory is not None and golden and check_first_run(opened.backend, artifact, opened.memory.gpu.name):
            progress.note(f"first run on {opened.memory.gpu.name}: golden outputs passed")
        return cls(artifact, opened.backend, tokenizer, sight)

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        images: Sequence[Image] = (),
        raw: bool = False,
        sampling: Sampling | None = None,
        max_new_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """Answers a prompt, piece by piece as text becomes certain.

        Args:
            prompt: What the user says, or a complete conversation of messages with `role` and `content`. Either goes
                through the model's chat template. For a model that sees images, `<image>` in a text stands for one.
            images: Files of the images, in the order of their places; if a conversation has no places, the images come
                before the user's last message.
            raw: Continue the prompt as plain text instead, without the template.
            sampling: How tokens are chosen; None always takes the most probable one.
            max_new_tokens: None for as many as the cache holds.
            stop: The answer ends before the first of these strings.

        Returns:
            Pieces of the answer. The model computes while they are read.

        Raises:
            UsageError: The model has no chat template, or its template refuses the messages, or `raw` is set for a
                conversation; a file is not an image, there are more or fewer images than places for them, or the model
                does not see images. While the answer is read: the prompt is empty or does not fit.
        """
        if raw and not isinstance(prompt, str):
            raise UsageError(
                "a conversation cannot be continued as plain text.", where="raw", fix="give one text, or leave raw out."
            )
        shown = self.sight.prepare(images) if self.sight is not None else ()
        messages = [user_message(prompt)] if isinstance(prompt, str) and not raw else prompt
        tokens = (
            self._text_tokens(messages, images) if self.sight is None else self._tokens(self.sight, messages, shown)
        )
        special = self.artifact.manifest.contents.tokens or self.tokenizer.special
        new_tokens = generate(
            self.backend,
            tokens,
            Sampler(sampling or Sampling()),
            stop_tokens=special.stop,
            max_new_tokens=max_new_tokens,
            images=shown,
        )
        return stream_text(new_tokens, self.tokenizer.decode, stop)

    def _text_tokens(self, prompt: str | Sequence[Message], images: Sequence[Image]) -> list[int]:
        """Tokens of plain text, or of a conversation, for a model of text."""
        if images:
            raise no_sight()
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else self.tokenizer.encode_messages(prompt)

    def _tokens(self, sight: Sight, prompt: str | Sequence[Message], images: Sequence[PreparedImage]) -> list[int]:
        """Tokens of plain text, or of a conversation; an image has as many of its own as it has pieces."""
        token = sight.record.image_token

        def spell(text: str) -> str:
            return sight.spell(text, images)

        tokens = (
            self.tokenizer.encode(prompt, token, sight.around, spell)
            if isinstance(prompt, str)
            else self.tokenizer.encode_messages(with_markers(prompt, len(images)), token, sight.around, spell)
        )
        placed = sight.place(tokens, images)
        if images and len(placed) > self.backend.capacity:
            seen = placed.count(token)
            alone = len(placed) - seen > self.backend.capacity  # the text is too long without images, too
            shorter = "shorten the text" if alone else "show fewer images"
            raise UsageError(
                f"the prompt has {len(placed)} tokens, {seen} of them of {len(images)} images, but the "
                f"cache of this model holds {self.backend.capacity}.",
                where="--prompt" if alone else "--image",
                fix=f"{shorter}, or export again with --max-seq-len {len(placed)} or more.",
            )
        return placed

    def generate_text(
        self,
        prompt: str | Sequence[Message],
        *,
        images: Sequence[Image] = (),
        raw: bool = False,
        sampling: Sampling | None = None,
        max_new_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> str:
        """Returns the complete answer at once; arguments and errors are those of `generate`."""
        return "".join(
            self.generate(prompt, images=images, raw=raw, sampling=sampling, max_new_tokens=max_new_tokens, stop=stop),
        )
