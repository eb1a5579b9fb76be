"""`import awq2trt` and `awq2trt --help` stay light: quick, and without the heavy libraries."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "tensorrt", "tensorrt_rtx", "onnx", "onnx_ir", "onnxruntime", "numpy", "gguf")

MEASURE = """
import sys, time
started = time.process_time()
{code}
print(time.process_time() - started, *sorted(set(name.partition(".")[0] for name in sys.modules)))
"""


def _import(code: str) -> tuple[float, set[str]]:
    """CPU seconds that the code takes in a fresh interpreter, and the modules that are loaded then."""
    command = [sys.executable, "-c", MEASURE.format(code=code)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, timeout=60).stdout
    seconds, *modules = output.split()
    return float(seconds), set(modules)


@pytest.mark.parametrize("code", ["import awq2trt", "import awq2trt.cli"])
def test_no_heavy_library_is_loaded(code: str) -> None:
    _, modules = _import(code)
    assert "awq2trt" in modules
    assert not modules.intersection(HEAVY)


def test_the_search_loads_no_compiler_before_codes_descend() -> None:
    _, modules = _import("import awq2trt.quantization.job")
    assert "torch" in modules
    assert "numba" not in modules


@pytest.mark.parametrize("code", ["import awq2trt", "import awq2trt; dir(awq2trt)", "import awq2trt; awq2trt.quantize"])
def test_the_api_is_there_before_any_library(code: str) -> None:
    _, modules = _import(code)
    assert not modules.intersection((*HEAVY, "pydantic", "yaml", "rich", "typer", "jinja2", "safetensors", "onnx"))


@pytest.mark.parametrize(
    "code",
    [
        "import awq2trt; awq2trt.QuantizeOptions, awq2trt.Artifact, awq2trt.Model, awq2trt.CheckOutcome",
        "import awq2trt.stages",
        "import awq2trt.onnx_export",
        "import awq2trt.runtime",
        "import awq2trt.engine.builder",
        "import awq2trt.artifact.manifest",
    ],
)
def test_no_torch_where_none_is_needed(code: str) -> None:
    _, modules = _import(code)
    assert not modules.intersection({"torch", "tensorrt", "tensorrt_rtx"})


def test_import_takes_under_300_ms() -> None:
    assert min(_import("import awq2trt")[0] for _ in range(3)) < 0.3


def test_command_line_takes_under_500_ms() -> None:
    assert min(_import("import awq2trt.cli")[0] for _ in range(3)) < 0.5
