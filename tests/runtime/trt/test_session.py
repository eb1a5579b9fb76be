"""Our side of the device calls, with a dictionary as the GPU, and how far TensorRT gets without one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import stand_in_engine
from numpy.typing import NDArray
from polygraphy.exception import PolygraphyException
from stand_in_engine import (
    engine_in,
)

from awq2trt.errors import ToolError
from awq2trt.io_contract import TensorContract
from awq2trt.runtime.bits import widen
from awq2trt.runtime.trt import session as session_module
from awq2trt.runtime.trt.engine import POLYGRAPHY_SWITCH
from awq2trt.runtime.trt.session import TrtSession


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("build")
    return stand_in_engine.make_build(stand_in_engine.save_model(directory / "model"), directory)


def test_bf16_is_read_as_the_upper_half_of_fp32() -> None:
    bits = np.array([0x3F80, 0xC000, 0x7FC0, 0x0000], np.uint16)
    np.testing.assert_array_equal(widen(bits, "bfloat16"), np.array([1.0, -2.0, np.nan, 0.0], np.float32))
    assert widen(np.array([0.5], np.float16), "float16").dtype == np.float32


class FakeCuda:
    """polygraphy's CUDA wrappers: memory is arrays by address."""

    MemcpyKind = SimpleNamespace(DeviceToDevice="device to device")

    def __init__(self) -> None:
        self.memory: dict[int, NDArray[Any]] = {}
        self.copies: list[tuple[int, int, str]] = []
        fake = self

        class DeviceArray:
            def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
                self.ptr, self.shape = fake.put(np.full(shape, 7, dtype)), shape
                self.nbytes = fake.memory[self.ptr].nbytes

            def copy_from(self, host: NDArray[Any]) -> DeviceArray:
                fake.memory[self.ptr][...] = host
                return self

            def free(self) -> None:
                del fake.memory[self.ptr]

        class DeviceView:
            def __init__(self, ptr: int, shape: tuple[int, ...], dtype: Any) -> None:
                self.ptr, self.shape, self.dtype = ptr, shape, dtype

            def numpy(self) -> NDArray[Any]:
                return np.frombuffer(fake.memory[self.ptr].tobytes(), self.dtype).reshape(self.shape)

        self.DeviceArray, self.DeviceView = DeviceArray, DeviceView

    def put(self, array: NDArray[Any]) -> int:
        """Address of a new piece of memory."""
        address = 256 * (1 + max(self.memory, default=0) // 256)
        self.memory[address] = array
        return address

    def wrapper(self) -> FakeCuda:
        return self

    def memcpy(self, dst: int, src: int, nbytes: int, kind: str) -> None:
        assert self.memory[dst].nbytes == nbytes
        self.copies.append((dst, src, kind))
        self.memory[dst][...] = self.memory[src]


class FakeRunner:
    """polygraphy's `TrtRunner`."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def set_profile(self, index: int) -> None:
        self.asked.append(index)

    def infer(self, inputs: Mapping[str, Any], **options: bool) -> Mapping[str, Any]:
        self.asked.append(options)
        if "fail" in inputs:
            raise PolygraphyException("`execute_async_v3()` failed.")
        return {}

    def deactivate(self) -> None:
        self.asked.append("deactivate")


@pytest.fixture
def session(build: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[TrtSession, FakeRunner, FakeCuda]:
    cuda = FakeCuda()
    monkeypatch.setattr(session_module, "cuda", cuda)
    made = TrtSession(engine_in(build))
    made._runner = FakeRunner()
    return made, made._runner, cuda


def test_caches_are_zeros_on_the_device_and_one_each(session: tuple[TrtSession, FakeRunner, FakeCuda]) -> None:
    opened, runner, cuda = session
    past = TensorContract("past_key_0", "float16", (1, 2, 4, 8), "Cache.")
    buffer = opened.zeros(past, (1, 2, 4, 8))
    assert cuda.memory[buffer.ptr].dtype == np.float16
    cuda.memory[buffer.ptr][...] = 3
    assert opened.zeros(past, (1, 2, 4, 8)).ptr == buffer.ptr
    assert not cuda.memory[buffer.ptr].any()
    opened.close()
    assert cuda.memory == {}
    assert runner.asked == ["deactivate"]


def test_caches_are_copied_only_where_they_are_not_the_same_memory(
    session: tuple[TrtSession, FakeRunner, FakeCuda],
) -> None:
    opened, _, cuda = session
    past = opened.zeros(TensorContract("past_key_0", "bfloat16", (1, 2), "Cache."), (1, 2))
    opened.carry(past, past)
    assert cuda.copies == []
    present = cuda.DeviceArray((1, 2), np.uint16)
    opened.carry(present, past)
    assert cuda.copies == [(past.ptr, present.ptr, "device to device")]
    assert cuda.memory[past.ptr].tolist() == [[7, 7]]


def test_a_profile_is_set_when_it_changes(session: tuple[TrtSession, FakeRunner, FakeCuda]) -> None:
    opened, runner, _ = session
    for profile in (0, 1, 1, 0):
        opened.infer({}, profile)
    call = {"check_inputs": False, "copy_outputs_to_host": False}
    assert runner.asked == [call, 1, call, call, 0, call]


def test_logits_come_to_the_host(session: tuple[TrtSession, FakeRunner, FakeCuda]) -> None:
    opened, _, cuda = session
    logits = np.arange(6, dtype=np.float16).reshape(1, 1, 6)
    buffer = cuda.DeviceView(cuda.put(logits.view(np.uint8)), (1, 1, 6), None)
    read = opened.read(buffer)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, logits)


def test_an_error_has_tensorrts_words_and_the_engines_name(
    session: tuple[TrtSession, FakeRunner, FakeCuda],
) -> None:
    opened, _, _ = session
    with pytest.raises(ToolError, match=r"model\.engine: tensorrt_rtx cannot run the engine: .*execute_async_v3"):
        opened.infer({"fail": 1}, 0)
    opened._errors += ["first", "enqueueV3: input past_key_3 has no address"]
    with pytest.raises(ToolError, match=r"cannot run the engine: first; enqueueV3: input past_key_3 has no address"):
        opened.infer({"fail": 1}, 0)


_OPEN = """
import sys
from pathlib import Path
from awq2trt.artifact.manifest import Artifact
from awq2trt.runtime.trt.engine import choose_flavour, engine_of
directory = Path(sys.argv[1])
choose_flavour(directory)
from awq2trt.runtime.trt.session import TrtSession
from awq2trt.errors import ToolError
from polygraphy.datatype import DataType
import tensorrt_rtx
assert DataType.from_dtype(tensorrt_rtx.float16, source_module="tensorrt") == DataType.FLOAT16
try:
    TrtSession.open(engine_of(Artifact.open(directory)))
except ToolError as error:
    print(error)
"""


@pytest.mark.trt
def test_tensorrts_own_reason_is_in_the_error(build: Path) -> None:
    """A fake engine: TensorRT-RTX refuses it on any machine, and nothing else in polygraphy prevents that."""
    environment = {key: value for key, value in os.environ.items() if key != POLYGRAPHY_SWITCH}
    done = subprocess.run(
        [sys.executable, "-c", _OPEN, str(build / "rtx")],
        capture_output=True, text=True, env=environment, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "model.engine: tensorrt_rtx cannot run the engine: " in done.stdout
    assert "See error log" not in done.stdout  # polygraphy's words, for lack of TensorRT's
