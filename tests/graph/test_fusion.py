"""Fused decoders of every family: what is fused, that it means the same, and that the rest stays.

The oracle unfuses: it writes each fused operator in standard ones again, as its description in `opset` says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from family_variants import MODELS
from numpy.typing import NDArray
from onnx_ir.tape import Tape
from tiny_checkpoints import RandomCheckpoint, random_linear, relative_error

from awq2trt import opset
from awq2trt.checkpoint.pack import pack_int4, unpack_int4
from awq2trt.errors import ToolError, UsageError
from awq2trt.graph.fusion import fuse_
from awq2trt.graph.matching import tensor_of
from awq2trt.graph.merge_linears import merge_linears_
from awq2trt.graph.provider_file import Lowering, lower_, save_model, write_lowered
from awq2trt.graph.read import open_decoder, operators_of
from awq2trt.io_contract import MODEL_FILE
from awq2trt.machine.plugin_library import find_plugin_library, register_custom_ops_
from awq2trt.models.families import describe_model
from awq2trt.onnx_export import export_onnx
from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions
from awq2trt.runtime import OrtBackend
from awq2trt.scheme import QuantizedLinear, QuantScheme

PROMPT, STEPS = [5, 17, 80, 3, 99, 42, 7, 7, 61, 15], [30, 2, 88]
LAYERS = 2
NODES_OF_A_BLOCK = {"gemma2": 10, "gemma3": 10, "gpt_neox": 9, "falcon-40b": 9}
"""Norm, q-k-v, attention, o, norm, MLP of three: 8, but for further norms, and sums that no norm takes."""


class FamilyCheckpoint(RandomCheckpoint):
    """Random contents of a model of any family, without folded scales."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.spec = describe_model(config)
        self.scheme = QuantScheme(group_size=32)

    def has(self, name: str) -> bool:
        return name.rpartition(".")[2] in ("weight", "bias")

    def _relative(self, name: str) -> str:
        prefix = next(self.spec.prefix(layer) for layer in range(LAYERS) if name.startswith(self.spec.prefix(layer)))
        return name.removeprefix(prefix)


def _export(name: str, directory: Path, **changes: Any) -> FamilyCheckpoint:
    checkpoint = FamilyCheckpoint({**MODELS[name], **changes})
    export_onnx(checkpoint, directory, options=ExportOptions(max_seq_len=48, dtype="float16"))
    return checkpoint


@pytest.mark.parametrize("name", MODELS)
def test_a_fused_decoder_means_the_same(name: str, tmp_path: Path) -> None:
    for part in ("exported", "fused"):
        (tmp_path / part).mkdir()
    spec = _export(name, tmp_path / "exported").spec
    model, sizes = open_decoder(tmp_path / "exported")
    before = len(list(model.graph))
    model.functions.clear()
    fuse_(model, (spec.head_dim,))
    kinds = [node.op_type for node in model.graph]
    assert kinds.count(opset.CACHED_ATTENTION) == LAYERS
    assert "RMSNormalization" not in kinds
    assert "LayerNormalization" not in kinds
    assert "RotaryEmbedding" not in kinds
    assert kinds.count(opset.GATED_ACTIVATION) == (LAYERS if spec.block.gate_proj else 0)
    assert kinds.count(opset.W4A16_LINEAR) == 4 * LAYERS
    first, second = (index for index, kind in enumerate(kinds) if kind == opset.CACHED_ATTENTION)
    assert second - first == NODES_OF_A_BLOCK.get(name, 8)
    assert before - len(kinds) >= 20 * LAYERS
    _unfuse_(model.graph)
    save_model(model, tmp_path / "fused")
    assert open_decoder(tmp_path / "fused")[1] == sizes
    _assert_same(tmp_path / "fused", tmp_path / "exported")


def _assert_same(got: Path, expected: Path) -> None:
    """Scores of a prompt and of steps after it; a step reads what the prompt wrote into the cache."""
    fused, plain = OrtBackend.load(got), OrtBackend.load(expected)
    for tokens in (PROMPT, *([step] for step in STEPS)):
        assert relative_error(fused.forward(tokens), plain.forward(tokens)) < 1e-4


