"""Directories of safetensors, and every way in which they can be broken."""

from __future__ import annotations

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
