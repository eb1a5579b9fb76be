"""A loaded model: the same text streamed and at once, chat or raw; and clear errors for directories without a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_models import VOCAB_SIZE, save_llama

import awq2trt
from awq2trt.artifact import manifest
from awq2trt.artifact.manifest import record_file
from awq2trt.artifact.records import FileRecord
from awq2trt.errors import ArtifactError, UsageError
from awq2trt.recipe import ExportOptions, QuantizeOptions
from awq2trt.runtime import Model, Sampling, system_message, user_message

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}>"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint and ONNX model of a tiny Llama that has a chat template."""
    directory = tmp_path_factory.mktemp("made")
    save_llama(directory / "model")
    config = directory / "model" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": TEMPLATE}))
    awq2trt.quantize(directory / "model", directory / "checkpoint", QuantizeOptions(method="rtn", group_size=32))
    awq2trt.export(directory / "checkpoint", directory / "onnx", ExportOptions(max_seq_len=64))
    return directory


@pytest.fixture(scope="module")
def model(made: Path) -> Model:
    return Model.load(made / "onnx")


def test_only_the_first_load_hashes_the_files(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    directory = shutil.copytree(made / "onnx", tmp_path / "onnx")
    hashed: list[str] = []

    def count(path: Path) -> FileRecord:
        hashed.append(path.name)
        return record_file(path)

    monkeypatch.setattr(manifest, "record_file", count)
    Model.load(directory)
    assert "model.onnx.data" in hashed
    hashed.clear()
    Model.load(directory)
    assert hashed == []

    weights = bytearray((directory / "model.onnx.data").read_bytes())
    weights[0] ^= 1
    (directory / "model.onnx.data").write_bytes(weights)
    with pytest.raises(ArtifactError, match="it was changed since"):
        Model.load(directory)


def test_the_same_seed_gives_the_same_text(model: Model) -> None:
    sampling = Sampling(temperature=1.0, seed=3)
    pieces = list(model.generate("hello", raw=True, sampling=sampling, max_new_tokens=12))
    whole = model.generate_text("hello", raw=True, sampling=sampling, max_new_tokens=12)
    assert "".join(pieces) == whole
    assert len(pieces) > 1
    assert whole != model.generate_text("hello", raw=True, sampling=Sampling(1.0, seed=4), max_new_tokens=12)


def test_a_prompt_is_what_the_user_says(model: Model) -> None:
    said = model.generate_text("hello", max_new_tokens=8)
    assert said == model.generate_text([user_message("hello")], max_new_tokens=8)
    assert said == model.generate_text("[user]hello>", raw=True, max_new_tokens=8)


def test_a_conversation_has_several_messages(model: Model) -> None:
    messages = [system_message("be"), user_message("a"), {"role": "assistant", "content": "b"}, user_message("c")]
    written = "[system]be[user]a[assistant]b[user]c>"
    assert model.generate_text(messages, max_new_tokens=8) == model.generate_text(written, raw=True, max_new_tokens=8)
    with pytest.raises(UsageError, match="as plain text"):
        model.generate(messages, raw=True)


def test_the_answer_ends_before_a_stop_string(model: Model) -> None:
    whole = model.generate_text("hello", raw=True, max_new_tokens=12)
    assert len(whole) > 4
    cut = model.generate_text("hello", raw=True, max_new_tokens=12, stop=[whole[2:4]])
    assert cut == whole[: whole.find(whole[2:4])]


def test_the_answer_ends_at_the_tokens_that_the_manifest_names(made: Path, tmp_path: Path) -> None:
    onnx = Path(shutil.copytree(made / "onnx", tmp_path / "onnx"))
    assert Model.load(onnx).generate_text("hello", raw=True, max_new_tokens=3)
    value = json.loads((onnx / "manifest.json").read_text())
    value["contents"]["tokens"]["stop"] = list(range(VOCAB_SIZE))
    (onnx / "manifest.json").write_text(json.dumps(value))
    assert not Model.load(onnx).generate_text("hello", raw=True, max_new_tokens=3)


def test_a_prompt_longer_than_the_cache_is_refused(model: Model) -> None:
    with pytest.raises(UsageError, match="the cache of this model holds 64"):
        model.generate_text("x" * 65, raw=True)


@pytest.mark.parametrize(
    ("name", "says"), [("", "name .*onnx"), ("checkpoint", "export it first: awq2trt export .*checkpoint -o DIR")]
)
def test_it_names_the_directory_that_was_meant(made: Path, name: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Model.load(made / name)


def test_an_unknown_backend_is_refused_before_the_model_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown backend 'cuda', expected auto, ort or native"):
        Model.load(tmp_path / "nowhere", backend="cuda")
