"""Reads a GGUF file's header: metadata by key, and what config.json would say about the model.

In: metadata (keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) and names of tensors. Out: config.json's
content for transformers' class of the architecture. Where the metadata says nothing, llama.cpp's defaults hold
(src/llama-model.cpp, `load_hparams`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from awq2trt.errors import CheckpointError, UnsupportedError
from awq2trt.models.families.rope import llama3_scaled

if TYPE_CHECKING:
    from gguf import ReaderTensor

ROPE_FREQS: Final = "rope_freqs.weight"
ROPE_FACTORS: Final = ("rope_factors_short.weight", "rope_factors_long.weight")
"""Divisors of the rotary frequencies: Llama 3's, and LongRoPE's two sets."""

TOKEN_EMBEDDING: Final = "token_embd.weight"
HEAD: Final = "output.weight"

_REQUIRED: Final = object()

_GEMMA2_27B_BLOCKS: Final = 46
_GEMMA3_27B_BLOCKS: Final = 62
"""Blocks of the models whose attention scale does not follow from the head size; GGUF does not store the scale, and
llama.cpp also decides by the number of blocks."""

_ONE_VALUE: Final = {
    "attention.causal": True,
    "attention.scale": 0.0,
    "logit_scale": 0.0,
    "residual_scale": 0.0,
    "embedding_scale": 0.0,
}
"""Keys whose other values would mean another model, by architecture; 0 means none."""

_LLAMA3_FACTORS: Final = (8.0, 16.0, 32.0)
"""The factors of the published models; other tables of divisors are kept as tables."""


@dataclass(frozen=True)
class Header:
    """What a GGUF file says about itself.

    Attributes:
        where: Its path, for errors.
        architecture: `general.architecture`, the first part of most keys.
        fields: The metadata: the reader's field for each key.
        tensors: The tensors, by their names in the file.
    """

    where: str
    architecture: str
    fields: Mapping[str, Any]
    tensors: Mapping[str, ReaderTensor]

    def value(self, key: str, default: Any = _REQUIRED) -> Any:
        """Returns a value from the architecture's own keys.

        Raises:
            CheckpointError: The value is missing, and there is no default.
        """
        return metadata(self.fields, f"{self.architecture}.{key}", self.where, default)

    def divisors(self, tensor: str) -> list[float]:
        """Returns a tensor of divisors for rotary frequencies."""
        return [float(value) for value in np.asarray(self.tensors[tensor].data, np.float32).ravel()]


def metadata(fields: Mapping[str, Any], key: str, where: str, default: Any = _REQUIRED) -> Any:
    """Returns one value of the metadata as a Python value.

    Raises:
        CheckpointError: The value is missing, and there is no default.
    """
    if key in fields:
        return fields[key].contents()
    if default is _REQUIRED:
        raise CheckpointError(f"the metadata has no {key}.", where=where, fix="download the file again.")
    return default


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp stores an architecture (convert_hf_to_gguf.py).

    Attributes:
        name: The architecture in config.json.
        model_type: Its `model_type` in config.json.
        keys: Makes further keys of config.json.
        interleaved: Whether the rows of each head of q and k are interleaved (`LlamaModel.permute`).
        unit_offset: Whether norms are stored with the 1 added that otherwise the model's code adds.
        fuses_in_order: Whether q, k and v are one tensor with all rows of q first, however the checkpoint fuses them.
    """

    name: str
    model_type: str
    keys: Callable[[Header], Mapping[str, Any]]
    interleaved: bool = False
    unit_offset: bool = False
    fuses_in_order: bool = False


def config_of(header: Header, stored: Architecture) -> dict[str, Any]:
    """Makes the content of config.json.

    Raises:
        CheckpointError: The file lacks its token embedding or a key.
        UnsupportedError: The model is a mixture of experts.
    """
    if TOKEN_EMBEDDING not in header.tensors:
        raise CheckpointError("the file has no token embedding.", where=header.where, fix="download it again.")
    if header.value("expert_count", 0):
        raise UnsupportedError(
            f"the model is a mixture of {header.value('expert_count')} experts.",
            where=header.where,
            fix="models with experts are not supported; use a dense model.",
        )
    for key, expected in _ONE_VALUE.items():
        _refuse_unless(header, key, expected)
    return {
        "architectures": [stored.name],
        "model_type": stored.model_type,
        "vocab_size": int(header.tensors[TOKEN_EMBEDDING].shape[-1]),
        "tie_word_embeddings": HEAD not in header.tensors,
        **stored.keys(header),
        **_token_ids(header),
    }


