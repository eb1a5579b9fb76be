"""Work that is done beside a computation: what a GPU leaves the CPU time for, or what waits for other processes.

In: pieces of work, in their order. Out: their effects, in that order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

Work = Callable[[], None]
Take = Callable[[Work], None]


@contextmanager
def working_behind(most: int) -> Iterator[Take]:
    """Lets pieces of work be done one after another while the caller goes on; all are done when the context ends.

    None is done after one that failed; and if the caller fails, only the one that is under way.

    Args:
        most: How many may be under way or waiting; 0 does each at once.

    Yields:
        What takes a piece. It waits until there are few enough, and raises what an earlier one raised.
    """
    if not most:
        yield lambda work: work()
        return
    pieces: deque[Future[None]] = deque()

    def take(work: Work) -> None:
        wait_for_all_but(most - 1)
        pieces.append(worker.submit(_after, pieces[-1] if pieces else None, work))

    def wait_for_all_but(left: int) -> None:
        while len(pieces) > left or (pieces and pieces[0].done()):
            pieces.popleft().result()

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="behind") as worker:
        try:
            yield take
            wait_for_all_but(0)
        finally:
            worker.shutdown(wait=False, cancel_futures=True)


def _after(piece: Future[None] | None, work: Work) -> None:
    """Does a piece of work unless the one before it failed."""
    if piece is not None:
        piece.result()
    work()
