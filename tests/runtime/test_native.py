"""The C++ library through Python: the Python runtime's answers, sessions, and a separate error for each bad input."""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_sessions import require_runtime_library
from native_text import BUILD
from tiny_lowered import CAPACITY, build_lowered, edit_manifest, replace_file
from tiny_models import VOCAB_SIZE

import awq2trt
from awq2trt.errors import Awq2trtError, NoGpuError, UsageError
from awq2trt.machine.gpu import read_driver
from awq2trt.machine.runtime_library import find_onnxruntime_library, find_runtime_library, find_tensorrt_library
from awq2trt.runtime import Model, Sampler, Sampling, generate, native_library, user_message
from awq2trt.runtime.native import GenerateOptions, NativeModel, NativeSession
from awq2trt.target import Flavour

PROMPTS = ("hello", "a", "Zürich 🙂", "x y z", "<|end", "\n\n")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_runtime_library()
    return build_lowered(tmp_path_factory.mktemp("built"), "cpu", "cuda")


@pytest.fixture(scope="module")
def native(built: Path) -> NativeModel:
    return NativeModel.load(built / "cpu")


@pytest.fixture(scope="module")
def python(built: Path) -> Model:
    return Model.load(built / "cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def spoilt(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built / "cpu", tmp_path / "cpu"))


def code_of(load: Callable[[], object]) -> int:
    with pytest.raises(Awq2trtError) as caught:
        load()
    return int(vars(caught.value)["code"])


def session_of(model: NativeModel, text: str = "hello") -> NativeSession:
    session = model.session()
    session.append_text(text)
    return session


SAMPLINGS = (Sampling(), Sampling(1.0, seed=3), Sampling(0.7, top_k=20, top_p=0.9, seed=5), Sampling(2.0, seed=7))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_answers_are_those_of_the_python_runtime(native: NativeModel, python: Model, sampling: Sampling) -> None:
    stop = python.artifact.manifest.contents.tokens
    assert stop is not None
    for prompt in PROMPTS:
        ids = python.tokenizer.encode_messages([user_message(prompt)])
        expected = list(generate(python.backend, ids, Sampler(sampling), stop_tokens=stop.stop))
        session = native.session()
        session.append([user_message(prompt)])
        assert session.tokens == ids
        answer = session.generate(GenerateOptions(sampling=sampling))
        assert answer.tokens == expected
        assert answer.text == python.tokenizer.decode(expected)


def test_the_api_and_the_command_line_take_it(built: Path, python: Model) -> None:
    model = awq2trt.load(built / "cpu", backend="native")
    for raw in (True, False):
        expected = python.generate_text("hello", raw=raw, max_new_tokens=9)
        assert model.generate_text("hello", raw=raw, max_new_tokens=9) == expected
        assert "".join(model.generate("hello", raw=raw, max_new_tokens=9)) == expected
    with pytest.raises(UsageError, match="was built for cpu"):
        awq2trt.load(built / "cpu", backend="native", device="cuda")


def test_scores_are_those_of_the_python_runtime(native: NativeModel, python: Model) -> None:
    ids = list(range(40, 60))
    session = native.session()
    session.append_tokens(ids)
    python.backend.reset()
    np.testing.assert_allclose(session.logits(), python.backend.forward(ids), rtol=1e-5, atol=1e-5)
    session.append_tokens([3])
    np.testing.assert_allclose(session.logits(), python.backend.forward([3]), rtol=1e-5, atol=1e-5)


def test_a_conversation_runs_only_what_is_new(native: NativeModel) -> None:
    session = native.session()
    session.append([user_message("hello")])
    first = session.generate(GenerateOptions(max_tokens=4, ignore_model_stops=True))
    before = session.tokens
    session.append([user_message("b")])
    written = f"[user]hello[assistant]{first.text}[user]b>"
    assert native.decode(session.tokens) == written
    shared = next(i for i, (old, new) in enumerate(zip(before, session.tokens, strict=False)) if old != new)
    answer = session.generate(GenerateOptions(max_tokens=4, ignore_model_stops=True))
    assert answer.prompt_tokens == len(native.encode(written)) - shared
    fresh = session_of(native, written)
    assert fresh.generate(GenerateOptions(max_tokens=4, ignore_model_stops=True)).tokens == answer.tokens


def test_rewound_and_forked_sessions_answer_again(native: NativeModel) -> None:
    session = session_of(native)
    options = GenerateOptions(max_tokens=8, ignore_model_stops=True)
    answer = session.generate(options)
    copy = session.fork()
    copy.rewind(5)
    assert copy.generate(options).tokens == answer.tokens
    goes_on, copy = session.generate(options), session.fork()
    copy.rewind(13)
    assert copy.tokens == session.tokens[:13]
    assert copy.generate(options).tokens == goes_on.tokens
    assert session_of(native, "other").generate(options).tokens != answer.tokens


def test_rewinding_forgets_messages(native: NativeModel) -> None:
    session = native.session()
    session.append([user_message("a")])
    end = len(session.tokens)
    session.generate(GenerateOptions(max_tokens=2, ignore_model_stops=True))
    session.append([user_message("b")])
    session.rewind(end)
    session.append([user_message("c")])
    assert native.decode(session.tokens) == "[user]a[user]c>"


def test_the_answer_ends_for_a_reason(native: NativeModel) -> None:
    options = GenerateOptions(max_tokens=3, ignore_model_stops=True)
    assert session_of(native).generate(options).finish_reason == "maximum tokens"
    whole = session_of(native).generate(GenerateOptions(ignore_model_stops=True))
    assert whole.finish_reason == "full"
    assert len(whole.tokens) == CAPACITY - len("hello") + 1
    stop = whole.text[2:4]
    stopped = session_of(native).generate(GenerateOptions(stop=[stop], ignore_model_stops=True))
    assert (stopped.finish_reason, stopped.text) == ("stop string", whole.text[: whole.text.find(stop)])
    ended = session_of(native).generate(GenerateOptions(stop_tokens=[whole.tokens[3]], ignore_model_stops=True))
    assert (ended.finish_reason, ended.tokens) == ("stop token", whole.tokens[: whole.tokens.index(whole.tokens[3])])
    refused = session_of(native).generate(GenerateOptions(ignore_model_stops=True), lambda _: False)
    assert refused.finish_reason == "callback"


def test_another_thread_cancels(native: NativeModel) -> None:
    session = session_of(native)
    seen: list[str] = []

    def listen(text: str) -> bool:
        seen.append(text)
        thread = threading.Thread(target=session.cancel)
        thread.start()
        thread.join()
        return True

    answer = session.generate(GenerateOptions(ignore_model_stops=True), listen)
    assert answer.finish_reason == "cancelled"
    assert len(seen) == 1
    assert session.generate(GenerateOptions(max_tokens=2, ignore_model_stops=True)).finish_reason == "maximum tokens"


def test_what_a_callback_raises_comes_out(native: NativeModel) -> None:
    session = session_of(native)

    def listen(text: str) -> bool:
        raise KeyError(text)

    with pytest.raises(KeyError):
        session.generate(GenerateOptions(ignore_model_stops=True), listen)
    codes: list[int] = []

    def fork(_: str) -> bool:
        codes.append(code_of(session.fork))
        return True

    session.generate(GenerateOptions(max_tokens=2, ignore_model_stops=True), fork)
    assert set(codes) == {native_library.BUSY}


def test_sessions_of_several_threads_do_not_mix(native: NativeModel) -> None:
    options = GenerateOptions(max_tokens=20, ignore_model_stops=True)
    expected = [session_of(native, prompt).generate(options).tokens for prompt in PROMPTS]
    found: dict[int, list[list[int]]] = {}

    def work(number: int) -> None:
        sessions = [session_of(native, prompt) for prompt in PROMPTS]
        found[number] = [session.generate(options).tokens for session in sessions]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(found.values()) == [expected] * 4


def test_an_answer_that_nobody_reads_ends(native: NativeModel) -> None:
    pieces = native.generate("hello", raw=True)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name == "awq2trt generate"]


