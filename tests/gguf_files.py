"""Writes a checkpoint as a GGUF file the way llama.cpp's convert_hf_to_gguf.py does, without its code or ours.

Names are the gguf package's; what the converter does to values is written here after its classes: rows of Llama's q
and k interleaved (`LlamaModel.permute`), 1 added to the weights of Gemma's norms, q, k and v of Falcon, BLOOM and
GPT-NeoX put one after the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

Array = NDArray[Any]

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi3": "phi3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "falcon": "falcon",
    "bloom": "bloom",
    "mpt": "mpt",
    "gpt_neox": "gptneox",
}
"""`model_type` -> `general.architecture`."""


def write_gguf(
    model: Path,
    path: Path,
    *,
    metadata: Callable[[gguf.GGUFWriter], None] | None = None,
    tensors: Mapping[str, Array] | None = None,
    encoded: Mapping[str, gguf.GGMLQuantizationType] | None = None,
    tokenizer: bool = False,
) -> None:
    """Writes a checkpoint directory as one GGUF file.

    Args:
        model: config.json and model.safetensors.
        path: The file.
        metadata: Keys to add or to replace.
        tensors: Tensors stored in addition to the model's, or instead of those with the same name.
        encoded: Types of the tensors among `tensors` that are given as bytes.
        tokenizer: Whether to store a byte-level tokenizer.
    """
    config = json.loads((model / "config.json").read_text())
    architecture = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(path, architecture)
    _add_sizes(writer, config)
    if architecture == "phi3":
        tensors = {**_add_longrope(writer, config), **(tensors or {})}
    if metadata is not None:
        metadata(writer)
    if tokenizer:
        _add_tokenizer(writer)
    for name, value in {**_tensors(model, config, architecture), **(tensors or {})}.items():
        writer.add_tensor(name, value, raw_dtype=(encoded or {}).get(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(model: Path, config: dict[str, Any], architecture: str) -> dict[str, Array]:
    key = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(key, _first(config, "num_hidden_layers", "n_layer", "n_layers"))
    found = {}
    for name, value in load_file(model / "model.safetensors").items():
        short = name.removeprefix("transformer.") if architecture == "bloom" else name
        stored = names.get_name(short, (".weight", ".bias"))
        assert stored is not None, name
        found[stored] = np.ascontiguousarray(_as_llama_cpp(name, value.astype(np.float32), config, architecture))
    return found


def _as_llama_cpp(name: str, value: Array, config: dict[str, Any], architecture: str) -> Array:
    heads = _first(config, "num_attention_heads", "n_head", "n_heads")
    if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
        count = config["num_key_value_heads"] if ".k_proj." in name else heads
        halves = value.reshape(count, 2, value.shape[0] // count // 2, *value.shape[1:])
        return halves.swapaxes(1, 2).reshape(value.shape)
    if architecture.startswith("gemma") and name.endswith("norm.weight"):
        return value + 1
    if "query_key_value" not in name:
        return value
    if architecture == "falcon":
        shared = config["num_kv_heads"] if config["new_decoder_architecture"] else 1 if config["multi_query"] else heads
        pieces = value.reshape(shared, heads // shared + 2, -1, *value.shape[1:])
        parts = [pieces[:, :-2], pieces[:, [-2]], pieces[:, [-1]]]
    else:
        pieces = value.reshape(heads, 3, -1, *value.shape[1:])
        parts = [pieces[:, [index]] for index in range(3)]
    return np.concatenate([part.reshape(-1, *value.shape[1:]) for part in parts])


def _first(config: dict[str, Any], *keys: str) -> Any:
    return next(config[key] for key in keys if config.get(key) is not None)


def _add_sizes(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    hidden, heads = _first(config, "hidden_size", "d_model"), _first(config, "num_attention_heads", "n_head", "n_heads")
    writer.add_context_length(config.get("max_position_embeddings") or config.get("max_seq_len") or 2048)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(config.get("intermediate_size") or config.get("ffn_hidden_size") or 4 * hidden)
    writer.add_block_count(_first(config, "num_hidden_layers", "n_layer", "n_layers"))
    writer.add_head_count(heads)
    if config["model_type"] == "falcon":
        shared = config["num_kv_heads"] if config["new_decoder_architecture"] else 1
        writer.add_head_count_kv(shared)
    elif "num_key_value_heads" in config:
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_key_length(config.get("head_dim") or hidden // heads)
    if "rms_norm_eps" in config:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    else:
        writer.add_layer_norm_eps(config.get("layer_norm_epsilon") or config["layer_norm_eps"])
    _add_others(writer, config)


def _add_others(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    if rope:
        writer.add_rope_freq_base(rope["rope_theta"])
        if config["model_type"] in ("phi3", "gpt_neox"):
            head_dim = config["hidden_size"] // config["num_attention_heads"]
            writer.add_rope_dimension_count(int(head_dim * rope["partial_rotary_factor"]))
    if rope.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
        if rope["rope_type"] == "yarn":
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if config["model_type"] in ("gemma2", "gemma3_text"):
        writer.add_sliding_window(config["sliding_window"])
    if config["model_type"] == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if config["model_type"] == "gpt_neox":
        writer.add_parallel_residual(config["use_parallel_residual"])
    if config["model_type"] == "mpt":
        writer.add_max_alibi_bias(config["attn_config"]["alibi_bias_max"])
        if config["attn_config"]["clip_qkv"]:
            writer.add_clamp_kqv(config["attn_config"]["clip_qkv"])


def _add_longrope(writer: gguf.GGUFWriter, config: dict[str, Any]) -> dict[str, Array]:
    """Adds Phi-3's scaling: its two sets of divisors are tensors, and the magnitude is a key."""
    writer.add_sliding_window(config["sliding_window"] or 0)
    rope, original = config["rope_parameters"], config["original_max_position_embeddings"]
    writer.add_rope_scaling_orig_ctx_len(original)
    if rope["rope_type"] != "longrope":
        return {}
    scale = config["max_position_embeddings"] / original
    writer.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(scale) / np.log(original))) if scale > 1 else 1.0)
    return {f"rope_factors_{kind}.weight": np.asarray(rope[f"{kind}_factor"], np.float32) for kind in ("short", "long")}


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    """Adds one token for every byte, and an end of text, like `tiny_models.save_tokenizer`."""
    from tokenizers import pre_tokenizers

    space = "\u0120"
    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|end|>", "<|pad|>", 2 * space]
    names += [f"<|{index}|>" for index in range(272 - len(names))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(names)
    writer.add_token_types([3 if name.startswith("<|") else 1 for name in names])
    writer.add_token_merges([f"{space} {space}"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(256)
