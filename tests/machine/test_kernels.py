"""The kernels' C interface: structures and names are the library's own, and what is refused."""

from __future__ import annotations

import ctypes
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from awq2trt.errors import ToolError
from awq2trt.machine.kernels import (
    BENCH_LIBRARY_NAME,
    KERNEL_NAMES,
    TILE_NAMES,
    WARPGROUP_TILE_NAMES,
    GemmProblem,
    KernelConfig,
    Kernels,
    LinearTensors,
)
from awq2trt.machine.plugin_library import PluginLibrary, find_plugin_library

REPOSITORY = Path(__file__).parents[2]

HEADER = REPOSITORY / "plugins" / "kernels" / "w4a16_linear" / "w4a16_linear.h"


@pytest.fixture
def library() -> PluginLibrary:
    try:
        return find_plugin_library()
    except ToolError as error:
        pytest.skip(f"needs the plugin library: {error.fix}")


@pytest.mark.parametrize(
    ("struct", "mirror"),
    [("GemmProblem", GemmProblem), ("KernelConfig", KernelConfig), ("LinearTensors", LinearTensors)],
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


@pytest.mark.parametrize("mirror", [GemmProblem, KernelConfig, LinearTensors])
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
    ("function", "names"),
    [
        ("awq2trt_kernel_name", KERNEL_NAMES),
        ("awq2trt_tile_name", TILE_NAMES),
        ("awq2trt_warpgroup_tile_name", WARPGROUP_TILE_NAMES),
    ],
)
def test_names_are_those_of_the_library(library: PluginLibrary, function: str, names: tuple[str, ...]) -> None:
    name_of = getattr(ctypes.CDLL(str(library.path)), function)
    name_of.restype = ctypes.c_char_p
    assert [name_of(number) for number in range(len(names))] == [name.encode() for name in names]
    assert name_of(len(names)) is None
    assert name_of(-1) is None


def test_ceilings_come_from_a_library_beside_the_plugins(library: PluginLibrary, tmp_path: Path) -> None:
    if not library.path.with_name(BENCH_LIBRARY_NAME).is_file():
        pytest.skip("needs the benchmark library: make plugins")
    for symbol in ("awq2trt_launch_mma_ceiling", "awq2trt_mma_ceiling_flops"):
        assert hasattr(ctypes.CDLL(str(library.path.with_name(BENCH_LIBRARY_NAME))), symbol)
        assert not hasattr(ctypes.CDLL(str(library.path)), symbol), "engines would carry it"
    beside = tmp_path / BENCH_LIBRARY_NAME
    lonely = replace(library, path=tmp_path / library.path.name)
    shutil.copyfile(library.path, lonely.path)
    with pytest.raises(ToolError, match=rf"no {BENCH_LIBRARY_NAME} beside .*make plugins"):
        Kernels.load(lonely)
    beside.write_text("not ELF")
    with pytest.raises(ToolError, match=r"this benchmark library cannot be used.*make plugins"):
        Kernels.load(lonely)
    beside.unlink()
    shutil.copyfile(library.path.with_name(BENCH_LIBRARY_NAME), beside)
    with pytest.raises(ToolError, match=rf"expected version 0\.0\.0, .*got {re.escape(library.version)}"):
        Kernels.load(replace(lonely, version="0.0.0"))


def test_library_refuses_a_problem_with_the_reason(library: PluginLibrary) -> None:
    kernels = Kernels.load(library)
    problem = GemmProblem(m=1, n=8, k=12, group_size=4, dtype=0)
    with pytest.raises(ToolError, match="K must be a positive multiple of 8"):
        kernels.choose_config(problem)
