"""Starting ranks: what a rank prints is passed on, and no rank is left behind."""

from __future__ import annotations

import sys
import time

import pytest

from awq2trt.errors import RankLostError
from awq2trt.machine.launch import launch


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", f"import os, time; rank = os.environ['RANK']; {code}"]


def test_the_exit_code_of_the_rank_that_failed() -> None:
    began = time.monotonic()
    assert launch(2, _python("os._exit(2 if rank == '1' else (time.sleep(2) or 1))")) == 2
    assert time.monotonic() - began < 10


def test_a_rank_that_was_killed_is_named() -> None:
    with pytest.raises(RankLostError, match=r"rank 1 of 3 was killed \(SIGKILL\)"):
        launch(3, _python("os.kill(os.getpid(), 9) if rank == '1' else None"))
