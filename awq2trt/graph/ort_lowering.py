"""Rewrites an exported decoder, in memory, into the form that ONNX Runtime's CPU provider runs best.

In: the model as `export` wrote it. Out: a model that means the same, and the tensors it needs:

- every `W4A16Linear` becomes `com.microsoft::MatMulNBits`, whose kernels read 4-bit weights as they are; the function
  body would dequantize the whole weight at every call;
- half-precision tensors become fp32. The CPU provider has no half-precision kernels for most operators and would
  cast back and forth around each;
- the capacity axis of the cache becomes dynamic, so that a short conversation attends over a short cache.

SmolLM2-135M, INT4 g128 with zero points, ONNX Runtime 1.31, 2 Xeon cores with AVX-512: a token takes 4 s as exported,
52 ms with `MatMulNBits` alone, 36 ms in fp32 as well (best of 40); mean KL from PyTorch in fp32 over 1,024 tokens of
WikiText-2 is 9e-6 with fp16 activations and 4e-7 with fp32.

`MatMulNBits`: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

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
class BlockedWeight:
    """A linear as `MatMulNBits` takes it.

    Attributes:
        codes: Unsigned nibbles, low first, uint8 [N, blocks, block / 2]; the last block padded.
        scales: fp32 [N, blocks].
        zeros: Unsigned nibbles, low first, uint8 [N, ceil(blocks / 2)]; None means 8.
        block: Channels of a block, a power of two.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zeros: NDArray[np.uint8] | None
    block: int


def block_weight(
    codes: NDArray[np.uint8], scales: NDArray[np.float32], zeros: NDArray[np.uint8] | None, group_length: int
) -> BlockedWeight | None:
    """Packs a linear for `MatMulNBits`.

    Args:
        codes: Unsigned, uint8 [N, K].
        scales: fp32 [N, ceil(K/G)].
        zeros: Unsigned, uint8 [N, ceil(K/G)], or None.
        group_length: G.

    Returns:
        None where no block that the operator takes (a power of two from 16) fits the groups.
    """
    rows, features = codes.shape
    block = _ONE_GROUP_BLOCK if scales.shape[1] == 1 else group_length & -group_length  # largest power of two in G
    if block < _SMALLEST_BLOCK:
        return None
    blocks = -(-features // block)
    group_of_block = np.arange(blocks) * block // group_length if scales.shape[1] > 1 else np.zeros(blocks, np.int64)
    padded = np.pad(codes, ((0, 0), (0, blocks * block - features)))
    return BlockedWeight(
        codes=_pack_rows(padded).reshape(rows, blocks, block // 2),
        scales=np.ascontiguousarray(scales[:, group_of_block]),
        zeros=None if zeros is None else _pack_rows(zeros[:, group_of_block]),
        block=block,
    )


def lower_linears(model: ir.Model) -> None:
    """Replaces every `W4A16Linear` that `MatMulNBits` can express; others keep their function body."""
    for node in list(model.graph):
        if node.domain == opset.DOMAIN and node.op_type == opset.W4A16_LINEAR:
            _lower_linear(model.graph, node)
    model.graph.opset_imports[MICROSOFT_DOMAIN] = 1


def widen_to_fp32(model: ir.Model) -> None:
    """Makes fp16 and bf16 inputs, outputs and initializers fp32."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.dtype in _HALF:
            value.dtype = ir.DataType.FLOAT
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype in _HALF:
            value.const_value = ir.Tensor(tensor.numpy().astype(np.float32), name=value.name)
            value.dtype = ir.DataType.FLOAT
    for node in model.graph:
        for output in node.outputs:
            if output.dtype in _HALF:
                output.dtype = ir.DataType.FLOAT


def has_free_capacity(model: ir.Model) -> bool:
    """Whether the graph reads the capacity off its caches; one in basic operators (`basic_ops`) has it built in."""
    return any(node.op_type == "TensorScatter" for node in model.graph)


def free_capacity(model: ir.Model, num_layers: int) -> None:
    """Makes the capacity axis of every cache input and output dynamic."""
    names = {*cache_names("past", num_layers), *cache_names("present", num_layers)}
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.name in names and value.shape is not None:
            axes = [*value.shape]
            axes[CAPACITY_AXIS] = ir.SymbolicDim("capacity")
            value.shape = ir.Shape(axes)


def keeps_last_position(model: ir.Model) -> bool:
    """Whether the model gives logits of the last position only."""
    return any(node.name == LAST_POSITION_NODE for node in model.graph)


def keep_all_positions(model: ir.Model) -> None:
    """Bypasses the node that keeps the last position, so that logits of every position come out."""
    for node in list(model.graph):
        if node.name == LAST_POSITION_NODE:
            ir.convenience.replace_all_uses_with(node.outputs[0], _required(node.inputs[0]))
            model.graph.remove(node, safe=True)
    for output in model.graph.outputs:
        if output.name == LOGITS and output.shape is not None:
            output.shape = ir.Shape([output.shape[0], ir.SymbolicDim(ROWS), output.shape[2]])


def _lower_linear(graph: ir.Graph, node: ir.Node) -> None:
    inputs = {name: _required(value) for name, value in zip(_input_names(node), node.inputs, strict=True)}
    packed_codes = _constant(inputs["codes"])
    shape, groups = tuple(packed_codes.shape.numpy()), tuple(_constant(inputs["scales"]).shape.numpy())
    weight = block_weight(
        unpack_int4(_bytes(packed_codes), shape),
        _constant(inputs["scales"]).numpy().astype(np.float32),
        unpack_int4(_bytes(_constant(inputs["zeros"])), groups) if "zeros" in inputs else None,
        node.attributes[opset.ATTR_GROUP_SIZE].as_int(),
    )
    if weight is None:
        return
    replaced = [_replace(graph, inputs["codes"], weight.codes), _replace(graph, inputs["scales"], weight.scales)]
    zeros = _replace(graph, inputs["zeros"], weight.zeros) if weight.zeros is not None else None
    lowered = ir.node(
        "MatMulNBits",
        [inputs["x"], *replaced, zeros, None, inputs.get("bias")],
        {"K": shape[1], "N": shape[0], "bits": 4, "block_size": weight.block, "accuracy_level": FP32_COMPUTE},
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


def _replace(graph: ir.Graph, value: ir.Value, array: NDArray[np.generic]) -> ir.Value:
    """Gives an initializer new contents under its old name."""
    fresh = ir.Value(name=value.name, const_value=ir.Tensor(array, name=value.name))
    del graph.initializers[_name(value)]
    graph.register_initializer(fresh)
    return fresh


def _pack_rows(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [N, n] nibbles -> uint8 [N, ceil(n / 2)], low nibble first, every row on a byte of its own."""
    if codes.shape[1] % 2:
        codes = np.pad(codes, ((0, 0), (0, 1)))
    return (codes[:, 0::2] | (codes[:, 1::2] << 4)).astype(np.uint8, copy=False)


def _bytes(tensor: ir.TensorProtocol) -> NDArray[np.uint8]:
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
