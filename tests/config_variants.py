"""Random variants of every family's config.json, drawn from the keys that its class reads."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from awq2trt.models.families import family_named

ORIGINAL = 24
"""Number of positions before a scaling sets in; `LENGTHS` has shorter and longer sequences."""

LENGTHS = (ORIGINAL, 44)

Config = dict[str, Any]

_Draw = Callable[[random.Random, Config], Config]


def draw(family: str, seed: int) -> Config:
    """Draws a variant of the family's example; the same seed gives the same variant."""
    chance = random.Random(f"{family} {seed}")
    config = dict(family_named(family).example)
    return {**config, **_DRAWS[family](chance, config)}


def _sizes(chance: random.Random, *, head_dim: bool = True) -> Config:
    heads = chance.choice([2, 4, 8])
    sizes: Config = {
        "num_attention_heads": heads,
        "num_key_value_heads": chance.choice([count for count in (1, 2, 4, 8) if heads % count == 0]),
        "intermediate_size": chance.choice([64, 96]),
        "num_hidden_layers": chance.choice([1, 2, 3]),
        "rms_norm_eps": chance.choice([1e-6, 1e-5, 1e-2]),
        "tie_word_embeddings": chance.choice([True, False]),
    }
    return sizes | ({"head_dim": chance.choice([8, 16, 24])} if head_dim else {})


def _rope(chance: random.Random, pairs: int) -> Config:
    """A scaling for heads with this many rotated channel pairs, in the old spelling or the new."""
    original = {"original_max_position_embeddings": ORIGINAL}
    positions, scaling = chance.choice(
        [
            (96, {}),
            (96, {"rope_type": "linear", "factor": chance.choice([1.5, 4.0])}),
            (ORIGINAL, {"rope_type": "dynamic", "factor": chance.choice([2.0, 4.0])}),
            (96, {"rope_type": "yarn", "factor": 4.0, **original}),
            (96, {"rope_type": "yarn", "factor": 4.0, "beta_fast": 8.0, "truncate": False, "attention_factor": 1.1}),
            (96, {"rope_type": "yarn", "factor": 8.0, "mscale": 1.0, "mscale_all_dim": 0.8, **original}),
            (96, {**_long(chance, pairs), **original}),
            (96, {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **original}),
        ]
    )
    return {"max_position_embeddings": positions, **_spelled(chance, scaling)}


def _long(chance: random.Random, pairs: int) -> Config:
    factors = {f"{kind}_factor": [round(chance.uniform(1, 4), 2) for _ in range(pairs)] for kind in ("short", "long")}
    return {"rope_type": "longrope", **factors}


def _spelled(chance: random.Random, scaling: Config) -> Config:
    theta = chance.choice([10000.0, 500000.0])
    if chance.random() < 0.5:
        return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **scaling}}
    old = {"type" if key == "rope_type" and chance.random() < 0.5 else key: value for key, value in scaling.items()}
    return {"rope_theta": theta, "rope_scaling": old or None}


