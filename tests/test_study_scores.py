"""The loss on attention scores: rows of a head make up for one another where that moves scores less."""

from __future__ import annotations

import pytest
import torch
from study_scores import rotations, round_again
from torch import Tensor

from awq2trt.decoder import Rotary
from awq2trt.families import RopeSpec
from awq2trt.quantize.rounding import quantize
from awq2trt.scheme import QuantScheme

HEADS, ROWS, COLUMNS = 3, 8, 64
SCHEME = QuantScheme(bits=3, group_size=32)


def _correlated(*shape: int) -> Tensor:
    """E[v v^T] of vectors that a few directions make up for the most part."""
    mixed = torch.randn(*shape, shape[-1]) * torch.logspace(0, -2, shape[-1])
    return mixed @ mixed.mT


@pytest.fixture
def weight() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(HEADS * ROWS, COLUMNS)


@pytest.mark.parametrize("descent", [False, True])
def test_rows_in_turn_move_scores_less(descent: bool, weight: Tensor) -> None:
    gram, moments, linear = _correlated(COLUMNS), _correlated(HEADS, ROWS), quantize(weight, SCHEME)

    def moved(among: Tensor | None) -> float:
        rounded = round_again(weight, linear, gram, among, descent=descent).dequantize(SCHEME)
        error = (rounded - weight).view(HEADS, ROWS, COLUMNS)
        return float(torch.einsum("hab,hak,kl,hbl->", moments, error, gram, error))

    assert moved(moments) < 0.8 * moved(None)


def test_rows_that_scores_do_not_tie_are_rounded_by_themselves(weight: Tensor) -> None:
    gram, linear = _correlated(COLUMNS), quantize(weight, SCHEME)
    apart = torch.eye(ROWS).expand(HEADS, ROWS, ROWS)
    alone, in_turn = (round_again(weight, linear, gram, among, descent=True) for among in (None, apart))
    assert torch.equal(alone.codes, in_turn.codes)


def test_rotations_average_over_all_pairs_of_positions() -> None:
    positions, head_dim = 12, 8
    rotary = Rotary(RopeSpec((1.0, 0.5, 0.25, 0.1)), positions)
    vector = torch.randn(head_dim)
    by_hand = torch.zeros(head_dim, head_dim)
    for distance in (0, 4, 8):
        turned = rotary.rotate(vector.view(1, 1, 1, head_dim), distance).flatten()
        by_hand += (positions - distance) * torch.outer(turned, turned) / (12 + 8 + 4)
    turns = rotations(rotary, head_dim, positions)
    averaged = torch.einsum("dab,b,c,dec->ae", turns, vector, vector, turns)
    torch.testing.assert_close(averaged, by_hand)
