"""`--gpus N` and `--ranks N`: decides whether this process starts others that share the work, or is one of them.

In: flags and the environment. Out: the exit code of the ranks that were started, or None if this process has to do the
work itself. Only the first rank is traced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from awq2trt.errors import UsageError
from awq2trt.machine.rank_environment import rank_of_environment
from awq2trt.recipe import DEFAULT_DEVICE
from awq2trt.tracing import traced

_GPU_DEVICE: Final = "cuda"


@dataclass(frozen=True)
class RanksWanted:
    """What the user asks for.

    Attributes:
        gpus: Number of processes, each with a GPU; None if not given.
        ranks: Number of processes on the CPU; None if not given.
        asked_device: Where to compute; None if not given.
    """

    gpus: int | None
    ranks: int | None
    asked_device: str | None

    @property
    def device(self) -> str:
        """Where each process computes."""
        return self.asked_device or (DEFAULT_DEVICE if self.gpus is None else _GPU_DEVICE)


def run_as_ranks(wanted: RanksWanted, command: Sequence[str]) -> int | None:
    """Runs a command as several ranks, if several are wanted and this process is not one of them already.

    Args:
        wanted: How many ranks, and on what.
        command: The command for each of them: this process's own.

    Returns:
        The command's exit code; None if this process has to do the work itself.

    Raises:
        UsageError: The flags contradict each other or the environment, or there are too few GPUs, or far too few cores.
        RankLostError: A rank was killed.
    """
    count = _count(wanted)
    named = rank_of_environment()
    if named is not None:
        if count not in (None, named.count):
            raise UsageError(
                f"{count} ranks are wanted, but this process is already one of {named.count}.",
                where="environment: WORLD_SIZE",
                fix="leave out --gpus and --ranks: the program that started the ranks (torchrun) sets their number.",
            )
        return None
    if count is None:
        return None
    from awq2trt.machine.launch import launch, require_cores, require_gpus

    if wanted.gpus is not None:
        require_gpus(wanted.gpus)
    else:
        require_cores(count)
    return launch(count, command) if count > 1 else None


def _count(wanted: RanksWanted) -> int | None:
    """Number of processes that are wanted; None if no flag says so."""
    if wanted.gpus is not None and wanted.ranks is not None:
        raise UsageError(
            "expected one of --gpus and --ranks, got both.",
            where="--ranks",
            fix="leave one of them out; --ranks is only for the CPU.",
        )
    if wanted.gpus is not None and wanted.device != _GPU_DEVICE:
        raise UsageError(
            f"each of {wanted.gpus} processes gets a GPU of its own.",
            where=f"--device {wanted.device}",
            fix="leave --device out; CUDA_VISIBLE_DEVICES selects GPUs.",
        )
    if wanted.ranks is not None and wanted.device != DEFAULT_DEVICE:
        raise UsageError(
            "--ranks starts processes that compute on the CPU.",
            where=f"--device {wanted.device}",
            fix="use --gpus N for one process on each GPU.",
        )
    return wanted.gpus or wanted.ranks


def first_rank_writes(path: Path | None) -> Path | None:
    """Returns the file on the first of several ranks, which alone writes it; None on the others."""
    named = rank_of_environment()
    return path if named is None or named.rank == 0 else None


def trace_of_rank(path: Path | None) -> Path | None:
    """Returns the file for this rank's trace: that of rank 2 beside `trace.json` is `trace-2.json`.

    A host that lacks the folder gets none.
    """
    named = rank_of_environment()
    if path is None or named is None or named.rank == 0:
        return path
    return path.with_name(f"{path.stem}-{named.rank}{path.suffix}") if path.parent.is_dir() else None


@contextmanager
def traced_stage(path: Path | None, device: str) -> Iterator[None]:
    """Records where time goes in a file; None records nothing."""
    if path is None or device == DEFAULT_DEVICE:
        with traced(path):
            yield
        return
    import torch

    with traced(path, torch.cuda.synchronize):
        yield