def test_head_sizes_without_kernels_stay_and_the_rest_is_fused(tmp_path: Path) -> None:
    _export("llama", tmp_path)
    model, sizes = open_decoder(tmp_path)
    lower_(model, sizes, Lowering.CUDA_FUSED)
    kinds = [node.op_type for node in model.graph]
    assert opset.CACHED_ATTENTION not in kinds
    assert kinds.count("Attention") == LAYERS
    assert kinds.count(opset.W4A16_LINEAR) == 6 * LAYERS  # gate and up are one
    assert set(operators_of(model).values()) == {opset.PLUGIN_VERSION}


def test_ropes_whose_rows_the_graph_chooses_stay(tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 6, "long_factor": [2.0] * 6}
    rope = {"rope_type": "longrope", **factors}
    spec = _export("phi3", tmp_path, rope_scaling=rope, original_max_position_embeddings=16).spec
    model, _ = open_decoder(tmp_path)
    fuse_(model, (spec.head_dim,))
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("RotaryEmbedding") == 2 * LAYERS
    assert opset.CACHED_ATTENTION not in kinds


def test_onnx_runtimes_own_kernels_do_not_take_a_fused_file(tmp_path: Path) -> None:
    _export("llama", tmp_path)
    model, sizes = open_decoder(tmp_path)
    lower_(model, sizes, Lowering.CUDA_FUSED)
    with pytest.raises(UsageError, match="fused"):
        lower_(model, sizes, Lowering.CUDA_ORT)


@pytest.mark.parametrize("rows", [(3, 5, 1), (4, 2, 2)], ids=["nibbles", "bytes"])
def test_merged_linears_have_the_rows_of_all_and_zeros_for_a_bias_that_is_missing(rows: tuple[int, ...]) -> None:
    random, x = np.random.default_rng(0), ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT16))
    parts = [random_linear((n, 96), QuantScheme(4, 32, True), random, bias=n == rows[0]) for n in rows]
    linears = [_linear_node(x, part, f"block.{index}") for index, part in enumerate(parts)]
    graph = ir.Graph([x], [], nodes=linears, opset_imports={"": opset.ONNX_OPSET})
    merged = merge_linears_(graph, linears).producer()
    assert merged is not None
    codes, scales, zeros, bias = (tensor_of(value) for value in merged.inputs[1:])
    for tensor, expected in ((codes, [p.codes for p in parts]), (zeros, [p.zeros for p in parts])):
        want = np.concatenate([part for part in expected if part is not None])
        got = unpack_int4(np.frombuffer(tensor.tobytes(), np.uint8), want.shape)
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(scales.numpy(), np.concatenate([part.scales for part in parts]))
    given = parts[0].bias
    assert given is not None
    np.testing.assert_array_equal(bias.numpy()[: rows[0]], given)
    assert not bias.numpy()[rows[0] :].any()


def _linear_node(x: ir.Value, linear: QuantizedLinear, name: str) -> ir.Node:
    assert linear.zeros is not None
    arrays: list[tuple[NDArray[Any], ir.DataType]] = [
        (linear.codes, ir.DataType.INT4),
        (linear.scales, ir.DataType.FLOAT16),
        (linear.zeros, ir.DataType.INT4),
    ]
    if linear.bias is not None:
        arrays.append((linear.bias, ir.DataType.FLOAT16))
    values = []
    for index, (array, dtype) in enumerate(arrays):
        packed = (
            ir.PackedTensor(pack_int4(array), dtype, shape=ir.Shape(array.shape)) if dtype is ir.DataType.INT4 else None
        )
        values.append(ir.Value(name=f"{name}.{index}", const_value=packed or ir.Tensor(array)))
    flags = {"group_size": 32, "has_zeros": 1, "has_bias": int(linear.bias is not None)}
    return ir.node(opset.W4A16_LINEAR, [x, *values], flags, domain=opset.DOMAIN, name=name)


WIDE_HEADS = {
    "llama": {"head_dim": 64},
    "qwen3": {"head_dim": 64},
    "gemma2": {"head_dim": 64},
    "gemma3": {"head_dim": 64},
    "bloom": {"hidden_size": 384},
    "mpt": {"d_model": 384},
    "opt": {"hidden_size": 256, "word_embed_proj_dim": 256},
    "gpt_neox": {"hidden_size": 128},
}


