"""Checkpoints with 8-bit weights as a source: we read what their tools wrote."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_llama

from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.checkpoint.opening import open_any
from awq2trt.errors import Awq2trtError, CheckpointError, UnsupportedError, UsageError
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.progress import SilentProgress
from awq2trt.quantization.job import QuantizeJob
from awq2trt.recipe import QuantizeOptions

UP = "model.layers.0.mlp.up_proj"
LARGEST_E4M3 = 448.0

Tensors = dict[str, torch.Tensor]


def _fp8_blocks(weight: torch.Tensor) -> Tensors:
    """Encodes as DeepSeek does: a scale for 32 x 32 weights (theirs are 128 x 128); the last blocks are shorter."""
    rows, columns = (-(-size // 32) for size in weight.shape)
    codes, scales = torch.empty_like(weight, dtype=torch.float8_e4m3fn), torch.empty(rows, columns)
    for row in range(rows):
        for column in range(columns):
            place = (slice(32 * row, 32 * row + 32), slice(32 * column, 32 * column + 32))
            scales[row, column] = weight[place].abs().max() / LARGEST_E4M3
            codes[place] = (weight[place] / scales[row, column]).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale_inv": scales}


def _fp8_whole(weight: torch.Tensor) -> Tensors:
    scale = weight.abs().max() / LARGEST_E4M3
    return {"weight": (weight / scale).to(torch.float8_e4m3fn), "weight_scale": scale, "input_scale": torch.ones(1)}


def _int8_rows(weight: torch.Tensor) -> Tensors:
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    return {"weight": (weight / scale).round().to(torch.int8), "weight_scale": scale.to(torch.bfloat16)}


def _int8_zeros(weight: torch.Tensor) -> Tensors:
    low, high = weight.amin(dim=1, keepdim=True), weight.amax(dim=1, keepdim=True)
    scale = (high - low) / 255
    zero = (-128 - low / scale).round().to(torch.int8)
    codes = (weight / scale + zero).round().clamp(-128, 127).to(torch.int8)
    return {"weight": codes, "weight_scale": scale, "weight_zero_point": zero}


def _packed_groups(weight: torch.Tensor) -> Tensors:
    """Packs four codes into an int32, with 128 added to each; groups of 16."""
    groups = weight.reshape(len(weight), -1, 16)
    scale = groups.abs().amax(dim=2) / 127
    codes = (groups / scale[:, :, None]).round().reshape(weight.shape).numpy().astype(np.int64) + 128
    words = sum(codes[:, k::4] << (8 * k) for k in range(4))
    packed = torch.from_numpy(np.asarray(words, np.uint32).view(np.int32))
    return {"weight_packed": packed, "weight_scale": scale, "weight_shape": torch.tensor(weight.shape)}


def _compressed(stored: str, **weights: Any) -> dict[str, Any]:
    settings = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False, **weights}
    activations = {"num_bits": 8, "type": settings["type"], "dynamic": True, "strategy": "token"}
    group = {"targets": ["Linear"], "weights": settings, "input_activations": activations}
    return {"quant_method": "compressed-tensors", "format": stored, "config_groups": {"group_0": group}}


FORMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "fp8, blocks": (_fp8_blocks, {"quant_method": "fp8", "weight_block_size": [32, 32]}),
    "fp8, whole weights": (_fp8_whole, {"quant_method": "fp8", "activation_scheme": "static"}),
    "float-quantized": (_fp8_whole, _compressed("float-quantized", type="float", strategy="tensor")),
    "int-quantized": (_int8_rows, _compressed("int-quantized")),
    "int-quantized, zero points": (_int8_zeros, _compressed("int-quantized", symmetric=False)),
    "pack-quantized": (_packed_groups, _compressed("pack-quantized", strategy="group", group_size=16)),
}


def _save(directory: Path, form: str) -> tuple[Tensors, Path]:
    """Saves a tiny model whose linears have this form; its own weights are in `plain`."""
    encode, quantization = FORMS[form]
    save_llama(directory / "plain", tie_word_embeddings=False)
    save_llama(directory / "stored", tie_word_embeddings=False)
    tensors = load_file(directory / "plain" / "model.safetensors")
    stored: Tensors = {}
    for name, value in tensors.items():
        owner, _, _kind = name.rpartition(".")
        encoded = encode(value.float()) if "_proj" in name else {"weight": value}
        stored |= {f"{owner}.{kind}": part.contiguous() for kind, part in encoded.items()}
    save_file(stored, directory / "stored" / "model.safetensors", metadata={"format": "pt"})
    _configure(directory / "stored", quantization_config=quantization)
    return tensors, directory / "stored"


def _configure(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_near_what_they_were_rounded_from(form: str, tmp_path: Path) -> None:
    tensors, directory = _save(tmp_path, form)
    source, scheme = open_any(str(directory))
    assert isinstance(source, SafetensorsSource)
    assert scheme is None
    step = 2**-4 if "fp8" in form or "float" in form else 2**-7  # of the largest number that shares a scale
    for name, value in tensors.items():
        expected, got = value.float().numpy(), source.tensor(name).astype(np.float32)
        assert np.abs(got - expected).max() <= step * np.abs(expected).max(), name
        if "_proj" not in name:
            np.testing.assert_array_equal(got, expected)


@pytest.mark.skipif(
    importlib.util.find_spec("compressed_tensors") is None, reason="needs compressed-tensors: pip install it"
)
@pytest.mark.parametrize("form", [form for form in FORMS if "quantized" in form])
def test_compressed_tensors_reads_the_same(form: str, tmp_path: Path) -> None:
    from compressed_tensors.compressors.naive_quantized.base import NaiveQuantizationCompressor
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationConfig

    _, directory = _save(tmp_path, form)
    scheme = QuantizationConfig.model_validate(FORMS[form][1]).config_groups["group_0"]
    stored = {
        name.removeprefix(f"{UP}."): value
        for name, value in load_file(directory / "model.safetensors").items()
        if name.startswith(UP)
    }
    compressor = PackedQuantizationCompressor if "weight_packed" in stored else NaiveQuantizationCompressor
    wide = {name: value.float() if "scale" in name else value for name, value in stored.items()}
    theirs = compressor.decompress(wide, scheme)["weight"]
    got = SafetensorsSource.open(directory).tensor(f"{UP}.weight")
    np.testing.assert_allclose(got, theirs.float().numpy(), rtol=1e-6, atol=0)


def test_an_fp8_model_is_quantized(tmp_path: Path) -> None:
    _, directory = _save(tmp_path, "fp8, blocks")
    source = SafetensorsSource.open(directory)
    for name in ("files", "scratch"):
        (tmp_path / name).mkdir()
    QuantizeJob.prepare(
        source,
        QuantizeOptions(method="rtn", group_size=32),
        files=tmp_path / "files",
        scratch=tmp_path / "scratch",
        progress=SilentProgress(),
    ).run()
    again = QuantizedCheckpoint.open(tmp_path / "files")
    expected, got = source.tensor(f"{UP}.weight"), again.tensor(f"{UP}.weight")
    assert np.abs(got - expected).max() <= np.ptp(expected) / 15
    assert "weight_block_size" not in again.config["quantization_config"]


REFUSED: dict[str, tuple[dict[str, Any], type[Awq2trtError], str]] = {
    "block size": ({"quant_method": "fp8", "weight_block_size": [32, "x"]}, CheckpointError, "weight_block_size"),
    "blocks of another size": ({"quant_method": "fp8", "weight_block_size": [8, 8]}, CheckpointError, r"got \[3, 2\]"),
    "no block size": ({"quant_method": "fp8"}, CheckpointError, "expected scales for a weight"),
    "format": (_compressed("nvfp4-pack-quantized"), UnsupportedError, "nvfp4-pack-quantized"),
    "other method": ({"quant_method": "bitsandbytes"}, UsageError, r"bitsandbytes.*the original model"),
    "settings that are none": (
        {**_compressed("int-quantized"), "config_groups": {"group_0": {"weights": 8}}},
        CheckpointError,
        r"config\.json: quantization_config: cannot be read as settings of a quantization",
    ),
    "no object": ({"a": 1}, UsageError, "quant_method: None"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_not_read_is_refused_with_the_cause(fault: str, tmp_path: Path) -> None:
    quantization, kind, message = REFUSED[fault]
    _, directory = _save(tmp_path, "fp8, blocks")
    _configure(directory, quantization_config=quantization)
    with pytest.raises(kind, match=message):
        SafetensorsSource.open(directory).tensor(f"{UP}.weight")


def test_exporting_8_bits_says_to_quantize_them(tmp_path: Path) -> None:
    _, directory = _save(tmp_path, "int-quantized")
    with pytest.raises(UnsupportedError, match=r"8 bits.*awq2trt quantize"):
        QuantizedCheckpoint.open(directory)


def test_packed_codes_of_another_shape_are_refused(tmp_path: Path) -> None:
    _, directory = _save(tmp_path, "pack-quantized")
    tensors = load_file(directory / "model.safetensors")
    tensors[f"{UP}.weight_packed"] = tensors[f"{UP}.weight_packed"][:, :-1].contiguous()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"weight_packed: expected int32 \[80, 12\], got int32 \[80, 11\]"):
        SafetensorsSource.open(directory).tensor(f"{UP}.weight")


def test_a_shape_of_three_sides_is_refused(tmp_path: Path) -> None:
    _, directory = _save(tmp_path, "pack-quantized")
    tensors = load_file(directory / "model.safetensors")
    tensors[f"{UP}.weight_shape"] = torch.tensor([1, 80, 48])
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"{UP}: cannot be read as a weight of 8 bits"):
        SafetensorsSource.open(directory).tensor(f"{UP}.weight")
