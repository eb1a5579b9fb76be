"""Function bodies of the fused operators: each defined in standard ONNX ops, as the exporter would have written it.

In: a model whose graph was fused (`graph.fusion`). Out: the same, with a body for every custom node that lacks one, so
that ONNX Runtime, or any other executor without our operators, can run it. Every set of attributes has its own body,
identified by its overload; bodies use only operators of exported graphs, which TensorRT accepts.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.tape import Tape

from awq2trt import opset
from awq2trt.graph.activations import write_activation
from awq2trt.graph.fused_linear import count_before_codes, split_linears_
from awq2trt.graph.inline import inline_call_
from awq2trt.graph.int8_cache import write_quantized
from awq2trt.onnx_export.bodies import BodyVariant, append_linear, make_body, make_embedding_body
from awq2trt.onnx_export.decoder_graph import LOWEST

_Inputs = dict[str, ir.Value]
_Numbers = dict[str, int | float]
"""Attributes of an operator."""


def add_bodies_(model: ir.Model) -> None:
    """Gives custom nodes their bodies, and takes out bodies that no node has.

    Args:
        model: A model with nodes of `opset`; it is changed.
    """
    made: dict[tuple[object, ...], ir.Function] = {}
    for node in model.graph:
        if node.domain != opset.DOMAIN or node.op_identifier() in model.functions:
            continue
        if node.op_type in opset.LINEAR_OF_BITS.values():
            function = make_body(_coded_variant(node))
        elif node.op_type in opset.EMBEDDING_OF_BITS.values():
            function = make_embedding_body(_coded_variant(node))
        else:
            key = (node.op_type, *_numbers(node).items(), _coded_variant(node) if _is_linear(node) else None)
            if key not in made:
                made[key] = _fused_body(node, f"v{len(made)}")
            function = made[key]
        node.overload = function.overload
        model.functions.setdefault(function.identifier(), function)
    called = {node.op_identifier() for node in model.graph}
    for identifier in set(model.functions) - called:
        del model.functions[identifier]


def unfuse_(model: ir.Model) -> None:
    """Replaces the fused nodes with their bodies; linears stay, and stay merged.

    Args:
        model: The model; it is changed, and gets the opset of the bodies if it had an older one.
    """
    split_linears_(model.graph)
    fused = [node for node in model.graph if node.domain == opset.DOMAIN and node.op_type in opset.FUSED_OPERATORS]
    for node in fused:
        inline_call_(model.graph, node, _fused_body(node, ""))
    if fused:
        model.graph.opset_imports[""] = opset.ONNX_OPSET
        model.ir_version = opset.ONNX_IR_VERSION


def _is_linear(node: ir.Node) -> bool:
    return node.op_type == opset.FUSED_LINEAR


def _coded_variant(node: ir.Node) -> BodyVariant:
    """The variant of a linear or an embedding, read off its node."""
    codes = node.inputs[count_before_codes(node) if _is_linear(node) else 1]
    if codes is None or codes.const_value is None:
        raise ValueError(f"{node.name}: its codes are no initializer")
    group, features = node.attributes[opset.ATTR_GROUP_SIZE].as_int(), int(codes.const_value.shape.numpy()[1])
    bias = node.attributes.get(opset.ATTR_HAS_BIAS)
    return BodyVariant(
        bits=8 if codes.const_value.dtype is ir.DataType.INT8 else opset.CODE_BITS,
        group_length=group,
        ragged_features=features if features % group else None,
        has_zeros=bool(node.attributes[opset.ATTR_HAS_ZEROS].as_int()),
        has_bias=bias is not None and bool(bias.as_int()),
    )


def _numbers(node: ir.Node) -> _Numbers:
    """Attributes of a fused node but those for TensorRT, sorted by name."""
    return {
        name: attribute.as_int() if attribute.type is ir.AttributeType.INT else attribute.as_float()
        for name, attribute in sorted(node.attributes.items())
        if name not in opset.PLUGIN_ATTRIBUTES
    }


def _fused_body(node: ir.Node, overload: str) -> ir.Function:
    """The body of a fused operator for one set of attributes."""
    op_type, numbers, tape = node.op_type, _numbers(node), Tape()
    nodes = _Nodes(tape)
    if op_type == opset.FUSED_LINEAR:
        inputs, outputs = _linear(nodes, numbers, _coded_variant(node))
    else:
        names, write = {
            opset.CACHED_ATTENTION: (_attention_inputs, _attention),
            opset.RESIDUAL_NORM: (_norm_inputs, _norm),
            opset.GATED_ACTIVATION: (_gated_inputs, _gated),
        }[op_type]
        named = {name: ir.Value(name=name) for name in names(numbers)}
        inputs, outputs = list(named.values()), write(nodes, named, numbers)
    for index, output in enumerate(outputs):
        output.name = f"output_{index}"
    graph = ir.Graph(inputs, outputs, nodes=tape.nodes, opset_imports={"": opset.ONNX_OPSET}, name=op_type)
    kinds = {
        name: ir.AttributeType.FLOAT if isinstance(n, float) else ir.AttributeType.INT for name, n in numbers.items()
    }
    kinds |= dict.fromkeys(opset.PLUGIN_ATTRIBUTES, ir.AttributeType.STRING)
    attributes = [ir.Attr(name, kind, None) for name, kind in kinds.items()]
    return ir.Function(opset.DOMAIN, op_type, overload, graph=graph, attributes=attributes)


class _Nodes:
    """Appends nodes to a body. Shapes in comments: B batch, S new tokens, C slots, D channels of a head."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape

    def op(self, op_type: str, *inputs: ir.Value, **attributes: int | float | str | list[int]) -> ir.Value:
        """A node with one output."""
        return self.tape.op(op_type, inputs, attributes)

    def split(self, x: ir.Value, axis: int, lengths: Sequence[int]) -> Sequence[ir.Value]:
        """Parts of x, of these lengths."""
        return self.tape.op_multi_out("Split", [x, self.integers(*lengths)], {"axis": axis}, num_outputs=len(lengths))

    def integers(self, *values: int) -> ir.Value:
        """An int64 constant."""
        return self.op("Constant", value_ints=list(values))

    def number(self, value: float, like: ir.Value) -> ir.Value:
        """A scalar of the type that `like` has."""
        return self.op("CastLike", self.op("Constant", value_float=float(value)), like)

    def length(self, x: ir.Value, axis: int) -> ir.Value:
        """Length of an axis, int64 [1]."""
        return self.op("Shape", x, start=axis, end=axis + 1)

    def count_to(self, length: ir.Value) -> ir.Value:
        """0 .. length-1, int64."""
        zero, one = self.op("Constant", value_int=0), self.op("Constant", value_int=1)
        return self.op("Range", zero, self.op("Squeeze", length), one)

    def softcap(self, x: ir.Value, cap: float) -> ir.Value:
        """cap * tanh(x / cap)."""
        bound = self.number(cap, x)
        return self.op("Mul", self.op("Tanh", self.op("Div", x, bound)), bound)


