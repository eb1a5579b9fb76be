"""Work on several pieces side by side, each by one of a CPU's cores.

In: pieces of work that do not depend on each other. Out: their results, in order. PyTorch shares single operations
among cores. If these are small, or compiled loops for a single core run between them, all cores but one wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Final, TypeVar

import torch

LEAST_ROWS: Final = 256
"""Fewer rows stay together: making the calls for another part takes as long as computing a hundred rows."""

_Piece = TypeVar("_Piece")
_Result = TypeVar("_Result")


def side_by_side(work: Callable[[_Piece], _Result], pieces: Sequence[_Piece]) -> list[_Result]:
    """Does the work on every piece, on as many cores as PyTorch may use; on a GPU one after the other.

    What a piece results in does not depend on the number of cores: each is computed by a single one.

    Args:
        work: What is to be done, without gradients. Compiled loops run at the same time only if they release the GIL.
        pieces: On what.
    """
    if not torch.empty(0).is_cpu:
        return [work(piece) for piece in pieces]
    with _single_thread() as threads:
        if threads == 1 or len(pieces) == 1:
            return [work(piece) for piece in pieces]
        # A new thread begins with PyTorch's settings of the whole process, which OpenMP keeps for each thread.
        prepare = partial(torch.set_num_threads, 1)
        with ThreadPoolExecutor(min(threads, len(pieces)), thread_name_prefix="core", initializer=prepare) as cores:
            return list(cores.map(torch.no_grad()(work), pieces))


def even_parts(rows: int, at_once: int) -> list[slice]:
    """Cuts rows into an even number of parts, so that two cores have the same work; the same on any number of cores.

    Args:
        rows: Their number, at least 1.
        at_once: Most rows of a part.
    """
    count = 1 if rows < LEAST_ROWS else 2 * -(-rows // (2 * at_once))
    size = min(at_once, -(-rows // count))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


@contextmanager
def _single_thread() -> Iterator[int]:
    """Lets PyTorch's operations use one thread; yields how many they used before, and may use again afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
