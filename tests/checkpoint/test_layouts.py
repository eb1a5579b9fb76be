"""Other people's checkpoints: read bit for bit, or refused by name."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from foreign_checkpoints import FOREIGN, GROUP, Foreign, encode_gptq, gptq_config, save_foreign
from safetensors.torch import load_file, save_file
from tiny_checkpoints import WIDE, quantized_llama
from tiny_models import tokens
from transformers import AutoModelForCausalLM

from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.checkpoint.layouts import ModelSchemes, compressed, natural, read_format
from awq2trt.errors import Awq2trtError, CheckpointError, UnsupportedError
from awq2trt.models.decoder import Ends, run_model
from awq2trt.models.families import FAMILIES, Family
from awq2trt.onnx_export import export_onnx
from awq2trt.onnx_export.proof import prove_import
from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions
from awq2trt.scheme import QuantScheme
from awq2trt.stages.export import ExportRequest, export_stage

UP = "model.layers.0.mlp.up_proj"


class _Notes(SilentProgress):
    """Records the notes that it receives."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.mark.parametrize("layout", FOREIGN)
def test_foreign_checkpoints_are_read_and_exported_bit_for_bit(layout: str, tmp_path: Path) -> None:
    weights = save_foreign(tmp_path / "foreign", FOREIGN[layout])
    checkpoint = QuantizedCheckpoint.open(tmp_path / "foreign")
    for name, weight in weights.items():
        np.testing.assert_array_equal(checkpoint.linear(name).dequantize(), weight)
    notes = _Notes()
    export_stage(ExportRequest(tmp_path / "foreign", tmp_path / "onnx", ExportOptions()), notes)
    assert "largest dequantization difference: 0 (7 linears)" in notes.notes
    assert any("no smaller" in note for note in notes.notes) == (FOREIGN[layout].bits < 4)
    graph = ir.load(tmp_path / "onnx" / "model.onnx").graph.initializers
    codes, scales = graph[f"{UP}.codes"].const_value, graph[f"{UP}.scales"].const_value
    assert codes is not None
    assert scales is not None
    steps = codes.numpy().astype(np.float32)
    if f"{UP}.zeros" in graph:
        zeros = graph[f"{UP}.zeros"].const_value
        assert zeros is not None
        steps -= np.repeat(zeros.numpy().astype(np.float32), GROUP, axis=1)
    got = steps * np.repeat(scales.numpy().astype(np.float32), GROUP, axis=1)
    if FOREIGN[layout].groups_tensor is None:  # else rows and columns are sorted; the proof has compared them
        np.testing.assert_array_equal(got, weights[UP])


@pytest.mark.parametrize("layout", ["gptq", "gptq_v2", "compressed-asym"])
def test_a_quantized_head_of_another_tool_is_read_and_exported(layout: str, tmp_path: Path) -> None:
    """config.json may call the head tied, but there are codes of a separate head."""
    weights = save_foreign(tmp_path / "foreign", FOREIGN[layout], quantized_head=True, tie_word_embeddings=True)
    checkpoint = QuantizedCheckpoint.open(tmp_path / "foreign")
    assert not checkpoint.spec.tie_embeddings
    assert checkpoint.head_scheme == checkpoint.scheme
    np.testing.assert_array_equal(checkpoint.linear("lm_head").dequantize(), weights["lm_head"])
    np.testing.assert_array_equal(checkpoint.tensor("lm_head.weight"), weights["lm_head"])
    notes = _Notes()
    made = export_stage(ExportRequest(tmp_path / "foreign", tmp_path / "onnx", ExportOptions()), notes)
    assert "largest dequantization difference: 0 (8 linears)" in notes.notes
    quantization = made.manifest.contents.quantization
    assert quantization.head is not None
    assert quantization.head.scheme == checkpoint.scheme
    assert quantization.embedding is not None
    assert quantization.embedding.scheme is None


