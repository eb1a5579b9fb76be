"""Models in the C++ library, used like `loaded_model.Model`, without ONNX Runtime's Python package.

In: the directory of a model built for `cpu` or `cuda`, or of an engine. Out: text, piece by piece or at once. Sampling,
stop strings, templates and tokenizer are those of the library.
"""

from __future__ import annotations

import ctypes
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.artifact.golden import DESCRIPTION_FILE
from awq2trt.artifact.manifest import MANIFEST_FILE, read_manifest
from awq2trt.errors import Awq2trtError, ToolError, UsageError
from awq2trt.images.pairs import MARKER
from awq2trt.images.read import read_image
from awq2trt.machine.gpu import load_libraries, read_driver
from awq2trt.machine.plugin_library import find_plugin_library
from awq2trt.machine.runtime_library import find_onnxruntime_library, find_tensorrt_library
from awq2trt.models.vision.description import CHANNELS
from awq2trt.models.vision.pooled import BEFORE_IMAGE
from awq2trt.progress import Progress, SilentProgress
from awq2trt.runtime.chat import Message, no_template, user_message
from awq2trt.runtime.first_run import passed_mark, write_mark
from awq2trt.runtime.native_library import (
    CALLBACK,
    NO_TEMPLATE,
    BiasStructure,
    GenerateOptionsStructure,
    LoadOptionsStructure,
    MessageStructure,
    ResultStructure,
    TextStructure,
    call,
    library,
    take_text,
    take_tokens,
)
from awq2trt.runtime.ort.loading import DeviceOptions
from awq2trt.runtime.sampling import Sampling
from awq2trt.runtime.sight import Image, no_sight, require_places, with_markers
from awq2trt.target import CUDA_TARGET, Flavour

FINISH_REASONS: Final = {
    1: "stop token",
    2: "stop string",
    3: "maximum tokens",
    4: "full",
    5: "callback",
    6: "cancelled",
}
"""`FinishReason` of awq2trt.hpp."""

VERIFY: Final = {"first": 0, "size": 1, "full": 2}
"""`Verify` of awq2trt.hpp."""


