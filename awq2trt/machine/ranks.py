"""Processes that quantize one model together: their numbers, how they exchange data, and what happens if one is lost.

In: this process's number, from the environment (`awq2trt.machine.rank_environment`). Out: `Ranks`, whose methods all
ranks call at the same places in the program. Each call ends on every rank, or fails on every rank if one of them is
gone or does not answer; only `send` and `received` are between two ranks. CPUs communicate through gloo, GPUs through
NCCL where they share the work on a block.

Sums over ranks have the same bits on every rank, so that all ranks make the same decisions.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import Any, Final, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from awq2trt.errors import PeerFailedError, RankLostError, UsageError
from awq2trt.machine.device import CPU
from awq2trt.machine.rank_environment import TIMEOUT_VARIABLE, rank_of_environment, rank_timeout_s

_FAILURES: Final = "awq2trt/failures"

_CAUSE_FIRST_S: Final = 1.0
"""How long a rank that only noticed a loss lets the one that knows the cause report first."""

_Told = TypeVar("_Told")


@dataclass(frozen=True)
class Share:
    """Some of several things, e.g. rows.

    Attributes:
        rows: Which.
        rank: Whose they are.
    """

    rows: slice
    rank: int


@dataclass(frozen=True)
class Ranks:
    """This process among those that work together.

    Attributes:
        rank: Its number, from 0.
        count: Number of all ranks.
        local: Its number on its host, which is the number of its GPU.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    _store: Store | None = field(default=None, compare=False)

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and reports to the user."""
        return self.rank == 0

    def share(self, length: int, unit: int = 1) -> slice:
        """The part of `length` things, in multiples of a unit, that belongs to this rank."""
        return self.shares(length, unit)[self.rank].rows

    def shares(self, length: int, unit: int = 1) -> list[Share]:
        """As many for every rank of `length` things, in whole units, rank after rank."""
        units = length // unit
        ends = [unit * (units * rank // self.count) for rank in range(self.count + 1)]
        return [Share(slice(start, end), rank) for rank, (start, end) in enumerate(pairwise(ends))]

    def total(self, value: float) -> float:
        """Sums a value over all ranks."""
        return sum(self._values(value)) if self.count > 1 else value

    def largest(self, value: float) -> float:
        """Returns the largest value of all ranks."""
        return max(self._values(value))

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor with its sum over all ranks."""
        if self.count > 1:
            with _talking():
                for tensor in tensors:
                    dist.all_reduce(tensor)

    def join_(self, whole: Tensor, own: Iterable[Tensor], shares: Sequence[Share]) -> None:
        """Puts every rank's part of a tensor together, on every rank.

        Args:
            whole: The tensor that they are put into.
            own: This rank's shares, in their order.
            shares: The shares of all ranks.
        """
        mine = iter(own)
        for share in shares:
            if share.rank == self.rank:
                whole[share.rows] = next(mine)
            if self.count > 1 and share.rows.start < share.rows.stop:
                with _talking():
                    dist.broadcast(whole[share.rows], src=share.rank)

    def gathered(self, own: Tensor, length: int) -> Tensor | None:
        """Does the same as `joined` on the first rank only; returns None on others."""
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
            for share in self.shares(length)[1:]:
                if share.rows.start < share.rows.stop:
                    dist.recv(whole[share.rows], src=share.rank)
            return whole

    def scattered(self, whole: Tensor | None) -> Tensor:
        """Returns this rank's share of a tensor that the first rank has; others pass None."""
        if self.count == 1 and whole is not None:
            return whole
        shape = self.told(None if whole is None else tuple(whole.shape))
        assert shape is not None
        with _talking():
            if whole is not None:
                for share in self.shares(shape[0])[1:]:
                    if share.rows.start < share.rows.stop:
                        dist.send(whole[share.rows].contiguous(), dst=share.rank)
                return whole[self.share(shape[0])].clone()
            own = self.share(shape[0])
            received = torch.empty(own.stop - own.start, *shape[1:])
            if len(received):
                dist.recv(received, src=0)
            return received

    def copied(self, whole: Tensor | None) -> Tensor:
        """Returns all of an fp32 tensor that the first rank has, by way of the machine's memory; others pass None."""
        if self.count == 1 and whole is not None:
            return whole
        shape = self.told(None if whole is None else tuple(whole.shape))
        assert shape is not None
        copy = torch.empty(shape, device=CPU) if whole is None else whole.to(CPU).contiguous()
        with _talking():
            dist.broadcast(copy, src=0)
        return copy.to(torch.get_default_device()) if whole is None else whole

    def send(self, said: object, arrays: Sequence[NDArray[Any]]) -> None:
        """Sends a value and arrays to the first rank, and ends when that has them, which calls `received`.

        Any thread may do so, as long as no other one talks to the other ranks meanwhile.
        """
        kinds = [(value.dtype.name, value.shape) for value in arrays]
        with _talking():
            dist.send_object_list([(said, kinds)], dst=0, device=torch.device(CPU))
            for value in arrays:
                if value.size:
                    dist.send(_bytes_of(np.require(value, requirements=["C", "W"])), dst=0)

    def received(self, rank: int) -> tuple[Any, list[NDArray[Any]]]:
        """Returns what another rank sends; only for the first."""
        said: list[Any] = [None]
        with _talking():
            dist.recv_object_list(said, src=rank, device=torch.device(CPU))
            value, kinds = said[0]
            arrays = [np.empty(shape, np.dtype(name)) for name, shape in kinds]
            for array in arrays:
                if array.size:
                    dist.recv(_bytes_of(array), src=rank)
        return value, arrays

    def told(self, value: _Told) -> _Told:
        """Sends a value from the first rank to all."""
        if self.count == 1:
            return value
        said = [value]
        with _talking():
            dist.broadcast_object_list(said, src=0, device=torch.device(CPU))
        return said[0]

    def require_same(self, facts: Mapping[str, object]) -> None:
        """Refuses ranks that were given different inputs.

        Args:
            facts: What must be the same on all ranks, by name, e.g. {"model": hash}.

        Raises:
            UsageError: It is not the same.
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
        """Ends the common work, on every rank; whatever remains is done by the first rank alone."""
        if dist.is_initialized():
            with _talking():
                self.total(0.0)
                dist.destroy_process_group()

    def claim_message(self) -> bool:
        """Whether this rank was the first to fail, so that its message is shown; True if that cannot be found out."""
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


def _bytes_of(value: NDArray[Any]) -> Tensor:
    """An array's bytes, which PyTorch can send whatever their type: some are unknown to it."""
    return torch.from_numpy(value.reshape(-1).view(np.uint8))


