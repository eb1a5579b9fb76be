"""A kit whose script has made an engine: the C++ library accepts it, up to the TensorRT that is missing here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from native_sessions import require_runtime_library
from stand_in_orin import Orin
from tiny_exports import export_saved
from tiny_kits import export_tiny, make_tiny_kit
from tiny_llava import publish_llava
from tiny_qwen_vl import publish_qwen_vl

from awq2trt.errors import Awq2trtError
from awq2trt.machine.runtime_library import TENSORRT_VARIABLE
from awq2trt.recipe import ExportOptions
from awq2trt.runtime.native import NativeModel
from awq2trt.runtime.native_library import CHANGED_FILE, ENGINE_VERSION, MALFORMED, NO_RUNTIME, NOT_FOUND


def finish(folder: Path) -> Path:
    """The kit of an exported model, with what finish.sh made on a stand-in of a Jetson."""
    kit = make_tiny_kit(folder, folder / "7.2", "7.2").directory
    result = Orin(folder / "machine").finish("sh", kit)
    assert result.returncode == 0, result.stderr
    return kit


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kit of a tiny model of text."""
    require_runtime_library()
    folder = tmp_path_factory.mktemp("kit")
    export_tiny(folder)
    return finish(folder)


@pytest.fixture(scope="module", params=[publish_llava, publish_qwen_vl])
def seeing_finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kits of tiny models that see."""
    require_runtime_library()
    folder = tmp_path_factory.mktemp("seeing")
    request.param(folder / "model")
    export_saved(folder, ExportOptions(max_seq_len=160))
    return finish(folder)


@pytest.fixture(autouse=True)
def _no_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(TENSORRT_VARIABLE, str(tmp_path / "libnvinfer.so"))


@pytest.fixture
def kit(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "kit"))


@pytest.fixture
def seeing_kit(seeing_finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(seeing_finished, tmp_path / "kit"))


def refusal(kit: Path) -> tuple[int, str]:
    with pytest.raises(Awq2trtError) as caught:
        NativeModel.load(kit)
    return int(vars(caught.value)["code"]), str(caught.value)


def test_a_finished_kit_wants_tensorrt_next(kit: Path) -> None:
    code, message = refusal(kit)
    assert code == NO_RUNTIME
    assert "install TensorRT 10.16.0" in message


def test_an_engine_of_another_tensorrt(kit: Path, tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source = tmp_path / "nvinfer.c"
    source.write_text("int getInferLibVersion(void) { return 101700; }\n")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "libnvinfer.so", source], check=True)
    code, message = refusal(kit)
    assert code == ENGINE_VERSION
    assert "TensorRT here is 10.17.0, the engine was built by 10.16.0" in message


def test_a_kit_that_is_not_finished(kit: Path) -> None:
    (kit / "model.engine.state").unlink()
    code, message = refusal(kit)
    assert code == NOT_FOUND
    assert "./finish.sh" in message


def test_an_engine_of_an_earlier_kit(kit: Path) -> None:
    with (kit / "SHA256SUMS").open("a") as sums:
        sums.write("\n")
    assert refusal(kit)[0] == CHANGED_FILE


def test_an_engine_that_was_changed(kit: Path) -> None:
    engine = kit / "model.engine"
    engine.write_bytes(b"x" * engine.stat().st_size)
    assert refusal(kit)[0] == CHANGED_FILE


def test_a_state_that_is_none(kit: Path) -> None:
    (kit / "model.engine.state").write_text("kit=\n")
    assert refusal(kit)[0] == MALFORMED


def test_a_finished_kit_of_a_model_that_sees_wants_tensorrt_next(seeing_kit: Path) -> None:
    code, message = refusal(seeing_kit)
    assert code == NO_RUNTIME
    assert "install TensorRT 10.16.0" in message


@pytest.mark.parametrize("graph", ["model", "vision", "embedding"])
def test_an_engine_of_one_graph_is_not_there_or_another(graph: str, seeing_kit: Path) -> None:
    engine, state = seeing_kit / f"{graph}.engine", seeing_kit / f"{graph}.engine.state"
    right, recorded = engine.read_bytes(), state.read_text()
    engine.write_bytes(b"x" * len(right))
    code, message = refusal(seeing_kit)
    assert code == CHANGED_FILE
    assert engine.name in message
    engine.write_bytes(right)
    state.write_text(recorded.replace("kit=", f"kit={'0' * 64}\nold="))
    code, message = refusal(seeing_kit)
    assert code == CHANGED_FILE
    assert f"{engine}: the engine was built from an earlier kit" in message
    for missing in (state, engine):
        missing.unlink()
        code, message = refusal(seeing_kit)
        assert code == NOT_FOUND
        assert f"the kit has no {engine.name} yet" in message
        assert "./finish.sh" in message


def test_engines_of_several_tensorrts(seeing_kit: Path) -> None:
    state = seeing_kit / "vision.engine.state"
    state.write_text(state.read_text().replace("tensorrt=101600", "tensorrt=101700"))
    code, message = refusal(seeing_kit)
    assert code == ENGINE_VERSION
    assert "built by TensorRT 10.17.0, that of the decoder by 10.16.0" in message
    assert "./finish.sh --rebuild" in message