@dataclass(frozen=True)
class Answer:
    """What a session generated.

    Attributes:
        finish_reason: One of `FINISH_REASONS`.
        tokens: All chosen tokens, without the stop token.
        prompt_tokens: Number of tokens that were run before the first new one.
        prefill_ms: Time until the first new token was chosen.
        decode_ms: Time for all later tokens.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    prompt_tokens: int
    prefill_ms: float
    decode_ms: float


@dataclass(frozen=True)
class GenerateOptions:
    """How an answer is generated: `GenerateOptions` of awq2trt.hpp.

    Attributes:
        max_tokens: Most tokens in the answer; None for as many as the session holds.
        sampling: Temperature, penalty, bias and the like.
        stop: The answer ends before the first of these texts.
        stop_tokens: Tokens that end the answer, in addition to the model's own.
        ignore_model_stops: Whether the model's own stop tokens are ignored.
    """

    max_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop: Sequence[str] = ()
    stop_tokens: Sequence[int] = ()
    ignore_model_stops: bool = False

    def structure(self) -> GenerateOptionsStructure:
        """Returns the structure of the C interface."""
        sampling = self.sampling
        texts = [text.encode() for text in self.stop]
        return GenerateOptionsStructure(
            size=ctypes.sizeof(GenerateOptionsStructure),
            max_tokens=self.max_tokens or 0,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            has_seed=int(sampling.seed is not None),
            seed=sampling.seed or 0,
            logit_bias=(BiasStructure * len(sampling.logit_bias))(
                *(BiasStructure(token, bias) for token, bias in sampling.logit_bias.items())
            ),
            logit_bias_count=len(sampling.logit_bias),
            stop=(TextStructure * len(texts))(*(TextStructure(text, len(text)) for text in texts)),
            stop_count=len(texts),
            stop_tokens=(ctypes.c_int32 * len(self.stop_tokens))(*self.stop_tokens),
            stop_tokens_count=len(self.stop_tokens),
            ignore_model_stops=int(self.ignore_model_stops),
        )


class NativeSession:
    """One conversation, with its cache; `NativeModel.session` opens one.

    Only one thread may use it at a time, except for `cancel`.

    Args:
        handle: `awq2trt_session*`, which is freed with this object.
        vocab_size: Length of a row of logits.
    """

    def __init__(self, handle: ctypes.c_void_p, vocab_size: int) -> None:
        self._handle = handle
        self._vocab_size = vocab_size

    def __del__(self) -> None:
        if self._handle.value:
            library().awq2trt_session_close(self._handle)

    @property
    def capacity(self) -> int:
        """The most tokens that the session can hold."""
        return int(library().awq2trt_session_capacity(self._handle))

    @property
    def tokens(self) -> list[int]:
        """All tokens so far."""
        return take_tokens("session_tokens", self._handle)

    def append(self, messages: Sequence[Message]) -> None:
        """Adds messages to the conversation, through the chat template."""
        parts = [(message["role"].encode(), message["content"].encode()) for message in messages]
        array = (MessageStructure * len(parts))(
            *(MessageStructure(role, len(role), content, len(content)) for role, content in parts),
        )
        call("session_append", self._handle, array, ctypes.c_size_t(len(parts)))

    def append_text(self, text: str | bytes, *, allow_special: bool = False) -> None:
        """Adds plain text, which will be continued."""
        data = text.encode() if isinstance(text, str) else text
        call("session_append_text", self._handle, data, ctypes.c_size_t(len(data)), int(allow_special))

    def append_tokens(self, tokens: Sequence[int]) -> None:
        """Adds tokens."""
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        call("session_append_tokens", self._handle, array, ctypes.c_size_t(len(tokens)))

    def append_image(self, image: NDArray[np.uint8]) -> None:
        """Looks at an image, which then waits for its place in messages, text or tokens.

        Args:
            image: RGB, uint8 [height, width, 3].

        Raises:
            UsageError: It is something else, or does not fit.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != CHANNELS:
            raise UsageError(
                f"expected an image as uint8 [height, width, {CHANNELS}], got {image.dtype} {list(image.shape)}.",
                where="append_image",
                fix="convert it to RGB of 8 bits.",
            )
        pixels = np.ascontiguousarray(image)
        height, width = pixels.shape[:2]
        call("session_append_image", self._handle, pixels.ctypes.data_as(ctypes.c_void_p), width, height)

    def generate(self, options: GenerateOptions | None = None, callback: Callable[[str], bool] | None = None) -> Answer:
        """Generates an answer.

        Args:
            options: None always takes the most probable token.
            callback: Receives complete characters as they become certain, and returns whether to continue.

        Raises:
            Awq2trtError: There is nothing to answer, or the model fails.
        """
        failures: list[BaseException] = []

        def receive(text: int, size: int, _: object) -> int:
            try:
                return int(callback is None or callback(ctypes.string_at(text, size).decode("utf-8")))
            except BaseException as error:  # noqa: BLE001 - raised again below: nothing may cross the C interface
                failures.append(error)
                return 0

        structure, result = (options or GenerateOptions()).structure(), ResultStructure()
        listener = CALLBACK(receive) if callback is not None else CALLBACK()
        call("session_generate", self._handle, ctypes.byref(structure), listener, None, ctypes.byref(result))
        try:
            if failures:
                raise failures[0]
            return Answer(
                text=ctypes.string_at(result.text, result.text_bytes).decode("utf-8"),
                tokens=result.tokens[: result.tokens_count],
                finish_reason=FINISH_REASONS[result.finish_reason],
                prompt_tokens=result.prompt_tokens,
                prefill_ms=result.prefill_ms,
                decode_ms=result.decode_ms,
            )
        finally:
            library().awq2trt_result_free(ctypes.byref(result))

    def logits(self) -> NDArray[np.float32]:
        """Returns the scores of the token that follows the last one, float32 [V]."""
        scores = np.empty(self._vocab_size, np.float32)
        call("session_logits", self._handle, scores.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(scores.size))
        return scores

    def rewind(self, tokens: int) -> None:
        """Forgets all tokens except for the first `tokens`."""
        call("session_rewind", self._handle, ctypes.c_int64(tokens))

    def fork(self) -> NativeSession:
        """Returns a second session that continues from here."""
        handle = ctypes.c_void_p()
        call("session_fork", self._handle, ctypes.byref(handle))
        return NativeSession(handle, self._vocab_size)

    def cancel(self) -> None:
        """Ends the answer that is being generated; any thread may call it."""
        library().awq2trt_session_cancel(self._handle)


