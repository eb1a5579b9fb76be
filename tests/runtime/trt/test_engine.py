"""The stage `engine` of `check`: ONNX Runtime stands in for the GPU, with the inputs and outputs that an engine has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import tiny_models
from numpy.typing import NDArray
from polygraphy.exception import PolygraphyException
from tiny_kits import export_tiny, make_tiny_kit

from awq2trt.artifact.manifest import Artifact, record_file
from awq2trt.artifact.publish import create_artifact
from awq2trt.artifact.records import EngineRecord, ProfileRecord
from awq2trt.checking import subject as subject_module
from awq2trt.checking.chain import ENGINE, ONNX, QUANTIZED, CheckResult, run_chain
from awq2trt.checking.engine_runner import EngineRunner
from awq2trt.checking.outcome import CheckOutcome
from awq2trt.checking.runners import calls_of
from awq2trt.checking.subject import find_subject
from awq2trt.checking.tolerance import drift_limit, engine_limit
from awq2trt.errors import ToolError, UnsupportedError, UsageError
from awq2trt.graph.read import open_decoder
from awq2trt.io_contract import CACHE_POSITION, INPUT_IDS, LOGITS, IoContract, TensorContract
from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions, QuantizeOptions
from awq2trt.report.lines import check_lines, golden_lines
from awq2trt.runtime.bits import widen
from awq2trt.runtime.ort.cpu import OrtBackend
from awq2trt.runtime.ort.session import open_session
from awq2trt.runtime.trt import engine as engine_module
from awq2trt.runtime.trt import session as session_module
from awq2trt.runtime.trt.backend import EngineBackend
from awq2trt.runtime.trt.engine import POLYGRAPHY_SWITCH, EngineBuild, Machine, choose_flavour, engine_of, why_not_here
from awq2trt.runtime.trt.session import TrtSession
from awq2trt.stages.check import golden_stage
from awq2trt.stages.export import ExportRequest, export_stage
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage
from awq2trt.target import Flavour

LAYERS = 3
CAPACITY = 64
TOKENS = [7, 200, 31, 42, 5, 99, 180, 3, 64, 77, 12, 250, 8, 33, 91, 17, 140, 6, 28, 55]
PROFILES = (
    ProfileRecord.of_tokens("prefill", 1, 16, CAPACITY),
    ProfileRecord.of_tokens("decode", 1, 1, 1),
)
RTX_CARD = Machine("x86_64", "NVIDIA GeForce RTX 4090", "8.9", {Flavour.TENSORRT_RTX: "1.7.1.116"})


class OnnxSession:
    """An engine that is none: the exported model in ONNX Runtime, its contract and its profiles held to.

    Args:
        onnx: Directory of the model that it runs.
        in_place: Whether a cache comes out in the memory it went in with, as in an engine with cache layers.
        spoil: Changes logits before they are read.
    """

    def __init__(
        self, onnx: Path, *, in_place: bool = True, spoil: Callable[[NDArray[Any]], NDArray[Any]] | None = None
    ) -> None:
        self._session = open_session(open_decoder(onnx)[0], onnx)
        self._contract = contract_of(onnx)
        self._in_place = in_place
        self._spoil = spoil
        self.calls: list[tuple[int, int, int]] = []  # profile, position, tokens
        self.closed = False

    def zeros(self, tensor: TensorContract, shape: tuple[int, ...]) -> NDArray[Any]:
        return np.zeros(shape, tensor.dtype)

    def infer(self, inputs: Mapping[str, NDArray[Any]], profile: int) -> Mapping[str, NDArray[Any]]:
        count, position = inputs[INPUT_IDS].shape[1], int(inputs[CACHE_POSITION][0])
        assert PROFILES[profile].tokens.shortest <= count <= PROFILES[profile].tokens.longest
        for tensor in self._contract.inputs:
            assert str(inputs[tensor.name].dtype) == tensor.dtype
            for axis, wanted in zip(inputs[tensor.name].shape, tensor.shape, strict=True):
                assert axis == wanted or isinstance(wanted, str)
        assert len(inputs) == len(self._contract.inputs)
        self.calls.append((profile, position, count))
        names = [tensor.name for tensor in self._contract.outputs]
        outputs = dict(zip(names, self._session.run(names, dict(inputs)), strict=True))
        if self._in_place:
            for past, present in self._contract.cache_pairs:
                inputs[past][...] = outputs[present]
                outputs[present] = inputs[past]
        return outputs

    def carry(self, present: NDArray[Any], past: NDArray[Any]) -> None:
        if present is not past:
            past[...] = present

    def read(self, buffer: NDArray[Any]) -> NDArray[np.float32]:
        logits = buffer.astype(np.float32)
        return self._spoil(logits) if self._spoil else logits

    def close(self) -> None:
        self.closed = True


class ForgetfulSession(OnnxSession):
    """Its caches come out beside those that went in, and nobody carries them."""

    def carry(self, present: NDArray[Any], past: NDArray[Any]) -> None:
        pass


def contract_of(onnx: Path) -> IoContract:
    contract = Artifact.open(onnx, verify="size").manifest.contents.decoder
    assert contract is not None
    return contract


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_llama(tmp_path_factory.mktemp("models") / "tiny-llama", num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def build(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `awq2trt build --target rtx` would leave; its engine is a few bytes."""
    directory = tmp_path_factory.mktemp("build")
    rtn = QuantizeOptions(group_size=32, method="rtn")
    quantize_stage(QuantizeRequest(str(model), directory / "checkpoint", rtn), SilentProgress())
    export = ExportRequest(directory / "checkpoint", directory / "onnx", ExportOptions(max_seq_len=CAPACITY))
    onnx = export_stage(export, SilentProgress())
    record = EngineRecord(
        target="rtx",
        compute_capabilities=("SM86", "SM89", "SM120"),
        flavour="tensorrt-rtx",
        tensorrt_version="1.7.1.116",
        plugin_version="0.1.0",
        profiles={"decoder": PROFILES},
    )
    with create_artifact(directory / "rtx", "engine", "fingerprint") as draft:
        (draft.files / "model.engine").write_bytes(b"an engine")
        for name in onnx.manifest.files:
            draft.adopt(onnx.path(name))
        draft.publish(onnx.manifest.contents.model_copy(update={"engine": record}))
    return directory


