"""The quantization job: if it is killed at any moment, it continues to the same bytes."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_llama

from awq2trt.artifact.arrays import read_arrays
from awq2trt.checkpoint import writer
from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.checkpoint.search_files import REPORT_FILE, SEARCH_FILE
from awq2trt.errors import CalibrationError
from awq2trt.models.block_weights import load_block
from awq2trt.models.decoder import BlockRunner, Ends
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.onnx_export import export_onnx
from awq2trt.progress import SilentProgress
from awq2trt.quantization import job
from awq2trt.quantization.effort import EFFORTS
from awq2trt.quantization.gptq import ErrorSpread, GptqOptions, gptq_round
from awq2trt.quantization.job import QuantizeJob, StreamsDue
from awq2trt.quantization.store import Store
from awq2trt.quantization.tuning import TuneOptions
from awq2trt.recipe import QuantizeOptions

LAYERS = 6


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 100)
    return save_llama(tmp_path / "model", num_hidden_layers=LAYERS)


@pytest.fixture(autouse=True)
def _short_lessons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning and tuning are resumable after a few steps just as after hundreds."""
    search = EFFORTS["max"]
    assert search.learn is not None
    monkeypatch.setitem(EFFORTS, "max", replace(search, learn=replace(search.learn, steps=4)))
    monkeypatch.setattr(TuneOptions, "for_scheme", lambda _: TuneOptions(steps=3))


def _options(model: Path, **changes: Any) -> QuantizeOptions:
    text = str(model.parent / "text.txt")
    return QuantizeOptions(**{"calib": text, "samples": 4, "seqlen": 64, "group_size": 32, **changes})


def _job(model: Path, out: Path, **changes: Any) -> QuantizeJob:
    for name in ("files", "scratch"):
        (out / name).mkdir(parents=True, exist_ok=True)
    source = SafetensorsSource.open(model)
    return QuantizeJob.prepare(
        source, _options(model, **changes), files=out / "files", scratch=out / "scratch", progress=SilentProgress()
    )


def _hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


class _Stopped(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize(
    ("stop_after", "method"),
    [
        (0, "awq"),
        (1, "awq"),
        (3, "awq"),
        (LAYERS - 1, "awq"),
        (LAYERS, "awq"),
        (2, "rtn"),
        (3, "gptq"),
        (1, "awq+gptq"),
        (1, "best"),
        (LAYERS, "best"),
        (0, "max"),
        (2, "max"),
        (LAYERS, "max"),
    ],
)
def test_stopped_and_resumed_gives_the_same_bytes(
    stop_after: int, method: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"effort": method} if method in EFFORTS else {"method": method}
    whole = _job(model, tmp_path / "whole", **chosen).run()
    keep_block, stored = Store.keep_block, 0

    def stop_before_keeping(self: Store, layer: int, block: Any) -> None:
        nonlocal stored
        if stored == stop_after:
            raise _Stopped
        stored += 1
        keep_block(self, layer, block)

    def stop_before_merging(self: QuantizeJob) -> None:
        raise _Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Store, "keep_block", stop_before_keeping)
        patch.setattr(QuantizeJob, "_write_checkpoint", stop_before_merging)
        with pytest.raises(_Stopped):
            _job(model, tmp_path / "stopped", **chosen).run()
    assert Store(tmp_path / "stopped" / "scratch", LAYERS).finished_blocks() == stop_after
    resumed = _job(model, tmp_path / "stopped", **chosen).run()

    assert _hashes(tmp_path / "stopped" / "files") == _hashes(tmp_path / "whole" / "files")
    assert resumed.reports == whole.reports


def test_resumed_blocks_before_the_last_stored_stream_get_the_same_bytes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _job(model, tmp_path / "whole", effort="best").run()
    keep_block, kept = Store.keep_block, list[int]()

    def stop_at_block_4(self: Store, layer: int, block: Any) -> None:
        kept.append(layer)
        if kept == [0, 1, 2, 3, 4]:
            raise _Stopped
        keep_block(self, layer, block)

    monkeypatch.setattr(Store, "keep_block", stop_at_block_4)
    monkeypatch.setattr(StreamsDue, "__call__", lambda _, layer: layer in (1, LAYERS - 1))
    with pytest.raises(_Stopped):
        _job(model, tmp_path / "stopped", effort="best").run()
    _job(model, tmp_path / "stopped", effort="best").run()
    assert kept == [0, 1, 2, 3, 4, *range(2, LAYERS)]
    assert _hashes(tmp_path / "stopped" / "files") == _hashes(tmp_path / "whole" / "files")


