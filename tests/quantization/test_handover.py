"""Finished blocks on their way to the first rank: who waits for what."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from awq2trt.machine.ranks import Ranks
from awq2trt.quantization.block import QuantizedBlock
from awq2trt.quantization.handover import Found, Handover, Outcome
from awq2trt.quantization.store import StoredBlock


class Sending(Ranks):
    """A rank whose blocks go nowhere."""

    def send(self, said: object, arrays: Sequence[NDArray[Any]]) -> None:
        del said, arrays


def test_a_rank_does_not_wait_for_its_last_block_after_one_that_is_not_its_own() -> None:
    passed, packed_while_waiting = threading.Event(), list[bool]()

    def pack(layer: int, block: QuantizedBlock) -> StoredBlock:
        del layer, block
        packed_while_waiting.append(not passed.wait(60))
        return StoredBlock({}, {}, {})

    outcome = Outcome(pack, lambda layer, link: None)
    handover = Handover(Sending(rank=1, count=2), True, 0, 3, outcome, lambda steps: None)
    with handover.under_way() as finish:
        finish(1, Found(QuantizedBlock({}, {}, {}), 1.0), None)
        finish(2, None, None)
        passed.set()
    assert packed_while_waiting == [False]
