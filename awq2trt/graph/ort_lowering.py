"""Rewrites an exported decoder into the form that a provider of ONNX Runtime runs best.

In: the model as `export` wrote it. Out: the same model object, changed to an equivalent model. New tensors are computed
when they are read, one at a time, so that a model larger than the memory can be written to disk. For the CPU:

- every quantized linear becomes `com.microsoft::MatMulNBits`, whose kernels read codes directly; an 8-bit one becomes
  two of them, for the upper and lower halves of its codes; and a quantized embedding becomes
  `com.microsoft::GatherBlockQuantized`. Function bodies would dequantize the complete weight at every call;
- half-precision tensors become fp32, except for embeddings and the head (`half_tables`). The CPU provider lacks
  half-precision kernels for most operators, and would cast back and forth around each;
- the capacity axis of the cache becomes dynamic, so that a short conversation attends over a short cache.

For a GPU, half precision stays and the capacity is fixed, since a CUDA graph is captured for one shape.

SmolLM2-135M, INT4 g128 with zero points, ONNX Runtime 1.31, 2 Xeon cores with AVX-512: a token takes 4 s as exported,
52 ms with `MatMulNBits` alone, 36 ms in fp32 as well (best of 40); mean KL from PyTorch in fp32 over 1,024 tokens of
WikiText-2 is 9e-6 with fp16 activations and 4e-7 with fp32.

SmolLM2's head at one token, on one thread of a busy machine: 38 ms in fp32, 2.2 ms in 4 bits; in 8 bits 4.4 ms as two
halves, 1,322 ms as one node with fp32 activations (ONNX Runtime 1.32).

`MatMulNBits`: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits;
`GatherBlockQuantized` in the same file. A weight that is both head and embedding then has its codes twice, since the
two need different shapes.
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
from awq2trt.checkpoint.pack import signed_bytes, unpack_int4
from awq2trt.errors import ArtifactError
from awq2trt.graph.fused_linear import count_before_codes
from awq2trt.graph.half_tables import HALF, MICROSOFT_DOMAIN, keep_half_
from awq2trt.io_contract import LAST_POSITION_NODE, LOGITS, ROWS, is_cache

CAPACITY_AXIS: Final = 2
_SMALLEST_BLOCK: Final = 16
_ONE_GROUP_BLOCK: Final = 128
"""The block for a row of one group; any size would do, since all blocks have the same scale."""

FP32_COMPUTE: Final = 1
"""`accuracy_level` 1 keeps activations fp32; 4 would quantize them to int8 (relative error 7e-3 per linear)."""

_BYTE_BITS: Final = 8

_MIDDLE_BYTE: Final = {4: 0x88, 8: 0x80}
"""A byte of unsigned codes that mean 0 without zero points, by the width of codes."""

_BEHIND_HEAD: Final = ("Mul", "Tanh", "Div", "Add")
"""Operators that may follow the head: cap * tanh(x / cap), and the sum of an 8-bit head's halves."""


