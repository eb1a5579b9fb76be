"""The custom operators, declared once: domain, names, inputs, attributes, version.

The exporter writes these names, the ONNX function bodies define what they mean, and the plugin library implements them
(`plugins/ops`; a test compares its C++ constants with these). The normative text is `plugins/FORMAT.md`.
"""

from __future__ import annotations

from typing import Final

DOMAIN: Final = "awq2trt"
DOMAIN_VERSION: Final = 1

ONNX_OPSET: Final = 24
"""Standard opset of exported graphs: `TensorScatter` needs 24, `Attention` and `RotaryEmbedding` 23."""

ONNX_IR_VERSION: Final = 11
"""IR version of exported graphs. Function overloads need 10, and opset 24 goes with 11."""

PLUGIN_VERSION: Final = "1"
PLUGIN_NAMESPACE: Final = "awq2trt"

ATTR_PLUGIN_VERSION: Final = "plugin_version"
ATTR_PLUGIN_NAMESPACE: Final = "plugin_namespace"

PLUGIN_ATTRIBUTES: Final = {ATTR_PLUGIN_VERSION: PLUGIN_VERSION, ATTR_PLUGIN_NAMESPACE: PLUGIN_NAMESPACE}
"""Attributes that every node of ours has besides those of its operator: because of them, TensorRT prefers a registered
plugin to a function body of the same name."""

W4A16_LINEAR: Final = "W4A16Linear"
"""y[..., N] = x[..., K] @ (scales * (codes - zeros))^T + bias.

Inputs, without gaps: X [..., K] fp16|bf16, codes INT4 [N, K], scales [N, ceil(K/G)] as X,
then zeros INT4 [N, ceil(K/G)] if `has_zeros`, then bias [N] as X if `has_bias`.
"""

W8A16_LINEAR: Final = "W8A16Linear"
"""`W4A16Linear` with INT8 codes and zero points."""

W4A16_EMBEDDING: Final = "W4A16Embedding"
"""y[..., K] = rows `ids` of scales * (codes - zeros).

Inputs, without gaps: scales [V, ceil(K/G)] fp16|bf16, first because y has their type, codes INT4 [V, K], ids int64
[...], then zeros INT4 [V, ceil(K/G)] if `has_zeros`. Attributes as those of `W4A16_LINEAR`, without `has_bias`.
"""

W8A16_EMBEDDING: Final = "W8A16Embedding"
"""`W4A16Embedding` with INT8 codes and zero points."""

LINEAR_OF_BITS: Final = {4: W4A16_LINEAR, 8: W8A16_LINEAR}
"""The linear operator for each width of a code in the graph; 2- and 3-bit codes are exported as 4-bit codes."""

EMBEDDING_OF_BITS: Final = {4: W4A16_EMBEDDING, 8: W8A16_EMBEDDING}

QUANTIZED_OPERATORS: Final = (*LINEAR_OF_BITS.values(), *EMBEDDING_OF_BITS.values())
"""Operators with codes; every executor can run them by a function body."""

FEATURES_MULTIPLE: Final = 8
"""K of an operator with codes must be a multiple of this, so that rows of INT4 codes are complete 32-bit words."""

CODE_BITS: Final = 4
"""Width, in the graph, of the codes of a block's linears. Narrower ones are exported as 4-bit codes."""

ATTR_GROUP_SIZE: Final = "group_size"
ATTR_HAS_ZEROS: Final = "has_zeros"
ATTR_HAS_BIAS: Final = "has_bias"

CACHED_ATTENTION: Final = "CachedAttention"
"""Self-attention, from merged queries, keys and values to its output; it writes the cache on the way.

Inputs, without gaps: QKV [B, S, (Hq + 2 Hkv) D] T, cache_position int64 [B], past_key and past_value [B, Hkv, C, D] T,
then cos and sin [at least C, rotary_dim / 2] T if `rotary_dim`, gains of queries and keys [D] T if `has_norms`, slopes
float32 [Hq] if `has_alibi`, int64 [at least C] if `has_visible_end`: the last slot that the token in every slot sees,
in place of its own. Outputs: Y [B, S, Hq D] T, present_key and present_value, which may be the memory of the
past. The steps in order: clip, norms of heads, rotation, cache, scores times `scale`, softcap, ALiBi, mask, softmax,
values. An attribute of 0 leaves its step out.

With `has_cache_scales` caches are int8, and the last two inputs, and the last two outputs, are scales of
keys and values, [B, Hkv, C] T.
"""