class NativeModel:
    """A model that the C++ library runs; `load` makes one. Any number of threads may use it.

    Args:
        handle: `awq2trt_model*`, which is freed with this object.
        directory: The directory that it was loaded from.
    """

    def __init__(self, handle: ctypes.c_void_p, directory: Path) -> None:
        self._handle = handle
        self.directory = directory

    def __del__(self) -> None:
        if self._handle.value:
            library().awq2trt_model_close(self._handle)

    @classmethod
    def load(
        cls,
        directory: Path,
        options: DeviceOptions | None = None,
        *,
        verify: str = "first",
        golden: bool = True,
        progress: Progress | None = None,
    ) -> NativeModel:
        """Loads a model.

        Args:
            directory: A model built for `cpu` or `cuda`, or an engine.
            options: Where it runs; None for what it was built for.
            verify: When hashes are checked: `first` (when it is first loaded here), `size` (never) or `full` (always).
            golden: Check the golden outputs on the first run on a GPU.
            progress: Receives what runs the model.

        Raises:
            ArtifactError: The directory holds no complete model.
            ToolError: This machine lacks something that the model needs, or does not reproduce its golden outputs.
            UnsupportedError: The library does not support something in the model.
            UsageError: The directory holds no model that was built.
        """
        progress = progress or SilentProgress()
        structure = _load_options(directory, options or DeviceOptions(), verify)
        handle = ctypes.c_void_p()
        call("model_load", os.fsencode(directory), ctypes.byref(structure), ctypes.byref(handle))
        model = cls(handle, directory)
        progress.note(f"running in {model.title}")
        if golden and model.check_first_run():
            progress.note(f"first run in {model.title}: golden outputs passed")
        return model

    @property
    def title(self) -> str:
        """Names what runs the model."""
        return str(library().awq2trt_model_title(self._handle).decode())

    @property
    def capacity(self) -> int:
        """The most tokens that a session can hold."""
        return int(library().awq2trt_model_capacity(self._handle))

    @property
    def vocab_size(self) -> int:
        """Length of a row of logits."""
        return int(library().awq2trt_model_vocab_size(self._handle))

    @property
    def tokens_per_image(self) -> int:
        """Tokens that an image takes of a session; 0 for a model of text, -1 if they depend on the image's size."""
        return int(library().awq2trt_model_tokens_per_image(self._handle))

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Returns the tokens of a text."""
        data = text.encode()
        return take_tokens("encode", self._handle, data, ctypes.c_size_t(len(data)), int(allow_special))

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens, without special ones."""
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        return take_text("decode", self._handle, array, ctypes.c_size_t(len(tokens)))

    def check_first_run(self) -> bool:
        """Runs the golden calls if this model has not passed them on this GPU yet; returns whether they were run.

        Raises:
            ToolError: A call fails.
        """
        manifest = read_manifest(self.directory, None)
        on_cpu = manifest.contents.lowered is not None and manifest.contents.lowered.target != CUDA_TARGET
        mark = passed_mark(manifest.fingerprint, library().awq2trt_version().decode(), self.title)
        if on_cpu or mark.is_file() or not (self.directory / DESCRIPTION_FILE).is_file():
            return False
        self.check()
        write_mark(mark, self.title)
        return True

    def check(self) -> tuple[float, float]:
        """Runs the model's golden calls.

        Returns:
            The largest relative error of scores, and the largest that is allowed.

        Raises:
            ToolError: A call fails.
            ArtifactError: The directory has no golden outputs, or they are damaged.
        """
        worst, allowed = ctypes.c_double(), ctypes.c_double()
        call("model_check", self._handle, ctypes.byref(worst), ctypes.byref(allowed))
        return worst.value, allowed.value

    def session(self, max_tokens: int = 0) -> NativeSession:
        """Opens a session of this many tokens; 0 for as many as the model was built for."""
        handle = ctypes.c_void_p()
        call("session_open", self._handle, ctypes.c_int64(max_tokens), ctypes.byref(handle))
        return NativeSession(handle, self.vocab_size)

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
        """Answers a prompt, piece by piece; arguments and errors as for `Model.generate`."""
        if images and not self.tokens_per_image:
            raise no_sight()
        if raw and not isinstance(prompt, str):
            raise UsageError(
                "a conversation cannot be continued as plain text.", where="raw", fix="give one text, or leave raw out."
            )
        session = self.session()
        asked = [user_message(prompt)] if isinstance(prompt, str) else prompt
        if self.tokens_per_image:
            asked = asked if raw else with_markers(asked, len(images))
            texts = [message["content"] for message in asked]
            if not any(BEFORE_IMAGE in text for text in texts):  # of which the library knows whether it is a place
                require_places(sum(text.count(MARKER) for text in texts), len(images))
        for image in images:
            session.append_image(read_image(Path(image)))
        if raw:
            session.append_text(asked[0]["content"], allow_special=True)
        else:
            with _naming_raw():
                session.append(asked)
        options = GenerateOptions(max_tokens=max_new_tokens, sampling=sampling or Sampling(), stop=stop)
        return _pieces(session, options)

    def generate_text(self, prompt: str | Sequence[Message], **options: Any) -> str:
        """Returns the complete answer at once; arguments and errors are those of `generate`."""
        return "".join(self.generate(prompt, **options))