@dataclass(frozen=True)
class Blocks:
    """How the groups of a row become the blocks of `MatMulNBits`; nibbles are packed low first.

    Attributes:
        block: Channels of a block.
        features: K.
        group_of_block: The group of every block of a row, int64 [blocks].
    """

    block: int
    features: int
    group_of_block: NDArray[np.int64]

    @staticmethod
    def of(features: int, groups: int, group_length: int) -> Blocks | None:
        """Chooses blocks for rows of `features` channels in `groups` groups.

        Returns:
            The blocks; None if no block that the operator supports (a power of two from 16) fits the groups.
        """
        block = _ONE_GROUP_BLOCK if groups == 1 else group_length & -group_length  # largest power of two in G
        if block < _SMALLEST_BLOCK:
            return None
        blocks = -(-features // block)
        group_of_block = np.arange(blocks) * block // group_length if groups > 1 else np.zeros(blocks, np.int64)
        return Blocks(block, features, group_of_block)

    def codes_shape(self, rows: int, bits: int) -> tuple[int, int, int]:
        """Shape of packed codes."""
        return (rows, len(self.group_of_block), self.block * bits // 8)

    def pack_codes(self, codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
        """Packs unsigned codes: uint8 [N, K] -> uint8 [N, blocks, block * bits / 8]."""
        missing = len(self.group_of_block) * self.block - self.features
        return _pack_rows(np.pad(codes, ((0, 0), (0, missing))), bits).reshape(self.codes_shape(len(codes), bits))

    def pack_zeros(self, zeros: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
        """Packs zero points, uint8 [N, ceil(K/G)] -> uint8 [N, ceil(blocks * bits / 8)]."""
        return _pack_rows(self.spread(zeros), bits)

    def spread(self, groups: NDArray[Any]) -> NDArray[Any]:
        """Repeats values of groups for their blocks: [N, ceil(K/G)] -> [N, blocks]."""
        return np.ascontiguousarray(groups[:, self.group_of_block])


def lower_linears_(model: ir.Model, *, widened: bool) -> None:
    """Replaces nodes with codes by ONNX Runtime's own operators where these suffice; others keep their function body.

    Args:
        model: An exported model; it is changed.
        widened: Whether scales become fp32 and activations stay fp32, which the CPU's kernel needs. Otherwise scales
            keep the activations' type, the only one that the CUDA kernel supports.

    Raises:
        ArtifactError: A node needs its function body, but the model was exported without bodies.
    """
    for node in list(model.graph):
        if is_quantized_embedding(node):
            _lower_embedding_(model.graph, node, widened=widened)
    for node in list(model.graph):
        if is_quantized_linear(node):
            _lower_linear_(model.graph, node, widened=widened)
    _require_bodies(model)
    model.graph.opset_imports[MICROSOFT_DOMAIN] = 1


def _require_bodies(model: ir.Model) -> None:
    """Refuses nodes with codes that were left although nothing defines them: ONNX Runtime could not load the model."""
    for node in model.graph:
        left = is_quantized_linear(node) or is_quantized_embedding(node)
        if left and node.op_identifier() not in model.functions:
            raise ArtifactError(
                f"ONNX Runtime has no operator for {node.op_type} with groups of "
                f"{node.attributes[opset.ATTR_GROUP_SIZE].as_int()}, and the model has no function that defines it.",
                where=str(node.name),
                fix="export it with --function-bodies.",
            )


def is_quantized_linear(node: ir.Node) -> bool:
    """Whether a node is one of our quantized linears."""
    return node.domain == opset.DOMAIN and node.op_type in opset.LINEAR_OF_BITS.values()


def is_fused_linear(node: ir.Node) -> bool:
    """Whether a node is a linear that was fused with its neighbours."""
    return node.domain == opset.DOMAIN and node.op_type == opset.FUSED_LINEAR


def is_quantized_embedding(node: ir.Node) -> bool:
    """Whether a node is one of our quantized embeddings."""
    return node.domain == opset.DOMAIN and node.op_type in opset.EMBEDDING_OF_BITS.values()


def linear_shapes(model: ir.Model) -> Iterator[tuple[int, int]]:
    """(N, K) of every quantized linear, lowered or not, except for a head that sees only the last position."""
    heads = _last_position_heads(model)
    for node in model.graph:
        if node in heads:
            continue
        if is_quantized_linear(node) or is_fused_linear(node):
            codes = count_before_codes(node) if is_fused_linear(node) else 1
            rows, features = _constant(_required(node.inputs[codes])).shape.numpy()
            yield rows, features
        elif node.domain == MICROSOFT_DOMAIN and node.op_type == "MatMulNBits":
            yield node.attributes["N"].as_int(), node.attributes["K"].as_int()


def _last_position_heads(model: ir.Model) -> set[ir.Node]:
    """Linears before logits that a graph computes for one token per sequence."""
    found: set[ir.Node] = set()
    waiting = [value for value in model.graph.outputs if value.name == LOGITS and keeps_last_position(model)]
    while waiting:
        node = waiting.pop().producer()
        if node is not None and node.op_type in _BEHIND_HEAD:
            waiting += [value for value in node.inputs if value is not None]
        elif node is not None:
            found.add(node)
    return found


def widen_to_fp32_(model: ir.Model, *, keeps_tables: bool = True) -> None:
    """Makes fp16 and bf16 inputs, outputs and initializers fp32, except for a decoder's embeddings and head.

    Args:
        model: The graph; it is changed.
        keeps_tables: Whether embeddings and head keep their type (`half_tables`); False for a graph without them.
    """
    computed = (value for node in model.graph for value in node.outputs)
    for value in (*model.graph.inputs, *model.graph.outputs, *computed):
        if value.dtype in HALF:
            value.dtype = ir.DataType.FLOAT
    kept = keep_half_(model) if keeps_tables else []
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype not in HALF or value in kept:
            continue
        value.const_value = _lazily(_name(value), ir.DataType.FLOAT, tensor.shape, partial(_as_fp32, tensor))
        value.dtype = ir.DataType.FLOAT
    model.graph.opset_imports[MICROSOFT_DOMAIN] = 1


def _as_fp32(tensor: ir.TensorProtocol) -> NDArray[np.float32]:
    return tensor.numpy().astype(np.float32)


def has_free_capacity(model: ir.Model) -> bool:
    """Whether the graph reads the capacity from its caches; in basic operators (`basic_ops`) it is a constant."""
    return any(node.op_type == "TensorScatter" for node in model.graph)


def free_capacity_(model: ir.Model) -> None:
    """Makes the capacity axis of all cache inputs and outputs dynamic."""
    _set_capacity_(model, ir.SymbolicDim("capacity"))


def fix_capacity_(model: ir.Model, capacity: int) -> None:
    """Gives all cache inputs and outputs another capacity."""
    _set_capacity_(model, capacity)


def weights_read_bytes(model: ir.Model) -> int:
    """Bytes of weights that a call with one token reads: all but tables, of which it gathers one row."""

    def is_gathered(node: ir.Node, index: int) -> bool:
        if is_quantized_embedding(node) or node.op_type == "GatherBlockQuantized":
            return True
        return node.op_type == "Gather" and index == 0

    def is_table(value: ir.Value) -> bool:
        return all(is_gathered(use.node, use.idx) for use in value.uses())

    weights = (value for value in model.graph.initializers.values() if not is_table(value))
    return sum(value.const_value.nbytes for value in weights if value.const_value is not None)


def _set_capacity_(model: ir.Model, capacity: int | ir.SymbolicDim) -> None:
    for value in (*model.graph.inputs, *model.graph.outputs):
        if is_cache(_name(value)) and value.shape is not None:
            axes = [*value.shape]
            axes[CAPACITY_AXIS] = capacity
            value.shape = ir.Shape(axes)


def keeps_last_position(model: ir.Model) -> bool:
    """Whether the model gives logits only of the last position."""
    return any(node.name == LAST_POSITION_NODE for node in model.graph)


def keep_all_positions_(model: ir.Model) -> None:
    """Bypasses the node that keeps only the last position, so that the model gives logits of every position."""
    for node in list(model.graph):
        if node.name == LAST_POSITION_NODE:
            ir.convenience.replace_all_uses_with(node.outputs[0], _required(node.inputs[0]))
            model.graph.remove(node, safe=True)
    for output in model.graph.outputs:
        if output.name == LOGITS and output.shape is not None:
            output.shape = ir.Shape([output.shape[0], ir.SymbolicDim(ROWS), output.shape[2]])


def _lower_linear_(graph: ir.Graph, node: ir.Node, *, widened: bool) -> None:
    inputs = {name: _required(value) for name, value in zip(_input_names(node), node.inputs, strict=True)}
    weight = _CodedWeight.of(node, inputs["codes"], inputs["scales"], inputs.get("zeros"), widened=widened)
    if weight.blocks is None:
        return
    names: dict[str, str] = {kind: _name(inputs[kind]) for kind in ("codes", "scales", "zeros") if kind in inputs}
    for name in names.values():
        del graph.initializers[name]
    if weight.bits == opset.CODE_BITS:
        parts = {kind: _add_(graph, names[kind], *part) for kind, part in weight.parts(padded=True).items()}
        _take_place_(graph, node, [_matmul(inputs["x"], parts, inputs.get("bias"), weight, widened=widened)])
        return
    products = list[ir.Node]()
    for half, bias in (("high", inputs.get("bias")), ("low", None)):
        parts = {
            kind: _add_(graph, f"{node.name}.{half}_{kind}", *part)
            for kind, part in weight.nibbles(high=half == "high").items()
        }
        products.append(_matmul(inputs["x"], parts, bias, weight, widened=widened))
        products[-1].name = f"{node.name}.{half}"
        products[-1].outputs[0].name = f"{node.name}.{half}:0"
    _take_place_(graph, node, [*products, ir.node("Add", [product.outputs[0] for product in products])])


def _matmul(
    x: ir.Value, parts: dict[str, ir.Value], bias: ir.Value | None, weight: _CodedWeight, *, widened: bool
) -> ir.Node:
    """Makes a product with 4-bit codes."""
    assert weight.blocks is not None
    rows, features = weight.shape
    attributes = {"K": features, "N": rows, "bits": opset.CODE_BITS, "block_size": weight.blocks.block}
    made = ir.node(
        "MatMulNBits",
        [x, parts["codes"], parts["scales"], parts.get("zeros"), None, bias],
        {**attributes, "accuracy_level": FP32_COMPUTE} if widened else attributes,
        domain=MICROSOFT_DOMAIN,
    )
    made.outputs[0].dtype = weight.step_type
    return made


def _lower_embedding_(graph: ir.Graph, node: ir.Node, *, widened: bool) -> None:
    scales, codes, ids, *zeros = (_required(value) for value in node.inputs)
    weight = _CodedWeight.of(node, codes, scales, zeros[0] if zeros else None, widened=widened)
    if weight.blocks is None or weight.shape[1] % 2:
        return
    parts = weight.parts(padded=False)
    parts.setdefault("zeros", weight.middle_zeros())  # without zero points, the operator takes the middle code as 0
    # New names, because the linear that shares the weight needs another shape.
    added = {kind: _add_(graph, f"{node.name}.gathered_{kind}", *part) for kind, part in parts.items()}
    lowered = ir.node(
        "GatherBlockQuantized",
        [added["codes"], ids, added["scales"], added["zeros"]],
        {"bits": weight.bits, "block_size": weight.blocks.block, "gather_axis": 0, "quantize_axis": 1},
        domain=MICROSOFT_DOMAIN,
    )
    lowered.outputs[0].dtype = weight.step_type
    _take_place_(graph, node, [lowered])


_Part = tuple[ir.DataType, tuple[int, ...], Callable[[], NDArray[Any]]]
"""An initializer to be added: its type, its shape, and the function that computes it."""


@dataclass(frozen=True)
class _CodedWeight:
    """The weight of a linear or an embedding, as the graph stores it."""

    bits: int
    shape: tuple[int, int]
    blocks: Blocks | None
    step_type: ir.DataType
    codes: ir.TensorProtocol
    scales: ir.TensorProtocol
    zeros: ir.TensorProtocol | None

    @classmethod
    def of(
        cls, node: ir.Node, codes: ir.Value, scales: ir.Value, zeros: ir.Value | None, *, widened: bool
    ) -> _CodedWeight:
        codes_tensor, scales_tensor = _constant(codes), _constant(scales)
        rows, features = codes_tensor.shape.numpy()
        groups = scales_tensor.shape.numpy()[1]
        return cls(
            bits=opset.CODE_BITS if codes_tensor.dtype is ir.DataType.INT4 else _BYTE_BITS,
            shape=(rows, features),
            blocks=Blocks.of(features, groups, node.attributes[opset.ATTR_GROUP_SIZE].as_int()),
            step_type=ir.DataType.FLOAT if widened else scales_tensor.dtype,
            codes=codes_tensor,
            scales=scales_tensor,
            zeros=None if zeros is None else _constant(zeros),
        )

    def parts(self, *, padded: bool) -> dict[str, _Part]:
        """Codes, scales and any zeros, in complete blocks; codes without padding are rows of bytes."""
        (rows, features), blocks = self.shape, self.blocks
        assert blocks is not None
        count = len(blocks.group_of_block)
        per_byte = _BYTE_BITS // self.bits
        codes: _Part = (
            ir.DataType.UINT8,
            blocks.codes_shape(rows, self.bits) if padded else (rows, features // per_byte),
            lambda: (
                blocks.pack_codes(self._unsigned(self.codes), self.bits)
                if padded
                else _pack_rows(self._unsigned(self.codes), self.bits)
            ),
        )
        scales: _Part = (
            self.step_type,
            (rows, count),
            lambda: blocks.spread(self.scales.numpy()).astype(self.step_type.numpy()),
        )
        if self.zeros is None:
            return {"codes": codes, "scales": scales}
        zeros = self.zeros
        packed_zeros: _Part = (
            ir.DataType.UINT8,
            (rows, -(-count // per_byte)),
            lambda: blocks.pack_zeros(self._unsigned(zeros), self.bits),
        )
        return {"codes": codes, "scales": scales, "zeros": packed_zeros}

    def nibbles(self, *, high: bool) -> dict[str, _Part]:
        """The upper or lower halves of an 8-bit weight's codes and zero points, as a 4-bit weight.

        scale (code - zero) is the sum of 16 scale (code // 16 - zero // 16) and scale (code % 16 - zero % 16).
        """
        rows, blocks = self.shape[0], self.blocks
        assert blocks is not None
        groups = self.scales.shape.numpy()[1]
        count, factor = len(blocks.group_of_block), 16 if high else 1

        def half(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
            return codes >> np.uint8(4) if high else codes & np.uint8(0xF)

        def zeros() -> NDArray[np.uint8]:
            if self.zeros is None:
                return np.full((rows, groups), 1 << (self.bits - 1), np.uint8)
            return self._unsigned(self.zeros)

        return {
            "codes": (
                ir.DataType.UINT8,
                blocks.codes_shape(rows, opset.CODE_BITS),
                lambda: blocks.pack_codes(half(self._unsigned(self.codes)), opset.CODE_BITS),
            ),
            "scales": (
                self.step_type,
                (rows, count),
                lambda: (blocks.spread(self.scales.numpy()) * factor).astype(self.step_type.numpy()),
            ),
            "zeros": (
                ir.DataType.UINT8,
                (rows, -(-count // 2)),
                lambda: blocks.pack_zeros(half(zeros()), opset.CODE_BITS),
            ),
        }

    def middle_zeros(self) -> _Part:
        """Makes zero points for codes that have none."""
        assert self.blocks is not None
        shape = (self.shape[0], -(-len(self.blocks.group_of_block) * self.bits // _BYTE_BITS))
        return ir.DataType.UINT8, shape, lambda: np.full(shape, _MIDDLE_BYTE[self.bits], np.uint8)

    def _unsigned(self, tensor: ir.TensorProtocol) -> NDArray[np.uint8]:
        shape = tuple(tensor.shape.numpy())
        if self.bits == opset.CODE_BITS:
            return unpack_int4(packed_bytes(tensor), shape)
        return signed_bytes(packed_bytes(tensor)).view(np.uint8).reshape(shape)


def _take_place_(graph: ir.Graph, node: ir.Node, lowered: Sequence[ir.Node]) -> None:
    """Puts nodes in the place of one; the last of them gets its name and output."""
    old, new = node.outputs[0], lowered[-1].outputs[0]
    lowered[-1].name = node.name
    new.name, new.shape = old.name, old.shape
    new.type = new.type or old.type
    ir.convenience.replace_nodes_and_values(graph, node, [node], lowered, [old], [new])


def _input_names(node: ir.Node) -> list[str]:
    flags = {name: node.attributes[name].as_int() for name in (opset.ATTR_HAS_ZEROS, opset.ATTR_HAS_BIAS)}
    zeros, bias = ["zeros"] * flags[opset.ATTR_HAS_ZEROS], ["bias"] * flags[opset.ATTR_HAS_BIAS]
    return ["x", "codes", "scales", *zeros, *bias]


def _add_(
    graph: ir.Graph, name: str, dtype: ir.DataType, shape: Sequence[int], compute: Callable[[], NDArray[Any]]
) -> ir.Value:
    """Adds an initializer that is computed whenever it is read, and is not kept."""
    tensor = _lazily(name, dtype, ir.Shape(shape), compute)
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def _lazily(name: str, dtype: ir.DataType, shape: Any, compute: Callable[[], NDArray[Any]]) -> ir.LazyTensor:
    """A tensor that is computed whenever it is read, and is not kept."""
    return ir.LazyTensor(lambda: ir.Tensor(compute(), dtype=dtype, name=name), dtype, shape, name=name)


def _pack_rows(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Packs codes uint8 [N, n] -> uint8 [N, ceil(n * bits / 8)], low nibble first; every row begins a byte."""
    if bits == _BYTE_BITS:
        return codes
    if codes.shape[1] % 2:
        codes = np.pad(codes, ((0, 0), (0, 1)))
    return (codes[:, 0::2] | (codes[:, 1::2] << 4)).astype(np.uint8, copy=False)


def packed_bytes(tensor: ir.TensorProtocol) -> NDArray[np.uint8]:
    """Returns a tensor's bytes; one on disk is read here, since onnx-ir would unpack its nibbles and keep them."""
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
