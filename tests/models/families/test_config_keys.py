"""Every key of config.json that transformers' class of a family reads is considered here, and only those.

The keys that a class reads are found in its source: the fields of its config class, the further keys which that class
accepts, and the accesses to `config` in its modeling code. A key that is missing from the tables below fails the first
test: say whether we read it, refuse it, or may ignore it. The other tests compare the tables with what `describe` does.
"""

from __future__ import annotations

import ast
import inspect
import sys
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import Any

import pytest
import transformers
from transformers import AutoConfig

from awq2trt.errors import UnsupportedError
from awq2trt.models.families import FAMILIES, DecoderSpec, describe_model, family_named

OTHER_MODELS = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "Vision", "Image", "Conditional")
"""Parts of the names of classes in a modeling file that are not the decoder with its head; also `Gemma3Model`."""

INERT = {
    "attention_dropout", "attn_pdrop", "classifier_dropout", "dropout", "embd_pdrop", "emb_pdrop", "hidden_dropout",
    "layerdrop", "resid_pdrop",  # only in training
    "init_std", "initializer_range", "init_device", "embedding_fraction",  # only for new weights
    "bos_token_id", "eos_token_id", "pad_token_id",  # of text, not of logits
    "use_cache", "pretraining_tp", "attn_impl", "norm_type",  # the same numbers, otherwise computed
    "num_labels", "problem_type", "is_decoder", "output_attentions", "output_hidden_states", "return_dict", "dtype",
    "_attn_implementation", "get_text_config", "text_config", "vision_config", "image_token_id", "mm_tokens_per_image",
}  # fmt: skip
"""Keys that classes read but that affect no logit of a causal decoder."""


@dataclass(frozen=True)
class Considered:
    """What is known about the keys of a family.

    Attributes:
        read: For each key, a value that differs from the example's and makes another model, with other keys if needed.
        refused: For each key, a value that is refused.
        inert: Keys that may have any value, in addition to `INERT`.
        beyond: Keys that the class ignores, but the code that the models were published with does not: refused.
    """

    read: dict[str, Any]
    refused: dict[str, Any] = field(default_factory=dict)
    inert: tuple[str, ...] = ()
    beyond: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class With:
    """A value that makes sense together with others, and what it is compared with: the example's value by default."""

    value: Any
    others: dict[str, Any]
    than: Any = None


LINEAR = {"rope_type": "linear", "factor": 2.0}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 6, "long_factor": [2.0] * 6}
KINDS = ["full_attention", "sliding_attention"]

LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": With(3, {"layer_types": None}),
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 24,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-3,
    "rope_parameters": LINEAR,
    "rope_scaling": LINEAR,
    "rope_theta": 5e5,
}
ROPE_ORIGINAL = {"original_max_position_embeddings": With(64, {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}})}
PROPORTIONAL = {"partial_rotary_factor": With(0.5, {"rope_scaling": {"rope_type": "proportional"}})}
QWEN = {
    "use_sliding_window": With(True, {"max_window_layers": 1, "sliding_window": 24}, than=False),
    "sliding_window": With(9, {"use_sliding_window": True, "max_window_layers": 1}),
    "max_window_layers": With(1, {"use_sliding_window": True, "sliding_window": 24}, than=0),
    "layer_types": With(KINDS[::-1], {"use_sliding_window": True, "sliding_window": 24}),
}
GEMMA_REFUSED = {"use_bidirectional_attention": True}

