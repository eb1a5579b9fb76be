"""Rotary scalings: tables, our decoder and the exported graph against transformers, for short and long sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from family_variants import MODELS
from tiny_checkpoints import RandomCheckpoint, relative_error, torch_logits
from tiny_models import save_family, tokens
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from awq2trt.errors import UnsupportedError
from awq2trt.graph.basic_ops import fix_batch_, lower_to_basic_ops_
from awq2trt.io_contract import MODEL_FILE
from awq2trt.models.block_weights import load_block
from awq2trt.models.decoder import BlockRunner, Ends, KeyValueCache, run_model
from awq2trt.models.families import describe_model
from awq2trt.models.families.rope import reach
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.onnx_export import export_onnx
from awq2trt.recipe import ExportOptions
from awq2trt.runtime import OrtBackend

ORIGINAL = 24
"""Number of positions in the first training; tests use fewer and more."""

LENGTHS = (ORIGINAL, ORIGINAL + 1, 60)

GRAPH_TOLERANCE = 3e-3
"""Tolerance for fp32 logits: fp16 cosines and sines (2^-11), and in basic operators also the scale of scores."""

PAIRS = 8
"""Number of channel pairs in a head of 16."""

SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    "yarn-all": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": ORIGINAL,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 0.9,
        "mscale_all_dim": 0.5,
        "truncate": False,
    },
    "yarn-factor": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 0.8},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1 + 0.1 * i for i in range(PAIRS)],
        "long_factor": [1.0 + 2 * i for i in range(PAIRS)],
        "original_max_position_embeddings": ORIGINAL,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "proportional": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "factor": 2.0},
}


def _config(name: str, **changes: Any) -> dict[str, Any]:
    """A Llama with a scaling; dynamic scaling counts from `max_position_embeddings`, so that is small there."""
    positions = ORIGINAL if name == "dynamic" else 96
    rope = {"rope_theta": 10000.0, **SCALINGS[name]}
    return {**MODELS["llama"], "max_position_embeddings": positions, "rope_parameters": rope, **changes}


def _transformers_config(config: dict[str, Any]) -> Any:
    kept = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    return AutoConfig.for_model(config["model_type"], **kept)


@pytest.mark.parametrize("name", SCALINGS)
def test_tables_are_those_of_transformers(name: str) -> None:
    config = _config(name)
    rope = describe_model(config).ropes[0]
    for length in LENGTHS:
        theirs = LlamaRotaryEmbedding(_transformers_config(config))(torch.zeros(1), torch.arange(length)[None])
        for ours, expected in zip(rope.tables(length, length), theirs, strict=True):
            np.testing.assert_allclose(ours, expected[0, :, :PAIRS].numpy(), atol=2e-5)


def test_old_spellings_mean_the_same() -> None:
    for name, scaling in SCALINGS.items():
        config = _config(name)
        plain = {key: value for key, value in config.items() if key != "rope_parameters"}
        typed = {"type" if key == "rope_type" else key: value for key, value in scaling.items()}
        old = describe_model({**plain, "rope_theta": 10000.0, "rope_scaling": typed})
        assert old.ropes == describe_model(config).ropes
    both = {**_config("linear"), "rope_scaling": SCALINGS["llama3"]}  # transformers takes rope_scaling
    assert describe_model(both).ropes == describe_model({**both, "rope_parameters": SCALINGS["llama3"]}).ropes


@pytest.mark.parametrize("name", SCALINGS)
def test_our_decoder_computes_what_transformers_does(name: str, tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_family(tmp_path, _config(name)))
    for length in LENGTHS:
        model = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")  # dynamic remembers
        with torch.inference_mode():
            expected, ids = model.eval()(tokens(1, length)).logits, tokens(1, length)
            torch.testing.assert_close(Ends(source).logits(run_model(source, ids)), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["longrope", "dynamic"])
def test_a_growing_sequence_is_what_transformers_makes_of_it(name: str, tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_family(tmp_path, _config(name)))
    model = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    ids, cache = tokens(1, 40), None
    runner, ends = BlockRunner.for_positions(source.spec, 40), Ends(source)
    blocks = [load_block(source, layer) for layer in range(source.spec.num_layers)]
    caches = [KeyValueCache.empty(source.spec, batch=1, capacity=40) for _ in blocks]
    with torch.inference_mode():
        for start, end in ((0, 20), *((at, at + 1) for at in range(20, 40))):
            out = model(ids[:, start:end], cache=cache, use_cache=True)
            cache, hidden = out.cache, ends.embed(ids[:, start:end], start=start)
            for layer, (weights, past) in enumerate(zip(blocks, caches, strict=True)):
                hidden = runner.run(weights, hidden, layer=layer, cache=past)
            torch.testing.assert_close(ends.logits(hidden), out.logits, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["yarn", "longrope", "dynamic"])
@pytest.mark.parametrize("lowered", [False, True], ids=["as exported", "basic operators"])
def test_the_graph_computes_what_transformers_does_whatever_its_capacity(
    name: str, lowered: bool, tmp_path: Path
) -> None:
    checkpoint = RandomCheckpoint(**{key: _config(name)[key] for key in ("max_position_embeddings", "rope_parameters")})
    export_onnx(checkpoint, tmp_path, options=ExportOptions(max_seq_len=64))
    if lowered:
        model = ir.load(tmp_path / MODEL_FILE)
        fix_batch_(model)
        lower_to_basic_ops_(model)
        (tmp_path / MODEL_FILE).write_bytes(ir.to_proto(model).SerializeToString())
    backend = OrtBackend.load(tmp_path, all_logits=True, threads=1)
    for length in LENGTHS:
        ids = [(7 * i + 3) % 120 for i in range(length)]
        got = np.concatenate(list(backend.logits(ids)))
        assert relative_error(got, torch_logits(checkpoint, ids)) < GRAPH_TOLERANCE


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "linear"}, "factor: expected a positive number, got None"),
        ({"rope_type": "yarn", "factor": "4"}, "factor: expected a positive number, got '4'"),
        ({"rope_type": "yarn", "factor": 4.0, "rope_theta": 1.0}, "no finite frequencies"),
        ({"rope_type": "longrope", "short_factor": [1.0] * 8}, "long_factor: expected 8 positive numbers"),
        ({"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [0.0] * 8}, "long_factor"),
        ({"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0}, "low_freq_factor"),
        ({"rope_type": "mrope"}, "rope_type: expected default, linear, dynamic, yarn, .* got 'mrope'"),
        ({"rope_type": "yarn", "factor": 4.0, "partial_rotary_factor": 0.5}, "rotates complete heads"),
        ({"full_attention": {"rope_type": "default"}}, "one set of parameters, got one for full_attention"),
    ],
)
def test_what_cannot_be_meant_is_refused_without_advice_to_drop_it(scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message) as caught:
        describe_model({**MODELS["llama"], "rope_scaling": scaling})
    assert "remove" not in str(caught.value)


def test_a_scaled_model_reaches_as_far_as_its_scaling() -> None:
    assert reach({"rope_type": "dynamic", "factor": 2.0}, 4096) == 8192
    assert reach({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 32768) == 131072
    assert reach({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072) == 131072
    assert reach({"rope_type": "longrope"}, 131072) == 131072
