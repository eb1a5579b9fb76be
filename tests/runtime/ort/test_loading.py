"""Where a model runs: on the named device or the fastest; and what is refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_models
from host_memory import HostMemory

from awq2trt.artifact.manifest import Artifact
from awq2trt.checking.chain import run_chain
from awq2trt.checking.results import ON_GPU
from awq2trt.checking.subject import find_subject
from awq2trt.errors import OutOfMemoryError, ToolError, UsageError
from awq2trt.graph.read import open_decoder
from awq2trt.machine import gpu as machine_gpu
from awq2trt.machine import plugin_library
from awq2trt.machine.plugin_library import LIBRARY_NAME, PluginLibrary
from awq2trt.models.families import FAMILIES
from awq2trt.models.published_shapes import SHAPES
from awq2trt.progress import SilentProgress
from awq2trt.recipe import BuildOptions, ExportOptions, QuantizeOptions, Recipe
from awq2trt.report.bench import bench_json, bench_lines, bench_markdown
from awq2trt.runtime import Model
from awq2trt.runtime.ort import loading
from awq2trt.runtime.ort.cuda import CudaBackend
from awq2trt.runtime.ort.loading import DeviceOptions, choose_device, open_backend
from awq2trt.runtime.ort.session import Execution, open_session
from awq2trt.stages.bench import BenchRequest, bench_stage
from awq2trt.stages.build import BuildRequest, build_stage
from awq2trt.version import __version__

RTN = QuantizeOptions(group_size=32, method="rtn")


def _build(model: Path, output: Path, target: str, *, plugin: bool | None = None) -> list[Artifact]:
    recipe = Recipe(
        quantize=RTN, export=ExportOptions(max_seq_len=64), build=BuildOptions(target=target, plugin=plugin)
    )
    return list(build_stage(BuildRequest(str(model), output, recipe), SilentProgress()))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def built(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model built for `cpu`, and for `cuda` with ONNX Runtime's own kernels."""
    directory = tmp_path_factory.mktemp("built")
    _build(model, directory, "cpu")
    _build(model, directory, "cuda", plugin=False)
    return directory


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HostMemory:
    """A fake GPU: host memory, and the CPU provider under the name of CUDA's."""
    memory = HostMemory()
    monkeypatch.setattr(loading, "open_cuda", lambda device: memory)
    monkeypatch.setattr(machine_gpu, "open_cuda", lambda device: memory)
    monkeypatch.setattr("awq2trt.checking.subject.open_cuda", lambda device: memory)
    monkeypatch.setattr(loading, "require_provider", lambda session: None)
    monkeypatch.setattr(loading, "cuda_execution", lambda index, operators, graph: Execution(operators=operators))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return memory


def _answer(directory: Path, device: str | None) -> str:
    model = Model.load(directory, DeviceOptions(device))
    return model.generate_text("hello", raw=True, max_new_tokens=8)


def test_a_model_gives_the_same_text_on_every_device(built: Path, gpu: HostMemory) -> None:
    texts = {_answer(built / "onnx", "cpu"), _answer(built / "cpu", None), _answer(built / "cuda", None)}
    assert len(texts) == 1


def test_an_exported_model_is_lowered_when_it_is_loaded(
    built: Path, gpu: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "find_plugin_library", _raise(ToolError("none")))
    assert _answer(built / "onnx", "cuda") == _answer(built / "cuda", None)


def test_what_is_current_is_not_lowered_again(model: Path, built: Path) -> None:
    before = (built / "cuda" / "model.onnx").stat().st_mtime_ns
    assert _build(model, built, "cuda", plugin=False)[-1].directory == built / "cuda"
    assert (built / "cuda" / "model.onnx").stat().st_mtime_ns == before