KEYS: dict[str, Considered] = {
    "llama": Considered(
        {**LLAMA_LIKE, **ROPE_ORIGINAL, **PROPORTIONAL, "tie_word_embeddings": True}
        | {"attention_bias": True, "mlp_bias": True},
        {"hidden_act": "gelu"},
    ),
    "mistral": Considered(
        {**LLAMA_LIKE, **ROPE_ORIGINAL, **PROPORTIONAL, "tie_word_embeddings": True, "sliding_window": 9},
        {"hidden_act": "gelu"},
        inert=("layer_types",),  # the class only warns of it
    ),
    "qwen2": Considered(
        {**LLAMA_LIKE, **ROPE_ORIGINAL, **PROPORTIONAL, **QWEN, "tie_word_embeddings": True}, {"hidden_act": "gelu"}
    ),
    "qwen3": Considered(
        {**LLAMA_LIKE, **ROPE_ORIGINAL, **PROPORTIONAL, **QWEN, "tie_word_embeddings": False, "attention_bias": True},
        {"hidden_act": "gelu"},
    ),
    "phi3": Considered(
        {**LLAMA_LIKE, "rope_parameters": LONGROPE, "rope_scaling": LONGROPE, "tie_word_embeddings": True}
        | {"sliding_window": 9, "partial_rotary_factor": 0.5}
        | {"original_max_position_embeddings": With(64, {"rope_scaling": LONGROPE})},
        {"hidden_act": "gelu"},
    ),
    "gemma": Considered(
        {**LLAMA_LIKE, **ROPE_ORIGINAL, **PROPORTIONAL, "tie_word_embeddings": False, "attention_bias": True},
        {"hidden_act": "silu", **GEMMA_REFUSED},
        beyond={"hidden_activation": "silu"},
    ),
    "gemma2": Considered(
        {**LLAMA_LIKE, **ROPE_ORIGINAL, **PROPORTIONAL, "tie_word_embeddings": False, "attention_bias": True}
        | {"sliding_window": 9, "layer_types": KINDS, "query_pre_attn_scalar": 9}
        | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
        {"hidden_activation": "silu", **GEMMA_REFUSED},
    ),
    "gemma3": Considered(
        {**LLAMA_LIKE, "tie_word_embeddings": False, "attention_bias": True, "layer_types": KINDS}
        | {"sliding_window": 9, "query_pre_attn_scalar": 9, "final_logit_softcapping": 9.0}
        | {"rope_parameters": {"full_attention": LINEAR}, "rope_local_base_freq": 5e4}
        | {"sliding_window_pattern": With(2, {"layer_types": None, "num_hidden_layers": 4})},
        {"hidden_activation": "silu", "attn_logit_softcapping": 9.0, **GEMMA_REFUSED},
    ),
    "opt": Considered(
        {"hidden_size": With(128, {"word_embed_proj_dim": None}), "ffn_dim": 128, "num_hidden_layers": 3}
        | {"num_attention_heads": 8, "vocab_size": 300, "max_position_embeddings": 512, "tie_word_embeddings": False},
        {"activation_function": "gelu", "do_layer_norm_before": False, "_remove_final_layer_norm": True}
        | {"word_embed_proj_dim": 32, "enable_bias": False, "layer_norm_elementwise_affine": False},
    ),
    "bloom": Considered(
        {"hidden_size": 192, "n_embed": 192, "n_layer": 3, "n_head": 8, "vocab_size": 300, "layer_norm_epsilon": 1e-3}
        | {
            "num_hidden_layers": With(3, {"n_layer": None}, than=2),
            "num_attention_heads": With(8, {"n_head": None}, than=6),
        }
        | {"tie_word_embeddings": False},
        {"apply_residual_connection_post_layernorm": True, "slow_but_exact": True},
    ),
    "mpt": Considered(
        {
            "d_model": 192,
            "hidden_size": With(192, {"d_model": None}, than=96),
            "n_heads": 8,
            "n_layers": 3,
            "max_seq_len": 512,
        }
        | {
            "num_hidden_layers": With(3, {"n_layers": None}, than=2),
            "num_attention_heads": With(8, {"n_heads": None}, than=6),
        }
        | {"vocab_size": 300, "layer_norm_epsilon": 1e-3, "tie_word_embeddings": False}
        | {"attn_config": {"clip_qkv": 2.0}, "attn_config.clip_qkv": 2.0, "attn_config.softmax_scale": 0.3},
        inert=(
            "learned_pos_emb",
            "attn_config.attn_pdrop",
            "attn_config.attn_impl",
            "attn_config.attn_uses_sequence_id",
        ),
        beyond={"no_bias": False, "logit_scale": 2.0, "expansion_ratio": 2, "attn_config.alibi": False}
        | {"attn_config.qk_ln": True, "attn_config.prefix_lm": True, "attn_config.attn_type": "multiquery_attention"}
        | {"attn_config.alibi_bias_max": 16},
    ),
    "falcon": Considered(
        {"hidden_size": 128, "n_embed": 128, "num_hidden_layers": 3, "num_attention_heads": 8, "vocab_size": 300}
        | {"num_ln_in_parallel_attn": With(1, {"new_decoder_architecture": True}), "layer_norm_epsilon": 1e-3}
        | {"num_kv_heads": With(2, {"new_decoder_architecture": True}), "new_decoder_architecture": True}
        | {"multi_query": False, "parallel_attn": False, "bias": True, "alibi": True, "ffn_hidden_size": 128}
        | {"max_position_embeddings": 512, "activation": "gelu_new", "tie_word_embeddings": False, **ROPE_ORIGINAL}
        | {"rope_parameters": LINEAR, "rope_scaling": LINEAR, "rope_theta": 5e5, **PROPORTIONAL},
        inert=("head_dim",),  # the class has no such key, but computes it
    ),
    "gpt_neox": Considered(
        {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 300}
        | {
            "hidden_act": "gelu_new",
            "intermediate_size": 128,
            "max_position_embeddings": 512,
            "layer_norm_eps": 1e-3,
            "attention_bias": False,
        }
        | {"tie_word_embeddings": True, "use_parallel_residual": False, "rotary_pct": 0.5, "rotary_emb_base": 5e5}
        | {"rope_parameters": LINEAR, "rope_scaling": LINEAR, **ROPE_ORIGINAL},
        {"head_dim": 8},
    ),
}

