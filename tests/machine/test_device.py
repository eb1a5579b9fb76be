"""Where PyTorch computes: the user names it, a missing device is refused, and results agree within rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import save_llama

from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.errors import ToolError, UsageError
from awq2trt.evaluation.results import EvalRequest, TaskExamples, TextWindows
from awq2trt.machine.device import available_bytes, computing_on, host_array, require_device
from awq2trt.machine.memory import read_memory
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.progress import SilentProgress
from awq2trt.quantization.job import QuantizeJob
from awq2trt.recipe import QuantizeOptions
from awq2trt.stages.evaluate import eval_stage
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes PyTorch believe in one GPU, as long as it does not have to use it."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A Card")


def test_the_cpu_is_the_default_device() -> None:
    with computing_on("cpu") as title:
        assert title == "CPU"
        assert torch.zeros(1).device.type == "cpu"
        assert abs(available_bytes() - read_memory().available_bytes) < 1 << 30


@pytest.mark.parametrize("name", ["tpu", "meta", "cuda:x", "gpu", ""])
def test_other_devices_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="expected cpu, cuda or cuda:N, got"):
        require_device(name)


def test_without_a_gpu_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UsageError, match="finds no GPU here"):
        require_device("cuda")


@pytest.mark.usefixtures("one_gpu")
def test_the_gpu_is_the_default_device_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 << 30, 4 << 30))
    with computing_on("cuda") as title:
        assert title == "A Card"
        assert torch.get_default_device().type == "cuda"
        assert available_bytes() == 3 << 30
    assert torch.get_default_device().type == "cpu"
    with pytest.raises(UsageError, match="there is no GPU 1 here") as raised:
        require_device("cuda:1")
    assert raised.value.fix == "use one of cuda:0 to cuda:0."


def test_numpy_shares_a_tensor_of_the_machines_memory() -> None:
    tensor = torch.arange(6, dtype=torch.uint8).view(2, 3)
    values = host_array(tensor)
    tensor[0, 0] = 9
    assert values.tolist() == [[9, 1, 2], [3, 4, 5]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_numpy_gets_a_gpus_tensor() -> None:
    tensor = torch.arange(6, dtype=torch.uint8, device="cuda").view(3, 2).T
    assert host_array(tensor).tolist() == [[0, 2, 4], [1, 3, 5]]


def test_running_out_of_memory_is_explained() -> None:
    with (
        pytest.raises(ToolError, match=r"CPU has too little memory\. CUDA out of memory\..*--samples"),
        computing_on("cpu"),
    ):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nmore of it")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 100)
    return save_llama(tmp_path / "model", num_hidden_layers=3)


@pytest.mark.parametrize("command", ["quantize", "eval", "eval --task"])
def test_a_device_that_is_not_there_is_refused_before_any_work(
    command: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    output = tmp_path / "out"
    (tmp_path / "rows.jsonl").write_text('{"goal": "a", "sol1": "b", "sol2": "c", "label": 0}\n')
    stages: dict[str, Callable[[], object]] = {
        "quantize": lambda: quantize_stage(
            QuantizeRequest(str(model), output, QuantizeOptions(), device="cuda"), SilentProgress()
        ),
        "eval": lambda: eval_stage(
            EvalRequest((str(model),), TextWindows(str(tmp_path / "text.txt"), 1, 64), "cuda"), SilentProgress()
        ),
        "eval --task": lambda: eval_stage(
            EvalRequest((str(model),), TaskExamples("piqa", tmp_path / "rows.jsonl"), "cuda"), SilentProgress()
        ),
    }
    with pytest.raises(UsageError, match="finds no GPU"):
        stages[command]()
    assert not output.exists()


def _job(model: Path, out: Path, options: QuantizeOptions) -> QuantizeJob:
    for name in ("files", "scratch"):
        (out / name).mkdir(parents=True, exist_ok=True)
    return QuantizeJob.prepare(
        SafetensorsSource.open(model), options, files=out / "files", scratch=out / "scratch", progress=SilentProgress()
    )


def test_a_run_is_resumed_on_the_device_that_it_began_on(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = QuantizeOptions(method="rtn", group_size=32)
    _job(model, tmp_path / "out", options).run()
    monkeypatch.setattr(torch, "get_default_device", lambda: torch.device("cuda"))
    with pytest.raises(UsageError, match="computed on cpu") as raised:
        _job(model, tmp_path / "out", options).run()
    assert raised.value.fix == "continue with --device cpu, or start again with --overwrite."


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["rtn", "awq", "awq+gptq"])
@pytest.mark.parametrize("calib", ["self", "text"])
def test_a_gpu_finds_what_the_cpu_finds(method: str, calib: str, model: Path, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip(f"needs a PyTorch built with CUDA, this is {torch.__version__}")
    text = "self" if calib == "self" else str(tmp_path / "text.txt")
    options = QuantizeOptions.model_validate(
        {"method": method, "calib": text, "samples": 4, "seqlen": 64, "group_size": 32}
    )
    reports, files = {}, {}
    for name, where in (("cpu", "cpu"), ("cuda", "cuda"), ("again", "cuda")):
        with computing_on(where):
            reports[name] = _job(model, tmp_path / name, options).run().reports
        files[name] = {path.name: path.read_bytes() for path in (tmp_path / name / "files").iterdir()}
    assert files["cuda"] == files["again"]
    if method == "rtn":
        cpu, cuda = (QuantizedCheckpoint.open(tmp_path / name / "files") for name in ("cpu", "cuda"))
        for name in cpu.stored_names:
            assert (cpu.linear(name).codes == cuda.linear(name).codes).mean() > 0.999
        return
    for name, report in reports["cpu"].items():
        assert reports["cuda"][name].error == pytest.approx(report.error, rel=0.1)
