"""One run of TensorRT-RTX's parser and builder: its messages are written down, its failures become errors of ours.

In: a serialized model, the GPUs that the engine must run on, and the shapes that it must take. Out: the serialized
engine.

TensorRT calls back from C++, and a callback must not raise. It therefore builds in a thread of its own: Ctrl-C reaches
the main thread, which asks TensorRT to stop and waits until it has stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TextIO

from awq2trt.engine.profiles import ShapeRanges
from awq2trt.errors import ArtifactError, BuildError, UnsupportedError
from awq2trt.machine.tensorrt_logger import listening_logger
from awq2trt.progress import Advance, Progress

NETWORK_FLAGS: Final = 0
"""Flags of `create_network`; TensorRT-RTX needs none."""

_NO_GPU: Final = "cudaError 35"
"""A message of TensorRT-RTX on machines without a GPU, where it can build nevertheless."""

_THIS_GPU: Final = "CURRENT"
"""TensorRT's name of the compute capability of this machine's GPU."""

_SHOWN_ERRORS: Final = 3


class BuilderSession:
    """The parser, network and builder of one engine; use it as a context manager.

    Args:
        trt: The module `tensorrt_rtx`.
        log_path: Receives all messages of TensorRT.
        progress: Receives the builder's phases.
        model: Path of the model as the user knows it, for errors.
    """

    def __init__(self, trt: Any, log_path: Path, progress: Progress, model: Path) -> None:
        self._trt = trt
        self._log_path = log_path
        self._progress = progress
        self._model = model
        self._resources = ExitStack()

    def __enter__(self) -> BuilderSession:
        trt = self._trt
        try:
            file = self._resources.enter_context(self._log_path.open("w", encoding="utf-8"))
        except OSError as error:
            raise ArtifactError(f"the log cannot be written: {error.strerror}.", where=str(self._log_path)) from error
        self._log = _BuildLog(trt, file)
        self._logger = listening_logger(trt, self._log.hear)
        self._builder = trt.Builder(self._logger)
        self._network = self._builder.create_network(NETWORK_FLAGS)
        self._config = self._builder.create_builder_config()
        self._monitor = _monitor_class(trt)(self._progress)
        self._config.progress_monitor = self._monitor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # TensorRT's objects refer to the logger, so they must be freed before it.
        del self._config, self._network, self._builder
        self._resources.close()

    def parse(self, serialized: bytes, path: Path) -> None:
        """Parses a serialized ONNX model whose weights are beside `path`.

        Raises:
            BuildError: TensorRT refuses a node, which the message names.
        """
        parser = self._trt.OnnxParser(self._network, self._logger)
        if parser.parse(serialized, str(path)):
            allow_unfused_attention(self._trt, self._network)
            return
        if parser.num_errors == 0:
            raise self._failure("TensorRT cannot parse the model")
        error = parser.get_error(0)
        reason = _first_line(error.desc())
        raise BuildError(
            f"TensorRT refuses {error.node_operator() or 'the model'}: {reason}",
            where=f"{self._model}: {error.node_name() or 'graph'}",
            fix=self._see_log(),
        )

    def configure(
        self, compute_capabilities: Sequence[tuple[int, int]], plugin_library: Path | None
    ) -> tuple[str, ...]:
        """Sets the GPUs that the engine must run on and the library that it carries; returns TensorRT's names of them.

        Raises:
            UnsupportedError: This TensorRT-RTX does not know one of the compute capabilities.
        """
        known = self._trt.ComputeCapability
        names = tuple(f"SM{major}{minor}" for major, minor in compute_capabilities) or (_THIS_GPU,)
        self._config.num_compute_capabilities = len(names)
        for index, name in enumerate(names):
            if not hasattr(known, name):
                raise UnsupportedError(
                    f"TensorRT-RTX {self._trt.__version__} cannot build for {name}.",
                    where="compute capability",
                    fix="upgrade it: pip install --upgrade tensorrt-rtx-cu13",
                )
            self._config.set_compute_capability(getattr(known, name), index)
        if plugin_library is not None:
            self._config.plugins_to_serialize = [str(plugin_library)]
            # `CachedAttention` declares that it writes its cache in place; TensorRT refuses that without this feature.
            self._config.set_preview_feature(self._trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
        return names

    def add_profiles(self, profiles: Sequence[ShapeRanges]) -> None:
        """Adds optimization profiles, in order."""
        for ranges in profiles:
            profile = self._builder.create_optimization_profile()
            for name, (smallest, typical, largest) in ranges.items():
                profile.set_shape(name, tuple(smallest), tuple(typical), tuple(largest))
            if self._config.add_optimization_profile(profile) < 0:
                raise self._failure("TensorRT refuses an optimization profile")

    def build(self) -> memoryview:
        """Builds the engine and returns it serialized.

        Raises:
            BuildError: TensorRT fails.
            KeyboardInterrupt: Ctrl-C was pressed, and TensorRT has stopped.
        """
        with ThreadPoolExecutor(max_workers=1) as worker:
            building = worker.submit(self._builder.build_serialized_network, self._network, self._config)
            try:
                engine = building.result()
            except KeyboardInterrupt:
                self._monitor.cancelled = True
                raise
        self._monitor.close()
        if engine is None:
            raise self._failure("TensorRT cannot build the engine")
        return memoryview(engine)

    def _failure(self, what: str) -> BuildError:
        errors = [message for message in self._log.errors if _NO_GPU not in message] or self._log.errors
        reason = "; ".join(_first_line(message) for message in errors[:_SHOWN_ERRORS]) or "TensorRT gave no reason"
        return BuildError(f"{what}: {reason}", where=str(self._model), fix=self._see_log())

    def _see_log(self) -> str:
        return f"see {self._log_path}, which holds TensorRT's complete log."


class _BuildLog:
    """Writes every message except verbose ones to a file, and keeps the errors."""

    def __init__(self, trt: Any, file: TextIO) -> None:
        self.errors: list[str] = []
        self._severities = trt.ILogger
        self._file = file

    def hear(self, severity: Any, message: str) -> None:
        """Receives one message."""
        if severity == self._severities.VERBOSE:
            return
        if severity <= self._severities.ERROR:
            self.errors.append(message)
        note = " (this machine has no GPU; only a build for its own GPU needs one)" if _NO_GPU in message else ""
        self._file.write(f"{severity.name}: {message}{note}\n")


def _monitor_class(trt: Any) -> Callable[[Progress], Any]:
    """Makes the class of the progress monitor; its base class exists only where TensorRT is installed."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Shows the outermost phases, which TensorRT runs one after another; inner phases may overlap."""

        def __init__(self, progress: Progress) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = False
            self._progress = progress
            self._phase: str | None = None
            self._task = ExitStack()
            self._advance: Advance | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase or self._phase is not None:
                return
            self._phase = phase_name
            self._advance = self._task.enter_context(self._progress.task(f"TensorRT: {phase_name}", num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name == self._phase and self._advance is not None:
                self._advance(1)
            return not self.cancelled

        def phase_finish(self, phase_name: str) -> None:
            if phase_name == self._phase:
                self.close()

        def close(self) -> None:
            """Ends the phase that is currently shown, if any."""
            self._task.close()
            self._phase, self._advance = None, None

    return Monitor


def allow_unfused_attention(trt: Any, network: Any) -> None:
    """Lets TensorRT split attention into several layers if it has no fused kernel, instead of failing.

    TensorRT-RTX 1.7.1 has no fused kernel, for example, for a head size of 8, or for 2 heads of 32.
    """
    for layer in network:
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # TensorRT's Python API casts a layer to its own class this way
            layer.attention.decomposable = True


def _first_line(message: str) -> str:
    lines = message.strip().splitlines()
    return lines[0] if lines else "no reason given"
