"""How ranks communicate, and that none waits forever for one that is gone or was given something else."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rank_processes import ends_of, run_ranks, start_ranks

from awq2trt.errors import PeerFailedError, RankLostError, UsageError
from awq2trt.machine.ranks import ALONE, Ranks, Share, joined_ranks

MESSAGE = 10
"""Exit code of a rank that would print an error."""

SILENT = 11
"""Exit code of a rank that fails and leaves the message to another."""


def test_shares_cover_everything_once_in_whole_units() -> None:
    for count, length, unit in ((3, 7, 1), (4, 2, 1), (3, 48, 16), (5, 24, 8)):
        shares = [Ranks(rank, count).share(length, unit) for rank in range(count)]
        assert [row for share in shares for row in range(length)[share]] == list(range(length))
        assert all(share.start % unit == 0 for share in shares)
        sizes = [(share.stop - share.start) // unit for share in shares]
        assert max(sizes) - min(sizes) <= 1


def test_alone_everything_is_its_own() -> None:
    value = torch.arange(6.0).view(3, 2)
    for given in (ALONE.gathered(value, 3), ALONE.scattered(value), ALONE.copied(value)):
        assert given is value
    whole = torch.zeros(3, 2)
    ALONE.join_(whole, [value], ALONE.shares(3))
    assert torch.equal(whole, value)
    assert (ALONE.total(3.5), ALONE.largest(2.0), ALONE.told("x")) == (3.5, 2.0, "x")


def _talk() -> None:
    whole = torch.arange(14.0).view(7, 2)
    with joined_ranks(cuda=False) as ranks:
        own = whole[ranks.share(7)]
        joined = torch.zeros(7, 2)
        ranks.join_(joined, [own], ranks.shares(7))
        assert torch.equal(joined, whole)
        dealt = [Share(slice(0, 1), 2), Share(slice(1, 4), 0), Share(slice(4, 7), 2)]  # none to rank 1
        joined.zero_()
        ranks.join_(joined, [whole[share.rows] for share in dealt if share.rank == ranks.rank], dealt)
        assert torch.equal(joined, whole)
        gathered = ranks.gathered(own, 7)
        assert (gathered is None) == (ranks.rank > 0)
        assert gathered is None or torch.equal(gathered, whole)
        assert torch.equal(ranks.scattered(None if ranks.rank else whole), own)
        assert torch.equal(ranks.copied(None if ranks.rank else whole), whole)
        assert ranks.total(ranks.rank + 0.5) == 4.5
        assert ranks.largest(-float(ranks.rank)) == 0.0
        assert ranks.told(f"from {ranks.rank}") == "from 0"
        ones = torch.ones(5)
        ranks.sum_([ones])
        assert ones.tolist() == [3.0] * 5
        one_row = torch.zeros(1, 4)
        ranks.join_(one_row, [torch.ones(1, 4)[ranks.share(1)]], ranks.shares(1))  # two ranks have none
        assert one_row.tolist() == [[1.0] * 4]


def test_three_ranks_tell_each_other() -> None:
    assert run_ranks(3, _talk) == [0, 0, 0]


def _send_arrays() -> None:
    def of(rank: int) -> list[NDArray[Any]]:
        codes = np.arange(12, dtype=np.int32).reshape(3, 4) * rank
        frozen = np.arange(4.0, dtype=np.float32)
        frozen.flags.writeable = False
        return [codes.T, codes.astype(np.float16), np.full((2, 1), rank, ml_dtypes.bfloat16), np.empty((0, 3)), frozen]

    with joined_ranks(cuda=False) as ranks:
        for rank in (2, 1):  # in the order that the first one wants
            if ranks.first:
                said, arrays = ranks.received(rank)
                assert said == {"from": rank}
                for got, expected in zip(arrays, of(rank), strict=True):
                    assert got.dtype == expected.dtype
                    assert np.array_equal(got, expected)
            elif rank == ranks.rank:
                ranks.send({"from": rank}, of(rank))


def test_arrays_arrive_as_they_were_sent() -> None:
    assert run_ranks(3, _send_arrays) == [0, 0, 0]


def _fail(what: str) -> None:
    try:
        with joined_ranks(cuda=False) as ranks:
            if what == "other options":
                ranks.require_same({"--bits": 4, "--seed": ranks.rank // 2})
            elif ranks.rank == 2 and what == "error":
                raise UsageError("x")
            elif ranks.rank == 2 and what == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            elif ranks.rank == 2 and what == "hangs":
                time.sleep(30)
            ranks.total(1.0)
    except PeerFailedError:
        sys.exit(SILENT)
    except (UsageError, RankLostError) as error:
        sys.exit(MESSAGE if what != "other options" or "another --seed" in str(error) else 1)


@pytest.mark.parametrize("what", ["other options", "error", "killed"])
def test_of_three_ranks_one_says_what_went_wrong(what: str) -> None:
    codes = run_ranks(3, _fail, what)
    assert codes.count(MESSAGE) == 1
    assert codes.count(SILENT) == (1 if what == "killed" else 2)
    assert what != "error" or codes[2] == MESSAGE  # who knows why, not who noticed


def test_a_rank_that_hangs_is_not_waited_for_for_ever() -> None:
    ranks, began = start_ranks(3, _fail, "hangs", timeout_s=8), time.monotonic()
    ranks[0].join(60)
    assert time.monotonic() - began < 28 or ranks[2].exitcode is not None
    ranks[2].terminate()
    assert sorted(ends_of(ranks)[:2]) == [MESSAGE, SILENT]
