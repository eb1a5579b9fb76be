"""The CUDA backend of the C++ library, with the host in place of the GPU: the Python backend's tokens, and no leaks."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from host_memory import HostMemory
from native_text import BUILD
from tiny_llava import build_llava, shown
from tiny_lowered import CAPACITY, build_lowered

from awq2trt.artifact.manifest import Artifact
from awq2trt.errors import ToolError
from awq2trt.graph.read import open_decoder
from awq2trt.machine.plugin_library import find_plugin_library
from awq2trt.machine.runtime_library import find_onnxruntime_library
from awq2trt.runtime.ort.cuda import CudaBackend, CudaOptions
from awq2trt.runtime.ort.embedder import open_embedder
from awq2trt.runtime.ort.session import Execution, open_session

PROGRAM = BUILD / "tests" / "cuda_on_host"
PROMPT = [40, 50, 60, 70, 80]


@pytest.fixture(scope="module")
def operators() -> Path:
    if not PROGRAM.is_file():
        pytest.skip("the C++ library's tests are not built: make runtime")
    try:
        return find_plugin_library().path
    except ToolError:
        pytest.skip("the plugin library is not built: make plugins")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_lowered(tmp_path_factory.mktemp("built"), "cuda") / "cuda"


def run(model: Path, operators: Path, *commands: str, weights: Path | None = None) -> list[str]:
    """The program's answer; the last line is what it leaked."""
    line = [str(path) for path in (PROGRAM, model, find_onnxruntime_library(), operators, weights or model)]
    done = subprocess.run(line, input="\n".join(commands), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def python_backend(model: Path, operators: Path) -> CudaBackend:
    _, sizes = open_decoder(model)
    session = open_session(None, model, Execution(operators=operators))
    embedder = open_embedder(Artifact.open(model))
    return CudaBackend.start(session, sizes, HostMemory(), CudaOptions(graph=False), embedder)


def append(session: int, tokens: list[int]) -> str:
    return f"append {session} {' '.join(map(str, tokens))}"


def test_tokens_and_scores_are_those_of_the_python_backend(model: Path, operators: Path) -> None:
    backend = python_backend(model, operators)
    expected = [backend.choose(PROMPT)]
    for _ in range(5):
        expected.append(backend.choose(expected[-1:]))
    commands = ["open 0", append(0, PROMPT), "best 0"]
    for token in expected[:-1]:
        commands += [append(0, [token]), "best 0"]
    *lines, scores, left = run(model, operators, *commands, "logits 0")
    assert [int(line) for line in lines] == expected
    backend.reset()
    np.testing.assert_allclose(
        np.array(scores.split(), np.float32), backend.forward(PROMPT + expected[:-1]), rtol=1e-2, atol=1e-2
    )
    assert left == "left 0"


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_llava(tmp_path_factory.mktemp("llava"), "cuda") / "cuda"


def test_a_decoder_of_embeddings_gives_the_tokens_of_the_python_backend(seeing: Path, operators: Path) -> None:
    backend = python_backend(seeing, operators)
    expected = [backend.choose(PROMPT)]
    for _ in range(5):
        expected.append(backend.choose(expected[-1:]))
    assert len(set(expected)) > 1
    commands = ["open 0", append(0, PROMPT), "best 0"]
    for token in expected[:-1]:
        commands += [append(0, [token]), "best 0"]
    *lines, same, left = run(seeing, operators, *commands, "threads 0 4 8")
    assert [int(line) for line in lines] == expected
    assert (same, left) == ("1", "left 0")


def test_an_image_is_seen_as_by_the_python_backend(seeing: Path, operators: Path) -> None:
    side, pieces = 56, 16
    *lines, left = run(seeing, operators, *(f"see {3 * side * side} {value} {pieces}" for value in (1, -1)))
    embedder = open_embedder(Artifact.open(seeing))
    assert embedder is not None
    for line, value in zip(lines, (1, -1), strict=True):
        expected = embedder.see(shown(np.full((1, 3, side, side), value, np.float32))[0])
        got = np.array(line.split(), np.float32).reshape(expected.shape)
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)
    assert lines[0] != lines[1]
    assert left == "left 0"


def test_pixels_of_another_size_are_refused(seeing: Path, operators: Path) -> None:
    line = [str(path) for path in (PROGRAM, seeing, find_onnxruntime_library(), operators)]
    done = subprocess.run(line, input="see 7 1", capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "got 7 numbers of an image, expected 9408" in done.stderr


def test_sessions_take_turns_fork_and_rewind(model: Path, operators: Path) -> None:
    other = [9, 8, 7]
    alone = run(model, operators, "open 0", append(0, PROMPT), "best 0", append(0, [5]), "best 0")
    apart = run(model, operators, "open 0", append(0, other), "best 0", append(0, [5]), "best 0")
    assert alone[:2] != apart[:2]
    together = run(
        model,
        operators,
        *("open 0", "open 1", append(0, PROMPT), append(1, other), "best 0", "best 1", "fork 0 2"),
        *(append(0, [6]), append(2, [5]), append(1, [5]), "best 2", "best 1", "rewind 0 5", append(0, [5]), "best 0"),
        *("close 1", "open 3", append(3, other), "best 3", append(3, [5]), "best 3"),
    )
    assert together == [alone[0], apart[0], alone[1], apart[1], alone[1], apart[0], apart[1], "left 0"]


def test_threads_take_turns(model: Path, operators: Path) -> None:
    assert run(model, operators, "open 0", append(0, PROMPT), f"threads 0 8 {CAPACITY // 4}") == ["1", "left 0"]


def test_weights_are_those_that_the_library_put_there(model: Path, operators: Path, tmp_path: Path) -> None:
    """ONNX Runtime does not read what it is given; the head it does, here, since a CPU has it in fp32."""
    commands = ["open 0", append(0, PROMPT), "logits 0"]
    spoilt = Path(shutil.copytree(model, tmp_path / "spoilt"))
    data = bytearray((spoilt / "model.onnx.data").read_bytes())
    for value in open_decoder(model)[0].graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and tensor.dtype is ir.DataType.INT4:
            assert tensor.offset is not None
            data[tensor.offset : tensor.offset + tensor.nbytes] = bytes(tensor.nbytes)
    (spoilt / "model.onnx.data").write_bytes(data)
    expected = run(model, operators, *commands)
    assert run(spoilt, operators, *commands, weights=model) == expected
    assert run(spoilt, operators, *commands) != expected


def test_an_error_while_loading_leaves_nothing(model: Path, operators: Path, tmp_path: Path) -> None:
    line = [str(path) for path in (PROGRAM, model, find_onnxruntime_library(), operators, tmp_path)]
    done = subprocess.run(line, input="", capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "model.onnx.data: it cannot be read at byte 0" in done.stderr
