"""Directories of safetensors, and every way in which they can be broken."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_family, save_llama, tokens
from transformers import AutoModelForCausalLM

from awq2trt.errors import Awq2trtError, CheckpointError, UnsupportedError, UsageError
from awq2trt.models.decoder import Ends, run_model
from awq2trt.models.families import FAMILIES, family_named
from awq2trt.models.sources.opening import open_source
from awq2trt.models.sources.safetensors import SafetensorsFiles
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


@pytest.mark.parametrize("shape", [(3, 5), (0, 4), ()])
@pytest.mark.parametrize(
    "name", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "int64", "int32", "int16", "int8", "uint8"]
)
def test_tensors_have_the_values_that_safetensors_itself_reads(
    name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    stored = (torch.randn(shape) * 50).to(getattr(torch, name))
    save_file({"before": torch.zeros(7), "x": stored, "y": stored.clone()}, tmp_path / "x.safetensors")
    expected = load_file(tmp_path / "x.safetensors")["x"]
    read = SafetensorsFiles.of_file(tmp_path / "x.safetensors").tensor("x")
    assert (read.shape, read.dtype.name) == (shape, name)
    assert read.flags.writeable  # so that PyTorch can share it
    np.testing.assert_array_equal(read.astype(np.float64), expected.double().numpy())


def test_a_file_that_is_cut_off_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.ones(64)}, path)
    opened = SafetensorsFiles.of_file(path)
    os.truncate(path, path.stat().st_size - 8)
    with pytest.raises(CheckpointError, match=r"x\.safetensors: x"):
        opened.tensor("x")


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
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-00002.safetensors"}})
    )


def _break_index(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "model-00001.safetensors")
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.norm.bias": "model-00001.safetensors"}})
    )


def _break_shard_outside(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory.parent / "model.safetensors")
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.norm.weight": "../model.safetensors"}})
    )


def _break_other_name(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "model.fp16.safetensors")


def _break_type(name: str, dtype: torch.dtype) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        tensors[name] = (tensors[name] * 100).to(dtype)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})

    return change


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
    "stale index": (_break_index, CheckpointError, r"model-00001\.safetensors has no tensor model\.norm\.bias"),
    "shard outside": (_break_shard_outside, CheckpointError, r"name of a file in the model's directory, got '\.\./"),
    "another file name": (
        _break_other_name, CheckpointError, r"expected model\.safetensors or .*index\.json, got model\.fp16\.saf",
    ),
    "codes": (
        _break_type("model.layers.1.mlp.up_proj.weight", torch.int8),
        CheckpointError,
        r"layers\.1\.mlp\.up_proj\.weight: expected weights of a floating-point type .*, got I8",
    ),
    "flags": (_break_type("model.norm.weight", torch.bool), CheckpointError, r"model\.norm\.weight: .*got BOOL"),
    "fp8": (_break_type("lm_head.weight", torch.float8_e4m3fn), CheckpointError, r"lm_head\.weight: .*got F8_E4M3"),
    "broken config": (_break_config_json, CheckpointError, "config.json: cannot be read as a JSON object"),
    "remote code": (_break_remote_code, UnsupportedError, "no remote code"),
    "architecture": (lambda d: _edit_config(d, architectures=["XForCausalLM"]), UnsupportedError, "XForCausalLM"),
    "shape": (lambda d: _edit_config(d, intermediate_size=81), CheckpointError, r"expected shape \[81, 48\]"),
    "quantized": (lambda d: _edit_config(d, quantization_config={}), UsageError, "already quantized"),
}  # fmt: skip


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


def _logits(directory: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits from transformers, and ours."""
    ids = tokens(1, 20)
    source = open_source(str(directory))
    with torch.inference_mode():
        expected = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)(ids).logits
        return expected, Ends(source).logits(run_model(source, ids))