def _norm_inputs(numbers: _Numbers) -> list[str]:
    return ["x", *["residual"] * bool(numbers["has_residual"]), "gain", *["bias"] * bool(numbers["has_bias"])]


def _norm(nodes: _Nodes, inputs: _Inputs, numbers: _Numbers) -> list[ir.Value]:
    """y, and the sum if there is a residual."""
    sums = [nodes.op("Add", inputs["x"], inputs["residual"])] if numbers["has_residual"] else []
    x, parameters = (sums or [inputs["x"]])[0], [inputs[name] for name in ("gain", "bias") if name in inputs]
    kind = "RMSNormalization" if numbers["rms"] else "LayerNormalization"
    y = nodes.op(kind, x, *parameters, axis=-1, epsilon=numbers["epsilon"], stash_type=int(ir.DataType.FLOAT))
    return [y, *sums]


def _gated_inputs(_numbers: _Numbers) -> list[str]:
    return ["x"]


def _gated(nodes: _Nodes, inputs: _Inputs, numbers: _Numbers) -> list[ir.Value]:
    """activation(gate) * up."""
    gate, up = nodes.tape.op_multi_out("Split", [inputs["x"]], {"axis": -1, "num_outputs": 2}, num_outputs=2)
    return [nodes.op("Mul", write_activation(nodes.op, _kind_of(numbers), gate), up)]