def _head_of(target: str, bits: int) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "symmetric": False, "strategy": "group", "group_size": GROUP}
    return {"targets": [target], "weights": {**weights, "dynamic": False}, "input_activations": None}


@pytest.mark.parametrize("target", ["lm_head", "re:.*lm_head", "re:.*lm_head$"])
def test_settings_for_the_head_alone(target: str, tmp_path: Path) -> None:
    foreign = FOREIGN["compressed-asym"]
    groups = {**foreign.quantization["config_groups"], "group_1": _head_of(target, 8)}
    changed = replace(foreign, quantization={**foreign.quantization, "config_groups": groups})
    save_foreign(tmp_path, changed)
    checkpoint = QuantizedCheckpoint.open(tmp_path)
    assert (checkpoint.format.scheme.bits, checkpoint.format.head.bits) == (4, 8)
    assert checkpoint.head_scheme is None  # there are no codes of one


@pytest.mark.parametrize(("target", "count"), [("re:.*down_proj", 2), ("Linear", 2)])
def test_further_settings_are_refused(target: str, count: int, tmp_path: Path) -> None:
    foreign = FOREIGN["compressed-asym"]
    groups = {**foreign.quantization["config_groups"], "group_1": _head_of(target, 4)}
    save_foreign(tmp_path, replace(foreign, quantization={**foreign.quantization, "config_groups": groups}))
    with pytest.raises(
        UnsupportedError, match=f"expected one for all linears.*got {count} that are not only for the head"
    ):
        QuantizedCheckpoint.open(tmp_path)


def test_blocks_of_eight_bits_are_refused(tmp_path: Path) -> None:
    foreign = FOREIGN["compressed-asym"]
    groups = {"group_0": _head_of("Linear", 8)}
    save_foreign(tmp_path, replace(foreign, quantization={**foreign.quantization, "config_groups": groups}))
    with pytest.raises(UnsupportedError, match=r"blocks have 8 bits.*awq2trt quantize"):
        QuantizedCheckpoint.open(tmp_path)


def test_a_head_in_our_layout_must_say_its_scheme(tmp_path: Path) -> None:
    ours = quantized_llama(tmp_path, {**WIDE, "tie_word_embeddings": True}, head="int8")
    path = ours.directory / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["head"] = "int8"
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="head: expected an object, got 'int8'"):
        QuantizedCheckpoint.open(ours.directory)


@pytest.mark.skipif(
    importlib.util.find_spec("compressed_tensors") is None, reason="needs compressed-tensors: pip install it"
)
@pytest.mark.parametrize("head", ["int8", "int4"])
def test_transformers_computes_what_we_do_with_a_quantized_head(head: str, tmp_path: Path) -> None:
    ours = quantized_llama(tmp_path, {**WIDE, "hidden_size": 128}, symmetric=True, head=head)
    ids = tokens(1, 20)
    theirs = AutoModelForCausalLM.from_pretrained(ours.directory, dtype=torch.float32)
    with torch.inference_mode():
        expected = theirs(ids).logits
        got = Ends(ours).logits(run_model(ours, ids))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(
    importlib.util.find_spec("compressed_tensors") is None, reason="needs compressed-tensors: pip install it"
)
@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (3, False), (3, True), (2, False)])
def test_compressed_tensors_reads_what_we_write_and_we_read_what_it_writes(
    bits: int, symmetric: bool, tmp_path: Path
) -> None:
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationConfig

    ours = quantized_llama(tmp_path, WIDE, bits=bits, symmetric=symmetric)
    scheme = QuantizationConfig.model_validate(ours.config["quantization_config"]).config_groups["group_0"]
    name = "model.layers.1.mlp.down_proj"
    stored = {kind: torch.from_numpy(value) for kind, value in ours.stored_tensors(name).items()}
    theirs = PackedQuantizationCompressor.decompress(stored, scheme)["weight"]
    # They multiply in the scales' type, fp16; codes and zero points are integers and must be ours exactly.
    expected = ours.linear(name).dequantize()
    np.testing.assert_array_equal(theirs.numpy(), expected.astype(np.float16))

    linear = ours.linear(name)
    zeros = np.full(linear.scales.shape, linear.scheme.symmetric_zero) if linear.zeros is None else linear.zeros
    middle = linear.scheme.symmetric_zero
    again = PackedQuantizationCompressor.compress(
        {
            "weight": torch.from_numpy(expected),
            "weight_scale": torch.from_numpy(linear.scales.astype(np.float32)),
            "weight_zero_point": torch.from_numpy(zeros.astype(np.int8) - np.int8(middle)),
        },
        scheme,
    )
    for kind in ("weight_packed", "weight_zero_point"):
        if kind in stored:
            np.testing.assert_array_equal(again[kind].numpy(), stored[kind].numpy())