@contextmanager
def _naming_raw() -> Iterator[None]:
    """Says what to do without a chat template as Python's runtime does: a function of the library is no help here."""
    try:
        yield
    except Awq2trtError as error:
        if vars(error).get("code") != NO_TEMPLATE:
            raise
        raise no_template() from error


def _pieces(session: NativeSession, options: GenerateOptions) -> Iterator[str]:
    """Yields an answer that another thread generates; it is cancelled if nobody reads on."""
    pieces: queue.Queue[str | BaseException | None] = queue.Queue()

    def receive(text: str) -> bool:
        pieces.put(text)
        return True

    def work() -> None:
        try:
            session.generate(options, receive)
            pieces.put(None)
        except BaseException as error:  # noqa: BLE001 - raised again where the pieces are read
            pieces.put(error)

    thread = threading.Thread(target=work, name="awq2trt generate", daemon=True)
    thread.start()
    try:
        while (piece := pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        session.cancel()
        thread.join()


def _load_options(directory: Path, options: DeviceOptions, verify: str) -> LoadOptionsStructure:
    """Tells the library where this machine's Python packages have what it needs."""
    manifest = read_manifest(directory, None) if (directory / MANIFEST_FILE).is_file() else None
    lowered = manifest.contents.lowered if manifest else None
    engine = manifest.contents.engine if manifest else None
    device, _, index = (options.device or "").partition(":")
    if lowered is not None and device and device != lowered.target:
        raise UsageError(
            f"this model was built for {lowered.target}, but is supposed to run on {options.device}.",
            where=f"--device {options.device}",
            fix=f"leave --device out, or build with --target {device}.",
        )
    structure = LoadOptionsStructure(
        size=ctypes.sizeof(LoadOptionsStructure),
        verify=VERIFY[verify],
        device=int(index or 0),
        no_cuda_graph=int(not options.graph),
        trust_directory_library=int(options.trust_library),
        onnxruntime_library=_path_bytes(find_onnxruntime_library()),
    )
    if engine is not None:
        structure.tensorrt_library = _path_bytes(find_tensorrt_library(Flavour(engine.flavour)))
    if lowered is not None and lowered.target == CUDA_TARGET and read_driver() is not None:
        load_libraries(options.device or CUDA_TARGET)
    if lowered is not None and lowered.plugin_version is not None and not options.trust_library:
        # Without one, the library reports that, and looks beside the model for one that it must not load.
        with suppress(ToolError):
            structure.operators_library = _path_bytes(find_plugin_library().path)
    return structure


def _path_bytes(path: Path | None) -> bytes | None:
    return None if path is None else os.fsencode(path)
