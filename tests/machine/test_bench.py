"""What of the kernel benchmark needs no GPU: its structures, floors, table, files and errors."""

from __future__ import annotations

import ctypes
import json
import re
from pathlib import Path

import pytest

from awq2trt.errors import ToolError
from awq2trt.machine import bench
from awq2trt.machine.bench import Ceilings, KernelReport, LayerShape, Measurement
from awq2trt.machine.plugin_library import find_plugin_library

REPOSITORY = Path(__file__).parents[2]
HEADER = REPOSITORY / "plugins" / "kernels" / "w4a16_linear.h"

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
    return KernelReport("a GPU", {"plugins": "0.1.0"}, "2026-01-01", 128, "float16", True, CEILINGS, rows)


@pytest.mark.parametrize(
    ("struct", "mirror"),
    [("GemmProblem", bench.GemmProblem), ("KernelConfig", bench.KernelConfig), ("LinearTensors", bench.LinearTensors)],
)
def test_structures_have_the_fields_of_the_header(struct: str, mirror: type[ctypes.Structure]) -> None:
    match = re.search(rf"struct {struct} \{{(.*?)\n\}};", HEADER.read_text(), re.DOTALL)
    assert match
    members = re.findall(r"^  [\w: ]*?[\w*]+[ *]+(\w+);", match.group(1), re.MULTILINE)
    assert [field[0] for field in mirror._fields_] == members


def test_tile_names_are_those_of_the_header() -> None:
    match = re.search(r"enum class TileShape : int32_t \{(.*?)\}", HEADER.read_text())
    assert match
    names = [name.strip().removeprefix("k") for name in match.group(1).split(",")]
    assert names == [*bench.TILE_NAMES, "Count"]


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


def test_library_refuses_a_problem_with_the_reason() -> None:
    try:
        kernels = bench.Kernels(find_plugin_library())
    except ToolError as error:
        pytest.skip(f"needs the plugin library: {error.fix}")
    problem = bench.GemmProblem(m=1, n=8, k=12, group_size=4, dtype=0)
    with pytest.raises(ToolError, match="K must be a positive multiple of 8"):
        kernels.choose_config(problem)
