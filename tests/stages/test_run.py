"""`awq2trt run`: the same answer for the same seed, and directories that hold no model."""

from __future__ import annotations

from pathlib import Path

import pytest

from awq2trt.errors import UsageError
from awq2trt.runtime import Sampling
from awq2trt.stages.run import RunRequest, run_stage


def test_run_streams_the_same_text_for_the_same_seed(made: Path) -> None:
    sampling = Sampling(temperature=1.0, seed=3)
    request = RunRequest(made / "onnx", "hello", sampling, raw=True, max_new_tokens=12)
    first, second = ("".join(run_stage(request)) for _ in range(2))
    assert first == second
    assert first


@pytest.mark.parametrize(
    ("name", "says"), [("", "name .*onnx"), ("checkpoint", "export it first: awq2trt export .*checkpoint -o DIR")]
)
def test_run_names_the_directory_that_was_meant(made: Path, name: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        list(run_stage(RunRequest(made / name, "hello", Sampling())))