def _kind_of(numbers: _Numbers) -> str:
    return opset.ACTIVATION_NAMES[int(numbers[opset.ATTR_ACTIVATION])]


def _linear(nodes: _Nodes, numbers: _Numbers, variant: BodyVariant) -> tuple[list[ir.Value], list[ir.Value]]:
    """Inputs in order; outputs y, and the sum if there is a residual."""
    norm_numbers = {**numbers, "has_bias": numbers[opset.ATTR_HAS_NORM_BIAS]}
    before = _norm_inputs(norm_numbers) if numbers[opset.ATTR_HAS_NORM] else ["x"]
    given = {name: ir.Value(name="norm_bias" if name == "bias" else name) for name in before}
    own = {name: ir.Value(name=name) for name in variant.input_names[1:]}
    x, *sums = _norm(nodes, given, norm_numbers) if numbers[opset.ATTR_HAS_NORM] else [given["x"]]
    y = append_linear(nodes.tape, variant, {"x": x, **own})
    if numbers[opset.ATTR_GATED]:
        (y,) = _gated(nodes, {"x": y}, numbers)
    elif numbers[opset.ATTR_HAS_ACTIVATION]:
        y = write_activation(nodes.op, _kind_of(numbers), y)
    addends = [ir.Value(name="addend")] if numbers[opset.ATTR_HAS_ADDEND] else []
    for addend in addends:
        y = nodes.op("Add", y, addend)
    return [*given.values(), *own.values(), *addends], [y, *sums]


def _attention_inputs(numbers: _Numbers) -> list[str]:
    tables, gains = ["cos", "sin"], ["query_norm", "key_norm"]
    return [
        *("qkv", "cache_position", "past_key", "past_value"),
        *tables * bool(numbers["rotary_dim"]),
        *gains * bool(numbers["has_norms"]),
        *["alibi"] * bool(numbers["has_alibi"]),
        *["visible_end"] * bool(numbers.get(opset.ATTR_HAS_VISIBLE_END)),
        *("past_key_scale", "past_value_scale") * bool(numbers.get(opset.ATTR_HAS_CACHE_SCALES)),
    ]


def _attention(nodes: _Nodes, inputs: _Inputs, numbers: _Numbers) -> list[ir.Value]:
    """y [B, S, Hq D], the caches, and their scales if they are int8."""
    qkv, start = inputs["qkv"], inputs["cache_position"]
    if numbers["clip"]:
        lowest, highest = (nodes.number(sign * numbers["clip"], qkv) for sign in (-1, 1))
        qkv = nodes.op("Clip", qkv, lowest, highest)
    counts = [int(numbers[name]) for name in ("num_heads", "num_kv_heads", "num_kv_heads")]
    split = nodes.op("Reshape", qkv, nodes.integers(0, 0, sum(counts), -1))
    query, key, value = nodes.split(nodes.op("Transpose", split, perm=[0, 2, 1, 3]), 1, counts)  # [B, heads, S, D]
    if numbers["has_norms"]:
        query, key = (
            nodes.op("RMSNormalization", x, gain, axis=-1, epsilon=numbers["norm_eps"], stash_type=1)
            for x, gain in ((query, inputs["query_norm"]), (key, inputs["key_norm"]))
        )
    steps = nodes.count_to(nodes.length(qkv, 1))
    positions = nodes.op("Add", nodes.op("Unsqueeze", start, nodes.integers(1)), steps)  # [B, S]
    if numbers["rotary_dim"]:
        kind = {"rotary_embedding_dim": numbers["rotary_dim"], "interleaved": numbers["interleaved"]}
        query, key = (
            nodes.op("RotaryEmbedding", x, inputs["cos"], inputs["sin"], positions, **kind) for x in (query, key)
        )
    (keys, *key_caches), (values, *value_caches) = (
        _write(nodes, inputs, past, new) for past, new in (("past_key", key), ("past_value", value))
    )
    caches = [cache for pair in zip(key_caches, value_caches, strict=True) for cache in pair]
    attend = _attend_capped if numbers["softcap"] else _attend
    mask = _mask(nodes, inputs, numbers, keys, positions)
    attended = attend(nodes, numbers, (query, keys, values), mask)  # [B, Hq, S, D]
    merged = nodes.op("Transpose", attended, perm=[0, 2, 1, 3])
    return [nodes.op("Reshape", merged, nodes.integers(0, 0, -1)), *caches]


