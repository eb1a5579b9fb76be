"""Builds the decoder of a `DecoderSpec` as an ONNX graph, node by node.

In: the description and a source of initializers. Out: an `onnx_ir` model that keeps to `io_contract`. Per block:
norm -> q, k, v -> positions -> cache write in place -> grouped-query attention with an explicit mask -> o ->
residual -> norm -> MLP -> residual, with what the description adds or leaves out; `cross_graph` looks at images first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.tape import Tape

from awq2trt import opset
from awq2trt.io_contract import (
    ATTENDED_IMAGES,
    BATCH,
    CACHE_LAYOUT,
    CACHE_POSITION,
    DEEPSTACK_EMBEDS,
    IMAGE_OF_SLOT,
    INPUT_IDS,
    INPUTS_EMBEDS,
    LAST_POSITION_NODE,
    LOGITS,
    NEW_TOKENS,
    ROTARY_COS,
    ROTARY_SIN,
    SEQUENCE,
    VISIBLE_END,
    CacheContract,
    IoContract,
    TensorContract,
    cache_names,
)
from awq2trt.models.families import GELU_TANH, RELU, SILU, DecoderSpec, RopeSpec
from awq2trt.onnx_export.bodies import BodyVariant, make_body, make_embedding_body
from awq2trt.onnx_export.coded_nodes import embedding_rows, linear_node
from awq2trt.onnx_export.cross_graph import CrossGraph, CrossNodes
from awq2trt.onnx_export.given_inputs import deepstack_contract, given_tables
from awq2trt.onnx_export.rotary_graph import Nodes, RotaryRows, rotary_rows
from awq2trt.onnx_export.weights import INPUT_ORDER, LinearInputs, Order, Weights

LOWEST: Final = -65504.0
"""The score of masked slots: the lowest number of fp16. No relevant score comes near it."""

_Attributes = dict[str, int | float | str | list[int]]


@dataclass(frozen=True)
class GraphPlan:
    """The properties of the graph that the model leaves open: the options with every default settled.

    Attributes:
        capacity: Positions that the cache holds.
        dtype: Type of activations and plain weights.
        all_logits: Whether it gives logits of every position rather than only of the last.
        function_bodies: Whether model-local functions define the custom operators.
        embeds: Read embeddings, scaled where the model scales them, in place of tokens.
        images: Images of a conversation at most, for a decoder that attends to them.
    """

    capacity: int
    dtype: ir.DataType
    all_logits: bool
    function_bodies: bool
    embeds: bool
    images: int


def decoder_contract(spec: DecoderSpec, plan: GraphPlan) -> IoContract:
    """Inputs and outputs of the graph that `build_decoder` makes with the same arguments."""
    name = plan.dtype.name.lower()
    cache_shape = (BATCH, spec.num_kv_heads, plan.capacity, spec.head_dim)

    pasts, presents = cache_names("past", spec.num_layers), cache_names("present", spec.num_layers)
    before = "Cache before the call; slots from cache_position on are not read."
    after = "Cache after the call; may be the memory of its past_ input."
    rows: int | str = SEQUENCE if plan.all_logits else 1
    new = (
        TensorContract(INPUTS_EMBEDS, name, (BATCH, SEQUENCE, spec.hidden_size), "Embeddings of new tokens.")
        if plan.embeds
        else TensorContract(INPUT_IDS, "int64", (BATCH, SEQUENCE), "New tokens.")
    )
    return IoContract(
        inputs=(
            new,
            *deepstack_contract(spec, name),
            TensorContract(CACHE_POSITION, "int64", (BATCH,), "Cache slot of the first new token: tokens seen before."),
            *given_tables(spec, plan.images, plan.capacity, name),
            *(TensorContract(past, name, cache_shape, before) for past in pasts),
        ),
        outputs=(
            TensorContract(LOGITS, name, (BATCH, rows, spec.vocab_size), "Scores of the next token."),
            *(
                TensorContract(present, name, cache_shape, after, alias=past)
                for past, present in zip(pasts, presents, strict=True)
            ),
        ),
        cache=CacheContract(name, CACHE_LAYOUT, plan.capacity),
    )


def build_decoder(spec: DecoderSpec, weights: Weights, plan: GraphPlan, on_block: Callable[[], None]) -> ir.Model:
    """Builds the complete decoder.

    Args:
        spec: The model's description.
        weights: The source of initializers; each is requested once, in the order of the graph.
        plan: The settled options.
        on_block: Called after each block, for progress.
    """
    contract = decoder_contract(spec, plan)
    inputs = {tensor.name: _declare(tensor) for tensor in contract.inputs}
    builder = _DecoderBuilder.begin(spec, weights, inputs)
    hidden = builder.embed()
    presents: list[ir.Value] = []
    for layer in range(spec.num_layers):
        hidden, *cache = builder.block(layer, hidden)
        presents += cache
        on_block()
    outputs = [builder.logits(hidden, all_positions=plan.all_logits), *presents]
    for value, tensor in zip(outputs, contract.outputs, strict=True):
        value.name, value.dtype, value.shape = tensor.name, ir.DataType[tensor.dtype.upper()], ir.Shape(tensor.shape)
    graph = ir.Graph(
        list(inputs.values()),
        outputs,
        nodes=builder.tape.nodes,
        initializers=builder.initializers,
        opset_imports={"": opset.ONNX_OPSET, opset.DOMAIN: opset.DOMAIN_VERSION},
        name=spec.family,
    )
    functions = builder.bodies() if plan.function_bodies else []
    return ir.Model(graph, ir_version=opset.ONNX_IR_VERSION, producer_name="awq2trt", functions=functions)


class _DecoderBuilder:
    """Appends nodes to a tape; `begin` makes one that has written what all blocks read.

    Shapes in comments: B batch, S new tokens, C capacity, D head size, H hidden size.
    """

    _positions: ir.Value
    _slots: tuple[ir.Value, ir.Value]
    _seen: ir.Value
    _biases: dict[int | None, ir.Value]
    _rotary: dict[RopeSpec, RotaryRows]
    _embedding: ir.Value
    _cross: CrossGraph | None

    def __init__(self, spec: DecoderSpec, weights: Weights, inputs: dict[str, ir.Value]) -> None:
        self.tape = Tape()
        self._variants: dict[BodyVariant, None] = {}  # of linears
        self._tied: LinearInputs | None = None  # the quantized weight of head and embedding
        self.initializers: list[ir.Value] = []
        self._spec = spec
        self._weights = weights
        self._inputs = inputs
        self._new = next(value for name, value in inputs.items() if name in NEW_TOKENS)
        self._constants: dict[str, ir.Value] = {}
        self._gathered: dict[tuple[int, bytes], ir.Value] = {}

    @classmethod
    def begin(cls, spec: DecoderSpec, weights: Weights, inputs: dict[str, ir.Value]) -> _DecoderBuilder:
        """A builder of which positions, masks, rotary tables and the embedding are in the graph."""
        builder = cls(spec, weights, inputs)
        builder._positions = builder._new_positions()
        builder._slots, builder._seen = builder._causal_mask()
        windows = dict.fromkeys(layer.sliding_window for layer in spec.layers)
        builder._biases = {window: builder._attention_bias(window) for window in windows}
        builder._rotary = builder._rotaries()
        builder._cross = builder._cross_graph()
        if spec.tie_embeddings and weights.quantized_head:
            builder._tied = builder._keep_linear(spec.embedding)
        elif spec.tie_embeddings or INPUT_IDS in inputs:
            builder._embedding = builder._keep(weights.tensor(f"{spec.embedding}.weight"))  # [V, H]
        return builder

    def bodies(self) -> list[ir.Function]:
        """Function bodies of the nodes so far."""
        embeddings = [] if self._tied is None else [make_embedding_body(self._tied[0])]
        return [make_body(variant) for variant in self._variants] + embeddings

    def embed(self) -> ir.Value:
        """Residual stream before the first block [B, S, H]."""
        spec = self._spec
        hidden = self._embedded() if self._new.name == INPUT_IDS else self._new
        if spec.positions is not None:
            table = self._keep(self._weights.tensor(f"{spec.positions.table}.weight"))
            rows = self._op("Add", [self._positions, self._integers([spec.positions.offset])])
            added = self._op("Gather", [table, rows], name=spec.positions.table)
            hidden = self._op("Add", [hidden, added], name=f"{spec.positions.table}.added")
        return self._norm(hidden, "", spec.embedding_norm)

    def block(self, layer: int, hidden: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """One block: [B, S, H] -> [B, S, H], and the present keys and values."""
        prefix, names = self._spec.prefix(layer), self._spec.block
        hidden = hidden if self._cross is None else self._cross.before(layer, hidden)
        normed = self._norm(hidden, prefix, names.input_norm)
        attended, key, value = self._attention(layer, normed)
        attended = self._norm(attended, prefix, names.post_attention_norm)
        stream = self._op("Add", [hidden, attended], name=f"{prefix}attention_residual")
        if names.mlp_norm is not None:
            normed = self._norm(hidden if self._spec.parallel else stream, prefix, names.mlp_norm)
        output = self._norm(self._mlp(prefix, normed), prefix, names.post_mlp_norm)
        stream = self._op("Add", [stream, output], name=f"{prefix}mlp_residual")
        return self._with_deepstack(layer, stream), key, value

    def _with_deepstack(self, layer: int, stream: ir.Value) -> ir.Value:
        """The residual stream behind a block, [B, S, H], with what deepstack adds there."""
        if layer >= self._spec.deepstack:
            return stream
        size, prefix = self._spec.hidden_size, self._spec.prefix(layer)
        starts, ends, axes = (self._integers([value]) for value in (layer * size, (layer + 1) * size, 2))
        own = self._op("Slice", [self._inputs[DEEPSTACK_EMBEDS], starts, ends, axes], name=f"{prefix}deepstack")
        return self._op("Add", [stream, own], name=f"{prefix}deepstack_residual")

    def logits(self, hidden: ir.Value, *, all_positions: bool) -> ir.Value:
        """Scores [B, 1 or S, V] out of the last block's output [B, S, H]."""
        spec = self._spec
        if not all_positions:
            starts, ends, axes = self._integers([-1]), self._integers([2**63 - 1]), self._integers([1])
            hidden = self._op("Slice", [hidden, starts, ends, axes], name=LAST_POSITION_NODE)
        hidden = self._norm(hidden, "", spec.final_norm)
        logits = self._project(hidden)
        return (
            logits
            if spec.logit_softcap is None
            else self._softcap(logits, self._scalar(f"{spec.head}.cap", spec.logit_softcap), spec.head)
        )

    def _embedded(self) -> ir.Value:
        """Scaled rows of the embedding [B, S, H]."""
        name, table = self._spec.embedding, self._tied or self._embedding
        rows = embedding_rows(self.tape, table, self._new, name)
        if self._spec.embedding_scale == 1:
            return rows
        return self._op("Mul", [rows, self._scalar(f"{name}.scale", self._spec.embedding_scale)], name=f"{name}.scaled")

    def _project(self, hidden: ir.Value) -> ir.Value:
        """Products with the head's rows [B, 1 or S, V]."""
        spec = self._spec
        if self._weights.quantized_head:
            return self._linear_of(hidden, self._tied or self._keep_linear(spec.head), spec.head)
        head = self._embedding if spec.tie_embeddings else self._keep(self._weights.tensor(f"{spec.head}.weight"))
        return self._multiply(hidden, head, spec.head)

    def _attention(self, layer: int, x: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Self-attention of [B, S, H]: its output, and the caches after the new keys and values are written."""
        spec, prefix, names = self._spec, self._spec.prefix(layer), self._spec.block
        rope, window = spec.layers[layer].rope, spec.layers[layer].sliding_window
        query = self._norm(self._heads(x, prefix + names.q_proj, spec.num_heads), prefix, names.q_norm)
        key = self._norm(self._heads(x, prefix + names.k_proj, spec.num_kv_heads), prefix, names.k_norm)
        query, key = self._rotate(query, prefix + names.q_proj, rope), self._rotate(key, prefix + names.k_proj, rope)
        value = self._heads(x, prefix + names.v_proj, spec.num_kv_heads)
        keys, values = (
            self._op(
                "TensorScatter",
                [self._inputs[f"past_{kind}_{layer}"], new, self._inputs[CACHE_POSITION]],
                {"axis": -2, "mode": "linear"},
                name=f"{prefix}cache_{kind}",
            )
            for kind, new in (("key", key), ("value", value))
        )  # [B, Hkv, C, D]
        attend = self._attend if spec.attention_softcap is None else self._attend_capped
        attended = attend(query, keys, values, self._biases[window], f"{prefix}attention")  # [B, Hq, S, D]
        merged = self._op("Transpose", [attended], {"perm": [0, 2, 1, 3]}, name=f"{prefix}attention.transpose")
        flat = self._op("Reshape", [merged, self._integers([0, 0, -1])], name=f"{prefix}attention.merge_heads")
        return self._linear(flat, prefix + names.o_proj), keys, values

    def _attend(self, query: ir.Value, keys: ir.Value, values: ir.Value, bias: ir.Value, name: str) -> ir.Value:
        """Attention of [B, Hq, S, D] to [B, Hkv, C, D]; no softmax_precision, an attribute that TensorRT refuses."""
        return self._op("Attention", [query, keys, values, bias], {"scale": self._spec.score_scale}, name=name)

    def _attend_capped(self, query: ir.Value, keys: ir.Value, values: ir.Value, mask: ir.Value, name: str) -> ir.Value:
        """The same with scores that saturate, in single operators.

        `Attention` has a `softcap` attribute, but opset 23 caps after the mask is added and executors differ.
        """
        spec = self._spec
        assert spec.attention_softcap is not None
        heads = spec.num_heads // spec.num_kv_heads
        split = self._integers([0, spec.num_kv_heads, heads, -1, spec.head_dim])
        scaled = self._op("Mul", [query, self._scalar("attention.scale", spec.score_scale)], name=f"{name}.scaled")
        grouped = self._op("Reshape", [scaled, split], name=f"{name}.group_heads")  # [B, Hkv, Hq / Hkv, S, D]
        keys, values = (self._op("Unsqueeze", [cache, self._integers([2])]) for cache in (keys, values))
        transposed = self._op("Transpose", [keys], {"perm": [0, 1, 2, 4, 3]})
        scores = self._op("MatMul", [grouped, transposed], name=f"{name}.scores")  # [B, Hkv, Hq / Hkv, S, C]
        capped = self._softcap(scores, self._scalar("attention.cap", spec.attention_softcap), name)
        lowest = self._scalar("attention.masked", LOWEST)
        masked = self._op("Where", [self._op("Unsqueeze", [mask, self._integers([2])]), capped, lowest])
        shares = self._op("Softmax", [masked], {"axis": -1}, name=f"{name}.softmax")
        context = self._op("MatMul", [shares, values], name=f"{name}.context")
        return self._op("Reshape", [context, self._integers([0, spec.num_heads, -1, spec.head_dim])], name=name)

    def _softcap(self, x: ir.Value, cap: ir.Value, name: str) -> ir.Value:
        """cap * tanh(x / cap)."""
        bounded = self._op("Tanh", [self._op("Div", [x, cap], name=f"{name}.over_cap")], name=f"{name}.tanh")
        return self._op("Mul", [bounded, cap], name=f"{name}.capped")

    def _mlp(self, prefix: str, x: ir.Value) -> ir.Value:
        """down(act(gate(x)) * up(x)), or down(act(up(x)))."""
        names = self._spec.block
        divisors = f"{prefix}{names.activation}.scales"
        divided = names.activation is not None and self._weights.has(divisors)
        # An order of down's inputs is folded into the outputs of the linears before it, unless there are divisors
        # between.
        rows = None if divided else self._weights.input_order(prefix + names.down_proj)
        inner = self._activation(self._linear(x, prefix + names.mlp_inputs[0], rows), f"{prefix}mlp.")
        if names.gate_proj is not None:
            inner = self._op("Mul", [inner, self._linear(x, prefix + names.up_proj, rows)], name=f"{prefix}mlp.product")
        if divided:
            inner = self._op("Div", [inner, self._keep(self._weights.tensor(divisors))], name=f"{prefix}mlp.divided")
        return self._linear(inner, prefix + names.down_proj, ordered=rows is not None)

    def _activation(self, x: ir.Value, prefix: str) -> ir.Value:
        """The MLP's activation function."""
        kind = self._spec.activation
        if kind == SILU:
            return self._op("Mul", [x, self._op("Sigmoid", [x], name=f"{prefix}sigmoid")], name=f"{prefix}silu")
        if kind == RELU:
            return self._op("Relu", [x], name=f"{prefix}relu")
        return self._op("Gelu", [x], {"approximate": "tanh" if kind == GELU_TANH else "none"}, name=f"{prefix}gelu")

    def _linear(self, x: ir.Value, name: str, rows: Order | None = None, *, ordered: bool = False) -> ir.Value:
        """A linear, quantized or not: [B, S, K] -> [B, S, N].

        Args:
            x: Its input.
            name: Its name.
            rows: The order that its output channels are wanted in; None for their own.
            ordered: The channels of `x` are in the order of the linear's columns already.
        """
        order = None if ordered else self._weights.input_order(name)
        x = x if order is None else self._in_order(x, order, name)
        if self._weights.is_quantized(name):
            return self._linear_of(x, self._keep_linear(name, rows), name)
        weight, *bias = (self._keep(value) for value in self._weights.plain_linear(name, rows))
        product = self._multiply(x, weight, name)
        return self._op("Add", [product, *bias]) if bias else product

    def _linear_of(self, x: ir.Value, weight: LinearInputs, name: str) -> ir.Value:
        self._variants[weight[0]] = None
        return linear_node(self.tape, x, weight, name)

    def _keep_linear(self, name: str, rows: Order | None = None) -> LinearInputs:
        variant, initializers = self._weights.linear(name, rows)
        return variant, tuple(self._keep(value) for value in initializers)

    def _multiply(self, x: ir.Value, weight: ir.Value, name: str) -> ir.Value:
        """[B, S, K] and [N, K] -> [B, S, N]."""
        transposed = self._op("Transpose", [weight], {"perm": [1, 0]}, name=f"{name}.transpose")  # [K, N]
        return self._op("MatMul", [x, transposed], name=name)

    def _in_order(self, x: ir.Value, order: Order, name: str) -> ir.Value:
        """The channels of [B, S, K] in another order, gathered once for all linears that want the same."""
        key = (id(x), order.tobytes())
        if key not in self._gathered:
            indices = self._keep(self._weights.order(f"{name}.{INPUT_ORDER}", order))
            self._gathered[key] = self._op("Gather", [x, indices], {"axis": -1}, name=f"{name}.ordered")
        return self._gathered[key]

    def _norm(self, x: ir.Value, prefix: str, relative_name: str | None) -> ir.Value:
        """Applies a norm over the last axis; returns x itself if there is none.

        Squares and their mean are fp32, since x reaches 24,000 in fp16 models.
        """
        if relative_name is None:
            return x
        spec, name = self._spec.norm, prefix + relative_name
        inputs = [x, self._keep(self._weights.gain(f"{name}.weight"))]
        if spec.bias:
            inputs.append(self._keep(self._weights.tensor(f"{name}.bias")))
        attributes: _Attributes = {"axis": -1, "epsilon": spec.eps, "stash_type": int(ir.DataType.FLOAT)}
        return self._op("RMSNormalization" if spec.rms else "LayerNormalization", inputs, attributes, name=name)

    def _heads(self, x: ir.Value, projection: str, count: int) -> ir.Value:
        """Projects [B, S, H] and splits it into heads: [B, count, S, D]."""
        spec, projected = self._spec, self._linear(x, projection)
        if spec.clip_qkv is not None:
            lowest, highest = self._scalar("qkv.lowest", -spec.clip_qkv), self._scalar("qkv.highest", spec.clip_qkv)
            projected = self._op("Clip", [projected, lowest, highest], name=f"{projection}.clip")
        shape = self._integers([0, 0, count, spec.head_dim])
        split = self._op("Reshape", [projected, shape], name=f"{projection}.split_heads")
        return self._op("Transpose", [split], {"perm": [0, 2, 1, 3]}, name=f"{projection}.transpose")

    def _rotate(self, x: ir.Value, name: str, rope: RopeSpec | None) -> ir.Value:
        """Rotary embedding of [B, heads, S, D], rotate-half form; x itself if there is none."""
        if rope is None:
            return x
        attributes: _Attributes = {}
        if rope.rotary_dim != self._spec.head_dim:
            attributes["rotary_embedding_dim"] = rope.rotary_dim
        table = self._rotary[rope]
        inputs = [x, table.cos, table.sin, table.rows]
        return self._op("RotaryEmbedding", inputs, attributes, name=f"{name}.rotary")

    def _rotaries(self) -> dict[RopeSpec, RotaryRows]:
        """Tables and rows that rotate the new tokens, for every embedding of the model."""
        capacity = int(self._inputs[cache_names("past", 1)[0]].shape[2])  # type: ignore[index, arg-type]
        nodes = Nodes(self._op, self._constant, self._positions, self._lengths)
        return {
            rope: rotary_rows(nodes, index, rope, capacity)
            if rope.sections is None
            else RotaryRows(self._inputs[ROTARY_COS], self._inputs[ROTARY_SIN], self._positions)
            for index, rope in enumerate(self._spec.ropes)
        }

    def _cross_graph(self) -> CrossGraph | None:
        if self._spec.cross is None:
            return None
        nodes = CrossNodes(self._op, lambda name: self._keep(self._weights.tensor(name)), self._scalar, self._integers)
        given = self._inputs[ATTENDED_IMAGES], self._inputs[IMAGE_OF_SLOT]
        return CrossGraph.begin(self._spec, nodes, given, self._positions, self._scalar("attention.masked", LOWEST))

    def _lengths(self) -> ir.Value:
        """Tokens of each sequence, those in the cache and the new ones, int64 [B, 1]."""
        start = self._op("Unsqueeze", [self._inputs[CACHE_POSITION], self._integers([1])])
        new = self._op("Shape", [self._new], {"start": 1, "end": 2})
        return self._op("Add", [start, new])

    def _new_positions(self) -> ir.Value:
        """Positions of the new tokens: cache_position + 0 .. S-1, int64 [B, S]."""
        length = self._op("Shape", [self._new], {"start": 1, "end": 2})
        steps = self._count_to(length)  # [S]
        start = self._op("Unsqueeze", [self._inputs[CACHE_POSITION], self._integers([1])])  # [B, 1]
        return self._op("Add", [start, steps], name="positions")

    def _causal_mask(self) -> tuple[tuple[ir.Value, ir.Value], ir.Value]:
        """Cache slots [C] and positions of the new tokens [B, 1, S, 1]; whether a token sees a slot.

        The capacity is read off the cache, so that an executor may bring a shorter one.
        """
        any_cache = self._inputs[cache_names("past", 1)[0]]
        slots = self._count_to(self._op("Shape", [any_cache], {"start": 2, "end": 3}))  # [C]
        last = queries = self._op("Unsqueeze", [self._positions, self._integers([1, 3])])  # [B, 1, S, 1]
        if VISIBLE_END in self._inputs:
            last = self._op("Gather", [self._inputs[VISIBLE_END], queries], name=VISIBLE_END)
        return (slots, queries), self._op("LessOrEqual", [slots, last], name="causal_mask")

    def _attention_bias(self, window: int | None) -> ir.Value:
        """Which cache slots each new token sees, bool [B, 1, S, C]: those up to its own, within the window if any.

        With ALiBi it is what is added to the scores, [B, Hq, S, C].
        """
        (slots, queries), seen = self._slots, self._seen
        if window is not None:
            oldest = self._op("Sub", [queries, self._integers([window])])
            recent = self._op("Greater", [slots, oldest], name="window_mask")
            seen = self._op("And", [seen, recent], name="attention_mask")
        if self._spec.alibi is None:
            return seen
        values = np.asarray(self._spec.alibi, np.float32).reshape(1, -1, 1, 1)
        slopes = self._constant("alibi.slopes", values)
        distance = self._op("CastLike", [self._op("Sub", [slots, queries]), slopes], name="alibi.distance")
        bias = self._op("Mul", [distance, slopes], name="alibi.bias")
        return self._op("Where", [seen, bias, self._scalar("attention.masked", LOWEST)], name="attention_bias")

    def _count_to(self, length: ir.Value) -> ir.Value:
        """0 .. length-1, int64, of a one-element `length`."""
        zero, one = (self._op("Constant", [], {"value_int": value}) for value in (0, 1))
        return self._op("Range", [zero, self._op("Squeeze", [length]), one])

    def _scalar(self, name: str, value: float) -> ir.Value:
        return self._constant(name, np.asarray(value, np.float32))

    def _constant(self, name: str, value: NDArray[np.float32]) -> ir.Value:
        """A tensor in the graph's dtype; the same name always returns the same initializer."""
        if name not in self._constants:
            self._constants[name] = self._keep(self._weights.constant(name, value))
        return self._constants[name]

    def _integers(self, values: Sequence[int]) -> ir.Value:
        return self._op("Constant", [], {"value_ints": list(values)})

    def _keep(self, initializer: ir.Value) -> ir.Value:
        self.initializers.append(initializer)
        return initializer

    def _op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        attributes: _Attributes | None = None,
        *,
        name: str | None = None,
    ) -> ir.Value:
        return self.tape.op(op_type, inputs, attributes, name=name)


def _declare(tensor: TensorContract) -> ir.Value:
    dtype = ir.DataType[tensor.dtype.upper()]
    return ir.Value(name=tensor.name, type=ir.TensorType(dtype), shape=ir.Shape(tensor.shape))
