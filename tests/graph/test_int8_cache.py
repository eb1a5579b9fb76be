"""Caches of codes: how a graph and its contract change, and that its scores follow the definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tiny_checkpoints import RandomCheckpoint, relative_error

from awq2trt import opset
from awq2trt.errors import UnsupportedError
from awq2trt.graph.fusion import fuse_
from awq2trt.graph.int8_cache import int8_contract, quantize_cache_
from awq2trt.graph.provider_file import Lowering, write_lowered
from awq2trt.graph.read import open_decoder, read_sizes
from awq2trt.io_contract import SCALED_LAYOUT, IoContract, scale_name
from awq2trt.onnx_export import export_onnx
from awq2trt.progress import SilentProgress
from awq2trt.runtime import OrtBackend

TOKENS = [5, 17, 80, 3, 99, 42, 7, 61]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, IoContract]:
    directory = tmp_path_factory.mktemp("exported")
    return directory, export_onnx(RandomCheckpoint(), directory).contract


def _lowered(exported: Path, directory: Path) -> OrtBackend:
    write_lowered(exported, Lowering.CPU_INT8, directory, SilentProgress())
    return OrtBackend.load_lowered(directory, open_decoder(exported)[1].capacity)


def test_scores_are_those_of_a_cache_without_codes_but_for_their_error(
    exported: tuple[Path, IoContract], tmp_path: Path
) -> None:
    expected = OrtBackend.load(exported[0]).forward(TOKENS)
    error = relative_error(_lowered(exported[0], tmp_path).forward(TOKENS), expected)
    assert 1e-4 < error < 0.05


def test_decoding_reads_what_a_prompt_wrote_and_a_conversation_can_begin_again(
    exported: tuple[Path, IoContract], tmp_path: Path
) -> None:
    backend = _lowered(exported[0], tmp_path)
    whole = backend.forward(TOKENS)
    backend.reset()
    for token in TOKENS:
        scores = backend.forward([token])
    np.testing.assert_allclose(scores, whole, rtol=0, atol=2e-4 * np.abs(whole).max())
    backend.reset()
    np.testing.assert_array_equal(backend.forward(TOKENS), whole)


def test_a_cache_of_codes_takes_half_the_memory_and_a_scale(exported: tuple[Path, IoContract]) -> None:
    model, before = open_decoder(exported[0])
    fuse_(model, {before.head_dim})
    quantize_cache_(model)
    after = read_sizes(model, exported[0])
    assert after.cache_dtype is ir.DataType.INT8
    assert after.dtype is before.dtype
    assert after.cache_bytes == before.cache_bytes // 2 * (after.head_dim + 2) // after.head_dim
    assert [cache.past for cache in after.caches[2 * after.num_layers :]] == [
        scale_name(cache.past) for cache in before.caches
    ]


def test_fused_attention_says_that_it_has_scales(exported: tuple[Path, IoContract]) -> None:
    model, sizes = open_decoder(exported[0])
    fuse_(model, {sizes.head_dim})
    quantize_cache_(model)
    nodes = [node for node in model.graph if node.op_type == opset.CACHED_ATTENTION]
    assert len(nodes) == sizes.num_layers
    for layer, node in enumerate(nodes):
        assert node.attributes[opset.ATTR_HAS_CACHE_SCALES].as_int() == 1
        assert [str(value.name) for value in node.inputs[-2:] if value] == [
            f"past_key_scale_{layer}",
            f"past_value_scale_{layer}",
        ]
        assert [value.name for value in node.outputs[1:]] == [
            *(f"present_{kind}_{layer}" for kind in ("key", "value")),
            *(f"present_{kind}_scale_{layer}" for kind in ("key", "value")),
        ]


def test_the_contract_is_the_graphs(exported: tuple[Path, IoContract]) -> None:
    model, sizes = open_decoder(exported[0])
    fuse_(model, {sizes.head_dim})
    quantize_cache_(model)
    contract = int8_contract(exported[1])
    assert contract.cache is not None
    assert (contract.cache.dtype, contract.cache.layout) == ("int8", SCALED_LAYOUT)
    for tensors, values in ((contract.inputs, model.graph.inputs), (contract.outputs, model.graph.outputs)):
        found = [(value.name, value.dtype.numpy().name, len(value.shape or ())) for value in values if value.dtype]
        assert [(tensor.name, tensor.dtype, len(tensor.shape)) for tensor in tensors] == found
    assert all(present.replace("present", "past") == past for past, present in contract.cache_pairs)
    assert len(contract.cache_pairs) == 4 * sizes.num_layers


def test_an_attention_that_is_not_ours_is_refused(exported: tuple[Path, IoContract]) -> None:
    model, _ = open_decoder(exported[0])
    with pytest.raises(UnsupportedError, match="our fused attention operator") as caught:
        quantize_cache_(model)
    assert caught.value.where == "past_key_0"
    assert "--cache fp16" in str(caught.value.fix)
