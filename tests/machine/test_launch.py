"""Starting ranks: what a rank prints is passed on, and no rank is left behind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

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


def test_ranks_that_run_already_are_ended_where_one_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def once(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        if started:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        started.append(start(command, **options))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", once)
    with pytest.raises(BlockingIOError):
        launch(2, [sys.executable, "-c", "import time; time.sleep(600)"])
    assert started[0].poll() is not None
