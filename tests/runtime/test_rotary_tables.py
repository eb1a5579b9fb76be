"""Rotary tables of conversations: those of a text until there is an image, and again in the next conversation."""

from __future__ import annotations

import numpy as np

from awq2trt.io_contract import ROTARY_TABLES
from awq2trt.models.families.rotary import RopeSpec
from awq2trt.models.vision.prepared import Grid
from awq2trt.runtime.rotary_tables import RotaryTables

IMAGE, CAPACITY = 7, 20
ROPE = RopeSpec((1.0, 0.1, 0.01), magnitude=1.5, sections=(1, 1, 1))


def _expected(positions: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray]:
    angles = np.asarray(positions) * np.asarray([1.0, 0.1, 0.01])
    return 1.5 * np.cos(angles), 1.5 * np.sin(angles)


def _has(tables: RotaryTables, positions: list[tuple[int, int, int]]) -> None:
    for name, expected in zip(ROTARY_TABLES, _expected(positions), strict=True):
        np.testing.assert_allclose(tables.arrays[name], expected, atol=1e-6)


def test_an_image_is_a_grid_and_the_text_goes_on_behind_its_longer_side() -> None:
    tables = RotaryTables(ROPE, IMAGE, CAPACITY)
    text = [(slot, slot, slot) for slot in range(CAPACITY)]
    _has(tables, text)
    before = dict(tables.arrays)
    tables.append([1, 2])
    assert tables.version == 0, "a text changes nothing"
    tables.show([Grid(1, 2, 3)])
    tables.append([3, IMAGE, IMAGE])  # a call that ends within the image
    tables.append([IMAGE] * 4)
    tables.append([4])
    image = [(3, 3 + row, 3 + column) for row in range(2) for column in range(3)]
    _has(tables, text[:3] + image + text[6 : 6 + CAPACITY - 9])
    assert tables.version == 2
    assert all(tables.arrays[name] is array for name, array in before.items()), "what is bound stays bound"
    tables.restart()
    _has(tables, text)
    assert tables.version == 3
    tables.restart()
    assert tables.version == 3


def test_an_image_that_was_not_read_is_forgotten() -> None:
    tables = RotaryTables(ROPE, IMAGE, CAPACITY)
    tables.show([Grid(1, 2, 2)])
    tables.restart()
    tables.append([IMAGE, 1])
    _has(tables, [(slot, slot, slot) for slot in range(CAPACITY)])
