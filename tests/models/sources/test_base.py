"""A checkpoint may say in several places how it is quantized; all give the same answer. Which tensors are refused."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from foreign_checkpoints import FOREIGN, save_foreign
from tiny_models import save_llama

from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.checkpoint.opening import open_any
from awq2trt.models.sources.base import largest_magnitude, read_config
from awq2trt.models.sources.safetensors import SafetensorsSource


def _taken_out(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json without its `quantization_config`, and that part."""
    config = json.loads((directory / "config.json").read_text())
    return config, config.pop("quantization_config")


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("layout", "file"), [("gptq", "quantize_config.json"), ("awq", "quant_config.json")], ids=["gptq", "awq"]
)
def test_a_config_of_its_own_is_read(layout: str, file: str, tmp_path: Path) -> None:
    save_foreign(tmp_path, FOREIGN[layout])
    config, quantization = _taken_out(tmp_path)
    del quantization["quant_method"]
    _write(tmp_path / "config.json", config)
    _write(tmp_path / file, quantization)
    source, scheme = open_any(str(tmp_path))
    assert (type(source), scheme) == (QuantizedCheckpoint, "int4-g32-asym")
    assert tmp_path / file in source.side_files


def test_the_key_of_the_first_compressed_tensors_is_read(tmp_path: Path) -> None:
    save_foreign(tmp_path, FOREIGN["compressed"])
    config, quantization = _taken_out(tmp_path)
    del quantization["quant_method"]
    _write(tmp_path / "config.json", {**config, "compression_config": quantization})
    assert QuantizedCheckpoint.open(tmp_path).scheme.describe() == "int4-g32-sym"


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_null_is_no_quantization(key: str, tmp_path: Path) -> None:
    save_llama(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    _write(tmp_path / "config.json", {**config, key: None})
    assert key not in read_config(tmp_path)
    assert isinstance(open_any(str(tmp_path))[0], SafetensorsSource)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32, np.float64])
def test_the_largest_magnitude_of_any_float(dtype: Any) -> None:
    values = np.array([[0.5, -6.0, 2.0], [0.0, 3.0, -0.25]]).astype(dtype)
    assert [largest_magnitude(part) for part in (values, values[:, 2], values.T, values[0, 1, None], values[:0])] == [
        *(6.0, 2.0, 6.0, 6.0, 0.0)
    ]
    for broken, expected in ((np.inf, np.inf), (-np.inf, np.inf), (np.nan, np.nan), (-np.nan, np.nan)):
        values[1, 1] = broken
        np.testing.assert_equal(largest_magnitude(values), expected)


def test_the_largest_magnitude_is_found_without_a_copy() -> None:
    values = np.zeros(1 << 22, np.float16)
    values[-1] = -3.0
    assert _traced_peak(lambda: largest_magnitude(values)) < values.nbytes / 4
    assert largest_magnitude(values) == 3.0


def _traced_peak(work: Callable[[], object]) -> int:
    """Most bytes that Python and NumPy hold at a time during some work, in addition to what they held before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
