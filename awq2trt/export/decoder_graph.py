"""Builds the decoder of a `DecoderSpec` as an ONNX graph, node by node.

In: the description and a source of initializers. Out: an `onnx_ir` model that keeps to `io_contract`. Per block
(Llama, arXiv:2302.13971): RMSNorm -> q, k, v -> rotary embedding -> cache write in place -> grouped-query attention
with an explicit mask -> o -> residual -> RMSNorm -> gated MLP -> residual.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir
from onnx_ir.tape import Tape

from awq2trt import opset
from awq2trt.export.bodies import BodyVariant, make_body
from awq2trt.families import DecoderSpec
from awq2trt.io_contract import (
    BATCH,
    CACHE_POSITION,
    INPUT_IDS,
    LAST_POSITION_NODE,
    LOGITS,
    SEQUENCE,
    IoContract,
    TensorContract,
    cache_names,
)

_Attributes = dict[str, int | float | str | list[int]]

LinearInputs = tuple[BodyVariant, tuple[ir.Value, ...]]
"""The variant of a linear, and its initializers: codes, scales, then zeros and bias if the variant has them."""


class Weights(Protocol):
    """Hands out initializers, each when the graph reaches it, so that they can be streamed to disk."""

    dtype: ir.DataType

    def linear(self, name: str) -> LinearInputs:
        """Initializers of a quantized linear."""

    def tensor(self, name: str) -> ir.Value:
        """Initializer of a plain tensor."""

    def rotary_tables(self, positions: int) -> tuple[ir.Value, ir.Value]:
        """cos and sin, each [positions, rotary_dim / 2]."""


@dataclass(frozen=True)
class GraphOptions:
    """Choices about the graph, not about the model.

    Attributes:
        capacity: Positions that the cache holds.
        all_logits: Logits of every position rather than of the last.
        function_bodies: Define the custom operators by model-local functions.
    """

    capacity: int
    all_logits: bool
    function_bodies: bool


def decoder_contract(spec: DecoderSpec, options: GraphOptions, dtype: ir.DataType) -> IoContract:
    """Inputs and outputs of the graph that `build_decoder` makes with the same arguments."""
    name = dtype.name.lower()
    cache_shape = (BATCH, spec.num_kv_heads, options.capacity, spec.head_dim)

    def caches(tense: str, meaning: str) -> tuple[TensorContract, ...]:
        return tuple(TensorContract(cache, name, cache_shape, meaning) for cache in cache_names(tense, spec.num_layers))

    rows: int | str = SEQUENCE if options.all_logits else 1
    return IoContract(
        inputs=(
            TensorContract(INPUT_IDS, "int64", (BATCH, SEQUENCE), "New tokens."),
            TensorContract(CACHE_POSITION, "int64", (BATCH,), "Cache slot of the first new token: tokens seen before."),
            *caches("past", "Cache before the call; slots from cache_position on are not read."),
        ),
        outputs=(
            TensorContract(LOGITS, name, (BATCH, rows, spec.vocab_size), "Scores of the next token."),
            *caches("present", "Cache after the call; may be the memory of its past_ input."),
        ),
        capacity=options.capacity,
        vocab_size=spec.vocab_size,
        num_layers=spec.num_layers,
        sliding_window=spec.sliding_window,
    )


def build_decoder(spec: DecoderSpec, weights: Weights, options: GraphOptions, on_block: Callable[[], None]) -> ir.Model:
    """Builds the whole decoder.

    Args:
        spec: The model described.
        weights: Where initializers come from; asked for each once, in the order of the graph.
        options: Choices about the graph.
        on_block: Called after each block, for progress.
    """
    contract = decoder_contract(spec, options, weights.dtype)
    inputs = {tensor.name: _declare(tensor) for tensor in contract.inputs}
    builder = _DecoderBuilder(spec, weights, inputs)
    hidden = builder.embed(inputs[INPUT_IDS])
    presents: list[ir.Value] = []
    for layer in range(spec.num_layers):
        hidden, *cache = builder.block(layer, hidden)
        presents += cache
        on_block()
    outputs = [builder.logits(hidden, all_positions=options.all_logits), *presents]
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
    functions = [make_body(variant) for variant in builder.variants] if options.function_bodies else []
    return ir.Model(graph, ir_version=opset.ONNX_IR_VERSION, producer_name="awq2trt", functions=functions)


class _DecoderBuilder:
    """Appends nodes to a tape. Shapes in comments: B batch, S new tokens, C capacity, D head size, H hidden size."""

    def __init__(self, spec: DecoderSpec, weights: Weights, inputs: dict[str, ir.Value]) -> None:
        self.tape = Tape()
        self.variants: dict[BodyVariant, None] = {}
        self.initializers: list[ir.Value] = []
        self._spec = spec
        self._weights = weights
        self._inputs = inputs
        self._positions = self._new_positions()
        self._mask = self._attention_mask()
        capacity = inputs[cache_names("past", 1)[0]].shape[2]  # type: ignore[index]
        self._cos, self._sin = (self._keep(table) for table in weights.rotary_tables(int(capacity)))  # type: ignore[arg-type]
        self._embedding = self._keep(weights.tensor(f"{spec.embedding}.weight"))  # [V, H]

    def embed(self, input_ids: ir.Value) -> ir.Value:
        """Token embeddings [B, S, H]."""
        return self._op("Gather", [self._embedding, input_ids], name=self._spec.embedding)

    def block(self, layer: int, hidden: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """One block: [B, S, H] -> [B, S, H], and the present keys and values."""
        prefix, names = self._spec.prefix(layer), self._spec.block
        normed = self._norm(hidden, prefix + names.input_norm)
        attended, key, value = self._attention(layer, normed)
        hidden = self._op("Add", [hidden, attended], name=f"{prefix}attention_residual")
        normed = self._norm(hidden, prefix + names.mlp_norm)
        hidden = self._op("Add", [hidden, self._mlp(prefix, normed)], name=f"{prefix}mlp_residual")
        return hidden, key, value

    def logits(self, hidden: ir.Value, *, all_positions: bool) -> ir.Value:
        """Scores [B, 1 or S, V] out of the last block's output [B, S, H]."""
        spec = self._spec
        if not all_positions:
            starts, ends, axes = self._integers([-1]), self._integers([2**63 - 1]), self._integers([1])
            hidden = self._op("Slice", [hidden, starts, ends, axes], name=LAST_POSITION_NODE)
        hidden = self._norm(hidden, spec.final_norm)
        head = self._embedding if spec.tie_embeddings else self._keep(self._weights.tensor(f"{spec.head}.weight"))
        transposed = self._op("Transpose", [head], {"perm": [1, 0]}, name=f"{spec.head}.transpose")  # [H, V]
        return self._op("MatMul", [hidden, transposed], name=spec.head)

    def _attention(self, layer: int, x: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Self-attention of [B, S, H]: its output, and the caches after the new keys and values are written."""
        spec, prefix, names = self._spec, self._spec.prefix(layer), self._spec.block
        query = self._rotate(self._heads(x, prefix + names.q_proj, spec.num_heads), prefix + names.q_proj)
        key = self._rotate(self._heads(x, prefix + names.k_proj, spec.num_kv_heads), prefix + names.k_proj)
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
        attended = self._op(
            "Attention",
            [query, keys, values, self._mask],
            {"scale": spec.head_dim**-0.5},  # no softmax_precision: TensorRT refuses the attribute
            name=f"{prefix}attention",
        )  # [B, Hq, S, D]
        merged = self._op("Transpose", [attended], {"perm": [0, 2, 1, 3]}, name=f"{prefix}attention.transpose")
        flat = self._op("Reshape", [merged, self._integers([0, 0, -1])], name=f"{prefix}attention.merge_heads")
        return self._linear(flat, prefix + names.o_proj), keys, values

    def _mlp(self, prefix: str, x: ir.Value) -> ir.Value:
        """down(silu(gate(x)) * up(x))."""
        names = self._spec.block
        gate, up = (self._linear(x, prefix + name) for name in names.mlp_inputs)
        sigmoid = self._op("Sigmoid", [gate], name=f"{prefix}mlp.sigmoid")
        gated = self._op("Mul", [gate, sigmoid], name=f"{prefix}mlp.silu")
        product = self._op("Mul", [gated, up], name=f"{prefix}mlp.product")
        return self._linear(product, prefix + names.down_proj)

    def _linear(self, x: ir.Value, name: str) -> ir.Value:
        """A `W4A16Linear` node: [B, S, K] -> [B, S, N]."""
        variant, initializers = self._weights.linear(name)
        self.variants[variant] = None
        y = self.tape.op(
            opset.W4A16_LINEAR,
            [x, *(self._keep(value) for value in initializers)],
            {
                opset.ATTR_GROUP_SIZE: variant.group_length,
                opset.ATTR_HAS_ZEROS: int(variant.has_zeros),
                opset.ATTR_HAS_BIAS: int(variant.has_bias),
                opset.ATTR_PLUGIN_VERSION: opset.PLUGIN_VERSION,
                opset.ATTR_PLUGIN_NAMESPACE: opset.PLUGIN_NAMESPACE,
            },
            domain=opset.DOMAIN,
            overload=variant.overload,
            name=name,
        )
        codes_shape = initializers[0].shape
        y.dtype, y.shape = self._weights.dtype, ir.Shape([BATCH, SEQUENCE, codes_shape[0]])  # type: ignore[index]
        return y

    def _norm(self, x: ir.Value, name: str) -> ir.Value:
        """RMSNorm over the last axis; squares and their mean in fp32, since x reaches 24,000 in fp16 models."""
        scale = self._keep(self._weights.tensor(f"{name}.weight"))
        attributes: _Attributes = {"axis": -1, "epsilon": self._spec.norm_eps, "stash_type": int(ir.DataType.FLOAT)}
        return self._op("RMSNormalization", [x, scale], attributes, name=name)

    def _heads(self, x: ir.Value, projection: str, count: int) -> ir.Value:
        """Projects [B, S, H] and splits it into heads: [B, count, S, D]."""
        shape = self._integers([0, 0, count, self._spec.head_dim])
        split = self._op("Reshape", [self._linear(x, projection), shape], name=f"{projection}.split_heads")
        return self._op("Transpose", [split], {"perm": [0, 2, 1, 3]}, name=f"{projection}.transpose")

    def _rotate(self, x: ir.Value, name: str) -> ir.Value:
        """Rotary embedding of [B, heads, S, D], rotate-half form."""
        return self._op("RotaryEmbedding", [x, self._cos, self._sin, self._positions], name=f"{name}.rotary")

    def _new_positions(self) -> ir.Value:
        """Positions of the new tokens: cache_position + 0 .. S-1, int64 [B, S]."""
        length = self._op("Shape", [self._inputs[INPUT_IDS]], {"start": 1, "end": 2})
        steps = self._count_to(length)  # [S]
        start = self._op("Unsqueeze", [self._inputs[CACHE_POSITION], self._integers([1])])  # [B, 1]
        return self._op("Add", [start, steps], name="positions")

    def _attention_mask(self) -> ir.Value:
        """Which cache slots each new token sees, bool [B, 1, S, C]: those up to its own, within the window if any.

        The capacity is read off the cache, so that an executor may bring a shorter one.
        """
        any_cache = self._inputs[cache_names("past", 1)[0]]
        slots = self._count_to(self._op("Shape", [any_cache], {"start": 2, "end": 3}))  # [C]
        queries = self._op("Unsqueeze", [self._positions, self._integers([1, 3])])  # [B, 1, S, 1]
        seen = self._op("LessOrEqual", [slots, queries], name="causal_mask")
        if self._spec.sliding_window is None:
            return seen
        oldest = self._op("Sub", [queries, self._integers([self._spec.sliding_window])])
        recent = self._op("Greater", [slots, oldest], name="window_mask")
        return self._op("And", [seen, recent], name="attention_mask")

    def _count_to(self, length: ir.Value) -> ir.Value:
        """0 .. length-1, int64, of a one-element `length`."""
        zero, one = (self._op("Constant", [], {"value_int": value}) for value in (0, 1))
        return self._op("Range", [zero, self._op("Squeeze", [length]), one])

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