ATTR_HAS_CACHE_SCALES: Final = "has_cache_scales"
"""1; only nodes with scales of the cache have this attribute."""

ATTR_HAS_VISIBLE_END: Final = "has_visible_end"
"""1; only nodes whose tokens see what is behind them have this attribute."""

ATTENTION_INT_ATTRIBUTES: Final = (
    "num_heads",
    "num_kv_heads",
    "rotary_dim",
    "interleaved",
    "window",
    "has_norms",
    "has_alibi",
)
ATTENTION_FLOAT_ATTRIBUTES: Final = ("scale", "softcap", "clip", "norm_eps")

ATTENTION_HEAD_SIZES: Final = (64, 80, 96, 112, 128, 256)
"""Head sizes that `CachedAttention` has kernels for."""

RESIDUAL_NORM: Final = "ResidualNorm"
"""A norm over the last axis, applied to a residual sum if `has_residual`.

Inputs, without gaps: X [..., H] T, residual [..., H] if `has_residual`, gain [H], bias [H] if `has_bias`.
Outputs: Y [..., H], and if `has_residual` the sum, rounded to T, that Y is the norm of.
"""

NORM_INT_ATTRIBUTES: Final = ("has_residual", "has_bias", "rms")
NORM_FLOAT_ATTRIBUTES: Final = ("epsilon",)

GATED_ACTIVATION: Final = "GatedActivation"
"""activation(gate) * up: X [..., 2 I] T, with the gates first, gives Y [..., I]."""

ATTR_ACTIVATION: Final = "activation"
ACTIVATION_CODES: Final = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}
"""The values of `activation`; `gelu` is the exact one."""

ACTIVATION_NAMES: Final = {code: name for name, code in ACTIVATION_CODES.items()}

FUSED_LINEAR: Final = "FusedLinear"
"""A norm, a 4-bit linear of its result, an activation of that, `gated` or not, and a sum; all but the linear may be
missing.

Inputs, without gaps: X [..., K] T, residual [..., K] if `has_residual`, gain [K] if `has_norm`, the norm's bias [K] if
`has_norm_bias`, then the inputs that follow X in a `W4A16_LINEAR`, then the addend [..., N] if `has_addend`. Outputs:
Y [..., N], or [..., N/2] if `gated`; and with `has_residual` the sum [..., K], rounded to T, the norm's input.
"""

ATTR_HAS_NORM: Final = "has_norm"
ATTR_HAS_RESIDUAL: Final = "has_residual"
ATTR_HAS_NORM_BIAS: Final = "has_norm_bias"
ATTR_HAS_ACTIVATION: Final = "has_activation"
ATTR_GATED: Final = "gated"
ATTR_HAS_ADDEND: Final = "has_addend"

FUSED_LINEAR_INT_ATTRIBUTES: Final = (
    ATTR_GROUP_SIZE,
    ATTR_HAS_ZEROS,
    ATTR_HAS_BIAS,
    ATTR_HAS_NORM,
    ATTR_HAS_RESIDUAL,
    ATTR_HAS_NORM_BIAS,
    "rms",
    ATTR_HAS_ACTIVATION,
    ATTR_ACTIVATION,
    ATTR_GATED,
    ATTR_HAS_ADDEND,
)
FUSED_LINEAR_FLOAT_ATTRIBUTES: Final = ("epsilon",)

BEST_TOKEN: Final = "BestToken"
"""Y [...] int64: the place of the largest number of each row of X [..., V], the first of equal ones.

Only for ONNX Runtime, at the end of files that are lowered for its CUDA provider (`graph.next_token`).
"""

FUSED_WIDTH_MULTIPLE: Final = 8
"""H of a `ResidualNorm`, I of a `GatedActivation`, and the last size of Y of a `FusedLinear` with an activation or an
addend must be multiples of this."""

MOST_TOKENS: Final = 65535
"""The most new tokens that a call of the fused operators may have."""

FUSED_OPERATORS: Final = (CACHED_ATTENTION, RESIDUAL_NORM, GATED_ACTIVATION, FUSED_LINEAR)
