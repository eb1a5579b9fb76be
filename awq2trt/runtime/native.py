"""Models in the C++ library: asked as `loaded_model.Model` is, without ONNX Runtime's Python package.

In: a directory that was built, for `cpu`, for `cuda`, or an engine. Out: text, as it comes or whole. Sampling, stop
strings, templates and tokenizer are the library's own.
"""

from __future__ import annotations

import ctypes
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.artifact.golden import DESCRIPTION_FILE
from awq2trt.artifact.manifest import MANIFEST_FILE, read_manifest
from awq2trt.errors import ToolError, UnsupportedError, UsageError
from awq2trt.machine.gpu import load_libraries, read_driver
from awq2trt.machine.plugin_library import find_plugin_library
from awq2trt.machine.runtime_library import find_onnxruntime_library, find_tensorrt_library
from awq2trt.progress import Progress, SilentProgress
from awq2trt.runtime.chat import Message, user_message
from awq2trt.runtime.first_run import passed_mark, write_mark
from awq2trt.runtime.native_library import (
    CALLBACK,
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
from awq2trt.runtime.sight import Image
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
        tokens: All that were chosen, without the stop token.
        prompt_tokens: That were run before the first new one.
        prefill_ms: Until the first new token was chosen.
        decode_ms: All later ones.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    prompt_tokens: int
    prefill_ms: float
    decode_ms: float


@dataclass(frozen=True)
class GenerateOptions:
    """How an answer is chosen: `GenerateOptions` of awq2trt.hpp.

    Attributes:
        max_tokens: Of the answer; None for as many as the session holds.
        sampling: Temperature, penalty, bias and the like.
        stop: The answer ends before the first of these texts.
        stop_tokens: Besides the model's own.
        ignore_model_stops: The model's own stop tokens do not count.
    """

    max_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop: Sequence[str] = ()
    stop_tokens: Sequence[int] = ()
    ignore_model_stops: bool = False

    def structure(self) -> GenerateOptionsStructure:
        """As C has it."""
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

    Used by one thread at a time, but for `cancel`.

    Args:
        handle: `awq2trt_session*`, which goes with this object.
        vocab_size: Length of the logits.
    """

    def __init__(self, handle: ctypes.c_void_p, vocab_size: int) -> None:
        self._handle = handle
        self._vocab_size = vocab_size

    def __del__(self) -> None:
        if self._handle.value:
            library().awq2trt_session_close(self._handle)

    @property
    def capacity(self) -> int:
        """Tokens that it holds."""
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
        """Adds plain text, to be continued."""
        data = text.encode() if isinstance(text, str) else text
        call("session_append_text", self._handle, data, ctypes.c_size_t(len(data)), int(allow_special))

    def append_tokens(self, tokens: Sequence[int]) -> None:
        """Adds tokens."""
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        call("session_append_tokens", self._handle, array, ctypes.c_size_t(len(tokens)))

    def generate(self, options: GenerateOptions | None = None, callback: Callable[[str], bool] | None = None) -> Answer:
        """Answers.

        Args:
            options: None always takes the best token.
            callback: Gets whole characters as they become certain; returns whether to go on.

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
        """Scores of what follows the last token, float32 [V]."""
        scores = np.empty(self._vocab_size, np.float32)
        call("session_logits", self._handle, scores.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(scores.size))
        return scores

    def rewind(self, tokens: int) -> None:
        """Forgets all tokens but the first `tokens`."""
        call("session_rewind", self._handle, ctypes.c_int64(tokens))

    def fork(self) -> NativeSession:
        """A second session that goes on from here."""
        handle = ctypes.c_void_p()
        call("session_fork", self._handle, ctypes.byref(handle))
        return NativeSession(handle, self._vocab_size)

    def cancel(self) -> None:
        """Ends the answer that is being generated; from any thread."""
        library().awq2trt_session_cancel(self._handle)


class NativeModel:
    """A model that the C++ library runs; `load` makes one. May be used from any number of threads.

    Args:
        handle: `awq2trt_model*`, which goes with this object.
        directory: It was loaded from.
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
            directory: What was built: for `cpu`, `cuda`, or an engine.
            options: Where it runs; None for what it was built for.
            verify: When hashes are checked: `first` (when first loaded here), `size` (never) or `full` (always).
            golden: Check the golden outputs at the first run on a GPU.
            progress: Told what runs the model.

        Raises:
            ArtifactError: The directory holds no whole model.
            ToolError: This machine lacks something that the model needs, or its golden outputs do not come out.
            UnsupportedError: The library does not know something in it.
            UsageError: It holds no model that was built.
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
        """What runs it, for people."""
        return str(library().awq2trt_model_title(self._handle).decode())

    @property
    def capacity(self) -> int:
        """Most tokens of a session."""
        return int(library().awq2trt_model_capacity(self._handle))

    @property
    def vocab_size(self) -> int:
        """Length of the logits."""
        return int(library().awq2trt_model_vocab_size(self._handle))

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Tokens of a text."""
        data = text.encode()
        return take_tokens("encode", self._handle, data, ctypes.c_size_t(len(data)), int(allow_special))

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        return take_text("decode", self._handle, array, ctypes.c_size_t(len(tokens)))

    def check_first_run(self) -> bool:
        """Runs the golden calls where this model has not passed them on this GPU yet; whether they were run.

        Raises:
            ToolError: One is off.
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
            The greatest relative error of scores, and the one that is allowed.

        Raises:
            ToolError: One is off.
            ArtifactError: The directory has none, or they are damaged.
        """
        worst, allowed = ctypes.c_double(), ctypes.c_double()
        call("model_check", self._handle, ctypes.byref(worst), ctypes.byref(allowed))
        return worst.value, allowed.value

    def session(self, max_tokens: int = 0) -> NativeSession:
        """Opens a session of so many tokens; 0 for as many as the model was built for."""
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
        """Answers a prompt, piece by piece; arguments and errors as for `Model.generate`, but for images: it sees none.

        Raises:
            UnsupportedError: There are images.
        """
        if images:
            raise UnsupportedError(
                "the C++ library runs models of text.", where="--image", fix="run models that see with --runtime ort."
            )
        if raw and not isinstance(prompt, str):
            raise UsageError("a conversation is not plain text.", where="raw", fix="give one text, or leave raw out.")
        session = self.session()
        if isinstance(prompt, str) and raw:
            session.append_text(prompt, allow_special=True)
        else:
            session.append([user_message(prompt)] if isinstance(prompt, str) else prompt)
        options = GenerateOptions(max_tokens=max_new_tokens, sampling=sampling or Sampling(), stop=stop)
        return _pieces(session, options)

    def generate_text(self, prompt: str | Sequence[Message], **options: Any) -> str:
        """The whole answer at once; arguments and errors as for `generate`."""
        return "".join(self.generate(prompt, **options))


def _pieces(session: NativeSession, options: GenerateOptions) -> Iterator[str]:
    """An answer that another thread generates; ended where nobody reads on."""
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
    """Where this machine's Python packages have what the library needs."""
    manifest = read_manifest(directory, None) if (directory / MANIFEST_FILE).is_file() else None
    lowered = manifest.contents.lowered if manifest else None
    engine = manifest.contents.engine if manifest else None
    device, _, index = (options.device or "").partition(":")
    if lowered is not None and device and device != lowered.target:
        raise UsageError(
            f"this model was built for {lowered.target}, and is to run on {options.device}.",
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
        # Where there is none, the library says so, and looks beside the model for what it may not load.
        with suppress(ToolError):
            structure.operators_library = _path_bytes(find_plugin_library().path)
    return structure


def _path_bytes(path: Path | None) -> bytes | None:
    return None if path is None else os.fsencode(path)
