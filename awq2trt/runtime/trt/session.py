"""An engine that is ready to be called, through polygraphy's `TrtRunner`; only this part needs a GPU.

In: an `EngineBuild`, then tokens, positions and caches. Out: the engine's outputs, logits on the host as fp32.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from polygraphy import config, cuda
from polygraphy.exception import PolygraphyException
from polygraphy.logger import G_LOGGER

from awq2trt.errors import ToolError
from awq2trt.io_contract import TensorContract
from awq2trt.machine.tensorrt_logger import listening_logger
from awq2trt.runtime.bits import STORED, widen
from awq2trt.runtime.trt.engine import MODULES, POLYGRAPHY_SWITCH, EngineBuild
from awq2trt.target import Flavour

Buffer = Any
"""A tensor on the engine's device; only the session that made it looks inside."""

_ERRORS_SHOWN: Final = 3


class EngineSession(Protocol):
    """An engine that is ready to be called; only this part needs a GPU."""

    def zeros(self, tensor: TensorContract, shape: tuple[int, ...]) -> Buffer:
        """Returns a buffer of zeros for an input; the previous buffer of that input is no longer used."""

    def infer(self, inputs: Mapping[str, Buffer | NDArray[Any]], profile: int) -> Mapping[str, Buffer]:
        """Calls the engine once.

        Args:
            inputs: Inputs by name: tokens and their position, rows or pixels as arrays, caches as buffers.
            profile: Index of the optimization profile.

        Returns:
            Every output by name, valid until the next call. A cache may be the same memory as its input.
        """

    def carry(self, present: Buffer, past: Buffer) -> None:
        """Copies a cache into the buffer that the next call reads, unless it is the same memory."""

    def read(self, buffer: Buffer) -> NDArray[np.float32]:
        """Copies an output to the host."""

    def close(self) -> None:
        """Frees all memory."""


class TrtSession:
    """An engine in TensorRT or TensorRT-RTX, through polygraphy; `open` makes one.

    Caches stay on the GPU: an engine writes them in place, and polygraphy gives an output that shares its input's
    memory the same address.
    """

    def __init__(self, engine: EngineBuild) -> None:
        self._engine = engine
        self._errors: list[str] = []  # TensorRT's messages
        self._caches: dict[str, Any] = {}
        self._profile = 0

    @staticmethod
    def open(engine: EngineBuild) -> TrtSession:
        """Loads an engine, with the plugins inside it.

        Raises:
            ToolError: TensorRT refuses the engine; the message has its reason.
        """
        session = TrtSession(engine)
        session._guarded(session._activate)
        return session

    def _activate(self) -> None:
        from polygraphy.backend.trt import EngineFromPath, TrtRunner
        from polygraphy.mod.trt_importer import lazy_import_trt

        trt = lazy_import_trt()

        def hear(severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self._errors.append(" ".join(message.split()))

        self._logger = listening_logger(trt, hear)
        runtime = trt.Runtime(self._logger)
        self._runner = TrtRunner(EngineFromPath(str(self._engine.path), runtime=runtime))
        self._runner.activate()

    def zeros(self, tensor: TensorContract, shape: tuple[int, ...]) -> Buffer:
        def filled() -> Any:
            host = np.zeros(shape, STORED[tensor.dtype])
            if tensor.name not in self._caches:
                self._caches[tensor.name] = cuda.DeviceArray(shape, host.dtype)
            return self._caches[tensor.name].copy_from(host)

        return self._guarded(filled)

    def infer(self, inputs: Mapping[str, Any], profile: int) -> Mapping[str, Buffer]:
        def called() -> Any:
            if profile != self._profile:
                self._runner.set_profile(profile)
                self._profile = profile
            # polygraphy would compare types with the engine's, but NumPy has no bf16 for a cache.
            return self._runner.infer(OrderedDict(inputs), check_inputs=False, copy_outputs_to_host=False)

        outputs: Mapping[str, Buffer] = self._guarded(called)
        return outputs

    def carry(self, present: Buffer, past: Buffer) -> None:
        if present.ptr != past.ptr:
            self._guarded(
                lambda: cuda.wrapper().memcpy(past.ptr, present.ptr, past.nbytes, cuda.MemcpyKind.DeviceToDevice)
            )

    def read(self, buffer: Buffer) -> NDArray[np.float32]:
        dtype = self._engine.contract.outputs[0].dtype  # of what is read: scores, pieces of images, or rows
        stored = self._guarded(lambda: cuda.DeviceView(buffer.ptr, buffer.shape, STORED[dtype]).numpy())
        return widen(stored, dtype)

    def close(self) -> None:
        for cache in self._caches.values():
            self._guarded(cache.free)
        self._guarded(self._runner.deactivate)

    def _guarded(self, work: Callable[[], Any]) -> Any:
        """Turns errors of TensorRT or CUDA in the block into one error with their messages."""
        try:
            return work()
        except (PolygraphyException, RuntimeError, OSError) as error:
            said = "; ".join(self._errors[-_ERRORS_SHOWN:]) or " ".join(str(error).split())
            raise ToolError(
                f"{MODULES[self._engine.flavour]} cannot run the engine: {said}",
                where=str(self._engine.path),
                fix="build it again with the TensorRT that is here; if that does not help, report it.",
            ) from error


def unmet_needs(flavour: Flavour) -> str | None:
    """Says what polygraphy lacks to run engines of a flavour; None if nothing is missing."""
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
