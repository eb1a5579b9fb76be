"""A model's tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from awq2trt.errors import CheckpointError
from awq2trt.text.tokenizer import load_tokenizer


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="tokenizer"):
        load_tokenizer(tmp_path)
