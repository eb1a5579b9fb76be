"""The engine of a build, and whether this machine can run it.

In: the directory of an engine that `build` wrote, or of a kit that `finish.sh` finished on a Jetson. Out: an
`EngineBuild` and, if this machine cannot run it, one sentence with what was found and what is needed.

Plugins are inside the engine, so a machine that runs it needs no plugin library of ours. None is loaded, since a second
copy would only register the same plugins twice. This module imports neither TensorRT nor polygraphy, which chooses
between TensorRT and TensorRT-RTX when it is imported (`choose_flavour`).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from awq2trt.artifact.manifest import MANIFEST_FILE, SUMS_FILE, Artifact, record_file
from awq2trt.artifact.records import ProfileRecord
from awq2trt.errors import Awq2trtError
from awq2trt.io_contract import DECODER, IoContract
from awq2trt.machine.gpu import read_driver
from awq2trt.target import Flavour, find_target

_STATE_SUFFIX: Final = ".state"
"""Suffix of the file where `finish.sh` records what an engine was built from: `kit=`, `tensorrt=`, `sha256=` lines."""

POLYGRAPHY_SWITCH: Final = "POLYGRAPHY_USE_TENSORRT_RTX"

MODULES: Final[Mapping[Flavour, str]] = {Flavour.TENSORRT: "tensorrt", Flavour.TENSORRT_RTX: "tensorrt_rtx"}

_TITLES: Final[Mapping[Flavour, str]] = {Flavour.TENSORRT: "TensorRT", Flavour.TENSORRT_RTX: "TensorRT-RTX"}
_PACKAGES: Final[Mapping[Flavour, str]] = {
    Flavour.TENSORRT: "apt-get install python3-libnvinfer, in a virtual environment with --system-site-packages",
    Flavour.TENSORRT_RTX: "pip install tensorrt-rtx-cu13=={version}",
}


@dataclass(frozen=True)
class EngineBuild:
    """An engine, and what it runs on.

    Attributes:
        path: Path of `model.engine`.
        flavour: The TensorRT that it is for.
        tensorrt_version: Version that built it and has to run it, like `1.7.1.116`, or `10.16.0` on a Jetson.
        capabilities: Compute capabilities, like `8.6`; empty if it is for the GPU that built it.
        cpu: Architecture of the CPU beside the GPU, as `uname -m` prints it.
        has_plugin: Whether quantized linears run in our kernels, not in TensorRT's.
        profiles: Its profiles, in the engine's order.
        contract: Its inputs and outputs.
        gpu: Name of the GPU that built it, if it only runs on such a GPU and the name is known.
        problem: Why it is not this build's engine; None if it is.
    """

    path: Path
    flavour: Flavour
    tensorrt_version: str
    capabilities: tuple[str, ...]
    cpu: str
    has_plugin: bool
    profiles: tuple[ProfileRecord, ...]
    contract: IoContract
    gpu: str | None = None
    problem: str | None = None

    @property
    def needs(self) -> str:
        """Describes what runs it."""
        gpu = self.gpu or "the GPU that built it"
        if self.capabilities:
            gpu = f"compute capability {' or '.join(self.capabilities)}"
        return f"{gpu}, {_TITLES[self.flavour]} {self.tensorrt_version}"


@dataclass(frozen=True)
class Machine:
    """What a machine has for running engines.

    Attributes:
        cpu: Its CPU, as `uname -m` prints it.
        gpu: Name of its first NVIDIA GPU; None if it has none.
        capability: Compute capability of that GPU, like `8.6`.
        tensorrt: Versions of the Python modules that are installed; for a module that cannot be loaded, the reason
            instead of a version.
    """

    cpu: str
    gpu: str | None
    capability: str | None
    tensorrt: Mapping[Flavour, str]


def engine_of(artifact: Artifact, graph: str = DECODER) -> EngineBuild | None:
    """Returns the engine of a graph in a directory; None for a checkpoint, an ONNX model, or an unfinished kit."""
    contents = artifact.manifest.contents
    record_of_graph = contents.graphs.get(graph)
    if record_of_graph is None or record_of_graph.engine is None:
        return None
    path = artifact.directory / record_of_graph.engine
    if not path.is_file():
        return None
    build = partial(EngineBuild, path=path, contract=record_of_graph.io)
    if contents.engine is not None:
        record = contents.engine
        return build(
            flavour=Flavour(record.flavour),
            tensorrt_version=record.tensorrt_version,
            capabilities=tuple(filter(None, map(_capability, record.compute_capabilities))),
            cpu=find_target(record.target).cpu,
            has_plugin=record.plugin_version is not None,
            profiles=record.profiles[graph],
            gpu=record.gpu,
        )
    kit = contents.kit
    if kit is None:
        return None
    state = _state_of(path)
    return build(
        flavour=Flavour.TENSORRT,
        tensorrt_version=_version_name(state.get("tensorrt", "")),
        capabilities=(kit.compute_capability,),
        cpu=kit.cpu,
        has_plugin=True,
        profiles=kit.profiles[graph],
        problem=_kit_problem(path, state),
    )


def why_not_here(engine: EngineBuild, machine: Machine) -> str | None:
    """Says why a machine cannot run an engine: what was found, and what is needed; None if it can."""
    if engine.problem:
        return engine.problem
    if machine.gpu is None:
        return f"there is no NVIDIA GPU here, but the engine needs {engine.needs}"
    if machine.cpu != engine.cpu:
        return f"this machine is {machine.cpu}, but the engine is for {engine.cpu} and {engine.needs}"
    if engine.capabilities and machine.capability not in engine.capabilities:
        found = f"{machine.gpu}, compute capability {machine.capability}"
        return f"the GPU here is {found}, but the engine needs {engine.needs}"
    if engine.gpu is not None and machine.gpu != engine.gpu:
        return f"the GPU here is {machine.gpu}, but the engine needs {engine.needs}"
    title = _TITLES[engine.flavour]
    install = _PACKAGES[engine.flavour].format(version=engine.tensorrt_version)
    version = machine.tensorrt.get(engine.flavour)
    if version is None:
        return (
            f"{title}'s Python module is not installed here, but the engine needs {engine.tensorrt_version}: {install}"
        )
    if _release(version) != _release(engine.tensorrt_version):
        return f"{title} here is {version}, but the engine needs {engine.tensorrt_version}, which built it"
    return None


def this_machine() -> Machine:
    """Asks the CUDA driver for the GPU, and imports TensorRT only if there is one."""
    driver = read_driver()
    gpu = driver.gpus[0] if driver and driver.gpus else None  # the GPU that TensorRT runs on
    versions = {flavour: _version_of(module) for flavour, module in MODULES.items()} if gpu else {}
    return Machine(
        cpu=platform.machine(),
        gpu=gpu.name if gpu else None,
        capability=gpu.capability_name if gpu else None,
        tensorrt={flavour: version for flavour, version in versions.items() if version},
    )


def choose_flavour(directory: Path) -> None:
    """Makes polygraphy use the TensorRT of a directory's engines, by the variable that it reads when it is imported.

    A variable that the user has set stays. If a build has engines for both, the engine for this machine's CPU decides.

    Args:
        directory: A directory that `build` wrote, or an engine or a kit in it.
    """
    paths = [directory, *sorted(path.parent for path in directory.glob(f"*/{MANIFEST_FILE}"))]
    found = set(_flavours([path for path in paths if (path / MANIFEST_FILE).is_file()]))
    if found == {Flavour.TENSORRT_RTX}:
        os.environ.setdefault(POLYGRAPHY_SWITCH, "1")


def _flavours(directories: list[Path]) -> Iterator[Flavour]:
    for directory in directories:
        try:
            engine = engine_of(Artifact.open(directory, verify="size"))
        except Awq2trtError:
            continue  # code that needs the engine will report it
        if engine is not None and engine.cpu == platform.machine():
            yield engine.flavour


def _capability(name: str) -> str | None:
    """Turns TensorRT's `SM120` into `12.0`; returns None for `CURRENT`, the GPU that built the engine."""
    digits = name.removeprefix("SM")
    return f"{digits[:-1]}.{digits[-1]}" if digits.isdigit() else None


