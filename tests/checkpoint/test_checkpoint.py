"""Quantized checkpoints: other tools read or refuse them, ours reads other tools'."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_checkpoints import WIDE, nearest, quantize_source, quantized_llama
from tiny_models import save_llama

from awq2trt.checkpoint import writer
from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.checkpoint.layouts import ModelSchemes, choose_layout, pack_linear
from awq2trt.checkpoint.layouts.awq_gemm import LAYOUT as GEMM
from awq2trt.checkpoint.layouts.compressed import LAYOUT as PACKED
from awq2trt.checkpoint.layouts.layout import Layout
from awq2trt.checkpoint.layouts.natural import LAYOUT as NATURAL
from awq2trt.errors import CheckpointError, UnsupportedError
from awq2trt.models.families import describe_model
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.scheme import QuantizedLinear, QuantScheme


@pytest.mark.parametrize(
    ("model", "options", "layout"),
    [
        (WIDE, {}, GEMM),
        (WIDE, {"symmetric": True}, PACKED),
        (WIDE, {"bits": 3}, PACKED),
        (WIDE, {"bits": 2, "symmetric": True, "group_size": -1}, PACKED),
        ({}, {"bits": 3}, NATURAL),
        ({}, {"bits": 2, "symmetric": True}, NATURAL),
        (WIDE, {"group_size": -1}, GEMM),
        (WIDE, {"group_size": 64}, NATURAL),  # K = 96
        ({}, {}, NATURAL),  # K = 48 and 80
        ({"intermediate_size": 84}, {"group_size": -1}, PACKED),  # N = 84
        ({"attention_bias": True, "mlp_bias": True}, {"symmetric": True}, NATURAL),
    ],
)
def test_round_trip(model: dict[str, Any], options: dict[str, Any], layout: Layout, tmp_path: Path) -> None:
    from awq2trt.models.block_weights import to_tensor

    read = quantized_llama(tmp_path, model, **options)
    assert read.format.layout == layout
    source = SafetensorsSource.open(tmp_path / "model")
    for layer in range(read.spec.num_layers):
        block = source.block(layer)
        for name in read.spec.block.linears:
            full = f"model.layers.{layer}.{name}"
            expected = nearest(to_tensor(block[f"{name}.weight"]), read.scheme)
            np.testing.assert_array_equal(read.linear(full).codes, expected.codes)
            np.testing.assert_array_equal(read.tensor(f"{full}.weight"), expected.dequantize())
            if f"{name}.bias" in block:
                np.testing.assert_allclose(read.tensor(f"{full}.bias"), block[f"{name}.bias"], rtol=1e-3)


def test_transformers_understands_the_config_of_the_awq_layout(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer, AwqConfig

    directory = quantized_llama(tmp_path, WIDE).directory
    stored = AutoConfig.from_pretrained(directory).quantization_config
    understood = AwqConfig.from_dict(stored)
    assert (understood.bits, understood.group_size, understood.zero_point) == (4, 32, True)
    assert understood.format == "gemm"
    assert AutoTokenizer.from_pretrained(directory)("ab", add_special_tokens=False)["input_ids"]


def test_transformers_refuses_what_the_awq_layout_cannot_say(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    directory = quantized_llama(tmp_path).directory
    with pytest.raises(ValueError, match="awq2trt"):
        AutoModelForCausalLM.from_pretrained(directory)
    assert not any(name.endswith("qweight") for name in load_file(directory / "model.safetensors"))


def test_a_foreign_awq_checkpoint_with_llm_awq_keys_is_read(tmp_path: Path) -> None:
    ours = quantized_llama(tmp_path, WIDE)
    config_path = ours.directory / "config.json"
    config = json.loads(config_path.read_text())
    config["quantization_config"] = {
        "quant_method": "awq",
        "w_bit": 4,
        "q_group_size": 32,
        "zero_point": True,
        "version": "GEMM",
    }
    config_path.write_text(json.dumps(config))
    read = QuantizedCheckpoint.open(ours.directory)
    name = "model.layers.1.mlp.down_proj"
    np.testing.assert_array_equal(read.linear(name).dequantize(), ours.linear(name).dequantize())


def test_shards_hold_every_tensor_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = quantized_llama(tmp_path / "whole", WIDE)
    monkeypatch.setattr(writer, "SHARD_BYTES", 20_000)
    sharded = quantized_llama(tmp_path / "sharded", WIDE)
    assert len(sharded.files) > 3
    index = json.loads((sharded.directory / "model.safetensors.index.json").read_text())
    sizes = [value.nbytes for path in sharded.files for value in load_file(path).values()]
    assert index["metadata"]["total_size"] == sum(sizes)
    assert len(index["weight_map"]) == len(sizes) == len(load_file(whole.directory / "model.safetensors"))
    name = "model.layers.0.self_attn.o_proj"
    np.testing.assert_array_equal(sharded.linear(name).dequantize(), whole.linear(name).dequantize())


def test_shards_written_at_the_same_time_are_those_written_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SHARD_BYTES", 4_000)
    outer = {f"tensor.{index}": writer.Unread.of(np.full(1_000, index, np.float16)) for index in range(12)}
    both_there = threading.Barrier(2, timeout=60)  # broken if one had to wait for the other
    write = writer.write_tensors

    def write_in_pairs(path: Path, tensors: dict[str, Any]) -> None:
        both_there.wait()
        write(path, tensors)

    for name, at_once in (("turn", 1), ("once", 2)):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(writer, "write_tensors", write if at_once == 1 else write_in_pairs)
        writer.merge_shards([], outer, tmp_path / name, at_once=at_once)
    files = {name: {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("turn", "once")}
    assert len(files["turn"]) == 6 + 1
    assert files["turn"] == files["once"]


def test_a_tensor_outside_the_blocks_is_read_when_its_file_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SHARD_BYTES", 4_000)
    files_at: list[int] = []

    def read() -> np.ndarray[Any, Any]:
        files_at.append(len([*tmp_path.iterdir()]))
        return np.zeros(1_000, np.float16)

    writer.merge_shards([], {f"tensor.{index}": writer.Unread(2_000, read) for index in range(6)}, tmp_path)
    assert files_at == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"quant_method": "gptq"}, CheckpointError, "qweight: expected"),
        ({"quant_method": "aqlm"}, UnsupportedError, "aqlm"),
        ({"version": "marlin"}, UnsupportedError, "marlin"),
        ({"bits": None}, CheckpointError, "bits"),
        ({"bits": 3}, UnsupportedError, "got 3"),
        ({"group_size": 64}, CheckpointError, r"qzeros: expected int32 \[1, 12\], got int32 \[2, 12\]"),
    ],
)
def test_configs_that_do_not_fit_are_refused(
    change: dict[str, Any], kind: type[Exception], message: str, tmp_path: Path
) -> None:
    directory = quantized_llama(tmp_path, WIDE).directory
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"].update(change)
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(kind, match=message):
        QuantizedCheckpoint.open(directory).linear("model.layers.0.mlp.up_proj")


def test_damaged_tensors_are_refused_by_name(tmp_path: Path) -> None:
    directory = quantized_llama(tmp_path).directory
    path = directory / "model.safetensors"
    good = load_file(path)
    name = "model.layers.0.mlp.up_proj"
    for key, value in (
        ("codes", good[f"{name}.codes"][:-1]),
        ("scales", good[f"{name}.scales"][:, :1]),
        ("scales", np.full_like(good[f"{name}.scales"], np.nan)),
    ):
        save_file({**good, f"{name}.{key}": np.ascontiguousarray(value)}, path, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.up_proj"):
            QuantizedCheckpoint.open(directory).linear(name)


def test_an_unquantized_model_is_not_a_quantized_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not quantized"):
        QuantizedCheckpoint.open(save_llama(tmp_path))


def test_smollm2_with_groups_of_128_needs_our_layout() -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 1,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 8,
    }
    assert choose_layout(describe_model(config), ModelSchemes(QuantScheme(group_size=128))) == NATURAL
    assert choose_layout(describe_model(config), ModelSchemes(QuantScheme(group_size=64))) == GEMM


def test_natural_layout_bytes() -> None:
    scheme = QuantScheme(group_size=-1)
    linear = QuantizedLinear(
        np.array([[8, 9, 7]], dtype=np.uint8), np.ones((1, 1), np.float16), np.array([[0]], dtype=np.uint8), scheme
    )
    tensors = pack_linear("x", linear, NATURAL)
    assert tensors["x.codes"].tolist() == [0x10, 0x0F]
    assert tensors["x.zeros"].tolist() == [0x08]
    narrow = QuantizedLinear(
        np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8), np.ones((2, 1), np.float16), None, QuantScheme(3, -1, False)
    )
    # 3 bits each, beginning with the lowest: 001 010 011 100 101 110 -> 0b110_101_100_011_010_001 = 0x358D1
    assert pack_linear("x", narrow, NATURAL)["x.codes"].tolist() == [0xD1, 0x58, 0x03, 0x00]


def test_a_head_that_the_original_s_config_denies_is_quantized_with_and_exported(tmp_path: Path) -> None:
    from awq2trt.graph.read import open_decoder
    from awq2trt.onnx_export import export_onnx

    model = save_llama(tmp_path / "tied", tie_word_embeddings=True)
    tensors = load_file(model / "model.safetensors")
    head = np.ascontiguousarray(tensors["model.embed_tokens.weight"][::-1])
    save_file({**tensors, "lm_head.weight": head}, model / "model.safetensors", metadata={"format": "pt"})
    quantized = quantize_source(SafetensorsSource.open(model), tmp_path, method="rtn", group_size=32)
    assert json.loads((quantized.directory / "config.json").read_text())["tie_word_embeddings"] is False
    np.testing.assert_array_equal(quantized.tensor("lm_head.weight"), head.astype(np.float16))
    (tmp_path / "onnx").mkdir()
    export_onnx(quantized, tmp_path / "onnx")
    exported = open_decoder(tmp_path / "onnx")[0].graph.initializers["lm_head.weight"].const_value
    assert exported is not None
    np.testing.assert_array_equal(exported.numpy(), head.astype(np.float16))
