"""What a name opens, and what is refused if there is no model."""

from __future__ import annotations

from pathlib import Path

import pytest

from awq2trt.errors import CheckpointError, UsageError
from awq2trt.models.sources.opening import open_source


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
