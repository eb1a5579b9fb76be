"""Models lowered on disk: what is in the file, that it computes the same, and that its contract matches the file."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from tiny_checkpoints import RandomCheckpoint, relative_error

from awq2trt import opset
from awq2trt.graph.ort_lowering import linear_shapes, weights_read_bytes
from awq2trt.graph.provider_file import Lowering, lower_, lowered_contract, write_lowered
from awq2trt.graph.read import open_decoder
from awq2trt.io_contract import MODEL_FILE, NEXT_TOKEN, WEIGHTS_FILE, IoContract
from awq2trt.onnx_export import export_onnx
from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions
from awq2trt.runtime import OrtBackend
from awq2trt.scheme import QuantScheme

TOKENS = [5, 17, 80, 3, 99, 42]
ALL = tuple(lowering for lowering in Lowering if lowering is not Lowering.CUDA_INT8)
"""All lowerings except that with an int8 cache, which needs heads with kernels, too large here (`test_int8_cache`)."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, IoContract]:
    directory = tmp_path_factory.mktemp("exported")
    return directory, export_onnx(RandomCheckpoint(), directory).contract


def _lowered(exported: Path, lowering: Lowering, directory: Path) -> ir.Model:
    write_lowered(exported, lowering, directory, SilentProgress())
    return ir.load(directory / MODEL_FILE)


@pytest.mark.parametrize("lowering", [Lowering.CPU, Lowering.CUDA_ORT])
def test_it_gives_the_exported_models_scores(
    exported: tuple[Path, IoContract], lowering: Lowering, tmp_path: Path
) -> None:
    _lowered(exported[0], lowering, tmp_path)
    session = onnxruntime.InferenceSession(str(tmp_path / MODEL_FILE), providers=["CPUExecutionProvider"])
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    feeds = {
        value.name: np.zeros(
            [1, *(size if isinstance(size, int) else 64 for size in value.shape[1:])], types[value.type]
        )
        for value in session.get_inputs()[2:]
    }
    feeds |= {"input_ids": np.asarray([TOKENS]), "cache_position": np.asarray([0])}
    names = [value.name for value in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, feeds), strict=True))
    expected = OrtBackend.load(exported[0]).forward(TOKENS)
    assert relative_error(outputs["logits"].ravel(), expected) < 5e-3
    if NEXT_TOKEN in outputs:
        assert outputs[NEXT_TOKEN].tolist() == [[int(outputs["logits"].argmax())]]


@pytest.mark.parametrize("lowering", ALL)
def test_its_contract_is_the_files(exported: tuple[Path, IoContract], lowering: Lowering, tmp_path: Path) -> None:
    model = _lowered(exported[0], lowering, tmp_path)
    contract = lowered_contract(exported[1], lowering)
    for tensors, values in ((contract.inputs, model.graph.inputs), (contract.outputs, model.graph.outputs)):
        assert [tensor.name for tensor in tensors] == [value.name for value in values]
        for tensor, value in zip(tensors, values, strict=True):
            assert value.dtype is not None
            assert tensor.dtype == value.dtype.numpy().name
            assert value.shape is not None
            assert [str(axis) for axis in tensor.shape] == [
                str(axis if isinstance(axis, int) else axis.value) for axis in value.shape
            ]


def test_linears_of_the_plugin_library_stay_as_they_are(exported: tuple[Path, IoContract], tmp_path: Path) -> None:
    model, before = _lowered(exported[0], Lowering.CUDA_PLUGIN, tmp_path), open_decoder(exported[0])[0]
    assert not model.functions
    *linears, best = [node for node in model.graph if node.domain == opset.DOMAIN]
    assert best.op_type == opset.BEST_TOKEN
    assert len(linears) == 14
    assert {node.overload for node in linears} == {""}
    for node in linears:
        codes = node.inputs[1]
        assert codes is not None
        assert codes.name is not None
        assert codes.const_value is not None
        original = before.graph.initializers[codes.name].const_value
        assert original is not None
        assert codes.const_value.dtype is ir.DataType.INT4
        assert codes.const_value.tobytes() == original.tobytes()


@pytest.mark.parametrize("lowering", [Lowering.CPU, Lowering.CUDA_ORT])
def test_no_linear_keeps_its_function_body(
    exported: tuple[Path, IoContract], lowering: Lowering, tmp_path: Path
) -> None:
    model = _lowered(exported[0], lowering, tmp_path)
    assert not [node for node in model.graph if node.domain == opset.DOMAIN]
    assert [node.op_type for node in model.graph].count("MatMulNBits") == 14
    node = next(node for node in model.graph if node.op_type == "MatMulNBits")
    scales = node.inputs[2]
    assert scales is not None
    assert scales.dtype is (ir.DataType.FLOAT if lowering is Lowering.CPU else ir.DataType.FLOAT16)
    assert ("accuracy_level" in node.attributes) is (lowering is Lowering.CPU)
    assert list(linear_shapes(model)) == list(linear_shapes(open_decoder(exported[0])[0]))


def test_a_file_for_the_library_becomes_one_for_onnx_runtimes_kernels(
    exported: tuple[Path, IoContract], tmp_path: Path
) -> None:
    _lowered(exported[0], Lowering.CUDA_PLUGIN, tmp_path)
    model, sizes = open_decoder(tmp_path)
    lower_(model, sizes, Lowering.CUDA_ORT)
    assert [value.name for value in model.graph.outputs].count(NEXT_TOKEN) == 1
    assert not [node for node in model.graph if node.domain == opset.DOMAIN]


def test_a_token_reads_all_weights_but_the_embedding(exported: tuple[Path, IoContract], tmp_path: Path) -> None:
    model = _lowered(exported[0], Lowering.CUDA_PLUGIN, tmp_path)
    sizes = {name: value.const_value.nbytes for name, value in model.graph.initializers.items() if value.const_value}
    assert weights_read_bytes(model) == sum(sizes.values()) - sizes["model.embed_tokens.weight"]


def test_memory_is_that_of_a_few_tensors(tmp_path: Path) -> None:
    """Sixteen blocks take no more than a few linears at a time."""
    (tmp_path / "onnx").mkdir()
    (tmp_path / "cpu").mkdir()
    wide: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "head_dim": 64}
    model = RandomCheckpoint(QuantScheme(group_size=64), **wide, num_hidden_layers=16)
    export_onnx(model, tmp_path / "onnx", options=ExportOptions(function_bodies=False))
    tracemalloc.start()
    write_lowered(tmp_path / "onnx", Lowering.CPU, tmp_path / "cpu", SilentProgress())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "cpu" / WEIGHTS_FILE).stat().st_size > 25e6
    assert peak < 15e6


def test_sizes_of_a_lowered_model_come_with_its_capacity(exported: tuple[Path, IoContract], tmp_path: Path) -> None:
    _lowered(exported[0], Lowering.CPU, tmp_path)
    sizes = open_decoder(exported[0])[1]
    assert open_decoder(tmp_path, capacity=64)[1] == replace(
        sizes, dtype=ir.DataType.FLOAT, cache_dtype=ir.DataType.FLOAT
    )
