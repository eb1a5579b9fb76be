"""Rewrites an exported decoder into the form that a provider of ONNX Runtime runs best.

In: the model as `export` wrote it. Out: the same model object, changed, which means the same. New tensors are computed
when they are read, one at a time, so that a model larger than the memory can be written to disk. For the CPU:

- every `W4A16Linear` becomes `com.microsoft::MatMulNBits`, whose kernels read 4-bit weights as they are; the function
  body would dequantize the whole weight at every call;
- half-precision tensors become fp32. The CPU provider has no half-precision kernels for most operators and would
  cast back and forth around each;
- the capacity axis of the cache becomes dynamic, so that a short conversation attends over a short cache.

For a GPU half precision stays, and the capacity fixed, since a CUDA graph is captured for one shape.

SmolLM2-135M, INT4 g128 with zero points, ONNX Runtime 1.31, 2 Xeon cores with AVX-512: a token takes 4 s as exported,
52 ms with `MatMulNBits` alone, 36 ms in fp32 as well (best of 40); mean KL from PyTorch in fp32 over 1,024 tokens of
WikiText-2 is 9e-6 with fp16 activations and 4e-7 with fp32.

`MatMulNBits`: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from awq2trt import opset
from awq2trt.checkpoint.pack import unpack_int4
from awq2trt.io_contract import LAST_POSITION_NODE, LOGITS, ROWS, cache_names

MICROSOFT_DOMAIN: Final = "com.microsoft"
CAPACITY_AXIS: Final = 2
_SMALLEST_BLOCK: Final = 16
_ONE_GROUP_BLOCK: Final = 128
"""Block for a row of one group: any would do, since all blocks have the same scale."""

FP32_COMPUTE: Final = 1
"""`accuracy_level` 1: activations stay fp32; 4 would quantize them to int8 (relative error 7e-3 a linear)."""

_HALF: Final = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class Blocks:
    """How the groups of a row become the blocks of `MatMulNBits`; nibbles are packed low first.

    Attributes:
        block: Channels of a block.
        features: K.
        group_of_block: Of every block of a row, int64 [blocks].
    """

    block: int
    features: int
    group_of_block: NDArray[np.int64]

    @staticmethod
    def of(features: int, groups: int, group_length: int) -> Blocks | None:
        """Blocks for rows of `features` channels in `groups` groups.

        Returns:
            None where no block that the operator takes (a power of two from 16) fits the groups.
        """
        block = _ONE_GROUP_BLOCK if groups == 1 else group_length & -group_length  # largest power of two in G
        if block < _SMALLEST_BLOCK:
            return None
        blocks = -(-features // block)
        group_of_block = np.arange(blocks) * block // group_length if groups > 1 else np.zeros(blocks, np.int64)
        return Blocks(block, features, group_of_block)

    def codes_shape(self, rows: int) -> tuple[int, int, int]:
        """Of packed codes."""
        return (rows, len(self.group_of_block), self.block // 2)

    def pack_codes(self, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Unsigned codes uint8 [N, K] -> uint8 [N, blocks, block / 2]."""
        missing = len(self.group_of_block) * self.block - self.features
        return _pack_rows(np.pad(codes, ((0, 0), (0, missing)))).reshape(self.codes_shape(len(codes)))

    def pack_zeros(self, zeros: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Unsigned zero points uint8 [N, ceil(K/G)] -> uint8 [N, ceil(blocks / 2)]; without any, they are 8."""
        return _pack_rows(self.spread(zeros))

    def spread(self, groups: NDArray[Any]) -> NDArray[Any]:
        """[N, ceil(K/G)] -> [N, blocks]."""
        return np.ascontiguousarray(groups[:, self.group_of_block])


def lower_linears_(model: ir.Model, *, widened: bool) -> None:
    """Replaces every `W4A16Linear` that `MatMulNBits` can express; others keep their function body.

    Args:
        model: As exported; changed.
        widened: Scales become fp32, and activations are asked to stay fp32, as the CPU's kernel needs it. Otherwise
            scales keep the activations' type, which is all that the CUDA kernel takes.
    """
    for node in list(model.graph):
        if is_quantized_linear(node):
            _lower_linear_(model.graph, node, widened=widened)
    model.graph.opset_imports[MICROSOFT_DOMAIN] = 1


def is_quantized_linear(node: ir.Node) -> bool:
    """Whether a node is one of our quantized linears."""
    return node.domain == opset.DOMAIN and node.op_type == opset.W4A16_LINEAR


def linear_shapes(model: ir.Model) -> Iterator[tuple[int, int]]:
    """(N, K) of every quantized linear, lowered or not."""
    for node in model.graph:
        if is_quantized_linear(node):
            rows, features = _constant(_required(node.inputs[1])).shape.numpy()
            yield rows, features
        elif node.domain == MICROSOFT_DOMAIN and node.op_type == "MatMulNBits":
            yield node.attributes["N"].as_int(), node.attributes["K"].as_int()


def widen_to_fp32_(model: ir.Model) -> None:
    """Makes fp16 and bf16 inputs, outputs and initializers fp32.

    A table that is only gathered from stays as it is, and the gathered rows are cast: of the embedding of a model with
    a head of its own a call reads a few rows, and in fp32 it would be twice as large.
    """
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.dtype in _HALF:
            value.dtype = ir.DataType.FLOAT
    kept: set[ir.Node] = set()  # gather rows that stay as they are
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype not in _HALF:
            continue
        if value.uses() and all(use.node.op_type == "Gather" and use.idx == 0 for use in value.uses()):
            gathers = [use.node for use in value.uses()]
            _cast_gathered_(model.graph, gathers)
            kept.update(gathers)
            continue
        value.const_value = _lazily(value, ir.DataType.FLOAT, tensor.shape, partial(_as_fp32, tensor))
        value.dtype = ir.DataType.FLOAT
    for node in model.graph:
        for output in node.outputs:
            if output.dtype in _HALF and node not in kept:
                output.dtype = ir.DataType.FLOAT


def _cast_gathered_(graph: ir.Graph, gathers: Sequence[ir.Node]) -> None:
    for gather in gathers:
        rows = gather.outputs[0]
        cast = ir.node("Cast", [rows], {"to": ir.DataType.FLOAT.value}, name=f"{gather.name}.widened")
        cast.outputs[0].name, cast.outputs[0].shape = f"{rows.name}.widened", rows.shape
        cast.outputs[0].dtype = ir.DataType.FLOAT
        ir.convenience.replace_all_uses_with(rows, cast.outputs[0])
        cast.replace_input_with(0, rows)
        graph.insert_after(gather, cast)


def _as_fp32(tensor: ir.TensorProtocol) -> NDArray[np.float32]:
    return tensor.numpy().astype(np.float32)


def has_free_capacity(model: ir.Model) -> bool:
    """Whether the graph reads the capacity off its caches; one in basic operators (`basic_ops`) has it built in."""
    return any(node.op_type == "TensorScatter" for node in model.graph)


def free_capacity_(model: ir.Model, num_layers: int) -> None:
    """Makes the capacity axis of every cache input and output dynamic."""
    _set_capacity_(model, num_layers, ir.SymbolicDim("capacity"))


def fix_capacity_(model: ir.Model, num_layers: int, capacity: int) -> None:
    """Gives every cache input and output another capacity."""
    _set_capacity_(model, num_layers, capacity)


def weights_read_bytes(model: ir.Model) -> int:
    """Bytes of weights that a call of one token reads: all but tables, of which it gathers a row."""

    def is_table(value: ir.Value) -> bool:
        return all(use.node.op_type == "Gather" and use.idx == 0 for use in value.uses())

    weights = (value for value in model.graph.initializers.values() if not is_table(value))
    return sum(value.const_value.nbytes for value in weights if value.const_value is not None)


def _set_capacity_(model: ir.Model, num_layers: int, capacity: int | ir.SymbolicDim) -> None:
    names = {*cache_names("past", num_layers), *cache_names("present", num_layers)}
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.name in names and value.shape is not None:
            axes = [*value.shape]
            axes[CAPACITY_AXIS] = capacity
            value.shape = ir.Shape(axes)


def keeps_last_position(model: ir.Model) -> bool:
    """Whether the model gives logits of the last position only."""
    return any(node.name == LAST_POSITION_NODE for node in model.graph)


def keep_all_positions_(model: ir.Model) -> None:
    """Bypasses the node that keeps the last position, so that logits of every position come out."""
    for node in list(model.graph):
        if node.name == LAST_POSITION_NODE:
            ir.convenience.replace_all_uses_with(node.outputs[0], _required(node.inputs[0]))
            model.graph.remove(node, safe=True)
    for output in model.graph.outputs:
        if output.name == LOGITS and output.shape is not None:
            output.shape = ir.Shape([output.shape[0], ir.SymbolicDim(ROWS), output.shape[2]])


def _lower_linear_(graph: ir.Graph, node: ir.Node, *, widened: bool) -> None:
    inputs = {name: _required(value) for name, value in zip(_input_names(node), node.inputs, strict=True)}
    codes, scales = _constant(inputs["codes"]), _constant(inputs["scales"])
    rows, features = codes.shape.numpy()
    groups = scales.shape.numpy()[1]
    blocks = Blocks.of(features, groups, node.attributes[opset.ATTR_GROUP_SIZE].as_int())
    if blocks is None:
        return
    count = len(blocks.group_of_block)
    step_type = ir.DataType.FLOAT if widened else scales.dtype
    parts: dict[str, tuple[ir.DataType, tuple[int, ...], Callable[[], NDArray[Any]]]] = {
        "codes": (
            ir.DataType.UINT8,
            blocks.codes_shape(rows),
            lambda: blocks.pack_codes(unpack_int4(packed_bytes(codes), (rows, features))),
        ),
        "scales": (step_type, (rows, count), lambda: blocks.spread(scales.numpy()).astype(step_type.numpy())),
    }
    if "zeros" in inputs:
        zeros = _constant(inputs["zeros"])
        parts["zeros"] = (
            ir.DataType.UINT8,
            (rows, -(-count // 2)),
            lambda: blocks.pack_zeros(unpack_int4(packed_bytes(zeros), (rows, groups))),
        )
    replaced = {name: _replace_(graph, inputs[name], *part) for name, part in parts.items()}
    attributes = {"K": features, "N": rows, "bits": 4, "block_size": blocks.block}
    lowered = ir.node(
        "MatMulNBits",
        [inputs["x"], replaced["codes"], replaced["scales"], replaced.get("zeros"), None, inputs.get("bias")],
        {**attributes, "accuracy_level": FP32_COMPUTE} if widened else attributes,
        domain=MICROSOFT_DOMAIN,
        name=node.name,
    )
    old, new = node.outputs[0], lowered.outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], [lowered], [old], [new])


def _input_names(node: ir.Node) -> list[str]:
    flags = {name: node.attributes[name].as_int() for name in (opset.ATTR_HAS_ZEROS, opset.ATTR_HAS_BIAS)}
    zeros, bias = ["zeros"] * flags[opset.ATTR_HAS_ZEROS], ["bias"] * flags[opset.ATTR_HAS_BIAS]
    return ["x", "codes", "scales", *zeros, *bias]


def _replace_(
    graph: ir.Graph, value: ir.Value, dtype: ir.DataType, shape: Sequence[int], compute: Callable[[], NDArray[Any]]
) -> ir.Value:
    """Gives an initializer new contents under its old name."""
    fresh = ir.Value(
        name=value.name,
        type=ir.TensorType(dtype),
        shape=ir.Shape(shape),
        const_value=_lazily(value, dtype, ir.Shape(shape), compute),
    )
    del graph.initializers[_name(value)]
    graph.register_initializer(fresh)
    return fresh


def _lazily(value: ir.Value, dtype: ir.DataType, shape: Any, compute: Callable[[], NDArray[Any]]) -> ir.LazyTensor:
    """A tensor that is computed whenever it is read, and not kept."""
    return ir.LazyTensor(lambda: ir.Tensor(compute(), dtype=dtype, name=value.name), dtype, shape, name=value.name)


def _pack_rows(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [N, n] nibbles -> uint8 [N, ceil(n / 2)], low nibble first, every row on a byte of its own."""
    if codes.shape[1] % 2:
        codes = np.pad(codes, ((0, 0), (0, 1)))
    return (codes[:, 0::2] | (codes[:, 1::2] << 4)).astype(np.uint8, copy=False)


def packed_bytes(tensor: ir.TensorProtocol) -> NDArray[np.uint8]:
    """A tensor's bytes; one on disk is read, since onnx-ir would unpack its nibbles and keep them."""
    if isinstance(tensor, ir.ExternalTensor) and tensor.length is not None:
        return np.fromfile(tensor.path, np.uint8, count=tensor.length, offset=tensor.offset or 0)
    return np.frombuffer(tensor.tobytes(), dtype=np.uint8)


def _constant(value: ir.Value) -> ir.TensorProtocol:
    if value.const_value is None:
        raise ValueError(f"{value.name} is not an initializer")
    return value.const_value


def _required(value: ir.Value | None) -> ir.Value:
    if value is None:
        raise ValueError("a required input is empty")
    return value


def _name(value: ir.Value) -> str:
    if value.name is None:
        raise ValueError("an initializer has no name")
    return value.name