@pytest.fixture
def other_model(build: Path, tmp_path: Path) -> Path:
    """A copy of the exported model, to be damaged: what a wrong engine computes."""
    return Path(shutil.copytree(build / "onnx", tmp_path / "other"))


@pytest.fixture
def rtx_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine seems to have one, and polygraphy all that it needs."""
    monkeypatch.setattr(subject_module, "this_machine", lambda: RTX_CARD)
    monkeypatch.setattr(subject_module, "unmet_needs", lambda flavour: None)


def _check(build: Path, model: Path, open_engine: Callable[[], Any]) -> CheckResult:
    subject = find_subject(build, model=str(model))
    assert ENGINE not in subject.missing
    return run_chain(replace(subject, open_engine=open_engine), TOKENS, SilentProgress())


# The stage.


@pytest.mark.usefixtures("rtx_card")
@pytest.mark.parametrize("in_place", [True, False])
def test_a_sound_engine_passes(build: Path, model: Path, in_place: bool) -> None:
    session = OnnxSession(build / "onnx", in_place=in_place)
    result = _check(build, model, lambda: session)
    assert result.passed, result.first_failure()
    engine = result.stages[-1]
    assert (engine.stage, engine.against) == (ENGINE, QUANTIZED)
    assert [place.name for place in engine.places] == ["logits"]
    assert engine.places[0].difference.positions == len(TOKENS)
    assert engine.agreement is not None
    assert engine.agreement.top1 > 0.9
    lines = list(check_lines(CheckOutcome(result, ())))
    assert any(line.startswith("engine     quantized") for line in lines)
    assert lines[-1] == "passed: original, folded, quantized, onnx, runtime, engine"
    # The text one by one, then at once in an empty cache, then its end one by one.
    prefill, decode = 0, 1
    assert session.calls == [
        *((decode, position, 1) for position in range(15)),
        (prefill, 0, 16),
        *((decode, position, 1) for position in range(16, 20)),
    ]
    assert session.closed


@pytest.mark.usefixtures("rtx_card")
def test_a_wrong_engine_is_named_although_its_onnx_model_is_right(build: Path, model: Path, other_model: Path) -> None:
    _double_scales(other_model)
    result = _check(build, model, lambda: OnnxSession(other_model))
    failure = result.first_failure()
    assert failure is not None
    assert (failure.stage, failure.place) == (ENGINE, "logits")
    assert all(stage.passed for stage in result.stages if stage.stage != ENGINE)
    assert next(stage for stage in result.stages if stage.stage == ONNX).places


def _double_scales(onnx: Path) -> None:
    tensor = ir.load(onnx / "model.onnx").graph.initializers["model.layers.2.mlp.up_proj.scales"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert tensor.offset is not None
    with (onnx / "model.onnx.data").open("r+b") as file:
        file.seek(tensor.offset)
        file.write((tensor.numpy() * np.float16(2)).tobytes())


def _with_a_nan(logits: NDArray[Any]) -> NDArray[Any]:
    logits[0, 0, 5] = np.nan
    return logits


@pytest.mark.usefixtures("rtx_card")
@pytest.mark.parametrize(
    "session",
    [
        pytest.param(partial(ForgetfulSession, in_place=False), id="a cache that is not carried over"),
        pytest.param(partial(OnnxSession, spoil=_with_a_nan), id="nan"),
        pytest.param(partial(OnnxSession, spoil=lambda logits: logits[:, :, :-1]), id="too few logits"),
        pytest.param(partial(OnnxSession, spoil=lambda logits: np.roll(logits, 1, axis=-1)), id="logits moved"),
    ],
)
def test_faults_are_named(build: Path, model: Path, session: Callable[[Path], OnnxSession]) -> None:
    failure = _check(build, model, lambda: session(build / "onnx")).first_failure()
    assert failure is not None
    assert (failure.stage, failure.place) == (ENGINE, "logits")


@pytest.mark.usefixtures("rtx_card")
def test_an_engine_that_does_not_load_fails_and_the_rest_is_still_told(build: Path, model: Path) -> None:
    def refuse() -> OnnxSession:
        raise ToolError("tensorrt_rtx cannot run the engine: magic tag does not match", where="model.engine")

    result = _check(build, model, refuse)
    failure = result.first_failure()
    assert failure is not None
    assert (failure.stage, failure.place) == (ENGINE, "model.engine")
    assert "magic tag" in failure.message
    assert [stage.stage for stage in result.stages if stage.places][-1] == "runtime"
    lines = list(check_lines(CheckOutcome(result, ())))
    assert "  FAILED model.engine: tensorrt_rtx cannot run the engine: magic tag does not match" in lines


def test_without_a_gpu_the_table_says_what_is_needed(build: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject_module, "this_machine", lambda: replace(RTX_CARD, gpu=None, capability=None))
    subject = find_subject(build, model=str(model))
    assert subject.missing[ENGINE] == (
        "not run: no NVIDIA GPU here, the engine needs compute capability 8.6 or 8.9 or 12.0, TensorRT-RTX 1.7.1.116"
    )
    result = run_chain(subject, TOKENS, SilentProgress())
    assert result.passed
    assert any(line.startswith("engine     not run: no NVIDIA") for line in check_lines(CheckOutcome(result, ())))


def test_the_limit_counts_the_sums_of_tensorrts_own_kernels() -> None:
    assert engine_limit("float16", 31, []) == drift_limit("float16", 31)
    assert engine_limit("bfloat16", 31, [576]) == drift_limit("bfloat16", 31)
    # 768 products are 48 steps, which count as 24 rounded tensors: as many as the block has anyway.
    assert engine_limit("float16", 31, [768]) == pytest.approx(drift_limit("float16", 31) * 2**0.5)


# A conversation.


def test_tokens_are_split_as_the_profiles_allow(build: Path) -> None:
    session = OnnxSession(build / "onnx")
    narrow = (ProfileRecord.of_tokens("prefill", 1, 8, 8), PROFILES[1])
    backend = EngineBackend(session, contract_of(build / "onnx"), narrow)
    expected = OrtBackend.load(build / "onnx", lowered=False).forward(TOKENS)
    np.testing.assert_allclose(backend.forward(TOKENS), expected, atol=5e-3)
    assert session.calls == [(0, 0, 8), (0, 8, 8), (0, 16, 4)]
    assert (backend.position, backend.capacity, backend.vocab_size) == (20, CAPACITY, tiny_models.VOCAB_SIZE)


def test_a_new_conversation_finds_empty_caches(build: Path) -> None:
    seen: list[float] = []

    class Watching(OnnxSession):
        def infer(self, inputs: Mapping[str, NDArray[Any]], profile: int) -> Mapping[str, NDArray[Any]]:
            seen.append(float(np.abs(inputs["past_key_1"]).max()))
            return super().infer(inputs, profile)

    backend = EngineBackend(Watching(build / "onnx"), contract_of(build / "onnx"), PROFILES)
    for tokens in (TOKENS, [3]):
        backend.forward(tokens)
    backend.reset()
    backend.forward([3])
    assert seen[0] == seen[2] == 0.0
    assert seen[1] > 0.0


def test_what_no_call_can_take_is_refused(build: Path) -> None:
    backend = EngineBackend(OnnxSession(build / "onnx"), contract_of(build / "onnx"), PROFILES)
    with pytest.raises(UsageError, match="got 0 tokens at position 0, expected 1 to 64"):
        backend.forward([])
    with pytest.raises(UsageError, match="got 65 tokens"):
        backend.forward([1] * 65)
    two_at_least = (ProfileRecord.of_tokens("prefill", 2, 16, CAPACITY),)
    with pytest.raises(UnsupportedError, match="no optimization profile of the engine takes 1 tokens"):
        EngineBackend(OnnxSession(build / "onnx"), contract_of(build / "onnx"), two_at_least).forward([1])


def test_the_runner_gives_every_position(build: Path) -> None:
    engine = engine_of(Artifact.open(build / "rtx"))
    assert engine is not None
    with EngineRunner(lambda: OnnxSession(build / "onnx"), engine, ENGINE) as runner:
        shapes = [runner.infer(call)[LOGITS].shape for call in calls_of(TOKENS, 4)]
    assert shapes == [(1, 16, tiny_models.VOCAB_SIZE)] + [(1, 1, tiny_models.VOCAB_SIZE)] * 4


def test_bf16_is_read_as_the_upper_half_of_fp32() -> None:
    bits = np.array([0x3F80, 0xC000, 0x7FC0, 0x0000], np.uint16)
    np.testing.assert_array_equal(widen(bits, "bfloat16"), np.array([1.0, -2.0, np.nan, 0.0], np.float32))
    assert widen(np.array([0.5], np.float16), "float16").dtype == np.float32


# Which engine, and which machine.


def _engine(build: Path, **changes: Any) -> EngineBuild:
    engine = engine_of(Artifact.open(build / "rtx"))
    assert engine is not None
    return replace(engine, **changes)


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        ({}, None),
        ({"gpu": None}, "no NVIDIA GPU here, the engine needs compute capability 8.6 or 8.9 or 12.0, TensorRT-RTX"),
        ({"cpu": "aarch64"}, "this machine is aarch64, the engine is for x86_64 and"),
        (
            {"gpu": "NVIDIA H100", "capability": "9.0"},
            "the GPU here is NVIDIA H100, compute capability 9.0, the engine needs compute capability 8.6 or",
        ),
        ({"tensorrt": {}}, "TensorRT-RTX's Python module is not installed here, the engine needs 1.7.1.116: pip"),
        (
            {"tensorrt": {Flavour.TENSORRT: "10.16.0"}},
            "TensorRT-RTX's Python module is not installed here, the engine needs 1.7.1.116: pip install tensorrt-rtx",
        ),
        (
            {"tensorrt": {Flavour.TENSORRT_RTX: "1.8.0.5"}},
            "TensorRT-RTX here is 1.8.0.5, the engine was built by and needs 1.7.1.116",
        ),
        (
            {"tensorrt": {Flavour.TENSORRT_RTX: "broken (libcudart.so.13: no such file)"}},
            "TensorRT-RTX here is broken (libcudart.so.13: no such file), the engine",
        ),
        ({"tensorrt": {Flavour.TENSORRT_RTX: "1.7.1.200"}}, None),
    ],
)
def test_why_an_engine_is_not_run(build: Path, machine: dict[str, Any], reason: str | None) -> None:
    found = why_not_here(_engine(build), replace(RTX_CARD, **machine))
    assert found is None if reason is None else str(found).startswith(reason), found


def test_an_engine_for_the_gpu_that_built_it_is_tried_on_any(build: Path) -> None:
    assert why_not_here(_engine(build, capabilities=()), replace(RTX_CARD, capability="9.9")) is None


def test_the_manifest_says_what_an_engine_needs(build: Path) -> None:
    engine = _engine(build)
    assert engine.capabilities == ("8.6", "8.9", "12.0")
    assert (engine.flavour, engine.cpu, engine.has_plugin) == (Flavour.TENSORRT_RTX, "x86_64", True)
    assert engine.profiles == PROFILES
    assert engine_of(Artifact.open(build / "onnx")) is None
    assert engine_of(Artifact.open(build / "checkpoint")) is None


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exported")
    export_tiny(directory)
    return directory


def _finish(directory: Path, **changes: str) -> None:
    """What `finish.sh` leaves in a kit; `changes` go into its state file."""
    (directory / "model.engine").write_bytes(b"built on the Jetson")
    state = {
        "kit": record_file(directory / "SHA256SUMS").sha256,
        "tensorrt": "101600",
        "sha256": record_file(directory / "model.engine").sha256,
        **changes,
    }
    (directory / "model.engine.state").write_text("".join(f"{key}={value}\n" for key, value in state.items()))


def test_a_finished_kit_has_an_engine(exported: Path, tmp_path: Path) -> None:
    kit = make_tiny_kit(exported, tmp_path / "orin", "7.2", cuda=13020)
    assert engine_of(kit) is None
    _finish(kit.directory)
    engine = engine_of(kit)
    assert engine is not None
    assert (engine.flavour, engine.tensorrt_version, engine.capabilities) == (Flavour.TENSORRT, "10.16.0", ("8.7",))
    orin = Machine("aarch64", "Orin", "8.7", {Flavour.TENSORRT: "10.16.0.72"})
    assert why_not_here(engine, orin) is None
    assert str(why_not_here(engine, replace(orin, tensorrt={}))).startswith("TensorRT's Python module is not installed")
    assert str(why_not_here(engine, replace(orin, tensorrt={Flavour.TENSORRT: "10.3.0.30"}))).startswith(
        "TensorRT here is 10.3.0.30, the engine was built by and needs 10.16.0"
    )
    _finish(kit.directory, kit="0" * 64)
    assert "built from an earlier kit" in str(why_not_here(engine_of(kit) or engine, orin))
    _finish(kit.directory, sha256="0" * 64)
    assert "not what finish.sh built" in str(why_not_here(engine_of(kit) or engine, orin))


def test_polygraphy_is_pointed_at_the_engines_tensorrt(build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(POLYGRAPHY_SWITCH, raising=False)
    choose_flavour(build / "onnx")
    assert POLYGRAPHY_SWITCH not in os.environ
    choose_flavour(build)
    assert os.environ[POLYGRAPHY_SWITCH] == "1"
    monkeypatch.setenv(POLYGRAPHY_SWITCH, "0")  # the user's own word
    choose_flavour(build / "rtx")
    assert os.environ[POLYGRAPHY_SWITCH] == "0"


# Golden outputs.


@pytest.mark.parametrize("spoil", [None, _with_a_nan])
def test_an_engine_answers_the_golden_inputs(
    build: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[NDArray[Any]], NDArray[Any]] | None
) -> None:
    session = OnnxSession(build / "onnx", spoil=spoil)
    monkeypatch.setattr("awq2trt.stages.check._why_no_engine", lambda engine: None)
    monkeypatch.setattr(TrtSession, "open", lambda engine: session)
    outcome = golden_stage(build / "rtx")
    assert [result.passed for result in outcome.engine] == [spoil is None] * 4
    assert outcome.passed == (spoil is None)
    last = list(golden_lines(outcome))[-1]
    if spoil:
        assert last.startswith("failed: prefill in the engine, decode-1 in the engine")
    else:
        assert last == "golden outputs: passed in ONNX Runtime, CPU and the engine"
    assert session.closed


def test_golden_outputs_without_a_gpu_say_why(build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "this_machine", lambda: replace(RTX_CARD, gpu=None))
    outcome = golden_stage(build / "rtx")
    assert outcome.passed
    lines = list(golden_lines(outcome))
    assert lines[-2].startswith("the engine was not run: no NVIDIA GPU here, the engine needs compute capability 8.6")
    assert lines[-1] == "golden outputs: passed in ONNX Runtime, CPU"


# What our side of the device calls does, with a GPU that is a dictionary.


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
    made = TrtSession(_engine(build))
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


# As far as TensorRT goes without a GPU.

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
    """An engine that is none: TensorRT-RTX refuses it on any machine, and nothing else of polygraphy is in the way."""
    environment = {key: value for key, value in os.environ.items() if key != POLYGRAPHY_SWITCH}
    done = subprocess.run(
        [sys.executable, "-c", _OPEN, str(build / "rtx")],
        capture_output=True, text=True, env=environment, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "model.engine: tensorrt_rtx cannot run the engine: " in done.stdout
    assert "See error log" not in done.stdout  # polygraphy's words, for want of TensorRT's
