"""Every family through every stage: transformers' own class -> our decoder -> quantized -> ONNX Runtime -> an engine.

The table is `FAMILIES`, each with its example, and variants of a family that its example does not show.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from family_variants import MODELS
from tiny_models import save_family, tokens
from transformers import AutoModelForCausalLM

from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.engine.builder import build_engine
from awq2trt.evaluation.agreement import agreement
from awq2trt.evaluation.perplexity import torch_logits
from awq2trt.graph.basic_ops import fix_batch_, lower_to_basic_ops_
from awq2trt.io_contract import ENGINE_FILE, MODEL_FILE, WEIGHTS_FILE
from awq2trt.models.decoder import BlockRunner, Ends, KeyValueCache, load_block, run_model
from awq2trt.models.families import UNFOLDED
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.onnx_export import export_onnx
from awq2trt.progress import SilentProgress
from awq2trt.quantization.fold import fold_scales_
from awq2trt.quantization.job import QuantizeJob
from awq2trt.quantization.search import spread_over_heads
from awq2trt.recipe import QuantizeOptions
from awq2trt.runtime import OrtBackend
from awq2trt.target import find_target

POSITIONS = 256


@dataclass(frozen=True)
class Made:
    """A random model, its quantized checkpoint, and the exported ONNX model."""

    model: Path
    checkpoint: Path
    onnx: Path


@pytest.fixture(scope="module", params=MODELS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    directory = tmp_path_factory.mktemp(request.param)
    made = Made(save_family(directory / "model", MODELS[request.param]), directory / "files", directory / "onnx")
    text = directory / "text.txt"
    text.write_text("".join(chr(32 + (7 * i + i // 5) % 90) for i in range(4000)))
    for path in (made.checkpoint, made.onnx, directory / "scratch"):
        path.mkdir()
    options = QuantizeOptions(group_size=32, calib=str(text), samples=4, seqlen=64)
    source = SafetensorsSource.open(made.model)
    job = QuantizeJob.prepare(
        source, options, files=made.checkpoint, scratch=directory / "scratch", progress=SilentProgress()
    )
    job.run()
    export_onnx(QuantizedCheckpoint.open(made.checkpoint), made.onnx)
    return made


def test_our_decoder_computes_what_transformers_does(made: Made) -> None:
    source, ids = SafetensorsSource.open(made.model), tokens(2, 40)
    # Falcon's eager attention counts its linear biases twice (transformers 5.23); its other one is right.
    attention = "sdpa" if source.spec.family == "falcon" else "eager"
    model = AutoModelForCausalLM.from_pretrained(made.model, dtype=torch.float32, attn_implementation=attention)
    with torch.inference_mode():
        expected = model.eval()(ids).logits
        got = Ends(source).logits(run_model(source, ids))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-4)


def test_one_token_at_a_time_gives_the_same_as_all_at_once(made: Made) -> None:
    source, ids = SafetensorsSource.open(made.model), tokens(2, 30)
    runner, ends = BlockRunner.for_positions(source.spec, 30), Ends(source)
    blocks = [load_block(source, layer) for layer in range(source.spec.num_layers)]
    caches = [KeyValueCache.empty(source.spec, batch=2, capacity=30) for _ in blocks]
    steps = []
    with torch.inference_mode():
        for position in range(30):
            hidden = ends.embed(ids[:, position : position + 1], start=position)
            for layer, (weights, cache) in enumerate(zip(blocks, caches, strict=True)):
                hidden = runner.run(weights, hidden, layer=layer, cache=cache)
            steps.append(hidden)
        torch.testing.assert_close(torch.cat(steps, dim=1), run_model(source, ids), rtol=1e-4, atol=1e-3)


def test_folding_does_not_move_the_logits(made: Made) -> None:
    source, ids = SafetensorsSource.open(made.model), tokens(1, 40)
    spec = source.spec
    runner, ends = BlockRunner.for_positions(spec, 40), Ends(source)
    before = after = ends.embed(ids)
    generator = torch.Generator().manual_seed(8)
    with torch.inference_mode():
        for layer in range(spec.num_layers):
            weights = load_block(source, layer)
            before = runner.run(weights, before, layer=layer)
            folded = dict(weights)
            for group in spec.scale_groups():
                if group.smooth_kind == UNFOLDED:
                    continue
                channels = spec.linear_shape(group.balance_layers[0])[1]
                by_output = torch.rand(channels // group.heads_tied, generator=generator) * 3 + 0.2
                fold_scales_(folded, group, spread_over_heads(by_output, group, spec.head_dim), spec.head_dim)
            after = runner.run(folded, after, layer=layer)
        expected, got = ends.logits(before).double(), ends.logits(after).double()
    assert float((got - expected).norm() / expected.norm()) < 1e-5


def test_onnx_runtime_computes_what_the_quantized_model_does(made: Made) -> None:
    windows = tokens(1, POSITIONS, seed=3)
    logits = torch_logits(QuantizedCheckpoint.open(made.checkpoint), windows, SilentProgress(), "reference")
    reference = torch.cat(list(logits(windows[0]))).numpy()
    backend = OrtBackend.load(made.onnx, all_logits=True, threads=1)
    got = np.concatenate(list(backend.logits(windows[0].tolist())))
    assert got.shape == reference.shape
    close = agreement(reference, got, windows[0].tolist())
    assert close.mean_kl < 1e-3
    assert close.top1 >= 255 / 256  # one tie of two tokens at most


def test_basic_operators_compute_the_same(made: Made, tmp_path: Path) -> None:
    model = ir.load(made.onnx / MODEL_FILE)
    fix_batch_(model)
    lower_to_basic_ops_(model)
    (tmp_path / MODEL_FILE).write_bytes(ir.to_proto(model).SerializeToString())
    shutil.copyfile(made.onnx / WEIGHTS_FILE, tmp_path / WEIGHTS_FILE)
    ids = tokens(1, 40, seed=5)[0].tolist()
    rows = [
        np.concatenate(list(OrtBackend.load(directory, all_logits=True, threads=1).logits(ids)))
        for directory in (made.onnx, tmp_path)
    ]
    # The scale of the scores is a constant in fp16 there, as it is by definition where the operator runs in fp16.
    np.testing.assert_allclose(rows[1], rows[0], rtol=0, atol=2**-11 * np.abs(rows[0]).max())


@pytest.mark.trt
def test_an_engine_builds(made: Made, tmp_path: Path) -> None:
    build_engine(made.onnx, find_target("rtx4090"), tmp_path)
    assert (tmp_path / ENGINE_FILE).stat().st_size > 0
