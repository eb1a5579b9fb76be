"""Recognizes the self-attention of an exported decoder, and replaces it with a merged linear and a `CachedAttention`.

In: the node that merges heads, just before o. Out: an `AttentionPattern`, before the graph is changed; then the changed
graph. Tables of rotary embeddings whose rows the graph chooses or computes at each call (LongRoPE, dynamic NTK) do not
match, nor do layer norms of queries and keys.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from awq2trt import opset
from awq2trt.graph.matching import (
    NoMatchError,
    integer_attribute,
    integers_of,
    made_by,
    maker,
    need,
    need_permutation,
    rows_of,
    scalar_of,
    take,
    take_place_,
    tensor_of,
)
from awq2trt.graph.merge_linears import merge_linears_, need_mergeable
from awq2trt.io_contract import CACHE_POSITION, NEW_TOKENS, VISIBLE_END
from awq2trt.models.families import DecoderSpec


@dataclass(frozen=True)
class _Heads:
    """Queries, keys or values [B, count, S, D], beginning with their linear."""

    linear: ir.Node
    count: int
    head_dim: int
    clip: float = 0.0
    gain: ir.Value | None = None
    norm_eps: float = 0.0
    tables: tuple[ir.Value, ...] = ()
    rotary_dim: int = 0
    interleaved: int = 0


@dataclass(frozen=True)
class _Mask:
    """The slots that a token sees, and what is added to their scores; `ends`: for every slot the last that it sees."""

    window: int = 0
    slopes: ir.Value | None = None
    ends: ir.Value | None = None


@dataclass(frozen=True)
class _Scores:
    """The inputs of an attention, and how it scores."""

    query: ir.Value
    keys: ir.Value
    values: ir.Value
    mask: ir.Value
    scale: float
    softcap: float = 0.0


@dataclass(frozen=True)
class AttentionPattern:
    """A self-attention that was recognized.

    Attributes:
        flat: The node that merges heads.
        heads: Queries, keys and values.
        scatters: The nodes that write keys and values into the cache.
        scores: How it computes scores.
        mask: What each token sees.
    """

    flat: ir.Node
    heads: tuple[_Heads, _Heads, _Heads]
    scatters: tuple[ir.Node, ir.Node]
    scores: _Scores
    mask: _Mask = field(default_factory=_Mask)


def fuses_attention(spec: DecoderSpec, capacity: int) -> bool:
    """Whether the attention of an exported model will be recognized, judging from its description.

    Args:
        spec: The model; all of its linears are quantized alike.
        capacity: Positions that the cache holds.
    """
    has_rows_of_its_own = any(rope.is_long(capacity) for rope in spec.ropes)
    has_layer_norms = spec.block.q_norm is not None and not spec.norm.rms
    return spec.head_dim in opset.ATTENTION_HEAD_SIZES and not has_rows_of_its_own and not has_layer_norms


def match_attention(flat: ir.Node, head_sizes: Collection[int]) -> AttentionPattern:
    """Recognizes the attention that ends at a node.

    Raises:
        NoMatchError: It is not attention, or there is no kernel for it.
    """
    need(integers_of(take(flat, 1)) == [0, 0, -1])
    transpose = maker(take(flat, 0), "Transpose")
    need_permutation(transpose, (0, 2, 1, 3))
    attended = take(transpose, 0)
    scores = _match_plain(maker(attended, "Attention")) if made_by(attended, "Attention") else _match_capped(attended)
    scatters = maker(scores.keys, "TensorScatter"), maker(scores.values, "TensorScatter")
    for scatter in scatters:
        need(take(scatter, 2).name == CACHE_POSITION and integer_attribute(scatter, "axis", -2) == -2)
        need("mode" not in scatter.attributes or scatter.attributes["mode"].as_string() == "linear")
        need(take(scatter, 0).is_graph_input())
    query, key, value = (_match_heads(head) for head in (scores.query, take(scatters[0], 1), take(scatters[1], 1)))
    need(query.head_dim == key.head_dim == value.head_dim and query.head_dim in head_sizes)
    need(key.count == value.count and query.count % key.count == 0)
    need(query.clip == key.clip == value.clip and value.gain is None and not value.tables)
    need((query.gain is None) == (key.gain is None) and query.norm_eps == key.norm_eps)
    need(query.tables == key.tables and query.rotary_dim == key.rotary_dim and query.interleaved == key.interleaved)
    need_mergeable([query.linear, key.linear, value.linear])
    mask = _match_mask(scores.mask)
    need(mask.slopes is None or (scores.softcap == 0 and tensor_of(mask.slopes).size == query.count))
    need(mask.ends is None or (mask.slopes is None and scores.softcap == 0))
    return AttentionPattern(flat, (query, key, value), scatters, scores, mask)


def replace_attention_(graph: ir.Graph, pattern: AttentionPattern) -> None:
    """Inserts the fused nodes; `remove_unused_` then removes what they replace."""
    query, key, value = pattern.heads
    merged = merge_linears_(graph, [query.linear, key.linear, value.linear])
    gains = [gain for gain in (query.gain, key.gain) if gain is not None]
    slopes = [] if pattern.mask.slopes is None else [_slopes_(graph, pattern.mask.slopes)]
    ends = [] if pattern.mask.ends is None else [pattern.mask.ends]
    key_write, value_write = pattern.scatters
    pasts = [take(key_write, 0), take(value_write, 0)]
    attributes: dict[str, int | float | str] = {
        "num_heads": query.count,
        "num_kv_heads": key.count,
        "rotary_dim": query.rotary_dim,
        "interleaved": query.interleaved,
        "window": pattern.mask.window,
        "has_norms": int(bool(gains)),
        "has_alibi": int(bool(slopes)),
        "scale": pattern.scores.scale,
        "softcap": pattern.scores.softcap,
        "clip": query.clip,
        "norm_eps": query.norm_eps,
        **({opset.ATTR_HAS_VISIBLE_END: 1} if ends else {}),
        **opset.PLUGIN_ATTRIBUTES,
    }
    fused = ir.node(
        opset.CACHED_ATTENTION,
        [merged, take(key_write, 2), *pasts, *query.tables, *gains, *slopes, *ends],
        attributes,
        domain=opset.DOMAIN,
        num_outputs=3,
        name=str(pattern.flat.name).removesuffix(".merge_heads"),
    )
    old = (pattern.flat.outputs[0], key_write.outputs[0], value_write.outputs[0])
    take_place_(graph, pattern.flat, fused, dict(zip(old, fused.outputs, strict=True)))


def _slopes_(graph: ir.Graph, slopes: ir.Value) -> ir.Value:
    """Makes the slopes in fp32; all blocks share the initializer."""
    name = f"{slopes.name}.fp32"
    if name not in graph.initializers:
        array = tensor_of(slopes).numpy().astype(np.float32).reshape(-1)
        graph.register_initializer(ir.Value(name=name, const_value=ir.Tensor(array, name=name)))
    return graph.initializers[name]


def _match_plain(attention: ir.Node) -> _Scores:
    need(set(attention.attributes) == {"scale"} and len(attention.inputs) == 4)
    query, keys, values, mask = (take(attention, index) for index in range(4))
    return _Scores(query, keys, values, mask, attention.attributes["scale"].as_float())


def _match_capped(attended: ir.Value) -> _Scores:
    """Matches capped scores, which are computed by single operators."""
    context = maker(take(maker(attended, "Reshape"), 0), "MatMul")
    softmax = maker(take(context, 0), "Softmax")
    need(integer_attribute(softmax, "axis", -1) == -1)
    masked = maker(take(softmax, 0), "Where")
    capped = maker(take(masked, 1), "Mul")
    over_cap = maker(take(maker(take(capped, 0), "Tanh"), 0), "Div")
    cap = take(capped, 1)
    need(take(over_cap, 1) is cap and scalar_of(take(masked, 2)) < -1e4)
    product = maker(take(over_cap, 0), "MatMul")
    transpose = maker(take(product, 1), "Transpose")
    need_permutation(transpose, (0, 1, 2, 4, 3))
    scaled = maker(take(maker(take(product, 0), "Reshape"), 0), "Mul")
    keys, values, mask = (_unsqueezed(value) for value in (take(transpose, 0), take(context, 1), take(masked, 0)))
    return _Scores(take(scaled, 0), keys, values, mask, scalar_of(take(scaled, 1)), scalar_of(cap))


def _unsqueezed(value: ir.Value) -> ir.Value:
    """Returns the value into which an axis for groups of heads was inserted."""
    node = maker(value, "Unsqueeze")
    need(integers_of(take(node, 1)) == [2])
    return take(node, 0)


def _match_heads(value: ir.Value) -> _Heads:
    """Follows heads back to their linear: rotation, norm, split, clip."""
    tables: tuple[ir.Value, ...] = ()
    rotary_dim = interleaved = 0
    if made_by(value, "RotaryEmbedding"):
        rotary = maker(value, "RotaryEmbedding")
        value, tables = take(rotary, 0), (take(rotary, 1), take(rotary, 2))
        _need_positions(take(rotary, 3))
        rotary_dim = 2 * _pairs_of(tables[0])
        need(integer_attribute(rotary, "rotary_embedding_dim", 0) in (0, rotary_dim))
        interleaved = integer_attribute(rotary, "interleaved", 0)
    gain, norm_eps = None, 0.0
    if made_by(value, "RMSNormalization"):
        norm = maker(value, "RMSNormalization")
        need(integer_attribute(norm, "axis", -1) == -1 and "epsilon" in norm.attributes)
        value, gain, norm_eps = take(norm, 0), take(norm, 1), norm.attributes["epsilon"].as_float()
    transpose = maker(value, "Transpose")
    need_permutation(transpose, (0, 2, 1, 3))
    split = maker(take(transpose, 0), "Reshape")
    shape = integers_of(take(split, 1))
    need(len(shape) == 4 and shape[:2] == [0, 0])
    value, clip = take(split, 0), 0.0
    if made_by(value, "Clip"):
        bounded = maker(value, "Clip")
        value, clip = take(bounded, 0), scalar_of(take(bounded, 2))
        need(clip > 0 and scalar_of(take(bounded, 1)) == -clip)
    linear = maker(value, opset.W4A16_LINEAR, opset.DOMAIN)
    need(rows_of(linear) == shape[2] * shape[3] and 0 <= rotary_dim <= shape[3])
    need(gain is None or tensor_of(gain).size == shape[3])
    need(bool(rotary_dim) == bool(tables))
    return _Heads(linear, shape[2], shape[3], clip, gain, norm_eps, tables, rotary_dim, interleaved)


def _pairs_of(table: ir.Value) -> int:
    """Channel pairs that a table of cosines or sines rotates; it is an initializer, or an input of the graph."""
    pairs = table.shape[1] if table.shape is not None and table.is_graph_input() else tensor_of(table).shape[1]
    if not isinstance(pairs, int):
        raise NoMatchError
    return pairs


def _match_mask(mask: ir.Value) -> _Mask:
    """Matches a causal mask, perhaps with ends of its own, perhaps with a window, perhaps with ALiBi."""
    slopes = None
    if made_by(mask, "Where"):
        where = maker(mask, "Where")
        bias = maker(take(where, 1), "Mul")
        slopes, mask = take(bias, 1), take(where, 0)
        distance = maker(take(maker(take(bias, 0), "CastLike"), 0), "Sub")
        _need_slots(take(distance, 0))
        _need_queries(take(distance, 1))
        need(scalar_of(take(where, 2)) < -1e4)
    window = 0
    if made_by(mask, "And"):
        both = maker(mask, "And")
        mask, recent = take(both, 0), maker(take(both, 1), "Greater")
        _need_slots(take(recent, 0))
        oldest = maker(take(recent, 1), "Sub")
        _need_queries(take(oldest, 0))
        (window,) = integers_of(take(oldest, 1))
        need(window > 0)
    causal = maker(mask, "LessOrEqual")
    _need_slots(take(causal, 0))
    last, ends = take(causal, 1), None
    if made_by(last, "Gather"):
        gather = maker(last, "Gather")
        ends, last = take(gather, 0), take(gather, 1)
        need(ends.name == VISIBLE_END and ends.is_graph_input() and integer_attribute(gather, "axis", 0) == 0)
    _need_queries(last)
    return _Mask(window, slopes, ends)


def _need_queries(value: ir.Value) -> None:
    """Requires positions of the new tokens, [B, 1, S, 1]."""
    unsqueeze = maker(value, "Unsqueeze")
    need(integers_of(take(unsqueeze, 1)) == [1, 3])
    _need_positions(take(unsqueeze, 0))


def _need_positions(value: ir.Value) -> None:
    """Requires cache_position + 0 .. S-1."""
    added = maker(value, "Add")
    start = maker(take(added, 0), "Unsqueeze")
    need(take(start, 0).name == CACHE_POSITION and integers_of(take(start, 1)) == [1])
    shape = _counted(take(added, 1))
    need(take(shape, 0).name in NEW_TOKENS and integer_attribute(shape, "start", 0) == 1)


def _need_slots(value: ir.Value) -> None:
    """Requires 0 .. C-1 for a cache."""
    shape = _counted(value)
    need(str(take(shape, 0).name).startswith("past_") and integer_attribute(shape, "start", 0) == 2)


def _counted(value: ir.Value) -> ir.Node:
    """Returns the `Shape` to whose length a `Range` counts from 0."""
    counted = maker(value, "Range")
    need(integers_of(take(counted, 0)) == [0] and integers_of(take(counted, 2)) == [1])
    shape = maker(take(maker(take(counted, 1), "Squeeze"), 0), "Shape")
    if integer_attribute(shape, "end", 0) != integer_attribute(shape, "start", 0) + 1:
        raise NoMatchError
    return shape
