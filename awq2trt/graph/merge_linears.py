"""Merges quantized linears that read the same input into one, with their rows one after the other.

In: `W4A16Linear` nodes. Out: one node whose output has theirs side by side. Merged tensors are computed when they are
read and not kept, so that writing a model takes only the memory of one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from awq2trt import opset
from awq2trt.checkpoint.pack import pack_int4, unpack_int4
from awq2trt.graph.matching import need, rows_of, take, tensor_of
from awq2trt.graph.ort_lowering import packed_bytes

_SAME: Final = (opset.ATTR_GROUP_SIZE, opset.ATTR_HAS_ZEROS)
_NIBBLES_PER_BYTE: Final = 2


def need_mergeable(linears: Sequence[ir.Node]) -> None:
    """Raises NoMatchError unless the linears read one input and are quantized alike.

    Raises:
        NoMatchError: They differ.
    """
    first = linears[0]
    columns = tuple(tensor_of(take(first, 1)).shape)[1]
    for linear in linears:
        need(linear.inputs[0] is first.inputs[0])
        need(all(linear.attributes[name].as_int() == first.attributes[name].as_int() for name in _SAME))
        need(tuple(tensor_of(take(linear, 1)).shape)[1] == columns)
        need(tensor_of(take(linear, 2)).dtype is tensor_of(take(first, 2)).dtype)


def merge_linears_(graph: ir.Graph, linears: Sequence[ir.Node]) -> ir.Value:
    """Puts one linear before several that pass `need_mergeable`; `remove_unused_` removes those later.

    Args:
        graph: The graph; it is changed.
        linears: The linears in the order of their outputs; the first also comes first in the graph.

    Returns:
        The merged output [..., sum of N]. A linear without a bias among others with one gets zeros.
    """
    first = linears[0]
    name = "+".join([str(first.name), *(str(linear.name).rpartition(".")[2] for linear in linears[1:])])
    has_zeros = bool(first.attributes[opset.ATTR_HAS_ZEROS].as_int())
    has_bias = any(linear.attributes[opset.ATTR_HAS_BIAS].as_int() for linear in linears)
    merged = [
        _stacked_(graph, f"{name}.codes", [tensor_of(linear.inputs[1]) for linear in linears], _stack_int4),
        _stacked_(graph, f"{name}.scales", [tensor_of(linear.inputs[2]) for linear in linears], _stack_rows),
    ]
    if has_zeros:
        zeros = [tensor_of(linear.inputs[3]) for linear in linears]
        merged.append(_stacked_(graph, f"{name}.zeros", zeros, _stack_int4))
    if has_bias:
        merged.append(_stacked_(graph, f"{name}.bias", [_bias(linear) for linear in linears], _stack_rows))
    kept = [attribute for key, attribute in first.attributes.items() if key != opset.ATTR_HAS_BIAS]
    attributes = [*kept, ir.AttrInt64(opset.ATTR_HAS_BIAS, int(has_bias))]
    node = ir.Node(opset.DOMAIN, opset.W4A16_LINEAR, [first.inputs[0], *merged], attributes, name=name)
    output = node.outputs[0]
    output.name, output.dtype = f"{name}:0", tensor_of(first.inputs[2]).dtype
    graph.insert_before(first, node)
    return output


def _bias(linear: ir.Node) -> ir.TensorProtocol:
    """Returns a linear's bias, or zeros."""
    if linear.attributes[opset.ATTR_HAS_BIAS].as_int():
        return tensor_of(linear.inputs[-1])
    scales = tensor_of(linear.inputs[2])
    return ir.Tensor(np.zeros(rows_of(linear), scales.dtype.numpy()), dtype=scales.dtype)


def _stacked_(
    graph: ir.Graph,
    name: str,
    tensors: Sequence[ir.TensorProtocol],
    stack: Callable[[Sequence[ir.TensorProtocol], tuple[int, ...]], ir.TensorProtocol],
) -> ir.Value:
    """Makes an initializer from tensors that are stacked on each other."""
    first = tensors[0]
    shape = (sum(int(tensor.shape.numpy()[0]) for tensor in tensors), *first.shape.numpy()[1:])
    lazy = ir.LazyTensor(partial(stack, tensors, shape), first.dtype, ir.Shape(shape), name=name)
    value = ir.Value(name=name, type=ir.TensorType(first.dtype), shape=ir.Shape(shape), const_value=lazy)
    graph.register_initializer(value)
    return value


def _stack_rows(tensors: Sequence[ir.TensorProtocol], _shape: tuple[int, ...]) -> ir.TensorProtocol:
    stacked: NDArray[Any] = np.concatenate([tensor.numpy() for tensor in tensors])
    return ir.Tensor(stacked, dtype=tensors[0].dtype)


def _stack_int4(tensors: Sequence[ir.TensorProtocol], shape: tuple[int, ...]) -> ir.TensorProtocol:
    """Joins INT4 tensors: appends bytes if all tensors but the last fill their bytes; otherwise packs nibbles again."""
    if all(tensor.size % _NIBBLES_PER_BYTE == 0 for tensor in tensors[:-1]):
        packed = np.concatenate([packed_bytes(tensor) for tensor in tensors])
    else:
        codes = [unpack_int4(packed_bytes(tensor), (tensor.size,)) for tensor in tensors]
        packed = pack_int4(np.concatenate(codes))
    return ir.PackedTensor(packed, ir.DataType.INT4, shape=ir.Shape(shape))