def test_manifests_say_what_runs_the_model(model: Path, built: Path, tmp_path: Path) -> None:
    for_cpu, for_cuda = (Artifact.open(built / name).manifest.contents.lowered for name in ("cpu", "cuda"))
    assert for_cpu is not None
    assert (for_cpu.provider, for_cpu.minimum_compute_capability) == ("CPUExecutionProvider", None)
    assert for_cuda is not None
    assert (for_cuda.provider, for_cuda.minimum_compute_capability) == ("CUDAExecutionProvider", "8.0")
    assert for_cuda.plugin_version is None
    contents = _build(model, tmp_path, "cuda")[-1].manifest.contents
    assert contents.lowered is not None
    assert contents.lowered.plugin_version == __version__
    assert contents.decoder is not None
    assert contents.decoder.outputs[-1].name == "next_token"


@pytest.mark.parametrize(("name", "device"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_model_for_another_device_is_refused(built: Path, gpu: HostMemory, name: str, device: str) -> None:
    with pytest.raises(UsageError, match=f"built for {name}, but is supposed to run on {device}.*--target {device}"):
        open_backend(Artifact.open(built / name), DeviceOptions(device))


def test_a_model_for_cuda_says_what_is_missing_here(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_gpu, "read_driver", lambda: None)
    with pytest.raises(UsageError, match=r"no NVIDIA driver here.*exported model \(DIR/onnx\) without --device"):
        open_backend(Artifact.open(built / "cuda"), DeviceOptions())
    assert choose_device(Artifact.open(built / "onnx")) == "cpu"


def test_a_gpu_that_is_there_is_chosen(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "require_gpu", lambda device: None)
    monkeypatch.setattr(loading, "require_onnxruntime", lambda device: None)
    assert choose_device(Artifact.open(built / "onnx")) == "cuda"
    assert choose_device(Artifact.open(built / "cpu")) == "cpu"


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(
    built: Path, gpu: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.free_bytes = 100 << 20
    monkeypatch.setattr(loading, "open_session", _raise(AssertionError("loaded")))
    with pytest.raises(ToolError, match=r"needs 0\.\d\d GiB .*weights.*caches.*workspace.* only 0\.10 free of 1024"):
        open_backend(Artifact.open(built / "cuda"), DeviceOptions())


def test_what_does_not_fit_at_all_wants_another_gpu(
    built: Path, gpu: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "read_info", lambda: (80 << 20, 100 << 20))
    with pytest.raises(OutOfMemoryError, match=r"0\.08 free of 0\.10\. Fix: use a GPU with more memory"):
        open_backend(Artifact.open(built / "cuda"), DeviceOptions())


def test_a_gpu_that_fills_up_while_the_model_is_loaded_is_one_message(
    built: Path, gpu: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate, left = gpu.allocate, [3]

    def allocate_until_full(size_bytes: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            gpu.free_bytes = 5 << 20  # another process has the rest
            raise OutOfMemoryError("cudaMalloc failed.")
        return allocate(size_bytes)

    monkeypatch.setattr(gpu, "allocate", allocate_until_full)
    with pytest.raises(OutOfMemoryError, match=r"needs 0\.\d\d GiB .* has only 0\.00 free .*; there was enough before"):
        open_backend(Artifact.open(built / "cuda"), DeviceOptions())
    assert gpu.held == 0


@pytest.mark.parametrize(
    "words",
    ["CUDA failure 2: out of memory ; GPU=0", "Failed to allocate memory for requested buffer of size 113246208"],
)
def test_onnx_runtime_without_memory_is_the_same_message(
    words: str, built: Path, gpu: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail = type("RuntimeException", (Exception,), {"__module__": "onnxruntime.capi.onnxruntime_pybind11_state"})
    monkeypatch.setattr("onnxruntime.InferenceSession", _raise(fail(words)))
    with pytest.raises(OutOfMemoryError, match=r"needs 0\.\d\d GiB .*; there was enough before"):
        open_backend(Artifact.open(built / "cuda"), DeviceOptions())


def test_a_call_without_memory_says_so(built: Path, gpu: HostMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = open_backend(Artifact.open(built / "cuda"), DeviceOptions()).backend
    assert isinstance(backend, CudaBackend)
    error = RuntimeError("Error in execution: CUDA failure 2: out of memory ; GPU=0")
    monkeypatch.setattr(backend, "_session", SimpleNamespace(run_with_iobinding=_raise(error)))
    with pytest.raises(OutOfMemoryError, match="out of memory"):
        backend.forward([5])


def test_only_a_session_on_a_gpu_keeps_onnx_runtimes_logger_to_errors(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_to: list[int] = []
    monkeypatch.setattr("onnxruntime.set_default_logger_severity", set_to.append)
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: set_to.append(-1))
    open_session(None, built / "cpu")
    assert set_to == [-1]
    open_session(None, built / "cuda", loading.cuda_execution(0, None, graph=True))
    assert set_to == [-1, 3, -1, 2]


def test_prompts_go_in_longer_calls_where_no_scores_are_in_memory(built: Path, tmp_path: Path) -> None:
    model = tiny_models.save_llama(tmp_path / "model", head_dim=64)  # a size that is fused
    _build(model, tmp_path, "cuda", plugin=True)
    fused, sizes = open_decoder(tmp_path / "cuda")
    row = (
        loading.predict_needs(fused, sizes, chunk=2).workspace - loading.predict_needs(fused, sizes, chunk=1).workspace
    )

    def chunk(share_of_tokens: int) -> int:
        return loading.choose_chunk(fused, sizes, int(share_of_tokens * row / 0.02))

    assert (chunk(100), chunk(1024), chunk(2047), chunk(10**6)) == (512, 1024, 1024, 2048)
    unfused, sizes = open_decoder(built / "cuda")
    assert loading.choose_chunk(unfused, sizes, 10**15) == 512


def _raise(error: Exception) -> Callable[..., None]:
    def raising(*_arguments: object, **_options: object) -> None:
        raise error

    return raising


def test_operators_are_the_installed_ones_of_the_same_version(
    model: Path, gpu: HostMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = _build(model, tmp_path, "cuda")[-1]
    (artifact.directory / LIBRARY_NAME).touch()
    described: list[Path] = []

    def describe(path: Path, source: str) -> PluginLibrary:
        described.append(path)
        return PluginLibrary(path, source, "0.0.9", (), 13000)

    monkeypatch.setattr(plugin_library, "_describe", describe)
    monkeypatch.setenv(plugin_library.PATH_VARIABLE, str(tmp_path / "onnx" / "model.onnx"))
    with pytest.raises(
        ToolError, match=rf"operators of awq2trt {__version__}, but the library here has version 0\.0\.9"
    ):
        open_backend(artifact, DeviceOptions())
    with pytest.raises(ToolError, match=r"0\.0\.9"):
        open_backend(artifact, DeviceOptions(trust_library=True))
    assert described == [tmp_path / "onnx" / "model.onnx", artifact.directory / LIBRARY_NAME]


def test_golden_outputs_are_checked_once_on_a_gpu(
    built: Path, gpu: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    progress = SilentProgress()
    monkeypatch.setattr(progress, "note", told.append)
    for _ in range(2):
        Model.load(built / "cuda", progress=progress)
    assert [line for line in told if "golden" in line] == ["first run on NVIDIA Stand-in: golden outputs passed"]


def test_wrong_golden_outputs_stop_the_first_run(built: Path, gpu: HostMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    original = CudaBackend.forward
    monkeypatch.setattr(CudaBackend, "forward", lambda self, tokens: original(self, tokens) * -1)
    for _ in range(2):  # a failure is not remembered as a success
        with pytest.raises(ToolError, match=r"does not give the model's golden outputs.*--no-golden"):
            Model.load(built / "cuda")
    Model.load(built / "cuda", golden=False)


def test_check_holds_the_model_on_the_gpu_to_the_quantized_one(built: Path, gpu: HostMemory) -> None:
    result = run_chain(find_subject(built), list(range(3, 40)), SilentProgress())
    stage = next(stage for stage in result.stages if stage.stage == ON_GPU)
    assert stage.skipped is None
    assert stage.against == "quantized"
    assert 0 < stage.places[-1].error < stage.places[-1].limit
    assert result.passed


def test_check_says_why_nothing_runs_on_a_gpu(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_gpu, "read_driver", lambda: None)
    assert "no NVIDIA driver" in find_subject(built).missing[ON_GPU]


def test_bench_measures_a_directory(built: Path, gpu: HostMemory) -> None:
    request = BenchRequest(built / "cuda", prompt=4, tokens=10, device="cuda", command=("awq2trt", "bench"))
    report = bench_stage(request, SilentProgress())
    (row,) = report.rows
    assert row.executor == "MatMulNBits"
    assert row.token_ms is not None
    assert row.floor_ms is not None
    assert row.tokens_per_s == pytest.approx(1e3 / row.token_ms)
    assert "MatMulNBits" in "\n".join(bench_lines(report))
    assert "| MatMulNBits |" in bench_markdown(report)
    assert '"capacity": 64' in bench_json(report)
    assert gpu.held == 0


def test_bench_times_tokens_further_on_and_counts_the_cache(built: Path, gpu: HostMemory) -> None:
    request = BenchRequest(built / "cuda", prompt=4, tokens=8, device="cuda", ends=(24, 64), command=("awq2trt",))
    report = bench_stage(request, SilentProgress())
    (row,) = report.rows
    assert [later.end for later in row.later] == [24, 64]
    # 40 positions more: keys and values of 2 layers, 2 heads of 8 numbers, in fp16.
    more = 40 * 2 * 2 * 2 * 8 * 2
    floors = [later.floor_ms or 0.0 for later in row.later]
    assert (floors[1] - floors[0]) * 1e-3 * (report.bandwidth_bytes_per_s or 0.0) == pytest.approx(more)
    assert row.floor_ms is not None
    assert row.floor_ms < floors[0]
    header, *lines = "\n".join(bench_lines(report)).rpartition("\n\n")[2].split("\n")
    assert header.split() == ["executor", "end", "ms/token", "tokens/s", "floor", "ms", "share"]
    assert [line.split()[1] for line in lines] == ["24", "64"]
    assert "| MatMulNBits | 64 |" in bench_markdown(report)
    assert gpu.held == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ends": (65,)}, "10 tokens cannot end at position 65, expected more than 10 and at most 64"),
        ({"ends": (10,)}, "10 tokens cannot end at position 10"),
        ({"context": 65}, "this model's has 64"),
        ({"tokens": 61}, "4 \\+ 61 tokens need a cache of"),
        ({"against": ("llama.cpp",)}, "unknown opponent"),
        ({"layers": 2}, "--layers: --layers is for a shape"),
        ({"head": "int8"}, "--head is for a shape"),
        ({"shape": "llama-2-7b"}, "a directory or a shape, not both"),
    ],
)
def test_bench_refuses_what_it_cannot_measure(
    built: Path, gpu: HostMemory, options: dict[str, object], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        bench_stage(BenchRequest(built / "cuda", device="cuda", **{"tokens": 10, **options}), SilentProgress())  # type: ignore[arg-type]


def test_a_shape_is_not_drawn_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_gpu, "read_driver", lambda: None)
    monkeypatch.setattr("awq2trt.onnx_export.export_onnx", lambda *_, **__: pytest.fail("the work has begun"))
    with pytest.raises(UsageError, match="there is no NVIDIA driver here"):
        bench_stage(BenchRequest(shape="llama-2-7b"), SilentProgress())


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_models_that_we_know(name: str) -> None:
    families = {family for entry in FAMILIES for family in entry.architectures}
    assert SHAPES[name]["architectures"][0] in families