def _stale_index(directory: Path, old: dict[str, torch.Tensor]) -> None:
    save_file(old, directory / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    weight_map = dict.fromkeys(old, "model-00001-of-00001.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _backup(directory: Path, old: dict[str, torch.Tensor]) -> None:
    save_file(old, directory / "model_before_training.safetensors", metadata={"format": "pt"})


def _consolidated(directory: Path, old: dict[str, torch.Tensor]) -> None:
    save_file({"layers.0.attention.wq.weight": torch.zeros(4, 4)}, directory / "consolidated.safetensors")


def _two_shards(directory: Path, old: dict[str, torch.Tensor]) -> None:
    """Puts a tensor into two shards: the last one counts, whatever the index says."""
    new = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    stray = {"model.norm.weight": old["model.norm.weight"]}
    save_file(new, directory / "a.safetensors", metadata={"format": "pt"})
    save_file(stray, directory / "b.safetensors", metadata={"format": "pt"})
    weight_map = dict.fromkeys(new, "a.safetensors") | {"model.norm.weight": "b.safetensors"}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _named(directory: Path, old: dict[str, torch.Tensor]) -> None:
    save_file(old, directory / "another.safetensors", metadata={"format": "pt"})
    _edit_config(directory, transformers_weights="another.safetensors")


@pytest.mark.parametrize("litter_", [_stale_index, _backup, _consolidated, _two_shards, _named])
def test_of_several_weight_files_those_count_that_transformers_loads(
    litter_: Callable[[Path, dict[str, torch.Tensor]], None], llama: Path
) -> None:
    old = load_file(llama / "model.safetensors")
    old["model.norm.weight"] = old["model.norm.weight"] * torch.linspace(-1, 1, 48)
    litter_(llama, old)
    expected, got = _logits(llama)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
def test_a_head_in_the_file_wins_over_a_config_that_ties_it(family: str, tmp_path: Path) -> None:
    directory = save_family(tmp_path, {**family_named(family).example, "tie_word_embeddings": True})
    tied = open_source(str(directory)).spec
    assert tied.tie_embeddings
    path, head = directory / "model.safetensors", f"{tied.head}.weight"
    tensors = load_file(path)
    embedding = tensors[f"{tied.embedding}.weight"]
    save_file({**tensors, head: embedding.clone()}, path, metadata={"format": "pt"})
    assert open_source(str(directory)).spec == tied
    other = embedding.flip(0).contiguous()
    save_file({**tensors, head: other}, path, metadata={"format": "pt"})
    expected, got = _logits(directory)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert not open_source(str(directory)).spec.tie_embeddings


def test_an_embedding_may_be_stored_as_the_head_alone(tmp_path: Path) -> None:
    directory = save_llama(tmp_path, tie_word_embeddings=True)
    tensors = load_file(directory / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    expected, got = _logits(directory)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_end_tokens_that_only_config_json_names_go_along_with_the_tokenizer(llama: Path, tmp_path: Path) -> None:
    (llama / "generation_config.json").unlink()
    _edit_config(llama, eos_token_id=[256, 65])
    (tmp_path / "copy").mkdir()
    open_source(str(llama)).save_tokenizer(tmp_path / "copy")
    expected = AutoModelForCausalLM.from_pretrained(llama).generation_config.eos_token_id
    assert expected == [256, 65]
    assert json.loads((tmp_path / "copy" / "generation_config.json").read_text())["eos_token_id"] == expected
    assert set(ChatTokenizer.load(tmp_path / "copy").special.stop) == {256, 65}


@pytest.mark.parametrize("ends", ["a", [1, None], 2.5, True, {"a": 1}])
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_end_tokens_that_are_no_ids_are_refused(name: str, ends: object, llama: Path, tmp_path: Path) -> None:
    (llama / "generation_config.json").unlink()
    source = open_source(str(llama))
    path = llama / name
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.is_file() else {}), "eos_token_id": ends}))
    (tmp_path / "copy").mkdir()
    with pytest.raises(CheckpointError, match=rf"{name}: eos_token_id: expected the id of a token, or a list of ids"):
        source.save_tokenizer(tmp_path / "copy")


def test_tokenizer_files_that_are_links_are_copied_from_the_hubs_cache_alone(llama: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("{}")
    snapshot, blobs, copy = (tmp_path / name for name in ("m/snapshots/0123", "m/blobs", "copy"))
    for folder in (snapshot, blobs, copy):
        folder.mkdir(parents=True)
    for number, path in enumerate(sorted(llama.iterdir())):
        (blobs / str(number)).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    open_source(str(snapshot)).save_tokenizer(copy)
    assert (copy / "tokenizer.json").read_bytes() == (llama / "tokenizer.json").read_bytes()
    assert not (copy / "tokenizer.json").is_symlink()
    (llama / "kept.json").write_text("{}")
    (llama / "special_tokens_map.json").unlink(missing_ok=True)
    (llama / "special_tokens_map.json").symlink_to("kept.json")
    open_source(str(llama)).save_tokenizer(copy)
    (snapshot / "added_tokens.json").symlink_to(secret)
    (llama / "added_tokens.json").symlink_to(secret)
    for directory in (snapshot, llama):
        with pytest.raises(CheckpointError, match=r"added_tokens\.json: expected one of the model's own files.*secret"):
            open_source(str(directory)).save_tokenizer(copy)
    assert not (copy / "added_tokens.json").exists()


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "model-00001-of-00001.safetensors"])
def test_pipes_and_devices_are_no_files_of_a_model(llama: Path, name: str, kind: str) -> None:
    if name.startswith("model-"):
        index = {"weight_map": dict.fromkeys(load_file(llama / "model.safetensors"), name)}
        (llama / "model.safetensors.index.json").write_text(json.dumps(index))
        (llama / "model.safetensors").unlink()
    else:
        (llama / name).unlink()
    if kind == "pipe":
        os.mkfifo(llama / name)
    else:
        (llama / name).symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors|no config\.json|missing files"):
        open_source(str(llama))
