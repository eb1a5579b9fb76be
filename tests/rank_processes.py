"""Several processes that work together as torchrun starts them; what they import is loaded only once."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any, Final

_CONTEXT: Final = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "torch.distributed", "transformers", "awq2trt.quantization.job"])

_STORES: Final[list[Any]] = []

ENDS_WITHIN_S: Final = 240.0
"""Seconds after which a rank that has not ended counts as hanging."""


def start_ranks(count: int, function: Callable[..., None], *arguments: Any, timeout_s: int = 60) -> list[BaseProcess]:
    """Starts `function(*arguments)` in this many processes, each with the environment of a rank; does not wait."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not in its __all__

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    _STORES.append(store)  # like the one that torchrun's agent keeps, it outlives every rank
    shared = {
        "WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": store.port,
        "TORCHELASTIC_USE_AGENT_STORE": True,
        "AWQ2TRT_RANK_TIMEOUT_S": timeout_s,
    }
    ranks: list[BaseProcess] = []
    for rank in range(count):
        environment = {name: str(value) for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
        process = _CONTEXT.Process(target=_as_rank, args=(environment, function, *arguments))
        process.start()
        ranks.append(process)
    return ranks


def run_ranks(count: int, function: Callable[..., None], *arguments: Any, timeout_s: int = 60) -> list[int]:
    """Returns the exit codes of all ranks; negative for one that was killed."""
    return ends_of(start_ranks(count, function, *arguments, timeout_s=timeout_s))


def ends_of(ranks: list[BaseProcess]) -> list[int]:
    """Waits for all ranks, and ends those that hang."""
    for rank in ranks:
        rank.join(ENDS_WITHIN_S)
    hanging = [index for index, rank in enumerate(ranks) if rank.exitcode is None]
    for index in hanging:
        ranks[index].kill()
    assert not hanging, f"ranks {hanging} hang"
    return [rank.exitcode or 0 for rank in ranks]


def _as_rank(environment: dict[str, str], function: Callable[..., None], *arguments: Any) -> None:
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    function(*arguments)
