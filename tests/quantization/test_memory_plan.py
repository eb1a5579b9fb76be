"""The plan of memory: known sizes, what a limit changes, and that a real run stays below its limit."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_llava import save_llava
from tiny_models import save_llama

from awq2trt.errors import UsageError
from awq2trt.models.families import describe_model
from awq2trt.models.published_shapes import shape_config
from awq2trt.models.sources.opening import open_source
from awq2trt.quantization.memory_plan import Job, plan_memory
from awq2trt.quantization.method import method_of
from awq2trt.recipe import QuantizeOptions

GIB = 1 << 30
BASE = 600 << 20
"""Memory that Python, PyTorch and transformers take."""


def _job(shape: str, *, writes_text: bool = False, **changes: object) -> Job:
    options = QuantizeOptions.model_validate(changes)
    return Job(describe_model(shape_config(shape)), method_of(options), 16, 512, writes_text)


@pytest.mark.parametrize(("effort", "memory", "on_disk"), [("default", 24, 20), ("best", 43, 39)])
def test_a_block_of_70b_in_24_gb_and_in_20_on_disk(effort: str, memory: int, on_disk: int) -> None:
    job = _job("llama-2-70b", effort=effort)
    plan = plan_memory(job, BASE, memory * 10**9)
    assert not plan.statistics_on_disk
    block = 4 * (2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672)
    assert plan.parts["codes"] > 2 * block + 4 * 28672**2  # before and after folding, and one E[x x^T]
    small = plan_memory(job, BASE, on_disk * 10**9)
    assert small.statistics_on_disk
    moments = 4 * (3 * 8192**2 + 28672**2)
    assert plan.parts["codes"] - small.parts["codes"] == pytest.approx(1.1 * moments)


def test_deepstack_of_images_is_counted() -> None:
    job = _job("llama-2-70b")
    stacked = replace(job, spec=replace(job.spec, deepstack=3))
    plain, text, images = (plan_memory(each, BASE).parts for each in (job, stacked, replace(stacked, sees=True)))
    assert text == plain
    assert images["calibrate"] - plain["calibrate"] == pytest.approx(1.1 * 3 * 4 * 16 * 512 * 8192, abs=2)


@pytest.mark.parametrize(("effort", "apart"), [("default", True), ("best", False)])
def test_what_is_on_its_way_to_the_first_rank_is_counted(effort: str, apart: bool) -> None:
    alone = _job("llama-3-8b", effort=effort)
    four = replace(alone, ranks=4)
    least, most, gpu = (plan_memory(job, BASE).parts for job in (alone, four, replace(four, on_gpu=True)))
    streams = (4 + 1) * (4 * 16 * 512 * 4096)
    codes = 2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    for part in ("calibrate", "scales", "codes", "report"):
        assert most[part] - least[part] == pytest.approx(1.1 * (streams + 2.5 * codes) if apart else 0, abs=2)
        assert gpu[part] - least[part] == pytest.approx(1.1 * streams if apart else 0, abs=2)


def test_a_limit_that_cannot_be_kept_is_refused_with_the_least_that_can() -> None:
    job = _job("llama-2-70b")
    with pytest.raises(UsageError, match=r"4\.00 GiB are too little: at least") as error:
        plan_memory(job, BASE, 4 * GIB)
    least = int(str(error.value).rpartition("--max-memory ")[2].partition("M")[0]) << 20
    assert plan_memory(job, BASE, least).peak_bytes <= least
    with pytest.raises(UsageError):
        plan_memory(job, BASE, least - (1 << 20))


def test_a_model_that_writes_its_text_is_in_memory_whole() -> None:
    plan = plan_memory(_job("llama-2-70b", writes_text=True), BASE)
    assert plan.peak_bytes > 4 * 68 * 10**9
    with pytest.raises(UsageError, match="--calib"):
        plan_memory(_job("llama-2-70b", writes_text=True), BASE, 24 * GIB)


@pytest.mark.parametrize(
    ("shape", "taken"),
    [("llama-3-8b", (4 + 2) * 128256 * 4096), ("llama-2-70b", 2 * GIB)],  # the head in fp32 and fp16; two files
)
def test_what_writing_takes_is_one_tensor_read_and_stored_or_two_files(shape: str, taken: int) -> None:
    assert plan_memory(_job(shape), BASE).parts["write"] == pytest.approx(1.1 * taken)


def test_a_quantized_head_is_counted() -> None:
    job = _job("llama-3-8b")
    plan, without = plan_memory(replace(job, head=True), BASE), plan_memory(job, BASE)
    assert "head" not in without.parts
    weight = 128256 * 4096  # in 16 bits, and its codes as found and as joined; and logits of 512 tokens
    assert plan.parts["head"] > 2 * weight + 3 * weight + 4 * 512 * 128256 * 4
    assert plan.peak_bytes == without.peak_bytes  # a block takes more


def test_without_text_there_are_no_moments() -> None:
    with_text, without = plan_memory(_job("llama-3-8b"), BASE), plan_memory(_job("llama-3-8b", method="rtn"), BASE)
    assert without.parts["calibrate"] < with_text.parts["calibrate"]
    assert not {"text", "scales", "gptq", "report", "learn"} & set(without.parts)


_RUN = """
import re, sys
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage
from awq2trt.progress import SilentProgress
from awq2trt.recipe import QuantizeOptions
from pathlib import Path
model, text, out, limit = sys.argv[1:]
class Notes(SilentProgress):
    def note(self, message):
        print(message, file=sys.stderr)
options = QuantizeOptions(calib=text, samples=2, seqlen=64, effort="fast", bits=4)
quantize_stage(QuantizeRequest(model, Path(out), options, max_memory=limit), Notes())
print(1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]))
"""


@pytest.mark.slow
def test_a_run_stays_below_its_limit_and_gives_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 100)
    model = save_llama(tmp_path / "model", hidden_size=192, intermediate_size=6144, num_hidden_layers=1)

    def run(out: str, limit: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", _RUN, str(model), str(tmp_path / "text.txt"), str(tmp_path / out), limit]
        return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})

    refused = run("refused", "1M").stderr
    least = int(refused.rpartition("--max-memory ")[2].partition("M")[0])
    limited, free = run("limited", f"{least + 16}M"), run("free", "64G")
    assert free.returncode == limited.returncode == 0
    assert "second moments on disk" in limited.stderr
    assert json.loads(limited.stdout) <= (least + 16) << 20
    assert (tmp_path / "limited" / "model.safetensors").read_bytes() == (
        tmp_path / "free" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(("method", "moments"), [("awq", 2), ("rtn", 0)])
def test_what_it_sees_with_is_counted_where_it_is_quantized(method: str, moments: int, tmp_path: Path) -> None:
    vision = open_source(str(save_llava(tmp_path, tower={"intermediate_size": 1024}))).vision
    job = _job("llama-3-8b", method=method)
    plan, without = plan_memory(replace(job, vision=vision), BASE), plan_memory(job, BASE)
    assert vision is not None
    assert "vision" not in without.parts
    weights = 4 * sum(math.prod(shape) for shape in vision.shapes().values())
    assert plan.parts["vision"] > weights + moments * 4 * 1024**2
    assert {name: size for name, size in plan.parts.items() if name != "vision"} == without.parts