@pytest.mark.skipif(
    importlib.util.find_spec("compressed_tensors") is None, reason="needs compressed-tensors: pip install it"
)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_transformers_computes_what_we_do_with_a_packed_checkpoint(bits: int, tmp_path: Path) -> None:
    # Symmetric: transformers 5.23 expects zero points unpacked, and so refuses compressed-tensors' own files with them.
    ours, ids = quantized_llama(tmp_path, WIDE, bits=bits, symmetric=True), tokens(1, 20)
    theirs = AutoModelForCausalLM.from_pretrained(ours.directory, dtype=torch.float32)
    with torch.inference_mode():
        expected = theirs(ids).logits
        got = Ends(ours).logits(run_model(ours, ids))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_narrow_codes_make_a_smaller_checkpoint(tmp_path: Path) -> None:
    sizes = []
    for bits in (2, 3, 4):
        checkpoint = quantized_llama(tmp_path / str(bits), WIDE, bits=bits, symmetric=True)
        sizes.append(sum(value.nbytes for value in checkpoint.stored_tensors("model.layers.0.mlp.up_proj").values()))
    weights = 96 * 64
    assert [size - sizes[0] for size in sizes] == [0, weights // 8, weights // 4]


def test_narrow_codes_are_exported_as_the_same_weights(tmp_path: Path) -> None:
    for bits, symmetric in ((2, False), (3, True)):
        checkpoint = quantized_llama(tmp_path / str(bits), WIDE, bits=bits, symmetric=symmetric)
        (tmp_path / str(bits) / "onnx").mkdir()
        export_onnx(checkpoint, tmp_path / str(bits) / "onnx", options=ExportOptions())
        model = ir.load(tmp_path / str(bits) / "onnx" / "model.onnx")
        assert prove_import(checkpoint, model, SilentProgress()).largest == 0
        linear = checkpoint.linear("model.layers.0.mlp.up_proj")
        assert linear.widened().scheme == QuantScheme(4, 32, not symmetric)
        np.testing.assert_array_equal(linear.widened().dequantize(), linear.dequantize())


Change = Callable[[dict[str, torch.Tensor], dict[str, Any]], None]


def _set(kind: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """Changes a tensor of one linear."""

    def apply_(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
        tensors[f"{UP}.{kind}"] = change(tensors[f"{UP}.{kind}"]).contiguous()

    return apply_


def _add(kind: str, value: torch.Tensor) -> Change:
    """Gives one linear a tensor."""

    def apply_(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
        tensors[f"{UP}.{kind}"] = value

    return apply_


def _drop(kind: str) -> Change:
    def apply_(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
        del tensors[f"{UP}.{kind}"]

    return apply_


def _say(**changes: Any) -> Change:
    return lambda tensors, config: config["quantization_config"].update(changes)


def _weights(**changes: Any) -> Change:
    return lambda tensors, config: config["quantization_config"]["config_groups"]["group_0"]["weights"].update(changes)


BROKEN: dict[str, tuple[str, Change, type[Awq2trtError], str]] = {
    "awq, scales of another shape": ("awq", _set("scales", lambda v: v[:1]), CheckpointError, r"up_proj.*scales"),
    "awq, no zero points": ("awq", _drop("qzeros"), CheckpointError, r"up_proj: missing qzeros"),
    "awq, unknown version": ("awq", _say(version="marlin"), UnsupportedError, "version.*marlin"),
    "awq, truncated codes": ("awq", _set("qweight", lambda v: v[:-8]), CheckpointError, r"up_proj"),
    "gptq, no scales": ("gptq", _drop("scales"), CheckpointError, r"up_proj: missing scales"),
    "gptq, unknown version": ("gptq", _say(checkpoint_format="marlin"), UnsupportedError, "checkpoint_format.*marlin"),
    "gptq, codes of another shape": (
        "gptq", _set("qweight", lambda v: v[:, :-8]), CheckpointError, r"up_proj: qweight: expected int32 \[8, 96\]",
    ),
    "gptq, groups of unequal lengths": (
        "gptq", _set("g_idx", lambda v: v * 0), CheckpointError, r"g_idx: expected 32 input channels in each of",
    ),
    "gptq, groups of fewer channels": (
        "gptq", _set("g_idx", lambda v: v[1:]), CheckpointError, r"g_idx: expected \[64\], got int32 \[63\]",
    ),
    "gemv, too few scales": (
        "awq-gemv", _set("scales", lambda v: v[:, :8]), CheckpointError, r"scales: expected \[96, 32\], got",
    ),
    "gemv_fast, zero points that are none": (
        "awq-gemv_fast", _set("scaled_zeros", lambda v: v * 1.1), CheckpointError, r"scaled_zeros: expected -scale",
    ),
    "gemv_fast, scales of another shape": (
        "awq-gemv_fast", _set("scales", lambda v: v.T), CheckpointError, r"up_proj: scales: expected \[32, 128\]",
    ),
    "auto_round, another packing": (
        "auto_round-gptq", _say(packing_format="auto_round:fp8_static"), UnsupportedError, "packing_format.*fp8_static",
    ),
    "auto_round, no integers": ("auto_round-gptq", _say(data_type="mx_fp"), UnsupportedError, "data_type.*mx_fp"),
    "auto_round, a linear of its own": (
        "auto_round-gptq", _say(extra_config={"a.b": {"bits": 8}}), UnsupportedError, "extra_config: a.b has",
    ),
    "gptq, zero points that readers disagree on": (
        "gptq", _set("qzeros", lambda v: v | 0xF), UnsupportedError, r"up_proj: qzeros hold 15",
    ),
    "gptq, eight bits": ("gptq", _say(bits=8), UnsupportedError, "quantization_config: got 8 bits"),
    "gptq, layers of their own": ("gptq", _say(dynamic={"+:.*": {}}), UnsupportedError, "dynamic"),
    "gptq, zero points that the config denies": (
        "gptq", _say(sym=True), CheckpointError, r"up_proj: config.json says sym: true.* they hold 15 values, 0 to 14",
    ),
    "gptq, scales of integers": (
        "gptq", _set("scales", lambda v: (v * 100).char()), CheckpointError, r"up_proj: scales: expected float16.*int8",
    ),
    "gptq, scales that are not numbers": (
        "gptq", _set("scales", lambda v: v * torch.nan), CheckpointError, r"up_proj: some scales are NaN",
    ),
    "compressed, another shape than it says": (
        "compressed-asym", _set("weight_shape", lambda v: v.flip(0)), CheckpointError, r"weight_shape: expected \[96,",
    ),
    "compressed, no scales": ("compressed", _drop("weight_scale"), CheckpointError, r"up_proj: missing weight_scale"),
    "compressed, no zero points": (
        "compressed-asym", _drop("weight_zero_point"), CheckpointError, r"up_proj: missing weight_zero_point",
    ),
    "compressed, zero points that the config denies": (
        "compressed-asym", _weights(symmetric=True), CheckpointError, r"up_proj: the config says symmetric: true",
    ),
    "a weight beside its codes": (
        "gptq", _add("weight", torch.zeros(96, 64)), UnsupportedError, r"up_proj\.weight: expected qweight.*got weight",
    ),
    "a tensor that nobody knows": (
        "compressed", _add("input_scale", torch.ones(1)), UnsupportedError, r"up_proj\.input_scale: expected weight_",
    ),
    "a norm's bias that nobody adds": (
        "awq",
        lambda tensors, config: tensors.update({"model.norm.bias": torch.ones(64)}),
        UnsupportedError,
        r"no place for the tensor model\.norm\.bias",
    ),
    "a bias that config.json denies": (
        "gptq", _add("bias", torch.full((96,), 0.5).half()), CheckpointError, r"up_proj: config.*no bias.*0\.5",
    ),
    "no bias where config.json has one": (
        "awq", lambda tensors, config: config.update(mlp_bias=True), CheckpointError, r"up_proj: the bias is missing",
    ),
    "a head of integers": (
        "awq",
        lambda tensors, config: tensors.update({"lm_head.weight": tensors["lm_head.weight"].char()}),
        CheckpointError,
        r"lm_head\.weight: expected weights of a floating-point type.*got I8",
    ),
    "compressed, unknown format": ("compressed", _say(format="nvfp4-pack-quantized"), UnsupportedError, "nvfp4"),
    "compressed, floating point": ("compressed", _weights(type="float"), UnsupportedError, "integer weights"),
    "compressed, rotated": ("compressed", _say(transform_config={"u": {}}), UnsupportedError, "transform_config"),
    "compressed, blocks": ("compressed", _weights(strategy="block"), UnsupportedError, "strategy.*block"),
    "unknown method": ("awq", _say(quant_method="aqlm"), UnsupportedError, "quant_method.*aqlm"),
    "no group size": ("gptq", _say(group_size=None), CheckpointError, "group_size: expected an integer"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_checkpoints_are_refused_by_name(fault: str, tmp_path: Path) -> None:
    layout, change, kind, message = BROKEN[fault]
    save_foreign(tmp_path, FOREIGN[layout])
    tensors = load_file(tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    change(tensors, config)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(kind, match=message) as caught:
        QuantizedCheckpoint.open(tmp_path).linear(UP)
    assert caught.value.where


@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("stored", [7, 8])
def test_symmetric_gptq_means_the_middle_whatever_its_zero_points_are_stored_as(
    version: str, stored: int, tmp_path: Path
) -> None:
    foreign = Foreign(gptq_config(4, version, symmetric=True), encode_gptq(4, 8 - stored), symmetric=True)
    weights = save_foreign(tmp_path, foreign)
    checkpoint = QuantizedCheckpoint.open(tmp_path)
    for name, weight in weights.items():
        np.testing.assert_array_equal(checkpoint.linear(name).dequantize(), weight)
    assert not checkpoint.scheme.zero_point


def test_biases_of_zeros_are_those_that_a_tool_stores_where_there_are_none(tmp_path: Path) -> None:
    weights = save_foreign(tmp_path, FOREIGN["gptq"])
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[f"{UP}.bias"] = torch.zeros(96, dtype=torch.float16)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    linear = QuantizedCheckpoint.open(tmp_path).linear(UP)
    assert linear.bias is None
    np.testing.assert_array_equal(linear.dequantize(), weights[UP])


def test_a_truncated_file_is_refused_by_name(tmp_path: Path) -> None:
    save_foreign(tmp_path, FOREIGN["gptq"])
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*truncated"):
        QuantizedCheckpoint.open(tmp_path).linear(UP)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_head_of_every_family_is_told_from_its_blocks(family: Family) -> None:
    head = family.describe(family.example).head
    schemes = ModelSchemes(QuantScheme(4, 32, True), QuantScheme(8, 128, True))
    for layout in (compressed.LAYOUT, natural.LAYOUT):
        written = {"quantization_config": layout.written.config(schemes, head)}
        stored = read_format(written, where="config.json")
        assert (stored.layout, stored.scheme, stored.head) == (layout, schemes.blocks, schemes.head)