# Bad input, each with its own code.


def future(value: dict[str, Any]) -> None:
    value["format_version"] = 3


def later(value: dict[str, Any]) -> None:
    value["minimum_runtime"] = "99.0.0"


def outside(value: dict[str, Any]) -> None:
    value["files"]["../x"] = value["files"]["model.onnx"]


def checkpoint(value: dict[str, Any]) -> None:
    value["kind"] = "checkpoint"


def unlisted(value: dict[str, Any]) -> None:
    del value["files"]["model.onnx"]


def unknown_input(value: dict[str, Any]) -> None:
    value["contents"]["graphs"]["decoder"]["io"]["inputs"][1]["name"] = "position_ids"


def huge_axis(value: dict[str, Any]) -> None:
    value["contents"]["graphs"]["decoder"]["io"]["inputs"][2]["shape"][1] = 2**30


def other_provider(value: dict[str, Any]) -> None:
    value["contents"]["lowered"]["provider"] = "XExecutionProvider"


def other_cpu(value: dict[str, Any]) -> None:
    value["contents"]["lowered"]["cpus"] = ["vax"]


def newer_onnxruntime(value: dict[str, Any]) -> None:
    value["contents"]["lowered"]["minimum_onnxruntime"] = [99, 0]


def other_eos(value: dict[str, Any]) -> None:
    value["contents"]["tokens"]["eos"] = 5


