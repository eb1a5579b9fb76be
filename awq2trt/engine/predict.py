"""Predicts from a model's description what it needs on a device: memory to build and run, and bytes read per token.

In: a `DecoderSpec`, a scheme, the cache's capacity. Out: bytes, by the arithmetic below. Nothing here was measured on a
Jetson. The weights and the cache are exact; comments say how good the rest is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from awq2trt.models.families import DecoderSpec
from awq2trt.models.vision.description import SeeingSpec
from awq2trt.opset import CODE_BITS
from awq2trt.scheme import QuantScheme

_FLOAT_BYTES: Final = 2
"""Size of fp16 or bf16: activations, unquantized weights, a cache of such numbers, or the scales of a cache of
codes."""

_NOTHING: Final[Mapping[str, QuantScheme]] = MappingProxyType({})

_MIB: Final = 1 << 20

WORKSPACE_BYTES: Final = 512 * _MIB
"""Scratch memory that TensorRT may use for one layer, if none of our operators needs more."""

_BUILD_COPIES: Final = 3
"""Copies of the weights in memory while TensorRT builds: the parser's, the builder's and the serialized engine's. A
Llama-2-7B with a W4A16 plugin peaked at 11 GB for an engine of 3.5 GB in TensorRT-RTX 1.7.1 on a machine without a GPU.
"""

_RUNTIME_BYTES: Final = 768 * _MIB
"""Memory of the CUDA context and of TensorRT's libraries. This is an assumption."""


@dataclass(frozen=True)
class Footprint:
    """Sizes of a model in an engine, all in bytes.

    Attributes:
        weights_bytes: The weights in the engine: codes, scales, zero points, and whatever stays in half precision.
        read_bytes: How many of these bytes decoding one token reads: all except the embedding, of which it reads one
            row.
        cache_bytes: Keys and values of one conversation at full capacity.
        activation_bytes: Activations in the longest prefill: an upper bound from the largest tensors that live at the
            same time.
        workspace_bytes: Scratch memory that a layer may use; a kit's script sets it as the limit.
        beside_bytes: Weights of the graphs beside a decoder, of a model that sees, as far as they are not counted.
        build_bytes: Peak memory while TensorRT builds the engine.
        run_bytes: Memory while the engine runs.
    """

    weights_bytes: int
    read_bytes: int
    cache_bytes: int
    activation_bytes: int
    workspace_bytes: int = WORKSPACE_BYTES
    beside_bytes: int = 0

    @property
    def build_bytes(self) -> int:
        return _BUILD_COPIES * self.weights_bytes + self.activation_bytes + self.workspace_bytes + _RUNTIME_BYTES

    @property
    def run_bytes(self) -> int:
        weights = self.weights_bytes + self.beside_bytes
        return weights + self.cache_bytes + self.activation_bytes + self.workspace_bytes + _RUNTIME_BYTES


@dataclass(frozen=True)
class AttentionPlan:
    """How an engine keeps keys and values.

    Attributes:
        fused: Whether attention is one layer that writes the cache in place: ours, or TensorRT's own (10.15 and later).
            If not, attention scores are tensors, and the cache is written to a copy.
        int8_cache: Whether they are 8-bit codes with a scale for each token and head.
    """

    fused: bool = True
    int8_cache: bool = False