def _state_of(engine: Path) -> dict[str, str]:
    path = engine.with_name(f"{engine.name}{_STATE_SUFFIX}")
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _kit_problem(engine: Path, state: Mapping[str, str]) -> str | None:
    """Says why an engine in a kit is not the one that `finish.sh` built from this kit."""
    if state.get("kit") != record_file(engine.with_name(SUMS_FILE)).sha256:
        return f"{engine.name} was built from an earlier kit: run ./finish.sh on the Jetson again"
    if state.get("sha256") != record_file(engine).sha256:
        return f"{engine.name} is not what finish.sh built: run ./finish.sh --rebuild on the Jetson"
    return None


def _version_name(number: str) -> str:
    """Turns `101600`, as trtexec counts, into `10.16.0`."""
    value = int(number) if number.isdigit() else 0
    return f"{value // 10000}.{value // 100 % 100}.{value % 100}"


def _release(version: str) -> tuple[str, ...]:
    """Major, minor and patch version: an engine runs in the release that built it, with any build number."""
    return tuple(version.split(".")[:3])


def _version_of(module: str) -> str | None:
    """Version of a TensorRT; None if it is not installed, or the reason if it cannot be loaded."""
    if importlib.util.find_spec(module) is None:
        return None
    try:
        return str(importlib.import_module(module).__version__)
    except (ImportError, OSError, AttributeError) as error:
        return f"broken ({' '.join(str(error).split())})"
