"""Predictions against arithmetic done by hand, and against files that the export wrote."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
from published_configs import LLAMA_2_7B, LLAMA_2_70B
from tiny_checkpoints import RandomCheckpoint

from awq2trt.engine.outlook import Outlook
from awq2trt.engine.predict import WORKSPACE_BYTES, AttentionPlan, predict_footprint
from awq2trt.models.families import describe_model
from awq2trt.onnx_export import export_onnx
from awq2trt.recipe import ExportOptions
from awq2trt.scheme import QuantScheme
from awq2trt.target import find_target

GIB = 1 << 30
INT4 = QuantScheme(4, 128, zero_point=True)


def test_llama_2_7b_by_hand() -> None:
    footprint = predict_footprint(describe_model(LLAMA_2_7B), INT4, 4096)
    # 32 blocks of 4 x 4096^2 + 3 x 4096 x 11008 weights at 4 + (16 + 4) / 128 bits, and two norms each.
    blocks = 6_476_005_376 * 4.15625 / 8 + 32 * 2 * 4096 * 2
    head = 32000 * 4096 * 2
    assert footprint.weights_bytes == blocks + 2 * head + 4096 * 2
    assert footprint.read_bytes == blocks + head + 4096 * 2
    assert footprint.cache_bytes == 2 * GIB  # 2 x 32 layers x 32 heads x 4096 x 128 x 2 bytes
    assert footprint.activation_bytes == 4096 * (3 * 11008 + 2 * 4096) * 2
    # 204.8 GB/s over 3.63 GB, and over that and the cache.
    empty, full = Outlook(find_target("orin"), footprint).tokens_per_s
    assert (round(empty, 1), round(full, 1)) == (56.5, 35.5)


def test_llama_2_70b_fits_orin_and_not_orin_nx() -> None:
    footprint = predict_footprint(describe_model(LLAMA_2_70B), INT4, 4096)
    assert footprint.weights_bytes / 1e9 == pytest.approx(36.61, abs=0.01)
    assert footprint.cache_bytes == 1.25 * GIB
    orin, orin_nx = (Outlook(find_target(name), footprint) for name in ("orin", "orin-nx"))
    assert orin.fits
    assert not orin_nx.fits
    # Three copies of 34.1 GiB do not fit 62.5 GiB: building needs swap, running does not.
    assert orin.swap_bytes == footprint.build_bytes - int(62.5 * GIB)
    assert 40 * GIB < orin.swap_bytes < 45 * GIB


def test_small_models_build_without_swap_on_the_smallest() -> None:
    footprint = predict_footprint(describe_model(LLAMA_2_7B | {"num_hidden_layers": 4}), INT4, 2048)
    assert Outlook(find_target("orin-nano"), footprint).swap_bytes == 0


def test_the_engine_of_an_rtx_card_is_built_elsewhere() -> None:
    footprint = predict_footprint(describe_model(LLAMA_2_7B), INT4, 4096)
    rtx = Outlook(find_target("rtx4070-laptop"), footprint)
    assert (rtx.swap_bytes, rtx.usable_bytes) == (0, 8 * GIB)


def test_without_fused_layers_scores_and_a_second_cache_are_counted() -> None:
    spec = describe_model(LLAMA_2_7B)
    fused = predict_footprint(spec, INT4, 4096, longest_prefill=512)
    plain = predict_footprint(spec, INT4, 4096, longest_prefill=512, attention=AttentionPlan(fused=False))
    assert plain.cache_bytes == 2 * fused.cache_bytes
    assert plain.activation_bytes - fused.activation_bytes == 2 * 32 * 512 * 4096 * 2
    assert plain.run_bytes - fused.run_bytes == fused.cache_bytes + 2 * 32 * 512 * 4096 * 2
    assert fused.run_bytes > fused.weights_bytes + fused.cache_bytes + WORKSPACE_BYTES


def test_the_scratch_memory_of_long_prompts_is_counted() -> None:
    spec = describe_model({**LLAMA_2_70B, "max_position_embeddings": 65536})
    short, long = (predict_footprint(spec, INT4, 65536, longest_prefill=tokens) for tokens in (4096, 65536))
    assert short.workspace_bytes == WORKSPACE_BYTES  # its queries are 64 MiB
    assert long.workspace_bytes == 65536 * 64 * 128 * 2 == GIB
    added = long.activation_bytes - short.activation_bytes + GIB // 2
    assert long.run_bytes - short.run_bytes == long.build_bytes - short.build_bytes == added


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_weights_are_what_export_writes(bits: int, tied: bool, zeros: bool, tmp_path: Path) -> None:
    scheme = QuantScheme(bits, 64, zero_point=zeros)
    checkpoint = RandomCheckpoint(scheme, tie_word_embeddings=tied, attention_bias=True)
    export_onnx(checkpoint, tmp_path, options=ExportOptions(max_seq_len=32))
    model = ir.load(tmp_path / "model.onnx")
    tensors = [value.const_value for value in model.graph.initializers.values() if value.name]
    stored = sum(
        tensor.nbytes for tensor in tensors if tensor is not None and not str(tensor.name).startswith("rotary")
    )
    assert predict_footprint(checkpoint.spec, scheme, 32).weights_bytes == stored


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("head", [QuantScheme(8, 32, True), QuantScheme(4, 32, False)], ids=QuantScheme.describe)
def test_a_quantized_head_is_what_export_writes(head: QuantScheme, tied: bool, tmp_path: Path) -> None:
    checkpoint = RandomCheckpoint(INT4, head, tie_word_embeddings=tied)
    export_onnx(checkpoint, tmp_path, options=ExportOptions(max_seq_len=32))
    model = ir.load(tmp_path / "model.onnx")
    tensors = [value.const_value for value in model.graph.initializers.values()]
    stored = sum(tensor.nbytes for tensor in tensors if tensor and not str(tensor.name).startswith("rotary"))
    footprint = predict_footprint(checkpoint.spec, INT4, 32, head=head)
    assert footprint.weights_bytes == stored
    embedding = 0 if tied else checkpoint.tensor("model.embed_tokens.weight").nbytes
    assert footprint.read_bytes == stored - embedding


def test_a_cache_of_codes_takes_a_byte_a_channel_and_a_scale() -> None:
    spec = describe_model(LLAMA_2_7B)
    footprint = predict_footprint(spec, INT4, 4096, attention=AttentionPlan(int8_cache=True))
    assert footprint.cache_bytes == 2 * 32 * 32 * 4096 * (128 + 2)