def test_streams_are_stored_now_and_then_beside_a_gpu_and_after_each_block_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = itertools.chain([0.0, 1.0, 2.0, 3.0, 4.0, 4.5], itertools.repeat(5.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with torch.device("meta"):
        due = StreamsDue(6, every_s=2.0)
    assert [due(layer) for layer in range(6)] == [True, False, True, False, True, True]
    assert all(map(StreamsDue(6, every_s=2.0), [0, 0, 0]))


def test_stopped_while_it_keeps_what_was_tuned_it_tunes_to_the_same_bytes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _job(model, tmp_path / "whole", tune=True).run()
    keep_tuned = Store.keep_tuned

    def stop_in_the_middle(self: Store, layer: int, tensors: Any) -> None:
        if layer == LAYERS // 2:
            raise _Stopped
        keep_tuned(self, layer, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "keep_tuned", stop_in_the_middle)
        with pytest.raises(_Stopped):
            _job(model, tmp_path / "stopped", tune=True).run()
    _job(model, tmp_path / "stopped", tune=True).run()
    assert _hashes(tmp_path / "stopped" / "files") == _hashes(tmp_path / "whole" / "files")


_CHILD = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
import test_job
test_job._job(Path({model!r}), Path({out!r})).run()
"""


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_bytes(model: Path, tmp_path: Path) -> None:
    _job(model, tmp_path / "whole").run()
    code = _CHILD.format(
        path=[str(Path(__file__).parents[levels]) for levels in range(3)],
        model=str(model),
        out=str(tmp_path / "out"),
    )
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    kills = 0
    for blocks in (1, 2, 4):  # kill once so many blocks are on disk
        child = subprocess.Popen([sys.executable, "-c", code], env=environment)
        wanted = tmp_path / "out" / "scratch" / f"block-{blocks:05}.safetensors"
        while child.poll() is None and not wanted.is_file():
            time.sleep(0.002)
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
            kills += 1
        child.wait()
    assert kills
    _job(model, tmp_path / "out").run()
    assert _hashes(tmp_path / "out" / "files") == _hashes(tmp_path / "whole" / "files")


def test_gptq_sees_what_the_quantized_blocks_before_give(model: Path, tmp_path: Path) -> None:
    result = _job(model, tmp_path / "out", method="gptq", act_order=False).run()
    assert result.tokens is not None
    original, quantized = SafetensorsSource.open(model), QuantizedCheckpoint.open(tmp_path / "out" / "files")
    runner, tokens = BlockRunner.for_positions(original.spec, 64), result.tokens
    weights, name = load_block(original, 1), "self_attn.k_proj"

    def same_as_with_inputs_from(block_0: dict[str, torch.Tensor]) -> float:
        """Share of block 1's codes that GPTQ also chooses on the outputs of this block 0."""
        inputs: dict[str, torch.Tensor] = {}
        hidden = runner.run(block_0, Ends(original).embed(tokens), layer=0)
        runner.run(weights, hidden, layer=1, observe=inputs.__setitem__)
        x = inputs["self_attn.q_proj"]
        spread = ErrorSpread.of(x.T @ x / len(x), GptqOptions(act_order=False))
        rounded = gptq_round(weights[f"{name}.weight"], spread, quantized.scheme)
        return float((rounded.codes.numpy() == quantized.linear(f"model.layers.1.{name}").codes).mean())

    # Sums in another order, and norms that the checkpoint stores in fp16, change codes at ties.
    assert same_as_with_inputs_from(load_block(quantized, 0)) > 0.98
    assert same_as_with_inputs_from(load_block(original, 0)) < 0.95


def test_every_linear_has_a_report(model: Path, tmp_path: Path) -> None:

    result = _job(model, tmp_path / "out").run()
    stored = json.loads((tmp_path / "out" / "files" / REPORT_FILE).read_text())
    assert len(stored) == len(result.reports) == LAYERS * 7
    entry = stored["model.layers.5.mlp.down_proj"]
    assert 0 <= entry["alpha"] < 1
    assert 0 < entry["error"] < 1
    assert stored["model.layers.0.self_attn.q_proj"]["clipped_share"] > 0
    assert result.tokens is not None
    assert result.tokens_sha256() == hashlib.sha256(result.tokens.numpy().tobytes()).hexdigest()


def test_the_papers_search_leaves_q_and_k_whole(model: Path, tmp_path: Path) -> None:
    reports = _job(model, tmp_path / "out", effort="fast").run().reports
    assert reports["model.layers.0.self_attn.q_proj"].clipped_share == 0
    assert reports["model.layers.0.self_attn.v_proj"].clipped_share > 0


def test_plain_rounding_uses_no_text(model: Path, tmp_path: Path) -> None:
    result = _job(model, tmp_path / "out", method="rtn", calib="/does/not/exist.txt").run()
    assert result.tokens is None
    assert result.tokens_sha256() is None


def test_a_model_that_overflows_is_refused_by_block(model: Path, tmp_path: Path) -> None:
    path = model / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.3.mlp.down_proj.weight"] *= 1e38
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CalibrationError, match=r"layers\.3"):
        _job(model, tmp_path / "out").run()
    assert not (tmp_path / "out" / "files" / "config.json").exists()


def test_a_weight_beyond_the_range_of_fp16_makes_the_checkpoint_bf16(model: Path, tmp_path: Path) -> None:
    path = model / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"][3, 3] = 70000.0
    save_file(tensors, path, metadata={"format": "pt"})
    _job(model, tmp_path / "out", method="rtn").run()
    checkpoint = QuantizedCheckpoint.open(tmp_path / "out" / "files")
    assert checkpoint.config["torch_dtype"] == "bfloat16"
    assert float(checkpoint.tensor("model.embed_tokens.weight")[3, 3]) == 70144  # the nearest of 8 bits


def test_folding_can_be_repeated_from_what_the_search_left(model: Path, tmp_path: Path) -> None:
    _job(model, tmp_path / "out").run()
    search = read_arrays(tmp_path / "out" / "files" / SEARCH_FILE, fix="")
    source, checkpoint = SafetensorsSource.open(model), QuantizedCheckpoint.open(tmp_path / "out" / "files")
    assert len(search) == LAYERS * 4 * 2
    scales = search["model.layers.5.self_attn.q_proj.scales"]
    norm = "model.layers.5.input_layernorm.weight"
    np.testing.assert_allclose(checkpoint.tensor(norm), source.tensor(norm) / scales, rtol=2**-11)
    assert np.ptp(scales) > 0.1
    # alpha is the slope of log s over the log of the magnitude, whose mean the search removes.
    alpha = json.loads((tmp_path / "out" / "files" / REPORT_FILE).read_text())["model.layers.5.self_attn.q_proj"][
        "alpha"
    ]
    magnitude = search["model.layers.5.self_attn.q_proj.magnitude"]
    slope = np.polyfit(np.log(magnitude), np.log(scales), 1)[0]
    assert slope == pytest.approx(alpha, abs=1e-4)


def test_plain_rounding_leaves_no_scales(model: Path, tmp_path: Path) -> None:
    _job(model, tmp_path / "out", method="rtn").run()
    assert not (tmp_path / "out" / "files" / SEARCH_FILE).exists()


class _Notes(SilentProgress):
    """Records the notes that it receives."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.mark.parametrize("method", ["awq", "rtn"])
def test_a_model_beyond_the_range_of_fp16_becomes_bf16(method: str, model: Path, tmp_path: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["model.embed_tokens.weight"] *= 2e5  # norms take it off again: the model computes nearly the same
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    for name in ("files", "scratch", "onnx"):
        (tmp_path / "out" / name).mkdir(parents=True)
    notes = _Notes()
    job = QuantizeJob.prepare(
        SafetensorsSource.open(model),
        _options(model, method=method),
        files=tmp_path / "out" / "files",
        scratch=tmp_path / "out" / "scratch",
        progress=notes,
    )
    job.run()
    assert any("beyond" in note and "bfloat16" in note for note in notes.notes)
    checkpoint = QuantizedCheckpoint.open(tmp_path / "out" / "files")
    assert checkpoint.config["torch_dtype"] == "bfloat16"
    assert checkpoint.tensor("model.embed_tokens.weight").dtype == "bfloat16"
    result = export_onnx(checkpoint, tmp_path / "out" / "onnx")
    assert result.dtype == "bfloat16"
    exported = ir.load(tmp_path / "out" / "onnx" / "model.onnx").graph.initializers
    for layer in range(LAYERS):
        name = f"model.layers.{layer}.mlp.down_proj"
        scales = exported[f"{name}.scales"].const_value
        assert scales is not None
        np.testing.assert_array_equal(scales.numpy().astype(np.float32), checkpoint.linear(name).scales)


def test_a_model_within_the_range_of_fp16_stays_fp16(model: Path, tmp_path: Path) -> None:
    _job(model, tmp_path / "out").run()
    checkpoint = QuantizedCheckpoint.open(tmp_path / "out" / "files")
    assert checkpoint.config["torch_dtype"] == "float16"
    assert {checkpoint.tensor(name).dtype.name for name in checkpoint.spec.outer_shapes()} == {"float16"}


_BEYOND: dict[str, dict[str, Any]] = {
    "asymmetric": {},
    "symmetric": {"symmetric": True},
    "3 bits": {"bits": 3},
    "quantized head": {"head": "int8"},
    "rtn": {"method": "rtn"},
    "gptq": {"method": "gptq"},
    "both": {"method": "awq+gptq"},
    "learned": {"effort": "max"},
    "tuned": {"tune": True, "method": "gptq", "head": "int4"},
}
"""Every method and every layout that we write: AutoAWQ's, compressed-tensors' and the natural one."""


@pytest.mark.parametrize("case", _BEYOND)
def test_codes_of_a_bf16_model_are_chosen_for_the_steps_that_are_stored(
    case: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = load_file(model / "model.safetensors")
    weights["model.embed_tokens.weight"] *= 2e5
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    rounded = list[str]()

    def watched(name: str, value: Any, **told: Any) -> Any:
        converted = writer.for_dtype(name, value, **told)
        np.testing.assert_array_equal(converted.astype(np.float32), value.astype(np.float32), err_msg=name)
        if name.endswith(("scale", "scales")):
            rounded.append(name)
        return converted

    monkeypatch.setattr(job, "for_dtype", watched)
    result = _job(model, tmp_path / "out", **_BEYOND[case]).run()
    assert result.dtype == "bfloat16"
    assert len(set(rounded)) == 7 * LAYERS + (result.head is not None)


def test_other_windows_may_go_further_than_those_looked_at(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[float]()

    def ask(largest: float) -> str:
        asked.append(largest)
        return "float16"

    monkeypatch.setattr(job, "storage_dtype", ask)
    _job(model, tmp_path / "out", method="rtn").run()
    assert asked[0] == pytest.approx(1.2 * asked[1], rel=1e-2)  # factors were rounded to bf16


def test_a_resumed_run_keeps_the_type_of_steps(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise _Stopped

    run = _job(model, tmp_path / "out", method="rtn")
    with monkeypatch.context() as patched:
        patched.setattr(job, "storage_dtype", lambda _: "bfloat16")
        patched.setattr(Store, "keep_block", stop)
        with pytest.raises(_Stopped):
            run.run()
    _job(model, tmp_path / "out", method="rtn").run()
    checkpoint = QuantizedCheckpoint.open(tmp_path / "out" / "files")
    steps = checkpoint.linear(f"model.layers.{LAYERS - 1}.mlp.up_proj").scales
    assert checkpoint.config["torch_dtype"] == "float16"
    np.testing.assert_array_equal(steps.astype(ml_dtypes.bfloat16).astype(np.float16), steps)
