"""Rewrites an exported decoder, in memory, into what TensorRT 10.3 parses (JetPack 6): opset 20, no functions.

In: a model of opset 24 as `export` writes it, for one conversation (`fix_batch_` first). Out: an equivalent model.
Norms, rotary embeddings, cache writes and attention become matrix products, gathers and scatters; grouped-query heads
stay grouped. An operator or attribute that this file does not know is refused by name, since a wrong model that builds
is worse than none.

The onnx package knows which operators opset 20 has. According to onnx-tensorrt, TensorRT 10.0 to 10.3 parse opset 9 to
20, including INT4 initializers (docs/operators.md and WeightsContext.cpp of its 10.1, which were read, not run).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass
from onnx_ir.tape import Tape

from awq2trt import opset
from awq2trt.errors import UnsupportedError
from awq2trt.io_contract import BATCH, CACHE_POSITION, IMAGES, NEW_TOKENS

OPSET: Final = 20
"""The newest opset that TensorRT 10.3 parses."""

IR_VERSION: Final = 10
"""The first IR version with INT4."""

ONE: Final = (BATCH, IMAGES)
"""Symbolic axes that are 1 on a Jetson."""

_END: Final = 2**63 - 1


def fix_batch_(model: ir.Model) -> None:
    """Sets the axis of sequences or images of all inputs and outputs to 1: only the number of new tokens is free."""
    for value in (*model.graph.inputs, *model.graph.outputs, *(v for node in model.graph for v in node.outputs)):
        if value.shape is not None:
            axes = [1 if isinstance(axis, ir.SymbolicDim) and axis.value in ONE else axis for axis in value.shape]
            value.shape = ir.Shape(axes)


def drop_functions_(model: ir.Model) -> None:
    """Leaves custom nodes without function bodies, for a plugin library, which is then required."""
    model.functions.clear()
    for node in model.graph:
        node.overload = ""


def infer_shapes_(model: ir.Model) -> None:
    """Writes down the shapes of all values that standard operators make."""
    ShapeInferencePass(check_type=False)(model)


def lower_to_basic_ops_(model: ir.Model) -> None:
    """Rewrites the model.

    Raises:
        UnsupportedError: The model has an operator, an attribute or a shape that opset 20 cannot express here.
    """
    infer_shapes_(model)
    rewriter = _Rewriter(model.graph)
    for node in list(model.graph):
        lower = _LOWERINGS.get(node.op_type) if _is_standard(node) else None
        if lower is not None:
            rewriter.replace(node, lower)
        else:
            _require_known(node)
    drop_functions_(model)
    model.graph.opset_imports[""] = OPSET
    model.ir_version = IR_VERSION


class _Rewriter:
    """Replaces a node with several; new nodes go before the replaced one and carry its name."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._tape = Tape()
        self._name = ""
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._shared: dict[tuple[object, ...], ir.Value] = {}

    def replace(self, node: ir.Node, lower: Callable[[_Rewriter, ir.Node], ir.Value]) -> None:
        """Puts the nodes that `lower` writes in place of `node`."""
        self._tape, self._name = Tape(), node.name or ""
        result = lower(self, node)
        old = node.outputs[0]
        result.type, result.shape = old.type, old.shape
        nodes = list(self._tape.nodes)
        ir.convenience.replace_nodes_and_values(self.graph, node, [node], nodes, [old], [result])

    def op(
        self, op_type: str, inputs: Sequence[ir.Value | None], attributes: dict[str, int | list[int]] | None = None
    ) -> ir.Value:
        """Appends a node."""
        index = sum(1 for _ in self._tape.nodes)
        name = f"{self._name}/{op_type}_{index}"
        value = self._tape.op(op_type, inputs, attributes, name=name)
        value.name = name
        return value

    def shared(self, key: tuple[object, ...], write: Callable[[], ir.Value]) -> ir.Value:
        """Returns what `write` appends the first time, and later the same value for the same key.

        Nodes are visited in the order in which they run, so values that were written before exist.
        """
        if key not in self._shared:
            self._shared[key] = write()
        return self._shared[key]

    def integers(self, values: Sequence[int] | np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> ir.Value:
        """Makes an int64 constant."""
        return self.constant(np.asarray(values, np.int64))

    def constant(self, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> ir.Value:
        """Makes an initializer; equal arrays share one."""
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            name = f"basic_ops.constant_{len(self._constants)}"
            value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
            value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(array.shape)  # type: ignore[union-attr]
            self.graph.register_initializer(value)
            self._constants[key] = value
        return self._constants[key]

    def like(self, number: float, value: ir.Value) -> ir.Value:
        """Makes a scalar with the type of `value`."""
        return self.constant(np.asarray(number, _dtype(value).numpy()))


def _rms_norm(rewriter: _Rewriter, node: ir.Node) -> ir.Value:
    """x / sqrt(mean(x^2) + eps) in fp32, then times scale in x's type, as the operator's definition has it."""
    values = _attributes(node, {"axis": -1, "epsilon": 1e-5, "stash_type": 1})
    _require(node, "axis", values["axis"], -1)
    _require(node, "stash_type", values["stash_type"], int(ir.DataType.FLOAT))
    x, scale = _inputs(node, 2)
    wide = rewriter.op("Cast", [x], {"to": int(ir.DataType.FLOAT)})
    squares = rewriter.op("Mul", [wide, wide])
    mean = rewriter.op("ReduceMean", [squares, rewriter.integers([-1])], {"keepdims": 1})
    root = rewriter.op(
        "Sqrt", [rewriter.op("Add", [mean, rewriter.constant(np.asarray(values["epsilon"], np.float32))])]
    )
    normalized = rewriter.op("CastLike", [rewriter.op("Div", [wide, root]), x])
    return rewriter.op("Mul", [normalized, scale])


def _rotary_embedding(rewriter: _Rewriter, node: ir.Node) -> ir.Value:
    """Rotates channels i and i + R/2 of [B, heads, S, D] by the tables' angles at each token's position."""
    values = _attributes(node, {"interleaved": 0, "num_heads": 0, "rotary_embedding_dim": 0})
    _require(node, "interleaved", values["interleaved"], 0)
    _require(node, "num_heads", values["num_heads"], 0)
    x, cos, sin, positions = _inputs(node, 4)
    half = _static(node, cos, 1)
    if values["rotary_embedding_dim"]:
        _require(node, "rotary_embedding_dim", values["rotary_embedding_dim"], 2 * half)

    def table(source: ir.Value) -> ir.Value:  # [B, 1, S, R/2], the same for all heads and layers
        def write() -> ir.Value:
            rows = rewriter.op("Gather", [source, positions], {"axis": 0})
            return rewriter.op("Unsqueeze", [rows, rewriter.integers([1])])

        return rewriter.shared(("rotary", source, positions), write)

    def channels(start: int, end: int) -> ir.Value:
        return rewriter.op("Slice", [x, *(rewriter.integers([value]) for value in (start, end, -1))])

    cosines, sines = table(cos), table(sin)
    first, second = channels(0, half), channels(half, 2 * half)
    real = rewriter.op("Sub", [rewriter.op("Mul", [first, cosines]), rewriter.op("Mul", [second, sines])])
    imaginary = rewriter.op("Add", [rewriter.op("Mul", [first, sines]), rewriter.op("Mul", [second, cosines])])
    parts = [real, imaginary]
    if _static(node, x, 3) > 2 * half:
        parts.append(channels(2 * half, _END))  # channels that are not rotated
    return rewriter.op("Concat", parts, {"axis": -1})


def _tensor_scatter(rewriter: _Rewriter, node: ir.Node) -> ir.Value:
    """Writes [1, H, S, D] into a cache [1, H, C, D], from slot `cache_position` on.

    The cache is viewed as a [H * C, D] matrix in which slot p of head h is row h C + p, so that every index writes D
    values. All layers write the same slots, so the indices are computed once.
    """
    values = _attributes(node, {"axis": -2, "mode": "linear"})
    _require(node, "mode", values["mode"], "linear")
    _require(node, "axis", values["axis"], -2)
    past, update, start = _inputs(node, 3)
    if start.name != CACHE_POSITION or not start.is_graph_input():
        raise _refusal(node, f"write_indices: expected the input {CACHE_POSITION}, got {start.name}")
    batch, heads, capacity, width = (_static(node, past, axis) for axis in range(4))
    _require(node, "batch", batch, 1)
    new = next(value for value in rewriter.graph.inputs if value.name in NEW_TOKENS)

    def write() -> ir.Value:  # int64 [H, S, 1]
        length = rewriter.op("Shape", [new], {"start": 1, "end": 2})
        zero, one = rewriter.constant(np.asarray(0)), rewriter.constant(np.asarray(1))
        steps = rewriter.op("Range", [zero, rewriter.op("Squeeze", [length]), one])
        slots = rewriter.op("Add", [steps, start])  # [S]
        heads_at = rewriter.integers(capacity * np.arange(heads)[:, None])  # [H, 1]
        return rewriter.op("Unsqueeze", [rewriter.op("Add", [heads_at, slots]), rewriter.integers([2])])

    indices = rewriter.shared(("slots", heads, capacity), write)
    rows = rewriter.op("Reshape", [past, rewriter.integers([heads * capacity, width])])
    new = rewriter.op("Reshape", [update, rewriter.integers([heads, -1, width])])
    written = rewriter.op("ScatterND", [rows, indices, new])
    return rewriter.op("Reshape", [written, rewriter.integers([1, heads, capacity, width])])


def _attention(rewriter: _Rewriter, node: ir.Node) -> ir.Value:
    """softmax(scale q k^T + mask) v, the query heads of a key-value head being further rows of a product; mask or none.

    Everything has the type of q, as the operator is defined without `softmax_precision`. The complete scale is applied
    to q, which is smaller than k.
    """
    values = _attributes(node, {"scale": None, "softcap": 0.0, "is_causal": 0})
    _require(node, "is_causal", values["is_causal"], 0)
    _require(node, "softcap", values["softcap"], 0.0)
    if values["scale"] is None:
        raise _refusal(node, "scale: expected a number, got none")
    query, key, value, *masks = _inputs(node, min(4, max(3, len(node.inputs))))
    heads, groups = _static(node, query, 1), _static(node, key, 1)
    scaled = rewriter.op("Mul", [query, rewriter.like(float(values["scale"]), query)])
    if heads != groups:  # [1, Hkv, Hq/Hkv * S, D]
        scaled = rewriter.op("Reshape", [scaled, rewriter.integers([1, groups, -1, _static(node, query, 3)])])
    scores = rewriter.op("MatMul", [scaled, rewriter.op("Transpose", [key], {"perm": [0, 1, 3, 2]})])
    if heads != groups:  # [1, Hq, S, C]
        scores = rewriter.op("Reshape", [scores, rewriter.integers([1, heads, -1, _static(node, key, 2)])])
    for mask in masks:
        if _dtype(mask) == ir.DataType.BOOL:
            # A finite value is enough: every query sees itself, and exp of this value is 0 anyway.
            lowest = float(ml_dtypes.finfo(_dtype(query).numpy()).min)  # type: ignore[no-untyped-call]
            scores = rewriter.op("Where", [mask, scores, rewriter.like(lowest, query)])
        else:
            scores = rewriter.op("Add", [scores, mask])
    shares = rewriter.op("Softmax", [scores], {"axis": -1})
    if heads != groups:
        shares = rewriter.op("Reshape", [shares, rewriter.integers([1, groups, -1, _static(node, key, 2)])])
    attended = rewriter.op("MatMul", [shares, value])
    if heads != groups:
        attended = rewriter.op("Reshape", [attended, rewriter.integers([1, heads, -1, _static(node, value, 3)])])
    return attended


_LOWERINGS: Final[dict[str, Callable[[_Rewriter, ir.Node], ir.Value]]] = {
    "RMSNormalization": _rms_norm,
    "RotaryEmbedding": _rotary_embedding,
    "TensorScatter": _tensor_scatter,
    "Attention": _attention,
}


def _is_standard(node: ir.Node) -> bool:
    return node.domain == ""


def _require_known(node: ir.Node) -> None:
    """Refuses operators and attributes that opset 20 lacks."""
    if node.domain == opset.DOMAIN:
        return
    if not _is_standard(node):
        raise _refusal(node, f"domain {node.domain} is not known")
    if not onnx.defs.has(node.op_type, OPSET):
        raise _refusal(node, f"opset {OPSET} does not have it")
    unknown = set(node.attributes) - set(onnx.defs.get_schema(node.op_type, OPSET).attributes)
    if unknown:
        raise _refusal(node, f"opset {OPSET} does not have its attribute {', '.join(sorted(unknown))}")


def _attributes(node: ir.Node, defaults: dict[str, Any]) -> dict[str, Any]:
    """Returns the node's attributes, with defaults for missing ones; refuses unknown ones."""
    values = dict(defaults)
    for name, attribute in node.attributes.items():
        if name not in defaults:
            raise _refusal(node, f"attribute {name} is not known")
        values[name] = attribute.value
    return values


def _inputs(node: ir.Node, count: int) -> list[ir.Value]:
    """Returns the node's inputs, of which there must be `count`; only its first output may be used."""
    given = [value for value in node.inputs if value is not None]
    if len(given) != count or any(value is None for value in node.inputs[:count]):
        raise _refusal(node, f"expected {count} inputs, got {len(given)} of {len(node.inputs)}")
    if any(output.uses() for output in node.outputs[1:]):
        raise _refusal(node, "its further outputs are used")
    return given


def _static(node: ir.Node, value: ir.Value, axis: int) -> int:
    """Returns the length of an axis, which must be fixed."""
    length = value.shape[axis] if value.shape is not None and len(value.shape) > axis else None
    if not isinstance(length, int):
        raise _refusal(node, f"axis {axis} of {value.name}: expected a fixed length, got {length}")
    return length


def _dtype(value: ir.Value) -> ir.DataType:
    if value.dtype is None:
        raise UnsupportedError("its type is not known.", where=value.name)
    return value.dtype


def _require(node: ir.Node, what: str, got: object, expected: object) -> None:
    if got != expected:
        raise _refusal(node, f"{what}: expected {expected}, got {got}")


def _refusal(node: ir.Node, reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"{node.op_type} cannot be written for TensorRT 10.3: {reason}.",
        where=node.name,
        fix="build for JetPack 7.2, whose TensorRT takes the model as it is: --jetpack 7.2.",
    )
