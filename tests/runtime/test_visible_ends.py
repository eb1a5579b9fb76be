"""What tokens of an image see, call by call."""

from __future__ import annotations

import numpy as np
import pytest

from awq2trt.errors import UsageError
from awq2trt.io_contract import VISIBLE_END
from awq2trt.models.vision.block_ends import block_ends
from awq2trt.runtime.visible_ends import VisibleEnds

IMAGE = 7


def _ends(table: VisibleEnds) -> list[int]:
    return [int(end) for end in table.arrays[VISIBLE_END]]


@pytest.mark.parametrize(
    ("marks", "ends"),
    [("", []), ("t", [0]), ("i", [0]), ("tiit", [0, 2, 2, 3]), ("iitiii", [1, 1, 2, 5, 5, 5])],
)
def test_each_image_is_seen_to_its_end(marks: str, ends: list[int]) -> None:
    assert block_ends(np.array([mark == "i" for mark in marks], np.bool_)).tolist() == ends


def test_calls_go_on_where_the_last_one_ended() -> None:
    table = VisibleEnds(IMAGE, 8)
    table.append([1, IMAGE, IMAGE])
    version = table.version
    table.append([2])
    assert table.version == version, "text changes nothing"
    table.append([IMAGE, IMAGE])
    assert table.version != version
    assert _ends(table) == [0, 2, 2, 3, 5, 5, 6, 7]


def test_a_new_conversation_forgets_images() -> None:
    table = VisibleEnds(IMAGE, 4)
    table.append([IMAGE, IMAGE])
    version = table.version
    table.restart()
    assert (_ends(table), table.version != version) == ([0, 1, 2, 3], True)
    version = table.version
    table.restart()
    assert table.version == version


@pytest.mark.parametrize(
    ("tokens", "parts"),
    [
        ([1, 2, 3, 4, 5], [[1, 2, 3, 4], [5]]),
        ([1, 2, IMAGE, IMAGE, 3], [[1, 2, IMAGE, IMAGE], [3]]),
        ([1, 2, 3, IMAGE, IMAGE, 4], [[1, 2, 3], [IMAGE, IMAGE, 4]]),
        ([*[IMAGE] * 4, 1, *[IMAGE] * 4], [[IMAGE] * 4, [1], [IMAGE] * 4]),
    ],
)
def test_no_call_cuts_an_image(tokens: list[int], parts: list[list[int]]) -> None:
    assert [*VisibleEnds(IMAGE, 16).calls(tokens, 4)] == parts


def test_an_image_that_no_call_can_hold_is_refused() -> None:
    with pytest.raises(UsageError, match="more than 4 image tokens stand side by side"):
        [*VisibleEnds(IMAGE, 16).calls([1, *[IMAGE] * 5], 4)]
