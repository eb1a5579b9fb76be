"""`--gpus N` and `--ranks N`: whether this process starts others that share the work, or is one of them.

In: flags and the environment. Out: the exit code of the ranks that were started, or nothing where this process is to
work, of which only the first rank's time is traced.
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
        gpus: Processes with a GPU each; None where not said.
        ranks: Processes on the CPU; None where not said.
        asked_device: Where to compute; None where not said.
    """

    gpus: int | None
    ranks: int | None
    asked_device: str | None

    @property
    def device(self) -> str:
        """Where each process computes."""
        return self.asked_device or (DEFAULT_DEVICE if self.gpus is None else _GPU_DEVICE)


def run_as_ranks(wanted: RanksWanted, command: Sequence[str]) -> int | None:
    """Runs a command as several ranks, if several are wanted and this process is none of them.

    Args:
        wanted: How many.
        command: What each of them is to run: this process's own.

    Returns:
        The command's exit code; None where this process is to do the work.

    Raises:
        UsageError: What is wanted contradicts itself or the environment, or there are fewer GPUs.
        RankLostError: A rank was killed.
    """
    count = _count(wanted)
    named = rank_of_environment()
    if named is not None:
        if count not in (None, named.count):
            raise UsageError(
                f"{count} ranks are asked for, but this is already one of {named.count}.",
                where="environment: WORLD_SIZE",
                fix="leave --gpus and --ranks to whoever started the ranks, e.g. torchrun --nproc-per-node.",
            )
        return None
    if count is None:
        return None
    from awq2trt.machine.launch import launch, require_gpus

    if wanted.gpus is not None:
        require_gpus(wanted.gpus)
    return launch(count, command) if count > 1 else None


def _count(wanted: RanksWanted) -> int | None:
    """How many processes are wanted; None where nothing is said."""
    if wanted.gpus is not None and wanted.ranks is not None:
        raise UsageError(
            "expected one of --gpus and --ranks, got both.", where="--ranks", fix="--ranks is for the CPU alone."
        )
    if wanted.gpus is not None and wanted.device != _GPU_DEVICE:
        raise UsageError(
            f"each of {wanted.gpus} processes gets a GPU of its own.",
            where=f"--device {wanted.device}",
            fix="leave --device out; CUDA_VISIBLE_DEVICES says which GPUs there are.",
        )
    if wanted.ranks is not None and wanted.device != DEFAULT_DEVICE:
        raise UsageError(
            "--ranks starts processes that compute on the CPU.",
            where=f"--device {wanted.device}",
            fix="--gpus N for one process on each GPU.",
        )
    return wanted.gpus or wanted.ranks


def first_rank_writes(path: Path | None) -> Path | None:
    """A file that the first of several ranks writes; None on others."""
    named = rank_of_environment()
    return path if named is None or named.rank == 0 else None


@contextmanager
def traced_stage(path: Path | None, device: str) -> Iterator[None]:
    """Writes where time goes to a file; None for no file."""
    if path is None or device == DEFAULT_DEVICE:
        with traced(path):
            yield
        return
    import torch

    with traced(path, torch.cuda.synchronize):
        yield
