"""Runs a built engine as `check` runs everything else: the same calls, every position's logits, a cache between calls.

Three layers, of which only the last needs a GPU:

- `EngineRunner` answers the calls of `check`;
- `EngineBackend` is one conversation: it splits tokens into calls that an optimization profile takes, and carries the
  cache tensors from each call to the next;
- `TrtSession` makes one call, through polygraphy's `TrtRunner`.

**No engine of ours has been run yet**: TensorRT-RTX runs on GeForce RTX, TensorRT builds on the Jetson, and this
project has had neither. The tests drive the first two layers over ONNX Runtime, with the inputs and outputs of an
engine.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from polygraphy import config, cuda
from polygraphy.exception import PolygraphyException
from polygraphy.logger import G_LOGGER

from awq2trt.artifact import ProfileRecord
from awq2trt.check.engine import MODULES, POLYGRAPHY_SWITCH, EngineBuild
from awq2trt.check.runners import Arrays, DecoderRunner
from awq2trt.errors import ToolError, UnsupportedError, UsageError
from awq2trt.io_contract import CACHE_POSITION, INPUT_IDS, LOGITS, IoContract, TensorContract
from awq2trt.target import Flavour

Buffer = Any
"""A tensor where the engine runs; only the session that made it looks inside."""

_ERRORS_SHOWN: Final = 3

_BFLOAT16_SHIFT: Final = 16
"""bf16 is the upper half of fp32."""


class EngineSession(Protocol):
    """One engine, ready to be called: all that needs a GPU."""

    def zeros(self, tensor: TensorContract, shape: tuple[int, ...]) -> Buffer:
        """A buffer of zeros for an input; the one that it had before is no longer used."""

    def infer(self, inputs: Mapping[str, Buffer | NDArray[np.int64]], profile: int) -> Mapping[str, Buffer]:
        """One call.

        Args:
            inputs: By name; tokens and their position as arrays, caches as buffers.
            profile: Index of the optimization profile.

        Returns:
            Every output by name, good until the next call. A cache may be the same memory as its input.
        """

    def carry(self, present: Buffer, past: Buffer) -> None:
        """Copies a cache into the buffer that the next call reads; nothing to do where it is the same memory."""

    def read(self, buffer: Buffer) -> NDArray[np.float32]:
        """An output on the host."""

    def close(self) -> None:
        """Gives all memory back."""


class EngineBackend:
    """A conversation with an engine: an `awq2trt.run.Backend`.

    Args:
        session: The engine.
        contract: Its inputs and outputs.
        profiles: In the engine's order.
    """

    def __init__(self, session: EngineSession, contract: IoContract, profiles: Sequence[ProfileRecord]) -> None:
        self._session = session
        self._contract = contract
        self._profiles = tuple(profiles)
        self._caches: dict[str, Buffer] = {}
        self._position = 0

    @property
    def capacity(self) -> int:
        """Positions that the cache can hold."""
        return self._contract.capacity

    @property
    def vocab_size(self) -> int:
        """Length of a logits row."""
        return self._contract.vocab_size

    @property
    def position(self) -> int:
        """Tokens in the cache."""
        return self._position

    def reset(self) -> None:
        """Forgets the conversation; caches start with zeros, so that nothing of an earlier one can help."""
        tensors = {tensor.name: tensor for tensor in self._contract.inputs}
        self._caches = {
            past: self._session.zeros(tensors[past], _one_conversation(tensors[past]))
            for past, _ in self._contract.cache_pairs
        }
        self._position = 0

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Appends tokens; returns the scores of the next, float32 [V]."""
        if not tokens or self._position + len(tokens) > self.capacity:
            free = self.capacity - self._position
            raise UsageError(
                f"got {len(tokens)} tokens at position {self._position}, expected 1 to {free}.", where="cache"
            )
        if not self._caches:
            self.reset()
        longest = max(profile.longest for profile in self._profiles)
        for start in range(0, len(tokens), longest):
            logits = self._call(tokens[start : start + longest])
        return logits

    def _call(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """One call of the engine: logits of the last position, float32 [V]."""
        inputs = {
            INPUT_IDS: np.asarray([tokens], np.int64),
            CACHE_POSITION: np.asarray([self._position], np.int64),
            **self._caches,
        }
        outputs = self._session.infer(inputs, self._profile_for(len(tokens)))
        for past, present in self._contract.cache_pairs:
            self._session.carry(outputs[present], self._caches[past])
        self._position += len(tokens)
        logits: NDArray[np.float32] = self._session.read(outputs[LOGITS])[0, -1]  # [1, 1, V]
        return logits

    def _profile_for(self, count: int) -> int:
        """The narrowest profile that takes so many tokens: `decode` for one, as an application would."""
        fitting = [
            (profile.longest, index)
            for index, profile in enumerate(self._profiles)
            if profile.shortest <= count <= profile.longest
        ]
        if not fitting:
            raise UnsupportedError(f"no optimization profile of the engine takes {count} tokens.", where="engine")
        return min(fitting)[1]


def _one_conversation(tensor: TensorContract) -> tuple[int, ...]:
    """Shape of a cache with its symbolic axis, the batch, at 1."""
    return tuple(axis if isinstance(axis, int) else 1 for axis in tensor.shape)


class EngineRunner(DecoderRunner):
    """An engine as a stage of `check`; logits only, of every position.

    An engine gives logits of the last position of a call. So the first call, a text of S tokens, is two conversations:
    its tokens one by one, for the logits of the first S - 1 positions, and then all of them at once, for that of the
    last, in an empty cache that later calls go on with. Both profiles are held to the reference, and what prefill wrote
    into the cache is, too, by the calls after it.

    Args:
        open_session: Loads the engine.
        engine: What it is.
        name: Of the stage.
    """

    def __init__(self, open_session: Callable[[], EngineSession], engine: EngineBuild, name: str) -> None:
        super().__init__(name=name)
        self._open_session = open_session
        self._engine = engine

    def activate_impl(self) -> None:
        self._session = self._open_session()
        self._backend = EngineBackend(self._session, self._engine.contract, self._engine.profiles)

    def infer_impl(self, feed_dict: Mapping[str, Any]) -> Arrays:
        started = time.monotonic()
        tokens = feed_dict[INPUT_IDS][0].tolist()
        if feed_dict[CACHE_POSITION][0] == 0:
            self._backend.reset()
            rows = [self._backend.forward([token]) for token in tokens[:-1]]
            self._backend.reset()
            rows.append(self._backend.forward(tokens))
        else:
            rows = [self._backend.forward([token]) for token in tokens]
        self.inference_time = time.monotonic() - started
        return OrderedDict([(LOGITS, np.stack(rows)[None])])

    def deactivate_impl(self) -> None:
        self._session.close()
        del self._backend, self._session


class TrtSession:
    """An engine in TensorRT or TensorRT-RTX, through polygraphy; `open` makes one.

    Caches stay on the GPU: an engine writes them in place, and polygraphy gives an output that shares its input's
    memory the same address.
    """

    def __init__(self, engine: EngineBuild) -> None:
        self._engine = engine
        self._errors: list[str] = []  # what TensorRT says
        self._caches: dict[str, Any] = {}
        self._profile = 0

    @staticmethod
    def open(engine: EngineBuild) -> TrtSession:
        """Loads an engine, with the plugins inside it.

        Raises:
            ToolError: TensorRT refuses it; the message has its reason.
        """
        session = TrtSession(engine)
        session._guarded(session._activate)
        return session

    def _activate(self) -> None:
        from polygraphy.backend.trt import EngineFromPath, TrtRunner
        from polygraphy.mod.trt_importer import lazy_import_trt

        trt = lazy_import_trt()
        self._logger = _logger_class(trt)(self._errors)  # TensorRT only borrows it
        runtime = trt.Runtime(self._logger)
        self._runner = TrtRunner(EngineFromPath(str(self._engine.path), runtime=runtime))
        self._runner.activate()

    def zeros(self, tensor: TensorContract, shape: tuple[int, ...]) -> Buffer:
        def filled() -> Any:
            host = np.zeros(shape, _STORED[tensor.dtype])
            if tensor.name not in self._caches:
                self._caches[tensor.name] = cuda.DeviceArray(shape, host.dtype)
            return self._caches[tensor.name].copy_from(host)

        return self._guarded(filled)

    def infer(self, inputs: Mapping[str, Any], profile: int) -> Mapping[str, Buffer]:
        def called() -> Any:
            if profile != self._profile:
                self._runner.set_profile(profile)
                self._profile = profile
            # polygraphy would hold types to the engine's, and has no bf16 in NumPy to hold a cache to.
            return self._runner.infer(OrderedDict(inputs), check_inputs=False, copy_outputs_to_host=False)

        outputs: Mapping[str, Buffer] = self._guarded(called)
        return outputs

    def carry(self, present: Buffer, past: Buffer) -> None:
        if present.ptr != past.ptr:
            self._guarded(
                lambda: cuda.wrapper().memcpy(past.ptr, present.ptr, past.nbytes, cuda.MemcpyKind.DeviceToDevice)
            )

    def read(self, buffer: Buffer) -> NDArray[np.float32]:
        dtype = next(tensor.dtype for tensor in self._engine.contract.outputs if tensor.name == LOGITS)
        stored = self._guarded(lambda: cuda.DeviceView(buffer.ptr, buffer.shape, np.dtype(_STORED[dtype])).numpy())
        return widen(stored, dtype)

    def close(self) -> None:
        for cache in self._caches.values():
            self._guarded(cache.free)
        self._guarded(self._runner.deactivate)

    def _guarded(self, work: Callable[[], Any]) -> Any:
        """Does something that may fail in TensorRT or CUDA, and says what they said."""
        try:
            return work()
        except (PolygraphyException, RuntimeError, OSError) as error:
            said = "; ".join(self._errors[-_ERRORS_SHOWN:]) or " ".join(str(error).split())
            raise ToolError(
                f"{MODULES[self._engine.flavour]} cannot run the engine: {said}",
                where=str(self._engine.path),
                fix="build it again with the TensorRT that is here; if that does not help, report it.",
            ) from error


_STORED: Final[Mapping[str, Any]] = {"float16": np.float16, "float32": np.float32, "bfloat16": np.uint16}
"""NumPy's types of the contract's; bf16, which NumPy does not have, as its bits."""


def widen(stored: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Numbers of the contract's type as fp32; exact.

    Args:
        stored: As `_STORED` holds them.
        dtype: The contract's name of it.
    """
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << _BFLOAT16_SHIFT).view(np.float32)
    return stored.astype(np.float32)


def unmet_needs(flavour: Flavour) -> str | None:
    """What polygraphy lacks to run engines of a flavour; None if nothing."""
    wanted = flavour is Flavour.TENSORRT_RTX
    if wanted != config.USE_TENSORRT_RTX:
        value = int(wanted)
        return f"polygraphy was imported for the other TensorRT: set {POLYGRAPHY_SWITCH}={value} before that"
    try:
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
            cuda.wrapper()
    except (PolygraphyException, OSError) as error:
        return f"polygraphy needs the CUDA runtime library ({error}): pip install nvidia-cuda-runtime"
    return None


def _logger_class(trt: Any) -> Callable[[list[str]], Any]:
    """The logger's class; TensorRT's base class exists only once TensorRT is imported."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps errors."""

        def __init__(self, errors: list[str]) -> None:
            trt.ILogger.__init__(self)
            self._errors = errors

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self._errors.append(" ".join(message.split()))

    return Logger
