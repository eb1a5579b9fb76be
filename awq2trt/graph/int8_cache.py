"""Gives a decoder an 8-bit key-value cache: codes, and a scale for each token and key-value head.

In: a decoder as it was exported, or with fused attention (`fusion`). Out: the same model, changed in place: its caches
are int8, and their scales, in the type of activations, come after all other inputs and outputs. `plugins/FORMAT.md`
defines it in the section CachedAttention:

- a `CachedAttention` gets the scales as its last inputs and outputs;
- a `TensorScatter` that writes a cache becomes standard operators that quantize new values, write them, and dequantize
  what attention reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final, TypeAlias

import onnx_ir as ir
from onnx_ir.tape import Tape

from awq2trt import opset
from awq2trt.errors import UnsupportedError
from awq2trt.io_contract import SCALED_LAYOUT, IoContract, TensorContract, is_cache, scale_name

DTYPE: Final = ir.DataType.INT8

LARGEST_CODE: Final = 127
"""Codes range from -127 to 127, since keys and values are as often negative as positive."""

Op: TypeAlias = Callable[..., ir.Value]
"""Writes a node: `op(op_type, *inputs, **attributes)` returns its output."""


def quantize_cache_(model: ir.Model, *, in_standard_operators: bool = False) -> None:
    """Makes every cache of a model int8.

    Args:
        model: The model; it is changed.
        in_standard_operators: Whether `TensorScatter` may write caches, so that attention widens all that it reads at
            every call. Otherwise only `CachedAttention` may, which reads the codes themselves.

    Raises:
        UnsupportedError: A cache is written by another operator.
    """
    graph = model.graph
    pasts = [value for value in graph.inputs if is_cache(_name(value))]
    for node in list(graph):
        if node.op_type == opset.CACHED_ATTENTION and node.domain == opset.DOMAIN:
            _quantize_attention_(graph, node)
        elif in_standard_operators and node.op_type == "TensorScatter" and node.inputs[0] in pasts:
            _quantize_write_(graph, node)
    for past in pasts:
        if past.dtype is not DTYPE:
            raise no_operator_error(where=_name(past))


def no_operator_error(where: str) -> UnsupportedError:
    """The error for a model whose attention our operator does not support."""
    sizes = ", ".join(map(str, opset.ATTENTION_HEAD_SIZES))
    return UnsupportedError(
        f"an int8 cache needs our fused attention operator, which supports heads of {sizes} channels, but "
        "neither rotary tables that depend on the length nor layer norms of queries and keys.",
        where=where,
        fix="build with --cache fp16.",
    )


def int8_contract(contract: IoContract) -> IoContract:
    """Returns the inputs and outputs of a decoder after its cache was made int8."""
    return replace(
        contract,
        inputs=_with_scales(contract.inputs),
        outputs=_with_scales(contract.outputs),
        cache=replace(contract.cache, dtype=_dtype_name(), layout=SCALED_LAYOUT) if contract.cache else None,
    )


def write_quantized(op: Op, pasts: tuple[ir.Value, ir.Value], new: ir.Value, start: ir.Value) -> tuple[ir.Value, ...]:
    """Writes the nodes that put keys or values into a cache of codes.

    Args:
        op: Appends a node.
        pasts: Codes int8 [B, Hkv, C, D] and scales T [B, Hkv, C].
        new: Keys or values T [B, Hkv, S, D].
        start: Slot of the first new one, int64 [B].

    Returns:
        Codes and scales after the call, and all keys or values as attention reads them, T [B, Hkv, C, D].
    """

    def number(value: float) -> ir.Value:
        return op("Constant", value_float=float(value))

    wide = op("Cast", new, to=int(ir.DataType.FLOAT))
    last_axis = op("Constant", value_ints=[-1])
    largest = op("ReduceMax", op("Abs", wide), last_axis, keepdims=1)  # [B, Hkv, S, 1]
    scale = op("CastLike", op("Div", largest, number(LARGEST_CODE)), pasts[1])
    step = op("Cast", scale, to=int(ir.DataType.FLOAT))
    divisor = op("Where", op("Greater", step, number(0.0)), step, number(1.0))
    rounded = op("Round", op("Div", wide, divisor))
    codes = op("Cast", op("Clip", rounded, number(-LARGEST_CODE), number(LARGEST_CODE)), to=int(DTYPE))
    kept = op("TensorScatter", pasts[0], codes, start, axis=-2, mode="linear")
    scales = op("TensorScatter", pasts[1], op("Squeeze", scale, last_axis), start, axis=-1, mode="linear")
    read = op("Mul", op("CastLike", kept, scales), op("Unsqueeze", scales, last_axis))
    return kept, scales, read


def _quantize_attention_(graph: ir.Graph, node: ir.Node) -> None:
    """Changes a fused attention: it gets an attribute, two more inputs and two more outputs."""
    pasts, presents = node.inputs[2:4], node.outputs[1:3]
    scales = [_scale_like(value) for value in (*pasts, *presents)]
    outputs = [ir.Value(name=value.name, type=value.type, shape=value.shape) for value in node.outputs]
    fused = ir.node(
        node.op_type,
        [*node.inputs, *scales[:2]],
        {name: attribute.value for name, attribute in node.attributes.items()} | {opset.ATTR_HAS_CACHE_SCALES: 1},
        domain=node.domain,
        outputs=[*outputs, *scales[2:]],
        name=node.name,
    )
    graph.insert_after(node, fused)
    for old, new in zip(node.outputs, fused.outputs, strict=False):
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    graph.inputs.extend(scales[:2])
    graph.outputs.extend(scales[2:])
    for value in (*pasts, *fused.outputs[1:3]):
        _required(value).type = ir.TensorType(DTYPE)


def _quantize_write_(graph: ir.Graph, node: ir.Node) -> None:
    """Changes a write by standard operators: attention reads the dequantized cache."""
    past, new, start = (_required(value) for value in node.inputs)
    present = node.outputs[0]
    past_scale, present_scale = _scale_like(past), _scale_like(present)
    tape = Tape()

    def op(op_type: str, *inputs: ir.Value, **attributes: int | float | str | list[int]) -> ir.Value:
        value = tape.op(op_type, inputs, attributes)
        value.name = f"{node.name}/{value.name or len(list(tape.nodes))}"
        return value

    kept, scales, read = write_quantized(op, (past, past_scale), new, start)
    read.type, read.shape = present.type, present.shape
    graph.insert_after(node, list(tape.nodes))
    kept.name, kept.shape, kept.type = present.name, present.shape, ir.TensorType(DTYPE)
    scales.name, scales.shape, scales.type = present_scale.name, present_scale.shape, present_scale.type
    graph.outputs[list(graph.outputs).index(present)] = kept
    present.replace_all_uses_with(read)
    graph.remove(node, safe=True)
    graph.inputs.append(past_scale)
    graph.outputs.append(scales)
    past.type = ir.TensorType(DTYPE)


def _scale_like(cache: ir.Value | None) -> ir.Value:
    """The scales of a cache; they have the type of the cache before it becomes int8."""
    cache = _required(cache)
    if cache.dtype is None or cache.shape is None:
        raise ValueError(f"{cache.name} has no type or no shape")
    return ir.Value(name=scale_name(_name(cache)), type=ir.TensorType(cache.dtype), shape=ir.Shape(cache.shape[:-1]))


def _with_scales(tensors: tuple[TensorContract, ...]) -> tuple[TensorContract, ...]:
    caches = [tensor for tensor in tensors if is_cache(tensor.name)]
    codes = {tensor.name: replace(tensor, dtype=_dtype_name()) for tensor in caches}
    scales = (
        replace(
            tensor,
            name=scale_name(tensor.name),
            shape=tensor.shape[:-1],
            meaning=f"Scales of {tensor.name}.",
            alias=scale_name(tensor.alias) if tensor.alias else None,
        )
        for tensor in caches
    )
    return (*(codes.get(tensor.name, tensor) for tensor in tensors), *scales)


def _dtype_name() -> str:
    return str(DTYPE.numpy().name)


def _required(value: ir.Value | None) -> ir.Value:
    if value is None:
        raise ValueError("a required input is empty")
    return value


def _name(value: ir.Value | None) -> str:
    return str(_required(value).name)
