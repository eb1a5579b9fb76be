"""Starts one process for each rank on this machine, and ends all of them if one fails.

In: the number of ranks, a command. Out: the command's exit code. The processes get the environment that torchrun would
set, and meet at a store in this process, which exists whichever of them dies.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Final

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not in its __all__

from awq2trt.errors import PeerFailedError, RankLostError, UsageError
from awq2trt.machine.ranks import Ranks

_HOST: Final = "127.0.0.1"
_POLL_S: Final = 0.1
_MOST_RANKS_PER_CORE: Final = 4
"""More than one helps nobody; a few are for those who try things out."""

_GRACE_S: Final = 10.0
"""How long a rank may take to end by itself after another one failed, or after SIGTERM."""


def require_gpus(count: int) -> None:
    """Refuses more GPUs than this machine has.

    Raises:
        UsageError: There are too few.
    """
    there = torch.cuda.device_count()
    if count > there:
        few = f"use --gpus {there}" if there else "leave --gpus out to compute on the CPU"
        raise UsageError(
            f"expected {count} GPUs, but PyTorch {torch.__version__} finds {there}.",
            where=f"--gpus {count}",
            fix=f"{few}; --ranks N starts N processes on the CPU; use torchrun for several hosts.",
        )


def require_cores(count: int) -> None:
    """Refuses more processes on the CPU than its cores can do anything with.

    Raises:
        UsageError: There are.
    """
    most = _MOST_RANKS_PER_CORE * (os.cpu_count() or 1)
    if count > most:
        raise UsageError(
            f"expected at most {most} processes for {os.cpu_count() or 1} cores, got {count}.",
            where="--ranks",
            fix=f"--ranks {os.cpu_count() or 1} or fewer: each of them takes memory.",
        )


def launch(count: int, command: Sequence[str]) -> int:
    """Runs a command as this many ranks, until the last one has ended or one has failed.

    Args:
        count: Number of ranks.
        command: Program and arguments, the same for all.

    Returns:
        0, or the exit code of a rank that failed and has printed why.

    Raises:
        RankLostError: A rank was killed.
    """
    store = TCPStore(_HOST, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=_GRACE_S))
    threads = max(1, (os.cpu_count() or 1) // count)
    shared = {
        "OMP_NUM_THREADS": str(threads),
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # otherwise messages about a lost connection list addresses of C++ functions
        **os.environ,
        "MASTER_ADDR": _HOST,
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": str(count),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # torchrun's setting for a store that no rank has to serve
    }
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(count):
            ranks.append(subprocess.Popen(command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}))
        failed = _first_failure(ranks)
        if failed is None:
            return 0
        # A killed rank prints nothing, but one that noticed its loss may already have reported it.
        if ranks[failed].returncode < 0 and Ranks(count=count, _store=store).claim_message():
            name = signal.Signals(-ranks[failed].returncode).name
            raise RankLostError(
                f"rank {failed} of {count} was killed ({name}).",
                where=f"rank {failed}",
                fix="if memory ran out, use fewer ranks; then run the same command with --resume.",
            )
        _wait_for(ranks)
        codes = [rank.returncode for rank in ranks if rank.returncode and rank.returncode > 0]
        return max(codes, default=PeerFailedError.exit_code)
    finally:
        _end(ranks)


def _first_failure(ranks: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Returns the rank that fails first; None if none fails."""
    while True:
        codes = [rank.poll() for rank in ranks]
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed:
            return min(
                failed, key=lambda rank: codes[rank] or 0
            )  # a killed rank takes precedence over those that noticed it
        if all(code == 0 for code in codes):
            return None
        time.sleep(_POLL_S)


def _wait_for(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    """Gives the remaining ranks time to notice that one has failed."""
    end = time.monotonic() + _GRACE_S
    for rank in ranks:
        with suppress(subprocess.TimeoutExpired):
            rank.wait(max(0.0, end - time.monotonic()))


def _end(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends the ranks that are still running."""
    for rank in ranks:
        if rank.poll() is None:
            rank.terminate()
    _wait_for(ranks)
    for rank in ranks:
        if rank.poll() is None:
            rank.kill()
            rank.wait()