def _llama(chance: random.Random, config: Config) -> Config:
    sizes = _sizes(chance)
    biases = {"attention_bias": chance.choice([True, False]), "mlp_bias": chance.choice([True, False])}
    some = chance.choice([{}, {"num_key_value_heads": None}])
    return {**sizes, **some, **biases, **_rope(chance, sizes["head_dim"] // 2), "sliding_window": 5}  # which it ignores


def _mistral(chance: random.Random, config: Config) -> Config:
    sizes = _sizes(chance)
    window = {"sliding_window": chance.choice([None, 7, 30]), "attention_bias": True}  # the second is ignored
    return {**sizes, **window, **_rope(chance, sizes["head_dim"] // 2)}


def _qwen(chance: random.Random, config: Config) -> Config:
    sizes, layers = _sizes(chance), chance.choice([1, 2, 3])
    kinds = [chance.choice(["full_attention", "sliding_attention"]) for _ in range(layers)]
    windows = {
        "use_sliding_window": True,
        "sliding_window": chance.choice([7, 30]),
        "max_window_layers": chance.choice([0, 1, 2]),
        "layer_types": chance.choice([kinds, None]),
    }
    bias = {"attention_bias": chance.choice([True, False])}
    slides = windows if chance.random() < 0.7 else {"use_sliding_window": False, "sliding_window": 7}
    return {**sizes, "num_hidden_layers": layers, **bias, **slides, **_rope(chance, sizes["head_dim"] // 2)}


def _phi3(chance: random.Random, config: Config) -> Config:
    sizes, share = _sizes(chance, head_dim=False), chance.choice([0.5, 1.0])
    pairs = int(config["hidden_size"] // sizes["num_attention_heads"] * share) // 2
    scaling = chance.choice([{}, {**_long(chance, pairs), "rope_type": chance.choice(["longrope", "su", "yarn"])}])
    original = {"original_max_position_embeddings": ORIGINAL}
    scaling = {**scaling, **(original if scaling else {})}  # without it, transformers refuses the older names
    positions = {**original, "max_position_embeddings": chance.choice([48, 96])}
    window = {"sliding_window": chance.choice([None, 7, 30]), "partial_rotary_factor": share}
    return {**sizes, **window, **positions, **_spelled(chance, scaling)}


def _gemma(chance: random.Random, config: Config) -> Config:
    sizes = {**_sizes(chance), "num_key_value_heads": 1, "attention_bias": chance.choice([True, False])}
    act = {"hidden_act": chance.choice(["gelu", "gelu_pytorch_tanh"])}
    return {**sizes, **act, **_rope(chance, sizes["head_dim"] // 2)}


def _gemma2(chance: random.Random, config: Config) -> Config:
    caps = {
        "attn_logit_softcapping": chance.choice([None, 3.0, 50.0]),
        "final_logit_softcapping": chance.choice([None, 3.0, 30.0]),
        "query_pre_attn_scalar": chance.choice([8, 32]),
        "sliding_window": chance.choice([7, 30]),
    }
    return {**_gemma(chance, config), **caps}


def _gemma3(chance: random.Random, config: Config) -> Config:
    drawn = _gemma2(chance, config)
    layers, pairs = chance.choice([2, 4]), drawn["head_dim"] // 2
    for key in ("rope_parameters", "rope_scaling", "rope_theta", "attn_logit_softcapping", "hidden_act"):
        drawn.pop(key, None)
    full = {"rope_type": "linear", "factor": 8.0}
    scaled = {**_long(chance, pairs), "original_max_position_embeddings": ORIGINAL}
    rope: Config = chance.choice(
        [
            {"rope_scaling": full, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
            {"rope_parameters": {"full_attention": full, "sliding_attention": {"rope_theta": 2e4}}},
            {"rope_parameters": {"full_attention": scaled, "sliding_attention": {"rope_type": "default"}}},
            {},
        ]
    )
    kinds = [chance.choice(["full_attention", "sliding_attention"]) for _ in range(layers)]
    pattern: Config = chance.choice([{"sliding_window_pattern": 2, "layer_types": None}, {"layer_types": kinds}])
    return {**drawn, "num_hidden_layers": layers, "max_position_embeddings": 96, **rope, **pattern}


def _opt(chance: random.Random, config: Config) -> Config:
    return {
        "num_attention_heads": chance.choice([1, 4, 8]),
        "ffn_dim": chance.choice([32, 96]),
        "num_hidden_layers": chance.choice([1, 3]),
        "tie_word_embeddings": chance.choice([True, False]),
        "word_embed_proj_dim": chance.choice([None, 64]),
    }


def _bloom(chance: random.Random, config: Config) -> Config:
    return {
        "n_head": chance.choice([2, 3, 6, 8]),
        **chance.choice([{}, {"hidden_size": 48, "n_embed": 96}]),
        "layer_norm_epsilon": chance.choice([1e-5, 1e-2]),
        "tie_word_embeddings": chance.choice([True, False]),
        "pretraining_tp": chance.choice([1, 2]),
    }


def _mpt(chance: random.Random, config: Config) -> Config:
    attention = {"clip_qkv": chance.choice([None, 0.5, 3.0]), "softmax_scale": chance.choice([None, 0.3])}
    return {
        "n_heads": chance.choice([2, 3, 6, 8]),
        "attn_config": attention,
        "layer_norm_epsilon": chance.choice([1e-5, 1e-2]),
        "tie_word_embeddings": chance.choice([True, False]),
    }


def _falcon(chance: random.Random, config: Config) -> Config:
    heads = chance.choice([2, 4, 8])
    shape: Config = chance.choice(
        [
            {
                "new_decoder_architecture": True,
                "num_kv_heads": 2,
                "num_ln_in_parallel_attn": chance.choice([1, 2, None]),
            },
            {"new_decoder_architecture": True, "num_kv_heads": None},
            {"multi_query": True, "parallel_attn": chance.choice([True, False]), "num_kv_heads": heads},
            {"multi_query": False, "parallel_attn": chance.choice([True, False])},
        ]
    )
    place: Config = chance.choice([{"alibi": True}, _rope(chance, 64 // heads // 2)])
    return {
        "num_attention_heads": heads,
        "bias": chance.choice([True, False]),
        "activation": chance.choice(["gelu", "gelu_new"]),
        "ffn_hidden_size": chance.choice([None, 96]),
        "layer_norm_epsilon": chance.choice([1e-5, 1e-2]),
        "tie_word_embeddings": chance.choice([True, False]),
        **shape,
        **place,
    }


def _gpt_neox(chance: random.Random, config: Config) -> Config:
    heads, share = chance.choice([1, 2, 4]), chance.choice([0.25, 0.5, 1.0])
    rope = _rope(chance, int(64 // heads * share) // 2)
    if "rope_theta" in rope:
        rope["rotary_emb_base"] = rope["rope_theta"] * 2  # of the two, the one that the class reads
    return {
        "num_attention_heads": heads,
        "rotary_pct": share,
        "hidden_act": chance.choice(["gelu", "gelu_new"]),
        "attention_bias": chance.choice([True, False]),
        "use_parallel_residual": chance.choice([True, False]),
        "tie_word_embeddings": chance.choice([True, False]),
        **rope,
    }


_DRAWS: dict[str, _Draw] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen,
    "qwen3": _qwen,
    "phi3": _phi3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "opt": _opt,
    "bloom": _bloom,
    "mpt": _mpt,
    "falcon": _falcon,
    "gpt_neox": _gpt_neox,
}

GGUF_FAMILIES = tuple(family for family in _DRAWS if family != "opt")
"""The families that llama.cpp's converter supports."""

_GGUF_ROPES = ("default", "linear", "yarn")
"""Scalings that the converter writes as keys, without any further parameters."""


def draw_for_gguf(family: str, seed: int) -> Config:
    """Draws a variant that a GGUF file can express: keys that llama.cpp lacks have the values that its code assumes."""
    config = draw(family, seed)
    if "rope_scaling" in config or "rope_parameters" in config:
        config["rope_parameters"] = _gguf_rope(family, config)
        config["max_position_embeddings"] = max(config["max_position_embeddings"], *LENGTHS)
    for key in ("rope_scaling", "rope_theta", "rotary_emb_base"):
        config.pop(key, None)
    return {**config, **_TAKEN_FOR_GRANTED.get(family, {}), **_gguf_shape(family, config)}


def _gguf_rope(family: str, config: Config) -> Config:
    said = config.get("rope_parameters") or {
        "rope_theta": config.get("rope_theta"),
        **(config.get("rope_scaling") or {}),
    }
    kind = said.get("rope_type", said.get("type", "default"))
    plain = {"rope_type": "default", "rope_theta": said.get("rope_theta") or 10000.0}
    if family == "phi3":
        scaled = {key: value for key, value in said.items() if key != "type"} | {"rope_type": "longrope"}
        return plain if kind == "default" else {**plain, **scaled}
    extra = {"mscale", "mscale_all_dim", "beta_fast", "beta_slow", "truncate", "attention_factor"} & {*said}
    if kind not in _GGUF_ROPES or extra:
        return plain
    return {**plain, **{key: value for key, value in said.items() if key != "type"}, "rope_type": kind}


def _gguf_shape(family: str, config: Config) -> Config:
    """Sizes that depend on each other in llama.cpp."""
    if family in ("gemma2", "gemma3"):
        return {"query_pre_attn_scalar": config["head_dim"]}
    if family == "bloom":
        return {"n_embed": None}
    if family == "mpt":
        return {"attn_config": {**config["attn_config"], "softmax_scale": None}}
    if family == "gpt_neox":
        return {"partial_rotary_factor": config["rotary_pct"]}
    return {}


_PLAIN: Config = {"attention_bias": False, "tie_word_embeddings": True}
"""Settings of Gemma that llama.cpp assumes: no biases, and no separate head."""

_TAKEN_FOR_GRANTED: dict[str, Config] = {
    "mistral": {"sliding_window": None},
    "qwen2": {"use_sliding_window": False, "layer_types": None},
    "qwen3": {"use_sliding_window": False, "layer_types": None},
    "gemma": {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"} | _PLAIN,
    "gemma2": {
        **_PLAIN,
        "hidden_act": "gelu_pytorch_tanh",
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3": {
        **_PLAIN,
        "hidden_activation": "gelu_pytorch_tanh",
        "final_logit_softcapping": None,
        "layer_types": None,
        "sliding_window_pattern": 6,
        "rope_parameters": None,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "num_hidden_layers": 7,
    },
    "falcon": {"alibi": False, "parallel_attn": True, "activation": "gelu", "multi_query": True},
    "gpt_neox": {"hidden_act": "gelu"},
}
"""What the architecture's code in llama.cpp does, regardless of the file."""
