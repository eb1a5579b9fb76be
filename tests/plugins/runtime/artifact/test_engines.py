"""Directories of engines of models that see: the C++ library asks for those of all graphs."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from native_sessions import require_runtime_library
from tiny_engines import as_engines
from tiny_exports import export_saved
from tiny_llava import publish_llava
from tiny_lowered import edit_manifest
from tiny_qwen_vl import QWEN3_VL, publish_qwen_vl

from awq2trt.errors import Awq2trtError
from awq2trt.machine.gpu import read_driver
from awq2trt.machine.runtime_library import TENSORRT_VARIABLE
from awq2trt.progress import SilentProgress
from awq2trt.recipe import BuildOptions, ExportOptions, QuantizeOptions, Recipe
from awq2trt.runtime import native_library
from awq2trt.runtime.native import NativeModel
from awq2trt.runtime.native_library import CHANGED_FILE, MALFORMED, NO_DRIVER, NO_RUNTIME, NOT_FOUND, UNSUPPORTED
from awq2trt.stages.build import BuildRequest, build_stage

EXPORT = ExportOptions(max_seq_len=160)
GRAPHS = ("decoder", "vision", "embedding")
FILES = {"decoder": "model.engine", "vision": "vision.engine", "embedding": "embedding.engine"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose engines are a few bytes."""
    require_runtime_library()
    folder = tmp_path_factory.mktemp("seeing")
    publish_qwen_vl(folder / "model", QWEN3_VL)
    return as_engines(export_saved(folder, EXPORT), folder / "rtx", 12).directory


@pytest.fixture
def changed(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, for a test to change, on a machine without TensorRT."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(TENSORRT_VARIABLE, str(tmp_path / "libtensorrt_rtx.so"))
    return Path(shutil.copytree(built, tmp_path / "rtx"))


def refusal(directory: Path) -> tuple[int, str]:
    with pytest.raises(Awq2trtError) as caught:
        NativeModel.load(directory, golden=False)
    return int(vars(caught.value)["code"]), str(caught.value)


def raw_refusal(directory: Path) -> tuple[int, str]:
    """The error of the C call itself, before Python's own look at the manifest."""
    structure = native_library.LoadOptionsStructure(size=ctypes.sizeof(native_library.LoadOptionsStructure))
    handle = ctypes.c_void_p()
    library = native_library.library()
    code = int(library.awq2trt_model_load(str(directory).encode(), ctypes.byref(structure), ctypes.byref(handle)))
    return code, str(library.awq2trt_last_error().decode())


@pytest.mark.trt
@pytest.mark.parametrize("save", [publish_llava, publish_qwen_vl], ids=["one", "any size"])
def test_engines_are_opened_up_to_the_gpu_that_is_missing(
    save: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_runtime_library()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save(tmp_path / "model")
    rounding = QuantizeOptions(group_size=32, method="rtn")
    recipe = Recipe(quantize=rounding, export=EXPORT, build=BuildOptions(target="rtx4090", plugin=False))
    list(build_stage(BuildRequest(str(tmp_path / "model"), tmp_path / "built", recipe), SilentProgress()))
    if read_driver() is not None:
        pytest.skip("there is a GPU here, which may be of another kind than the engines'")
    code, message = refusal(tmp_path / "built" / "rtx4090")
    assert code == NO_DRIVER
    assert "finds no GPU" in message


def test_engines_want_tensorrt_next(changed: Path) -> None:
    code, message = refusal(changed)
    assert code == NO_RUNTIME
    assert "TensorRT-RTX 1.7.1" in message


@pytest.mark.parametrize("graph", GRAPHS)
def test_an_engine_that_is_missing_or_changed(graph: str, changed: Path) -> None:
    engine = changed / FILES[graph]
    engine.write_bytes(b"x" * engine.stat().st_size)
    code, message = refusal(changed)
    assert code == CHANGED_FILE
    assert str(engine) in message
    engine.unlink()
    code, message = refusal(changed)
    assert code == NOT_FOUND
    assert f"{engine}: the manifest lists this file, but it is missing" in message


def _no_engine(graph: str, value: dict[str, Any]) -> None:
    value["contents"]["graphs"][graph]["engine"] = None


def _unlisted(graph: str, value: dict[str, Any]) -> None:
    del value["files"][FILES[graph]]


def _no_profiles(graph: str, value: dict[str, Any]) -> None:
    del value["contents"]["engine"]["profiles"][graph]


def _empty_profiles(graph: str, value: dict[str, Any]) -> None:
    value["contents"]["engine"]["profiles"][graph] = []


def _negative_range(graph: str, value: dict[str, Any]) -> None:
    for profile in value["contents"]["engine"]["profiles"][graph]:
        profile["axes"] = {axis: {**sizes, "shortest": -1} for axis, sizes in profile["axes"].items()}


def _outside(graph: str, value: dict[str, Any]) -> None:
    value["contents"]["graphs"][graph]["engine"] = "../model.engine"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_no_engine, "the graph has no engine"),
        (_unlisted, "of a graph is not among the files"),
        (_no_profiles, "is missing"),
        (_empty_profiles, "a list of profiles is expected"),
        (_negative_range, "a whole number is expected, at least 1"),
        (_outside, "does not stay inside the directory"),
    ],
)
@pytest.mark.parametrize("graph", GRAPHS)
def test_manifests_that_are_refused(
    graph: str, change: Callable[[str, dict[str, Any]], None], says: str, changed: Path
) -> None:
    edit_manifest(changed, lambda value: change(graph, value))
    code, message = raw_refusal(changed)
    assert code == MALFORMED
    assert says in message


def test_an_embedding_of_another_type_than_the_decoder_reads(changed: Path) -> None:
    def change(value: dict[str, Any]) -> None:
        value["contents"]["graphs"]["embedding"]["io"]["outputs"][0]["dtype"] = "float32"

    edit_manifest(changed, change)
    assert raw_refusal(changed)[0] == UNSUPPORTED