def high_stop(value: dict[str, Any]) -> None:
    value["contents"]["tokens"]["stop"] = [VOCAB_SIZE - 1]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (future, native_library.FUTURE_MANIFEST),
        (later, native_library.FUTURE_MANIFEST),
        (outside, native_library.MALFORMED),
        (checkpoint, native_library.NOT_A_MODEL),
        (unlisted, native_library.MALFORMED),
        (unknown_input, native_library.UNSUPPORTED),
        (huge_axis, native_library.UNSUPPORTED),
        (other_provider, native_library.UNSUPPORTED),
        (other_cpu, native_library.WRONG_DEVICE),
        (newer_onnxruntime, native_library.NO_RUNTIME),
        (other_eos, native_library.WRONG_TOKENIZER),
        (high_stop, native_library.WRONG_TOKENIZER),
    ],
)
def test_manifests_that_are_refused(spoilt: Path, change: Callable[[dict[str, Any]], None], code: int) -> None:
    edit_manifest(spoilt, change)
    assert raw_load(spoilt) == code


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format_version": "2"}', "[" * 100_000, '{"a": 1e999}'])
def test_what_is_no_manifest(spoilt: Path, text: str) -> None:
    (spoilt / "manifest.json").write_text(text)
    assert raw_load(spoilt) == native_library.MALFORMED


def raw_load(directory: Path, **fields: Any) -> int:
    """The error code of the C call itself, before Python's own look at the manifest."""
    structure = native_library.LoadOptionsStructure(
        size=ctypes.sizeof(native_library.LoadOptionsStructure),
        **{"onnxruntime_library": str(find_onnxruntime_library()).encode(), **fields},
    )
    handle = ctypes.c_void_p()
    load = native_library.library().awq2trt_model_load
    return int(load(str(directory).encode(), ctypes.byref(structure), ctypes.byref(handle)))


def test_directories_that_hold_no_model(built: Path, tmp_path: Path) -> None:
    assert raw_load(tmp_path / "nowhere") == native_library.NOT_FOUND
    assert raw_load(tmp_path) == native_library.NOT_FOUND
    for name in ("checkpoint", "onnx", "."):
        assert raw_load(built / name) == native_library.NOT_A_MODEL


def test_files_that_are_not_what_was_written(spoilt: Path) -> None:
    data = bytearray((spoilt / "model.onnx.data").read_bytes())
    (spoilt / "model.onnx.data").write_bytes(data[:-1])
    assert raw_load(spoilt) == native_library.CHANGED_FILE
    assert b"truncated" in native_library.library().awq2trt_last_error()
    data[-1] ^= 1
    (spoilt / "model.onnx.data").write_bytes(data)
    assert raw_load(spoilt) == native_library.CHANGED_FILE
    assert raw_load(spoilt, verify=1) == 0
    (spoilt / "model.onnx.data").unlink()
    assert raw_load(spoilt) == native_library.NOT_FOUND


def test_hashes_are_looked_at_once(spoilt: Path, tmp_path: Path) -> None:
    assert raw_load(spoilt) == 0
    notes = list((tmp_path / "cache" / "awq2trt" / "verified").iterdir())
    assert len(notes) == 1
    path = spoilt / "model.onnx.data"
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert raw_load(spoilt) == 0  # not checked, since nothing seems to have changed
    assert raw_load(spoilt, verify=2) == native_library.CHANGED_FILE
    os.utime(path)
    assert raw_load(spoilt) == native_library.CHANGED_FILE


def test_a_cache_that_cannot_be_written_is_no_error(spoilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert raw_load(spoilt) == 0


def test_models_that_onnxruntime_refuses(spoilt: Path) -> None:
    replace_file(spoilt, "model.onnx", b"no model")
    assert raw_load(spoilt) == native_library.REFUSED


def test_onnxruntime_that_is_not_there(built: Path, tmp_path: Path) -> None:
    no_library = tmp_path / "libonnxruntime.so"
    no_library.write_text("text")
    for path in (tmp_path / "nowhere.so", no_library, find_runtime_library()):
        assert raw_load(built / "cpu", onnxruntime_library=str(path).encode()) == native_library.NO_RUNTIME


def test_operator_libraries_are_not_loaded_unasked(spoilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWQ2TRT_PLUGIN_PATH", "libawq2trt_nowhere.so")
    edit_manifest(spoilt, lambda value: value["contents"]["lowered"].update(plugin_version="0.1.0"))
    assert raw_load(spoilt) == native_library.OPERATORS_MISSING
    beside = spoilt / "libawq2trt_plugins.so"
    shutil.copy(find_runtime_library(), beside)
    assert raw_load(spoilt) == native_library.OPERATORS_UNTRUSTED
    assert raw_load(spoilt, trust_directory_library=1) == native_library.OPERATORS_VERSION
    assert raw_load(spoilt, operators_library=str(beside).encode()) == native_library.OPERATORS_VERSION


def test_a_model_for_a_gpu_needs_one(built: Path) -> None:
    if read_driver():
        pytest.skip("there is a GPU")
    assert raw_load(built / "cuda") == native_library.NO_DRIVER
    with pytest.raises(NoGpuError) as caught:
        awq2trt.load(built / "cuda", backend="native")
    assert caught.value.exit_code == 3


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(built: Path) -> None:
    """It runs on a stand-in of the driver, in a process of its own; ONNX Runtime is not called."""
    stub = BUILD / "tests" / "libcuda.so.1"
    if not stub.is_file():
        pytest.skip("the C++ library's tests are not built: make runtime")
    program = (
        "import ctypes, sys; library = ctypes.CDLL(sys.argv[1]); library.awq2trt_last_error.restype = ctypes.c_char_p\n"
        "code = library.awq2trt_model_load(sys.argv[2].encode(), None, ctypes.byref(ctypes.c_void_p()))\n"
        "print(code, library.awq2trt_last_error().decode())"
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(stub.parent), "STUB_FREE_MIB": "300"}
    line = [sys.executable, "-c", program, str(find_runtime_library()), str(built / "cuda")]
    found = subprocess.run(line, env=environment, capture_output=True, text=True, check=True).stdout
    assert found.startswith(f"{native_library.OUT_OF_DEVICE_MEMORY} A stub: the model needs at least 0.50 GiB")
    assert "of which 0.29 are free of 1.00" in found


def make_engine(directory: Path, version: str, data: bytes) -> None:
    """Turns a model built for the CPU into the directory of an engine."""

    def change(value: dict[str, Any]) -> None:
        contents = value["contents"]
        profiles = contents["lowered"]["profiles"]
        value["kind"], contents["lowered"] = "engine", None
        contents["graphs"]["decoder"]["engine"] = "model.engine"
        contents["engine"] = {
            "target": "rtx",
            "flavour": "tensorrt-rtx",
            "tensorrt_version": version,
            "compute_capabilities": ["SM89"],
            "plugin_version": None,
            "profiles": profiles,
        }

    edit_manifest(directory, change)
    replace_file(directory, "model.engine", data)


@pytest.mark.trt
def test_engines_are_refused_for_a_reason(spoilt: Path) -> None:
    found = find_tensorrt_library(Flavour.TENSORRT_RTX)
    if found is None:
        pytest.skip("TensorRT-RTX is not installed")
    library, version = str(found).encode(), importlib.metadata.version("tensorrt_rtx_cu13_libs")
    make_engine(spoilt, "1.2.0.54", b"no engine")
    assert raw_load(spoilt, tensorrt_library=library) == native_library.ENGINE_VERSION
    assert raw_load(spoilt, tensorrt_library=b"nowhere.so") == native_library.NO_RUNTIME
    assert raw_load(spoilt, tensorrt_library=str(find_runtime_library()).encode()) == native_library.NO_RUNTIME
    edit_manifest(spoilt, lambda value: value["contents"]["engine"].update(tensorrt_version=version))
    code = raw_load(spoilt, tensorrt_library=library)
    assert code == (native_library.REFUSED if read_driver() else native_library.NO_DRIVER)
    message = native_library.library().awq2trt_last_error().decode()
    assert len(message.splitlines()) == 2  # what and where, and how to fix it


def test_a_tokenizer_with_more_tokens_than_scores(spoilt: Path) -> None:
    tokenizer = json.loads((spoilt / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"].update({f"more{i}": 258 + i for i in range(VOCAB_SIZE)})
    replace_file(spoilt, "tokenizer.json", json.dumps(tokenizer).encode())
    assert raw_load(spoilt) == native_library.WRONG_TOKENIZER


def test_prompts_that_are_refused(native: NativeModel) -> None:
    session = native.session()
    assert code_of(session.generate) == native_library.EMPTY_PROMPT
    assert code_of(session.logits) == native_library.EMPTY_PROMPT
    assert code_of(lambda: session.append([])) == native_library.EMPTY_PROMPT
    assert code_of(lambda: session.append_text(b"\xff")) == native_library.INVALID_UTF8
    assert code_of(lambda: session.append_text("x" * (CAPACITY + 1))) == native_library.TOO_LONG
    assert code_of(lambda: session.append([user_message("x" * CAPACITY)])) == native_library.TOO_LONG
    assert code_of(lambda: session.append([{"role": "tool", "content": "x"}])) == native_library.TEMPLATE_RAISED
    assert code_of(lambda: session.append_tokens([VOCAB_SIZE])) == native_library.BAD_ARGUMENT
    assert code_of(lambda: session.append_tokens([-1])) == native_library.BAD_ARGUMENT
    assert code_of(lambda: session.rewind(1)) == native_library.BAD_ARGUMENT
    assert session.tokens == []
    assert code_of(lambda: native.session(CAPACITY + 1)) == native_library.TOO_LONG
    assert code_of(lambda: native.session(-1)) == native_library.BAD_ARGUMENT
    assert native.session(7).capacity == 7


def test_images_are_refused_by_a_model_of_text(native: NativeModel) -> None:
    session = session_of(native)
    before = session.tokens

    def append_image(pixels: bytes | None, width: int, height: int) -> None:
        native_library.call("session_append_image", session._handle, pixels, width, height)

    assert code_of(lambda: append_image(bytes(12), 2, 2)) == native_library.UNSUPPORTED
    assert code_of(lambda: append_image(bytes(12), 0, 2)) == native_library.BAD_ARGUMENT
    assert code_of(lambda: append_image(bytes(12), 2, -1)) == native_library.BAD_ARGUMENT
    assert code_of(lambda: append_image(None, 2, 2)) == native_library.BAD_ARGUMENT
    assert session.tokens == before


def test_a_model_without_a_template_continues_text(spoilt: Path) -> None:
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        if (spoilt / name).is_file():
            (spoilt / name).unlink()
            edit_manifest(spoilt, lambda value, name=name: value["files"].pop(name))  # type: ignore[misc]
    model = NativeModel.load(spoilt)
    assert code_of(lambda: model.session().append([user_message("a")])) == native_library.NO_TEMPLATE
    assert session_of(model).generate(GenerateOptions(max_tokens=2, ignore_model_stops=True)).tokens
