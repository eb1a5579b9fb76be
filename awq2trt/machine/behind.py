"""Work that is done beside a computation on a GPU, which leaves the CPU idle.

In: pieces of work, in their order. Out: their effects, in that order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch

Work = Callable[[], None]


@contextmanager
def one_behind() -> Iterator[Callable[[Work], None]]:
    """Lets one piece of work at a time be done while the caller goes on; all are done when the context ends.

    On a CPU each is done at once: it would take the time from what the caller computes.

    Yields:
        What takes a piece. It waits for the one before, and raises what that one raised.
    """
    if torch.empty(0).is_cpu:
        yield lambda work: work()
        return
    under_way: list[Future[None]] = []

    def take(work: Work) -> None:
        wait()
        under_way.append(worker.submit(work))

    def wait() -> None:
        while under_way:
            under_way.pop().result()

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="behind") as worker:
        yield take
        wait()
