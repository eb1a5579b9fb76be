"""Decoders of published sizes, by name, for `--shape` of `bench` and `targets`. They have no weights.

In: a name. Out: a config.json, with the sizes in the model's own on the Hugging Face hub.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Final

from awq2trt.errors import UsageError

_LLAMA: Final[Mapping[str, Any]] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
}
_MPT: Final[Mapping[str, Any]] = {
    "architectures": ["MptForCausalLM"],
    "model_type": "mpt",
    "vocab_size": 50432,
    "no_bias": True,
    "attn_config": {"alibi": True, "attn_type": "multihead_attention"},
    "torch_dtype": "float16",
}

_QWEN3: Final[Mapping[str, Any]] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "head_dim": 128,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000.0,
    "torch_dtype": "bfloat16",
}

SHAPES: Final[Mapping[str, Mapping[str, Any]]] = {
    "llama-2-7b": {
        **_LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "num_hidden_layers": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
    },
    "llama-2-13b": {
        **_LLAMA,
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_attention_heads": 40,
        "num_key_value_heads": 40,
        "num_hidden_layers": 40,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
    },
    "llama-2-70b": {
        **_LLAMA,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "num_hidden_layers": 80,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
    },
    "llama-3-8b": {
        **_LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_hidden_layers": 32,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
    },
    "mpt-7b": {**_MPT, "d_model": 4096, "n_heads": 32, "n_layers": 32, "max_seq_len": 2048},
    "mpt-30b": {**_MPT, "d_model": 7168, "n_heads": 64, "n_layers": 48, "max_seq_len": 8192},
    "falcon-7b": {
        "architectures": ["FalconForCausalLM"],
        "model_type": "falcon",
        "hidden_size": 4544,
        "num_attention_heads": 71,
        "num_hidden_layers": 32,
        "vocab_size": 65024,
        "multi_query": True,
        "parallel_attn": True,
        "new_decoder_architecture": False,
        "alibi": False,
        "bias": False,
        "torch_dtype": "float16",
    },
    "qwen3-0.6b": {
        **_QWEN3,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
    "qwen3-1.7b": {
        **_QWEN3,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
    "qwen3-4b": {
        **_QWEN3,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": True,
    },
    "qwen3-8b": {
        **_QWEN3,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
}

_LAYER_KEYS: Final = ("num_hidden_layers", "n_layers")


def shape_config(name: str, layers: int | None = None) -> dict[str, Any]:
    """Returns config.json of a published size.

    Args:
        name: A name in `SHAPES`.
        layers: Number of blocks; None for all of them.

    Raises:
        UsageError: There is no such shape.
    """
    if name not in SHAPES:
        closest = difflib.get_close_matches(name.lower(), SHAPES, n=1, cutoff=0.0)[0]
        known = ", ".join(SHAPES)
        raise UsageError(
            f"unknown shape {name!r}, expected one of: {known}.", where="--shape", fix=f"did you mean {closest}?"
        )
    config = dict(SHAPES[name])
    if layers is not None:
        config |= {key: layers for key in _LAYER_KEYS if key in config}
    return config
