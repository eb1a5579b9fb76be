"""A tokenizer that does not open says why, wherever it is read: it needs a newer library, or code of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_llama

from awq2trt.errors import ArtifactError, Awq2trtError, CheckpointError
from awq2trt.models.sources.opening import open_source
from awq2trt.models.sources.tokenizer_parts import reading_tokenizer
from awq2trt.runtime.chat import ChatTokenizer
from awq2trt.text.tokenizer import load_tokenizer, require_tokenizer


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_llama(tmp_path / "model")


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _open_source(directory: Path) -> None:
    require_tokenizer(open_source(str(directory)))


_READERS: dict[str, tuple[Callable[[Path], Any], type[Awq2trtError]]] = {
    "quantize": (_open_source, CheckpointError),
    "calibration": (load_tokenizer, CheckpointError),
    "chat": (ChatTokenizer.load, ArtifactError),
}


@pytest.mark.parametrize("reader", _READERS)
@pytest.mark.parametrize(
    ("part", "value", "says"),
    [
        ("pre_tokenizer", {"type": "SplitOfTheFuture"}, "the pre_tokenizer 'SplitOfTheFuture'"),
        (
            "normalizer",
            {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "NFX", "form": 1}]},
            "the normalizer 'NFX'",
        ),
        ("decoder", {"type": "Undo"}, "the decoder 'Undo'"),
        ("post_processor", {"type": "Wrap"}, "the post_processor 'Wrap'"),
    ],
)
def test_a_part_that_a_newer_library_has(reader: str, part: str, value: object, says: str, model: Path) -> None:
    _edit(model / "tokenizer.json", **{part: value})
    read, error = _READERS[reader]
    with pytest.raises(error) as refused:
        read(model)
    assert refused.value.what == f"tokenizer.json: {says} is unknown to tokenizers {version('tokenizers')}."
    assert "--upgrade tokenizers" in str(refused.value.fix)
    assert str(model) in str(refused.value.where)


@pytest.mark.parametrize("reader", ["quantize", "calibration"])
def test_a_tokenizer_with_code_of_its_own(reader: str, model: Path) -> None:
    config = model / "tokenizer_config.json"
    _edit(config, tokenizer_class="YiTokenizer", auto_map={"AutoTokenizer": ["tokenization_yi.YiTokenizer", None]})
    read, error = _READERS[reader]
    with pytest.raises(error, match=r"needs Python code of its own \(tokenization_yi\.YiTokenizer in tokenizer_config"):
        read(model)
    kept = json.loads(config.read_text())
    del kept["auto_map"]
    config.write_text(json.dumps({**kept, "tokenizer_class": "PreTrainedTokenizerFast"}))  # what the message says
    read(model)


def test_files_that_become_a_tokenizer_json_are_read_alike(model: Path, tmp_path: Path) -> None:
    (model / "tokenizer.json").unlink()
    (model / "vocab.json").write_text('{"a": 0')
    (model / "merges.txt").write_text("")
    _edit(model / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    (tmp_path / "copy").mkdir()
    with pytest.raises(CheckpointError, match="cannot be read as a tokenizer") as refused:
        open_source(str(model)).save_tokenizer(tmp_path / "copy")
    assert str(model) in str(refused.value.where)


def test_other_faults_keep_what_the_library_said(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="as a tokenizer: no luck"), reading_tokenizer(tmp_path):
        raise ValueError("no luck")
