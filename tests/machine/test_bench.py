"""What of the kernel benchmark needs no GPU: its structures, floors, table, files and errors."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from awq2trt.errors import ToolError
from awq2trt.machine import bench
from awq2trt.machine.bench import Ceilings, KernelReport, LayerShape, Measurement
from awq2trt.machine.plugin_library import PluginLibrary, find_plugin_library

REPOSITORY = Path(__file__).parents[2]
HEADER = REPOSITORY / "plugins" / "kernels" / "w4a16_linear" / "w4a16_linear.h"

CEILINGS = Ceilings(copy_bytes_per_us=3e6, mma_flops_per_us=6e8)


@pytest.fixture
def library() -> PluginLibrary:
    try:
        return find_plugin_library()
    except ToolError as error:
        pytest.skip(f"needs the plugin library: {error.fix}")


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


class _Field(ctypes.Structure):
    """`awq2trt_field` of plugins/library/c_api.h."""

    _fields_ = [
        ("structure", ctypes.c_char_p),
        ("name", ctypes.c_char_p),
        ("offset", ctypes.c_size_t),
        ("bytes", ctypes.c_size_t),
    ]


@pytest.mark.parametrize("mirror", [bench.GemmProblem, bench.KernelConfig, bench.LinearTensors])
def test_structures_lie_in_memory_as_the_library_has_them(
    library: PluginLibrary, mirror: type[ctypes.Structure]
) -> None:
    fields_of = ctypes.CDLL(str(library.path)).awq2trt_fields
    fields_of.restype = ctypes.POINTER(_Field)
    count = ctypes.c_int()
    fields = fields_of(ctypes.byref(count))[: count.value]
    said = {f.name.decode(): (f.offset, f.bytes) for f in fields if f.structure.decode() == mirror.__name__}
    mirrored = {name: (getattr(mirror, name).offset, getattr(mirror, name).size) for name, *_ in mirror._fields_}
    assert said == {"": (0, ctypes.sizeof(mirror)), **mirrored}


@pytest.mark.parametrize(
    ("function", "names"), [("awq2trt_kernel_name", bench.KERNEL_NAMES), ("awq2trt_tile_name", bench.TILE_NAMES)]
)
def test_names_are_those_of_the_library(library: PluginLibrary, function: str, names: tuple[str, ...]) -> None:
    name_of = getattr(ctypes.CDLL(str(library.path)), function)
    name_of.restype = ctypes.c_char_p
    assert [name_of(number) for number in range(len(names))] == [name.encode() for name in names]
    assert name_of(len(names)) is None
    assert name_of(-1) is None


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


def test_ceilings_come_from_a_library_beside_the_plugins(library: PluginLibrary, tmp_path: Path) -> None:
    if not library.path.with_name(bench.BENCH_LIBRARY_NAME).is_file():
        pytest.skip("needs the benchmark library: make plugins")
    for symbol in ("awq2trt_launch_mma_ceiling", "awq2trt_mma_ceiling_flops"):
        assert hasattr(ctypes.CDLL(str(library.path.with_name(bench.BENCH_LIBRARY_NAME))), symbol)
        assert not hasattr(ctypes.CDLL(str(library.path)), symbol), "engines would carry it"
    beside = tmp_path / bench.BENCH_LIBRARY_NAME
    lonely = replace(library, path=tmp_path / library.path.name)
    shutil.copyfile(library.path, lonely.path)
    with pytest.raises(ToolError, match=rf"no {bench.BENCH_LIBRARY_NAME} beside .*make plugins"):
        bench.Kernels.load(lonely)
    beside.write_text("not ELF")
    with pytest.raises(ToolError, match=r"not a usable benchmark library.*make plugins"):
        bench.Kernels.load(lonely)
    beside.unlink()
    shutil.copyfile(library.path.with_name(bench.BENCH_LIBRARY_NAME), beside)
    with pytest.raises(ToolError, match=rf"expected version 0\.0\.0, .*got {re.escape(library.version)}"):
        bench.Kernels.load(replace(lonely, version="0.0.0"))


def test_library_refuses_a_problem_with_the_reason(library: PluginLibrary) -> None:
    kernels = bench.Kernels.load(library)
    problem = bench.GemmProblem(m=1, n=8, k=12, group_size=4, dtype=0)
    with pytest.raises(ToolError, match="K must be a positive multiple of 8"):
        kernels.choose_config(problem)