def predict_footprint(
    spec: DecoderSpec,
    scheme: QuantScheme,
    capacity: int,
    *,
    head: QuantScheme | None = None,
    longest_prefill: int | None = None,
    attention: AttentionPlan | None = None,
) -> Footprint:
    """Predicts the sizes of a model in an engine, for one conversation.

    Args:
        spec: The model.
        scheme: Scheme of every linear of a block.
        capacity: Positions that the cache holds.
        head: Scheme of the head, and of an embedding that is the same weight; None if it is not quantized.
        longest_prefill: Most new tokens of a call; None for `capacity`.
        attention: How keys and values are kept; None for the defaults.
    """
    attention = attention or AttentionPlan()
    linears = {f"{name}.weight" for name in spec.block.linears}
    block = sum(
        _quantized_bytes(shape, scheme) if name in linears else _FLOAT_BYTES * math.prod(shape)
        for name, shape in spec.block_shapes().items()
    )
    outer = sum(
        _quantized_bytes(shape, head)
        if head is not None and name == f"{spec.stored_head}.weight"
        else _FLOAT_BYTES * math.prod(shape)
        for name, shape in spec.outer_shapes().items()
    )
    embedding = _FLOAT_BYTES * spec.vocab_size * spec.hidden_size
    weights = spec.num_layers * block + outer + _cross_bytes(spec, readers=False)
    head_bytes = spec.head_dim + _FLOAT_BYTES if attention.int8_cache else spec.head_dim * _FLOAT_BYTES
    cache = 2 * spec.num_layers * spec.num_kv_heads * capacity * head_bytes
    rows = longest_prefill or capacity
    # Either gate, up and their product, or queries, keys, values and the output of attention; also the residual stream
    # and its norm.
    heads = spec.head_dim * 2 * (spec.num_heads + spec.num_kv_heads)
    activations = _FLOAT_BYTES * rows * (max(3 * spec.intermediate_size, heads) + 2 * spec.hidden_size)
    if not attention.fused:
        activations += 2 * _FLOAT_BYTES * spec.num_heads * rows * capacity  # scores, and their softmax
    return Footprint(
        weights_bytes=weights,
        read_bytes=weights - (0 if spec.tie_embeddings else embedding),
        cache_bytes=cache if attention.fused else 2 * cache,
        activation_bytes=activations,
        workspace_bytes=max(WORKSPACE_BYTES, attention_workspace_bytes(spec, rows)),
    )


def bytes_beside(
    spec: DecoderSpec,
    vision: SeeingSpec | None,
    *,
    head: QuantScheme | None = None,
    linears: Mapping[str, QuantScheme] = _NOTHING,
) -> int:
    """Weights of the graphs beside a decoder, as far as `predict_footprint` does not count them.

    Args:
        spec: The decoder.
        vision: What it sees with; None for a model of text, which has no such graphs.
        head: As for `predict_footprint`; an embedding that is the same weight has a copy of it.
        linears: Scheme of every linear that it sees with and that is quantized, by full name.
    """
    if vision is None:
        return 0
    table, embedding = (spec.vocab_size, spec.hidden_size), 0
    if spec.tie_embeddings:
        embedding = _FLOAT_BYTES * math.prod(table) if head is None else _quantized_bytes(table, head)
    schemes = {f"{name}.weight": scheme for name, scheme in linears.items()}
    tower = sum(
        _quantized_bytes(shape, schemes[name]) if name in schemes else _FLOAT_BYTES * math.prod(shape)
        for name, shape in vision.shapes().items()
        if not name.startswith(vision.idle)
    )
    return embedding + tower + _cross_bytes(spec, readers=True)


def attention_workspace_bytes(spec: DecoderSpec, tokens: int) -> int:
    """Scratch memory of `CachedAttention` in a prefill: its queries after clipping, norms and rotation.

    Decoding keeps partial sums of at most 15 tokens, which need less than `WORKSPACE_BYTES` with any number of heads.
    """
    return _FLOAT_BYTES * tokens * spec.num_heads * spec.head_dim


def _cross_bytes(spec: DecoderSpec, *, readers: bool) -> int:
    """Bytes of cross-attention: of what reads images, which is in the graph beside the decoder, or of all the rest."""
    cross = "" if spec.cross is None else f"{spec.cross.reader}.weight"
    shapes = (item for layer in range(spec.num_layers) for item in spec.cross_shapes(layer).items())
    return _FLOAT_BYTES * sum(math.prod(shape) for name, shape in shapes if (name == cross) == readers)


def _quantized_bytes(shape: tuple[int, ...], scheme: QuantScheme) -> int:
    """Bytes of codes [N, K], scales [N, groups] and any zero points [N, groups]; codes are as wide as in the graph."""
    rows, features = shape
    groups, width = rows * scheme.groups(features), max(scheme.bits, CODE_BITS)
    codes_bits = rows * features * width + (groups * width if scheme.zero_point else 0)
    return math.ceil(codes_bits / 8) + _FLOAT_BYTES * groups
