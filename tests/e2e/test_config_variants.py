"""The matrix: random variants of every family, and transformers' logits for each, short and long.

Only variants that we support are drawn; those that we refuse are in `families/test_config_keys.py`. `AWQ2TRT_VARIANTS`
says how many of every family (default 5), `AWQ2TRT_GGUF_VARIANTS` how many go through a GGUF file (default 2), and
`AWQ2TRT_ONNX_VARIANTS` how many are quantized, exported and run in ONNX Runtime (default 1). `make matrix` takes 20.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from config_variants import GGUF_FAMILIES, LENGTHS, Config, draw, draw_for_gguf
from gguf_files import write_gguf
from tiny_models import save_family, tokens
from transformers import AutoModelForCausalLM

from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.evaluation.perplexity import torch_logits
from awq2trt.models.decoder import Ends, run_model
from awq2trt.models.families import FAMILIES
from awq2trt.models.sources.gguf import GgufSource
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.onnx_export import export_onnx
from awq2trt.progress import SilentProgress
from awq2trt.quantization.job import QuantizeJob
from awq2trt.recipe import QuantizeOptions
from awq2trt.runtime import OrtBackend

VARIANTS = int(os.environ.get("AWQ2TRT_VARIANTS", "5"))

ONNX_VARIANTS = int(os.environ.get("AWQ2TRT_ONNX_VARIANTS", "1"))

GGUF_VARIANTS = int(os.environ.get("AWQ2TRT_GGUF_VARIANTS", "2"))

GRAPH_TOLERANCE = 1e-2
"""Tolerance for fp32 logits if cosines, sines, slopes, norms and embeddings are rounded to fp16."""


@pytest.mark.parametrize("seed", range(VARIANTS))
@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
def test_logits_are_those_of_transformers(family: str, seed: int, tmp_path: Path) -> None:
    config = draw(family, seed)
    _save(tmp_path, config)
    source = SafetensorsSource.open(tmp_path)
    # Falcon's eager attention counts its linear biases twice (transformers 5.24); its other one is right.
    attention = "sdpa" if family == "falcon" else "eager"
    for length in LENGTHS:
        model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation=attention)
        ids = tokens(2, length, seed=seed)
        with torch.inference_mode():
            expected, got = model.eval()(ids).logits, Ends(source).logits(run_model(source, ids))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-4, msg=lambda text: f"{text}\n{config}")


@pytest.mark.parametrize("seed", range(ONNX_VARIANTS))
@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
def test_the_exported_graph_computes_the_same(family: str, seed: int, tmp_path: Path) -> None:
    config = draw(family, seed)
    _save(tmp_path / "model", config)
    for name in ("files", "scratch", "onnx"):
        (tmp_path / name).mkdir()
    QuantizeJob.prepare(
        SafetensorsSource.open(tmp_path / "model"),
        QuantizeOptions(method="rtn", group_size=32),
        files=tmp_path / "files",
        scratch=tmp_path / "scratch",
        progress=SilentProgress(),
    ).run()
    checkpoint = QuantizedCheckpoint.open(tmp_path / "files")
    export_onnx(checkpoint, tmp_path / "onnx")
    backend = OrtBackend.load(tmp_path / "onnx", all_logits=True, threads=1)
    for length in LENGTHS:
        windows = tokens(1, length, seed=seed)
        expected = np.concatenate(list(torch_logits(checkpoint, windows, SilentProgress(), "reference")(windows[0])))
        got = np.concatenate(list(backend.logits(windows[0].tolist())))
        assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < GRAPH_TOLERANCE, config


@pytest.mark.parametrize("seed", range(GGUF_VARIANTS))
@pytest.mark.parametrize("family", GGUF_FAMILIES)
def test_a_gguf_of_a_variant_computes_the_same_or_is_refused(family: str, seed: int, tmp_path: Path) -> None:
    config = draw_for_gguf(family, seed)
    save_family(tmp_path / "model", {key: value for key, value in config.items() if value is not None})
    write_gguf(tmp_path / "model", tmp_path / "model.gguf")
    attention = "sdpa" if family == "falcon" else "eager"
    source = GgufSource.open(tmp_path / "model.gguf")
    for length in LENGTHS:
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / "model", dtype=torch.float32, attn_implementation=attention
        )
        ids = tokens(2, length, seed=seed)
        with torch.inference_mode():
            expected, got = model.eval()(ids).logits, Ends(source).logits(run_model(source, ids))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=5e-4, msg=lambda text: f"{text}\n{config}")


def _save(directory: Path, config: Config) -> None:
    """Saves a random model whose config.json is the variant itself, not the one that transformers makes from it."""
    save_family(directory, config)
    (directory / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key}))
