"""Reads from the environment, as torchrun sets it, which rank this process is and how many there are.

In: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT (torch.distributed's names). Out: `RankName`. It needs no
PyTorch, so that a mistake is reported at once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from awq2trt.errors import UsageError

TIMEOUT_VARIABLE: Final = "AWQ2TRT_RANK_TIMEOUT_S"
"""How many seconds a rank waits for the others at one point."""

TIMEOUT_S: Final = 7200
"""The default: longer than a CPU takes for a block of a large model, or a model for its calibration text."""

_WHERE: Final = "environment"


@dataclass(frozen=True)
class RankName:
    """One process of several.

    Attributes:
        rank: Its number, from 0.
        count: Number of all ranks.
        local: Its number on its host, which is the number of its GPU.
    """

    rank: int
    count: int
    local: int


def rank_of_environment() -> RankName | None:
    """Returns the rank that the environment gives this process; None if it gives none.

    Raises:
        UsageError: The environment is incomplete or makes no sense.
    """
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    given = [name for name in names if name in os.environ]
    if "RANK" not in given and "WORLD_SIZE" not in given:
        return None
    missing = [name for name in names if name not in given]
    if missing:
        raise UsageError(
            f"expected {', '.join(names)}, which several ranks need together; got no {' and no '.join(missing)}.",
            where=_WHERE,
            fix=f"unset {' and '.join(given)}; or start the ranks with torchrun, --gpus N or --ranks N, which set all.",
        )
    rank, count = _number("RANK", ""), _number("WORLD_SIZE", "")
    if rank >= count:
        raise UsageError(
            f"expected a RANK below WORLD_SIZE, got {rank} and {count}.", where=_WHERE, fix="count ranks from 0."
        )
    return RankName(rank, count, _number("LOCAL_RANK", str(rank)))


def rank_timeout_s() -> int:
    """How long ranks wait for each other, in seconds.

    Raises:
        UsageError: The environment gives something other than a positive number.
    """
    seconds = _number(TIMEOUT_VARIABLE, str(TIMEOUT_S))
    if seconds == 0:
        raise UsageError(
            "expected at least 1 second, got 0.", where=TIMEOUT_VARIABLE, fix=f"unset it to wait {TIMEOUT_S} seconds."
        )
    return seconds


def _number(name: str, default: str) -> int:
    text = os.environ.get(name, default)
    if not (text.isascii() and text.isdecimal()):
        raise UsageError(f"expected a whole number, got {text!r}.", where=f"{_WHERE}: {name}", fix="correct it.")
    return int(text)