SPELLINGS = ("rope_scaling", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
"""Old keys of rotary parameters, which the common base of all config classes takes (modeling_rope_utils.py)."""


def _asked(node: ast.AST) -> str | None:
    """The key that an expression reads: config.key, self.config.key, getattr(config, "key"); otherwise None."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
        owner, name = node.args[0], node.args[1]
        return str(name.value) if _is_config(owner) and isinstance(name, ast.Constant) else None
    if not isinstance(node, ast.Attribute):
        return None
    if isinstance(node.value, ast.Attribute) and node.value.attr == "attn_config" and _is_config(node.value.value):
        return f"attn_config.{node.attr}"
    return node.attr if _is_config(node.value) else None


def _is_config(node: ast.AST) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name == "config"


def _config_class(family: str) -> Any:
    return type(AutoConfig.for_model(family_named(family).example["model_type"]))


@cache
def keys_that_the_class_reads(family: str) -> frozenset[str]:
    """Finds them in the source of its config class and of its modeling file."""
    config_class = _config_class(family)
    architecture = family_named(family).architectures[0]
    modeling = ast.parse(inspect.getsource(sys.modules[getattr(transformers, architecture).__module__]))
    found = {item.name for item in fields(config_class)} - {item.name for item in fields(config_class.__base__)}
    for name, kind in getattr(config_class, "sub_configs", {}).items():
        found |= {f"{name}.{item.name}" for item in fields(kind)} - {
            f"{name}.{item.name}" for item in fields(kind.__base__)
        }
    found |= set(config_class.attribute_map)
    for node in ast.walk(ast.parse(inspect.getsource(sys.modules[config_class.__module__]))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("get", "pop"):
            owner, name = node.func.value, node.args[0]
            if isinstance(owner, ast.Name) and owner.id == "kwargs" and isinstance(name, ast.Constant):
                found.add(str(name.value))
    for part in modeling.body:
        named = getattr(part, "name", "")
        if not any(other in named for other in OTHER_MODELS) and named != "Gemma3Model":
            found |= {key for node in ast.walk(part) if (key := _asked(node)) is not None}
    return frozenset(found)


def _with(family: str, key: str, value: Any, others: dict[str, Any]) -> DecoderSpec:
    """The example with one key changed, and others that it needs."""
    config = {**family_named(family).example, **others}
    owner, _, inner = key.partition(".")
    config[owner] = {**(config.get(owner) or {}), inner: value} if inner else value
    return describe_model(config)


def _apart(value: Any) -> With:
    return value if isinstance(value, With) else With(value, {})


@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
def test_every_key_that_the_class_reads_is_considered(family: str) -> None:
    said = KEYS[family]
    considered = {*said.read, *said.refused, *said.inert, *said.beyond, *INERT}
    unknown = keys_that_the_class_reads(family) - considered
    assert not unknown, f"{family}: decide about {sorted(unknown)}"


@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
def test_only_keys_that_the_class_reads_are_read(family: str) -> None:
    read = keys_that_the_class_reads(family) | set(SPELLINGS)
    assert {*KEYS[family].read, *KEYS[family].refused} <= read | {"num_attention_heads", "num_hidden_layers"}
    foreign = {key: value for other in KEYS.values() for key, value in other.read.items()}
    for key, value in foreign.items():
        if key not in {*read, *KEYS[family].read, *KEYS[family].refused, *KEYS[family].beyond} and "." not in key:
            example = family_named(family).example
            assert describe_model({**example, key: _apart(value).value}) == describe_model(example), key


@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
def test_what_is_read_makes_another_model(family: str) -> None:
    for key, value in KEYS[family].read.items():
        given, example = _apart(value), family_named(family).example
        owner, _, inner = key.partition(".")
        before = (example.get(owner) or {}).get(inner) if inner else example.get(key)
        before = before if given.than is None else given.than
        assert _with(family, key, given.value, given.others) != _with(family, key, before, given.others), key


@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
def test_what_is_refused_is_refused_by_name(family: str) -> None:
    for key, value in {**KEYS[family].refused, **KEYS[family].beyond}.items():
        with pytest.raises(UnsupportedError, match=key.rpartition(".")[2]):
            _with(family, key, value, {})


@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
def test_what_is_inert_changes_nothing(family: str) -> None:
    example = describe_model(family_named(family).example)
    for key in sorted(keys_that_the_class_reads(family) & {*INERT, *KEYS[family].inert}):
        assert _with(family, key, 7, {}) == example, key


@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
def test_a_missing_key_means_what_the_class_means(family: str) -> None:
    example = dict(family_named(family).example)
    for item in fields(_config_class(family)):
        if item.name not in KEYS[family].read or item.default in (None, MISSING):
            continue
        without = {key: value for key, value in example.items() if key != item.name}
        try:
            spec = describe_model(without)
        except UnsupportedError as error:
            assert item.name in str(error)  # noqa: PT017  (a size that every published config.json has)
            continue
        assert spec == describe_model({**without, item.name: item.default}), item.name