@pytest.mark.parametrize("name", WIDE_HEADS)
def test_operators_of_the_library_run_a_fused_file(name: str, tmp_path: Path) -> None:
    """On the CPU, in half precision; the same file as a GPU gets, against the exported one."""
    try:
        library = find_plugin_library()
    except ToolError as error:
        pytest.skip(str(error))
    if any(kind.encode() not in library.path.read_bytes() for kind in opset.FUSED_OPERATORS):
        pytest.skip(f"{library.path} is older than the fused operators")
    for part in ("exported", "fused"):
        (tmp_path / part).mkdir()
    _export(name, tmp_path / "exported", **WIDE_HEADS[name])
    write_lowered(tmp_path / "exported", Lowering.CUDA_FUSED, tmp_path / "fused", SilentProgress())
    assert set(operators_of(open_decoder(tmp_path / "fused")[0])) >= {opset.W4A16_LINEAR, opset.CACHED_ATTENTION}
    options = onnxruntime.SessionOptions()
    register_custom_ops_(options, library.path)
    model = str(tmp_path / "fused" / MODEL_FILE)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    caches = {value.name: np.zeros([1, *value.shape[1:]], np.float16) for value in session.get_inputs()[2:]}
    plain, position = OrtBackend.load(tmp_path / "exported"), 0
    names = [value.name for value in session.get_outputs()]
    for tokens in (PROMPT, *([step] for step in STEPS)):
        feeds = {"input_ids": np.asarray([tokens]), "cache_position": np.asarray([position]), **caches}
        outputs = dict(zip(names, session.run(None, feeds), strict=True))
        caches = {past: outputs[past.replace("past", "present")] for past in caches}
        position += len(tokens)
        assert relative_error(outputs["logits"].ravel(), plain.forward(tokens)) < 1e-2