def _write(nodes: _Nodes, inputs: _Inputs, past: str, new: ir.Value) -> list[ir.Value]:
    """Keys or values as attention reads them [B, Hkv, C, D], and what is kept: the same, or codes and scales."""
    start, past_scale = inputs["cache_position"], inputs.get(f"{past}_scale")
    if past_scale is None:
        written = nodes.op("TensorScatter", inputs[past], new, start, axis=-2, mode="linear")
        return [written, written]
    codes, scales, read = write_quantized(nodes.op, (inputs[past], past_scale), new, start)
    return [read, codes, scales]


def _mask(nodes: _Nodes, inputs: _Inputs, numbers: _Numbers, keys: ir.Value, positions: ir.Value) -> ir.Value:
    """Which slots a token sees, bool [B, 1, S, C]; with ALiBi what is added to the scores, [B, Hq, S, C]."""
    slots = nodes.count_to(nodes.length(keys, 2))
    queries = nodes.op("Unsqueeze", positions, nodes.integers(1, 3))  # [B, 1, S, 1]
    ends = inputs.get("visible_end")
    seen = nodes.op("LessOrEqual", slots, queries if ends is None else nodes.op("Gather", ends, queries))
    if numbers["window"]:
        oldest = nodes.op("Sub", queries, nodes.integers(int(numbers["window"])))
        seen = nodes.op("And", seen, nodes.op("Greater", slots, oldest))
    if not numbers["has_alibi"]:
        return seen
    column = nodes.op("CastLike", nodes.op("Reshape", inputs["alibi"], nodes.integers(1, -1, 1, 1)), keys)
    distance = nodes.op("CastLike", nodes.op("Sub", slots, queries), keys)
    return nodes.op("Where", seen, nodes.op("Mul", distance, column), nodes.number(LOWEST, keys))


def _attend(nodes: _Nodes, numbers: _Numbers, heads: tuple[ir.Value, ir.Value, ir.Value], mask: ir.Value) -> ir.Value:
    return nodes.op("Attention", *heads, mask, scale=numbers["scale"])


def _attend_capped(
    nodes: _Nodes, numbers: _Numbers, heads: tuple[ir.Value, ir.Value, ir.Value], mask: ir.Value
) -> ir.Value:
    """The same with scores that saturate before the mask, which `Attention` leaves open."""
    query, keys, values = heads
    kv_heads, group = int(numbers["num_kv_heads"]), int(numbers["num_heads"]) // int(numbers["num_kv_heads"])
    tail = nodes.op("Shape", query, start=2)  # S, D
    scaled = nodes.op("Mul", query, nodes.number(numbers["scale"], query))
    by_group = nodes.op("Concat", nodes.integers(0, kv_heads, group), tail, axis=0)
    grouped = nodes.op("Reshape", scaled, by_group)  # [B, Hkv, Hq / Hkv, S, D]
    keys, values = (nodes.op("Unsqueeze", cache, nodes.integers(2)) for cache in (keys, values))
    scores = nodes.op("MatMul", grouped, nodes.op("Transpose", keys, perm=[0, 1, 2, 4, 3]))
    scores = nodes.softcap(scores, float(numbers["softcap"]))
    if numbers["has_alibi"]:
        by_slot = nodes.op("Concat", nodes.integers(0, kv_heads, group), nodes.op("Shape", mask, start=2), axis=0)
        scores = nodes.op("Add", scores, nodes.op("Reshape", mask, by_slot))
    else:
        seen = nodes.op("Unsqueeze", mask, nodes.integers(2))
        scores = nodes.op("Where", seen, scores, nodes.number(LOWEST, scores))
    context = nodes.op("MatMul", nodes.op("Softmax", scores, axis=-1), values)
    return nodes.op("Reshape", context, nodes.op("Concat", nodes.integers(0, kv_heads * group), tail, axis=0))
