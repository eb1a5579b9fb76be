"""Processes that quantize one model together: who is who, what they tell each other, and what becomes of a lost one.

In: what the environment makes of this process (`awq2trt.machine.rank_environment`). Out: `Ranks`, whose methods all
ranks call at the same places of the program; each ends on every rank, or fails on every rank once one of them is gone
or does not answer. CPUs talk by gloo, GPUs by NCCL.

Sums over ranks are the same bits on every rank, so that all take the same decisions.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import Final, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from awq2trt.errors import PeerFailedError, RankLostError, UsageError
from awq2trt.machine.device import CPU
from awq2trt.machine.rank_environment import TIMEOUT_VARIABLE, rank_of_environment, rank_timeout_s

_FAILURES: Final = "awq2trt/failures"

_CAUSE_FIRST_S: Final = 1.0
"""Who only notices that another rank is gone lets whoever knows why speak first."""

_Told = TypeVar("_Told")


@dataclass(frozen=True)
class Ranks:
    """This process among those that work together.

    Attributes:
        rank: Its number, from 0.
        count: Of all.
        local: Its number on its host, which is the number of its GPU.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    _store: Store | None = field(default=None, compare=False)

    @property
    def first(self) -> bool:
        """Whether it is the one that writes files and speaks to the user."""
        return self.rank == 0

    def share(self, length: int, unit: int = 1) -> slice:
        """The part of `length` things, in whole units, that is this rank's."""
        return self._shares(length, unit)[self.rank]

    def _shares(self, length: int, unit: int = 1) -> list[slice]:
        units = length // unit
        ends = [unit * (units * rank // self.count) for rank in range(self.count + 1)]
        return [slice(start, end) for start, end in pairwise(ends)]

    def total(self, value: float) -> float:
        """The sum of every rank's value."""
        return sum(self._values(value)) if self.count > 1 else value

    def largest(self, value: float) -> float:
        """The largest of every rank's values."""
        return max(self._values(value))

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Makes each tensor the sum of every rank's."""
        if self.count > 1:
            with _talking():
                for tensor in tensors:
                    dist.all_reduce(tensor)

    def joined(self, own: Tensor, length: int, unit: int = 1) -> Tensor:
        """Every rank's `share` of a tensor put together, [length, ...], on every rank."""
        if self.count == 1:
            return own
        whole = own.new_empty(length, *own.shape[1:])
        whole[self.share(length, unit)] = own
        with _talking():
            for rank, part in enumerate(self._shares(length, unit)):
                if part.start < part.stop:
                    dist.broadcast(whole[part], src=rank)
        return whole

    def gathered(self, own: Tensor, length: int) -> Tensor | None:
        """The same on the first rank alone; None on others."""
        if self.count == 1:
            return own
        own = own.contiguous()
        with _talking():
            if not self.first:
                if len(own):
                    dist.send(own, dst=0)
                return None
            whole = own.new_empty(length, *own.shape[1:])
            whole[self.share(length)] = own
            for rank, part in enumerate(self._shares(length)):
                if rank and part.start < part.stop:
                    dist.recv(whole[part], src=rank)
            return whole

    def scattered(self, whole: Tensor | None) -> Tensor:
        """This rank's share of what the first one has; others give None."""
        if self.count == 1 and whole is not None:
            return whole
        shape = self.told(None if whole is None else tuple(whole.shape))
        assert shape is not None
        with _talking():
            if whole is not None:
                for rank, part in enumerate(self._shares(shape[0])):
                    if rank and part.start < part.stop:
                        dist.send(whole[part].contiguous(), dst=rank)
                return whole[self.share(shape[0])].clone()
            own = self.share(shape[0])
            received = torch.empty(own.stop - own.start, *shape[1:])
            if len(received):
                dist.recv(received, src=0)
            return received

    def told(self, value: _Told) -> _Told:
        """What the first rank has to say, on every rank."""
        if self.count == 1:
            return value
        said = [value]
        with _talking():
            dist.broadcast_object_list(said, src=0, device=torch.device(CPU))
        return said[0]

    def require_same(self, facts: Mapping[str, object]) -> None:
        """Refuses ranks that were given different things.

        Args:
            facts: What must be the same on all, by what it is called, e.g. {"model": hash}.

        Raises:
            UsageError: It is not.
        """
        if self.count == 1:
            return
        theirs: list[Mapping[str, object]] = [{}] * self.count
        with _talking():
            dist.all_gather_object(theirs, dict(facts))
        for name, value in theirs[0].items():
            other = next((rank for rank, said in enumerate(theirs) if said.get(name) != value), None)
            if other is not None:
                raise UsageError(
                    f"rank {other} has another {name} than rank 0: {theirs[other].get(name)}, not {value}.",
                    where=f"rank {other} of {self.count}",
                    fix="start all ranks with the same command, and give every host the same files.",
                )

    def leave(self) -> None:
        """Ends the work together, on every rank; what the first one still has to do, it does alone."""
        if dist.is_initialized():
            with _talking():
                self.total(0.0)
                dist.destroy_process_group()

    def claim_message(self) -> bool:
        """Whether this rank is the first to fail, whose message the user reads; True if it cannot be found out."""
        if self._store is None:
            return True
        try:
            return int(self._store.add(_FAILURES, 1)) == 1
        except RuntimeError:
            return True

    def _values(self, value: float) -> list[float]:
        if self.count == 1:
            return [value]
        own = torch.tensor([value], dtype=torch.float64, device=CPU)
        values = [torch.empty_like(own) for _ in range(self.count)]
        with _talking():
            dist.all_gather(values, own)
        return [float(value) for value in values]


ALONE: Final = Ranks()


@contextmanager
def joined_ranks(*, cuda: bool) -> Iterator[Ranks]:
    """The ranks that this process belongs to; `ALONE` where the environment says nothing of others.

    Of several that fail, the first says why; the others' errors become `PeerFailedError`, of which nothing is printed.

    Args:
        cuda: They compute on GPUs.

    Raises:
        UsageError: The environment contradicts itself.
        RankLostError: The others do not come, or one of them is gone.
        PeerFailedError: Another one failed, and says so.
    """
    named = rank_of_environment()
    if named is None or named.count == 1:
        yield ALONE
        return
    timeout = timedelta(seconds=rank_timeout_s())
    with _talking():
        store, rank, count = next(rendezvous("env://", timeout=timeout))
        if cuda:
            torch.cuda.set_device(named.local)
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        own = PrefixStore("awq2trt", store)
        dist.init_process_group(backend, store=own, rank=rank, world_size=count, timeout=timeout)
    ranks = Ranks(rank, count, named.local, store)
    try:
        yield ranks
    except BaseException as error:
        if isinstance(error, RankLostError):
            time.sleep(_CAUSE_FIRST_S)
        # The group is not destroyed: with a rank that hangs this would wait for it. The process ends anyway.
        if ranks.claim_message():
            raise
        raise PeerFailedError(str(error)) from error
    ranks.leave()


@contextmanager
def _talking() -> Iterator[None]:
    """Explains what PyTorch raises when another rank is gone or silent."""
    try:
        yield
    except RuntimeError as error:  # DistError and its subclasses are RuntimeErrors, and gloo raises plain ones
        raise RankLostError(
            f"another rank has ended or does not answer. {str(error).splitlines()[0][:200]}",
            where=f"rank {os.environ.get('RANK', '0')}",
            fix="see what that rank said last; then start all ranks again with --resume, which goes on from the last "
            f"finished block. {TIMEOUT_VARIABLE} is how many seconds they wait for each other.",
        ) from error