def _token_ids(header: Header) -> dict[str, int]:
    """The special tokens that config.json names, as far as the file has them."""
    stored = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
    found = {key: metadata(header.fields, f"tokenizer.ggml.{name}", header.where, None) for key, name in stored.items()}
    return {key: token for key, token in found.items() if token is not None}


def _llama_like(header: Header) -> dict[str, Any]:
    """Keys that all models of Llama's shape share, except the rotary ones."""
    value, heads = header.value, header.value("attention.head_count")
    head_dim = value("attention.key_length", value("embedding_length") // heads if _positive(heads) else 0)
    _refuse_unless(header, "attention.value_length", head_dim)
    return {
        "hidden_size": value("embedding_length"),
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": value("context_length"),
        "rms_norm_eps": _single(value("attention.layer_norm_rms_epsilon")),
    }


def _positive(number: Any) -> bool:
    return isinstance(number, int) and number > 0


def _whole_heads(header: Header, keys: dict[str, Any], theta: float = 10000.0) -> dict[str, Any]:
    """Rotary parameters of a model that rotates all channels of its heads."""
    _refuse_unless(header, "rope.dimension_count", keys["head_dim"])
    return {"rope_parameters": _rope(header, theta, keys["head_dim"])}


def _llama(header: Header) -> dict[str, Any]:
    keys = _llama_like(header)
    _refuse_unless(header, "attention.sliding_window", 0)
    biases = {
        "attention_bias": "blk.0.attn_q.bias" in header.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in header.tensors,
    }
    return {**keys, **_whole_heads(header, keys), **biases, "hidden_act": "silu"}


def _qwen(header: Header) -> dict[str, Any]:
    keys = _llama_like(header)
    _refuse_unless(header, "attention.sliding_window", 0)
    bias = {"attention_bias": header.architecture == "qwen3" and "blk.0.attn_q.bias" in header.tensors}
    return {**keys, **_whole_heads(header, keys), **bias, "hidden_act": "silu", "use_sliding_window": False}


def _phi3(header: Header) -> dict[str, Any]:
    keys = _llama_like(header)
    rotated = header.value("rope.dimension_count", keys["head_dim"])
    original = header.value("rope.scaling.original_context_length", keys["max_position_embeddings"])
    share = {"partial_rotary_factor": rotated / keys["head_dim"]} if _positive(keys["head_dim"]) else {}
    return {
        **keys,
        **share,
        "hidden_act": "silu",
        "rope_parameters": {**_rope(header, 10000.0, rotated), **share},
        "original_max_position_embeddings": original,
        "sliding_window": header.value("attention.sliding_window", 0) or None,
    }


def _gemma(header: Header) -> dict[str, Any]:
    keys = _llama_like(header)
    return {**keys, **_whole_heads(header, keys), "hidden_act": "gelu_pytorch_tanh"}


def _gemma2(header: Header) -> dict[str, Any]:
    keys = _llama_like(header)
    return {
        **keys,
        **_whole_heads(header, keys),
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": header.value("attention.sliding_window", 4096),
        "attn_logit_softcapping": _single(header.value("attn_logit_softcapping", 50.0)),
        "final_logit_softcapping": _single(header.value("final_logit_softcapping", 30.0)),
        "query_pre_attn_scalar": _query_scalar(keys, _GEMMA2_27B_BLOCKS),
    }


def _gemma3(header: Header) -> dict[str, Any]:
    """Keys of Gemma 3, whose pattern of layers is always the same."""
    keys = _llama_like(header)
    local = {"rope_type": "default", "rope_theta": _single(header.value("rope.freq_base_swa", 10000.0))}
    full = _whole_heads(header, keys, 1e6)["rope_parameters"]
    cap = header.value("final_logit_softcapping", 0.0)
    return {
        **keys,
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": header.value("attention.sliding_window"),
        "query_pre_attn_scalar": _query_scalar(keys, _GEMMA3_27B_BLOCKS),
        "final_logit_softcapping": _single(cap) if cap else None,
        "rope_parameters": {"full_attention": full, "sliding_attention": local},
    }


def _query_scalar(keys: Mapping[str, Any], whole_blocks: int) -> int:
    whole = keys["num_hidden_layers"] == whole_blocks
    return int(keys["hidden_size"] // keys["num_attention_heads"] if whole else keys["head_dim"])


def _falcon(header: Header) -> dict[str, Any]:
    value, heads = header.value, header.value("attention.head_count")
    shared = value("attention.head_count_kv", 1)
    shape: dict[str, Any] = {"multi_query": True}
    if shared != 1:
        norms = 2 if "blk.0.attn_norm_2.weight" in header.tensors else 1
        shape = {"new_decoder_architecture": True, "num_kv_heads": shared, "num_ln_in_parallel_attn": norms}
    return {
        "hidden_size": value("embedding_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": heads,
        "ffn_hidden_size": value("feed_forward_length"),
        "max_position_embeddings": value("context_length"),
        "layer_norm_epsilon": _single(value("attention.layer_norm_epsilon")),
        "bias": "blk.0.attn_output.bias" in header.tensors,
        "rope_parameters": _rope(header, 10000.0, value("embedding_length") // heads if _positive(heads) else 0),
        **shape,
    }


def _bloom(header: Header) -> dict[str, Any]:
    value = header.value
    _refuse_unless(header, "feed_forward_length", 4 * value("embedding_length"))
    return {
        "hidden_size": value("embedding_length"),
        "n_layer": value("block_count"),
        "n_head": value("attention.head_count"),
        "seq_length": value("context_length"),
        "layer_norm_epsilon": _single(value("attention.layer_norm_epsilon")),
    }


def _mpt(header: Header) -> dict[str, Any]:
    value = header.value
    _refuse_unless(header, "feed_forward_length", 4 * value("embedding_length"))
    _refuse_unless(header, "attention.head_count_kv", value("attention.head_count"))
    attention = {
        "clip_qkv": _single(value("attention.clamp_kqv", 0.0)) or None,
        "alibi": bool(value("attention.max_alibi_bias", 8.0)),
        "alibi_bias_max": value("attention.max_alibi_bias", 8.0),
    }
    return {
        "d_model": value("embedding_length"),
        "n_layers": value("block_count"),
        "n_heads": value("attention.head_count"),
        "max_seq_len": value("context_length"),
        "layer_norm_epsilon": _single(value("attention.layer_norm_epsilon")),
        "attn_config": attention,
    }


def _gpt_neox(header: Header) -> dict[str, Any]:
    value, heads = header.value, header.value("attention.head_count")
    head_dim = value("embedding_length") // heads if _positive(heads) else 0
    rotated = value("rope.dimension_count", head_dim)
    share = {"partial_rotary_factor": rotated / head_dim} if head_dim else {}
    return {
        "hidden_size": value("embedding_length"),
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": heads,
        "max_position_embeddings": value("context_length"),
        "layer_norm_eps": _single(value("attention.layer_norm_epsilon")),
        "use_parallel_residual": bool(value("use_parallel_residual", True)),
        "attention_bias": "blk.0.attn_qkv.bias" in header.tensors,
        "rope_parameters": {**_rope(header, 10000.0, rotated), **share},
    }


def _rope(header: Header, theta: float, channels: int) -> dict[str, Any]:
    """Rotary parameters: base, scaling by metadata, and scaling by tensors of divisors.

    Raises:
        UnsupportedError: transformers has no name for this scaling.
    """
    plain: dict[str, Any] = {"rope_type": "default", "rope_theta": _single(header.value("rope.freq_base", theta))}
    scaled = _scaling(header)
    for tensor in (ROPE_FREQS, *ROPE_FACTORS):
        if tensor in header.tensors and len(header.divisors(tensor)) != channels // 2:
            raise CheckpointError(
                f"expected {channels // 2} divisors of rotary frequencies, got {len(header.divisors(tensor))}.",
                where=f"{header.where}: {tensor}",
                fix="download it again.",
            )
    tables = [tensor for tensor in (ROPE_FREQS, *ROPE_FACTORS) if tensor in header.tensors]
    if not tables:
        if scaled.get("rope_type") == "longrope":
            raise CheckpointError(
                f"rope.scaling.type is longrope, but the file has no {' and '.join(ROPE_FACTORS)}.",
                where=header.where,
                fix="download it again.",
            )
        return {**plain, **scaled}
    if scaled.get("rope_type", "longrope") != "longrope" or tables not in ([ROPE_FREQS], [*ROPE_FACTORS]):
        raise UnsupportedError(
            f"rotary scaling is given both by rope.scaling.type {scaled.get('rope_type')} and by {', '.join(tables)}.",
            where=header.where,
            fix="use the model's safetensors directory.",
        )
    return {**plain, **scaled, **_by_tensors(header, tables, plain["rope_theta"])}


def _scaling(header: Header) -> dict[str, Any]:
    """Reads `rope.scaling.*` and the older `rope.scale_linear`; empty without scaling."""
    value = header.value
    factor = value("rope.scaling.factor", value("rope.scale_linear", 0.0))
    kind = value("rope.scaling.type", "linear" if factor else "none")
    magnitude = _single(value("rope.scaling.attn_factor", value("rope.scaling.yarn_attn_factor", 1.0)))
    if kind == "none" or (kind == "linear" and not factor):
        return {}
    if kind == "linear":
        return {} if factor == 1 else {"rope_type": "linear", "factor": _single(factor)}
    if kind == "longrope":
        return {"rope_type": "longrope"}
    if kind != "yarn":
        raise UnsupportedError(
            f"rope.scaling.type: expected none, linear, yarn or longrope, got {kind!r}.",
            where=header.where,
            fix="this scaling is not supported, and without it the model would be wrong.",
        )
    for key in ("rope.scaling.yarn_log_multiplier", "rope.scaling.alpha"):
        _refuse_unless(header, key, 0.0)
    yarn = {
        "rope_type": "yarn",
        "factor": _single(factor),
        "original_max_position_embeddings": value("rope.scaling.original_context_length", value("context_length")),
        "beta_fast": _single(value("rope.scaling.yarn_beta_fast", 32.0)),
        "beta_slow": _single(value("rope.scaling.yarn_beta_slow", 1.0)),
    }
    # ggml multiplies the paper's magnitude by this factor; in transformers the factor is the complete magnitude.
    scale = {"attention_factor": magnitude * (0.1 * np.log(yarn["factor"]) + 1)} if magnitude != 1 else {}
    return {**yarn, **scale}


def _by_tensors(header: Header, tables: list[str], theta: float) -> dict[str, Any]:
    """Scaling by stored divisors; Llama 3.1's are recognised, so that config.json describes them as usual."""
    if tables == [*ROPE_FACTORS]:
        short, long = (header.divisors(tensor) for tensor in ROPE_FACTORS)
        original = header.value("rope.scaling.original_context_length", header.value("context_length"))
        return {
            "rope_type": "longrope",
            "short_factor": short,
            "long_factor": long,
            "original_max_position_embeddings": original,
            "attention_factor": _single(header.value("rope.scaling.attn_factor", 1.0)),
        }
    divisors = np.asarray(header.divisors(ROPE_FREQS))
    plain = theta ** -(np.arange(divisors.size) / divisors.size)
    for factor in _LLAMA3_FACTORS:
        scaling = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        if np.allclose(plain / llama3_scaled(plain, scaling), divisors, rtol=1e-4):
            return scaling
    same = {f"{kind}_factor": divisors.tolist() for kind in ("short", "long")}
    return {"rope_type": "longrope", **same, "factor": 1.0, "attention_factor": 1.0}


def _refuse_unless(header: Header, key: str, expected: float) -> None:
    found = header.value(key, expected)
    if found != expected:
        raise UnsupportedError(
            f"{header.architecture}.{key}: expected {expected}, got {found}.",
            where=header.where,
            fix="this variant is not supported; use the model's safetensors directory.",
        )


def _single(value: float) -> float:
    """Returns a number that GGUF stores in single precision as it was meant: 9.999999747378752e-06 becomes 1e-5."""
    return float(np.format_float_positional(np.float32(value)))


ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "llama": Architecture("LlamaForCausalLM", "llama", _llama, interleaved=True),
    "qwen2": Architecture("Qwen2ForCausalLM", "qwen2", _qwen),
    "qwen3": Architecture("Qwen3ForCausalLM", "qwen3", _qwen),
    "phi3": Architecture("Phi3ForCausalLM", "phi3", _phi3),
    "gemma": Architecture("GemmaForCausalLM", "gemma", _gemma, unit_offset=True),
    "gemma2": Architecture("Gemma2ForCausalLM", "gemma2", _gemma2, unit_offset=True),
    "gemma3": Architecture("Gemma3ForCausalLM", "gemma3_text", _gemma3, unit_offset=True),
    "falcon": Architecture("FalconForCausalLM", "falcon", _falcon, fuses_in_order=True),
    "bloom": Architecture("BloomForCausalLM", "bloom", _bloom, fuses_in_order=True),
    "mpt": Architecture("MptForCausalLM", "mpt", _mpt),
    "gptneox": Architecture("GPTNeoXForCausalLM", "gpt_neox", _gpt_neox, fuses_in_order=True),
}
"""Maps `general.architecture` to how it is stored. OPT is missing, because llama.cpp does not support it."""