class _Unfuser:
    """Writes a fused operator in standard ones."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.tape = Tape()
        self._graph, self._node = graph, node
        self._values = {
            name: attribute.as_int() if attribute.type is ir.AttributeType.INT else attribute.as_float()
            for name, attribute in node.attributes.items()
        }
        self._inputs = [value for value in node.inputs if value is not None]

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def op(self, kind: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        return self.tape.op(kind, inputs, attributes)

    def ints(self, *values: int) -> ir.Value:
        return self.op("Constant", value_ints=list(values))

    def number(self, value: float, like: ir.Value) -> ir.Value:
        return self.op("CastLike", self.op("Constant", value_float=float(value)), like)

    def norm(self) -> list[ir.Value]:
        x, *rest = self._inputs
        total = [self.op("Add", x, rest.pop(0))] if self["has_residual"] else []
        kind = "RMSNormalization" if self["rms"] else "LayerNormalization"
        y = self.op(kind, *(total or [x]), *rest, axis=-1, epsilon=self["epsilon"], stash_type=1)
        return [y, *total]

    def gated(self) -> list[ir.Value]:
        gate, up = self.tape.op_multi_out("Split", self._inputs, {"axis": -1, "num_outputs": 2}, num_outputs=2)
        code = self["activation"]
        if code == opset.ACTIVATION_CODES["silu"]:
            active = self.op("Mul", gate, self.op("Sigmoid", gate))
        elif code == opset.ACTIVATION_CODES["relu"]:
            active = self.op("Relu", gate)
        else:
            active = self.op(
                "Gelu", gate, approximate="tanh" if code == opset.ACTIVATION_CODES["gelu_tanh"] else "none"
            )
        return [self.op("Mul", active, up)]

    def attention(self) -> list[ir.Value]:
        qkv, position, past_key, past_value, *rest = self._inputs
        counts = [self["num_heads"], self["num_kv_heads"], self["num_kv_heads"]]
        head_dim = int(past_key.shape[3])  # type: ignore[index, arg-type]
        if self["clip"]:
            qkv = self.op("Clip", qkv, self.number(-self["clip"], qkv), self.number(self["clip"], qkv))
        sizes = self.ints(*(count * head_dim for count in counts))
        parts = self.tape.op_multi_out("Split", [qkv, sizes], {"axis": -1}, num_outputs=3)
        heads = [
            self.op("Transpose", self.op("Reshape", part, self.ints(0, 0, n, head_dim)), perm=[0, 2, 1, 3])
            for part, n in zip(parts, counts, strict=True)
        ]
        tables = [rest.pop(0), rest.pop(0)] if self["rotary_dim"] else []
        if self["has_norms"]:
            for index in range(2):
                heads[index] = self.op("RMSNormalization", heads[index], rest.pop(0), axis=-1, epsilon=self["norm_eps"])
        length = self.op("Shape", qkv, start=1, end=2)
        zero, one = self.op("Constant", value_int=0), self.op("Constant", value_int=1)
        steps = self.op("Range", zero, self.op("Squeeze", length), one)
        positions = self.op("Add", self.op("Unsqueeze", position, self.ints(1)), steps)
        if tables:
            partial = {"rotary_embedding_dim": self["rotary_dim"]} if self["rotary_dim"] != head_dim else {}
            for index in range(2):
                heads[index] = self.op("RotaryEmbedding", heads[index], *tables, positions, **partial)
        keys, values = (
            self.op("TensorScatter", past, new, position, axis=-2, mode="linear")
            for past, new in ((past_key, heads[1]), (past_value, heads[2]))
        )
        return [self._attend(heads[0], keys, values, positions, rest), keys, values]

    def _attend(
        self, query: ir.Value, keys: ir.Value, values: ir.Value, positions: ir.Value, slopes: list[ir.Value]
    ) -> ir.Value:
        zero, one = self.op("Constant", value_int=0), self.op("Constant", value_int=1)
        slots = self.op("Range", zero, self.op("Squeeze", self.op("Shape", keys, start=2, end=3)), one)
        distance = self.op("Sub", slots, self.op("Unsqueeze", positions, self.ints(1, 3)))
        seen = self.op("LessOrEqual", distance, self.ints(0))
        if self["window"]:
            seen = self.op("And", seen, self.op("Greater", distance, self.ints(-self["window"])))
        shape = self.ints(0, self["num_kv_heads"], self["num_heads"] // self["num_kv_heads"], -1, query_dim(keys))
        grouped = self.op("Reshape", query, shape)
        wide_keys, wide_values = (self.op("Unsqueeze", cache, self.ints(2)) for cache in (keys, values))
        scores = self.op("MatMul", grouped, self.op("Transpose", wide_keys, perm=[0, 1, 2, 4, 3]))
        scores = self.op("Mul", scores, self.number(self["scale"], scores))
        if self["softcap"]:
            cap = self.number(self["softcap"], scores)
            scores = self.op("Mul", self.op("Tanh", self.op("Div", scores, cap)), cap)
        capacity = self.op("Shape", keys, start=2, end=3)
        by_head = self.op("Concat", self.ints(0, self["num_heads"], -1), capacity, axis=0)
        scores = self.op("Reshape", scores, by_head)
        if slopes:
            column = self.op("Reshape", slopes[0], self.ints(1, -1, 1, 1))
            bias = self.op("Mul", self.op("CastLike", distance, column), column)
            scores = self.op("Add", scores, self.op("CastLike", bias, scores))
        shares = self.op("Softmax", self.op("Where", seen, scores, self.number(-65504, scores)), axis=-1)
        groups = self.ints(0, self["num_kv_heads"], self["num_heads"] // self["num_kv_heads"], -1)
        shares = self.op("Reshape", shares, self.op("Concat", groups, capacity, axis=0))
        merge = self.ints(0, self["num_heads"], -1, query_dim(keys))
        context = self.op("Reshape", self.op("MatMul", shares, wide_values), merge)
        return self.op("Reshape", self.op("Transpose", context, perm=[0, 2, 1, 3]), self.ints(0, 0, -1))


def query_dim(keys: ir.Value) -> int:
    """D, from the cache that a scatter writes."""
    scatter = keys.producer()
    assert scatter is not None
    past = scatter.inputs[0]
    assert past is not None
    return int(past.shape[3])  # type: ignore[index, arg-type]


def _unfuse_(graph: ir.Graph) -> None:
    for node in list(graph):
        unfuser = _Unfuser(graph, node) if node.op_type in opset.FUSED_OPERATORS else None
        if unfuser is None:
            continue
        parts = {
            opset.RESIDUAL_NORM: unfuser.norm,
            opset.GATED_ACTIVATION: unfuser.gated,
            opset.CACHED_ATTENTION: unfuser.attention,
        }
        outputs = parts[node.op_type]()
        for old, new in zip(node.outputs, outputs, strict=True):
            new.type, new.shape = old.type, old.shape
        ir.convenience.replace_nodes_and_values(graph, node, [node], unfuser.tape.nodes, node.outputs, outputs)
