"""The parts of the kernel benchmark that need no GPU: floors, the table, files and errors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from awq2trt.errors import ToolError, UsageError
from awq2trt.machine import bench
from awq2trt.machine.bench import Ceilings, KernelReport, LayerShape, Measurement, WeightKind, bench_kernels

REPOSITORY = Path(__file__).parents[2]

CEILINGS = Ceilings(copy_bytes_per_us=3e6, mma_flops_per_us=6e8)


@pytest.fixture
def report() -> KernelReport:
    shape = LayerShape(4096, 22016)
    rows = tuple(
        Measurement(
            shape=shape,
            tokens=m,
            config="decode 96x8",
            us=20.0 * m,
            floor_us=15.5,
            bytes=46_500_000,
            flops=2 * m * shape.k * shape.n,
            cublas_us=67.0,
            tinygemm_us=None,
        )
        for m in (1, 2)
    )
    return KernelReport("a GPU", {"plugins": "0.1.0"}, "2026-01-01", 128, "float16", True, 4, CEILINGS, rows)


def test_types_are_at_the_places_of_the_kernels_enum() -> None:
    text = (REPOSITORY / "plugins" / "kernels" / "data_type.h").read_text()
    values = dict(re.findall(r"\bk(\w+) = (\d+)", re.findall(r"enum class DataType.*?};", text)[0]))
    assert values == {"Half": str(bench.DTYPES.index("float16")), "BFloat16": str(bench.DTYPES.index("bfloat16"))}


def test_floor_is_the_larger_of_bytes_and_arithmetic() -> None:
    assert bench.floor_us(30_000_000, 0, CEILINGS) == pytest.approx(10.0)
    assert bench.floor_us(0, 6_000_000_000, CEILINGS) == pytest.approx(10.0)
    assert bench.floor_us(30_000_000, 12_000_000_000, CEILINGS) == pytest.approx(20.0)


def test_table_has_a_line_per_measurement(report: KernelReport) -> None:
    lines = bench.format_report(report).splitlines()
    assert lines[0] == "a GPU, 2026-01-01, plugins 0.1.0"
    assert "group size 128, zero points" in lines[1]
    assert " ".join(lines[4].split()) == "4096 -> 22016 1 20.0 2325 9.0 15.5 0.78 67.0 - decode 96x8"
    assert len(lines) == 6


def test_report_is_written_whole(report: KernelReport, tmp_path: Path) -> None:
    bench.write_report(report, tmp_path / "report.json")
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["measurements"][1]["us"] == 40.0
    assert data["ceilings"]["copy_bytes_per_us"] == 3e6


def test_plot_is_a_png(report: KernelReport, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    bench.plot_report(report, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_gpu_the_error_says_where_to_run() -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ToolError, match="needs a GPU") as error:
        bench._torch_with_cuda()
    assert error.value.fix is not None


def test_bytes_of_weights_by_their_kind() -> None:
    shape = LayerShape(576, 49152)  # five groups of 128, the last one shorter
    assert WeightKind().bytes(shape) == 49152 * 288 + 49152 * 5 * 2 + 49152 * 5 // 2
    assert WeightKind(code_bits=8).bytes(shape) == 49152 * 576 + 49152 * 5 * (2 + 1)
    assert WeightKind(8, 32, zero_points=False).bytes(shape) == 49152 * 576 + 49152 * 18 * 2


def test_codes_of_other_widths_are_refused() -> None:
    with pytest.raises(UsageError, match="got 3, expected 4 or 8"):
        bench_kernels(kind=WeightKind(code_bits=3))