ALONE: Final = Ranks()


@contextmanager
def joined_ranks(*, cuda: bool) -> Iterator[Ranks]:
    """Yields the ranks that this process belongs to; `ALONE` if the environment names no others.

    If several fail, the first one reports why; the errors of the others become `PeerFailedError`, which is not printed.

    Args:
        cuda: Whether they compute on GPUs.

    Raises:
        UsageError: The environment contradicts itself.
        RankLostError: The others do not start, or one of them is gone.
        PeerFailedError: Another rank failed and reports why.
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
        # The group is not destroyed, since that would wait for a rank that hangs. The process ends anyway.
        if ranks.claim_message():
            raise
        raise PeerFailedError(str(error)) from error
    ranks.leave()


@contextmanager
def _talking() -> Iterator[None]:
    """Explains the errors that PyTorch raises when another rank is gone or silent."""
    try:
        yield
    except RuntimeError as error:  # DistError and its subclasses are RuntimeErrors, and gloo raises plain RuntimeErrors
        raise RankLostError(
            f"another rank has ended or does not answer. {str(error).splitlines()[0][:200]}",
            where=f"rank {os.environ.get('RANK', '0')}",
            fix="see what that rank printed last; then start all ranks again with --resume, which continues after the "
            f"last finished block. {TIMEOUT_VARIABLE} sets how many seconds they wait for each other.",
        ) from error
