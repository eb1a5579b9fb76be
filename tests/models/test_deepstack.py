"""Deepstack: what blocks add in the places of image tokens, however a text comes in parts."""

from __future__ import annotations

import torch

from awq2trt.models.deepstack import Deepstack

IMAGE_TOKEN = 9
HIDDEN = 2


def _features(pieces: int, blocks: int) -> torch.Tensor:
    return torch.arange(1, 1 + pieces * blocks * HIDDEN).float().reshape(pieces, blocks * HIDDEN)


def test_features_are_added_where_image_tokens_are_and_only_behind_the_first_blocks() -> None:
    tokens = torch.tensor([[1, 9, 9, 2], [9, 3, 4, 5]])
    stack = Deepstack.of_texts(tokens, IMAGE_TOKEN, [_features(2, 2), 100 * _features(1, 2)])
    hidden = torch.zeros(2, 4, HIDDEN)
    first, second, third = (stack.added(hidden, layer, 0, slice(None)) for layer in range(3))
    assert first.tolist() == [[[0, 0], [1, 2], [5, 6], [0, 0]], [[100, 200], [0, 0], [0, 0], [0, 0]]]
    assert second.tolist() == [[[0, 0], [3, 4], [7, 8], [0, 0]], [[300, 400], [0, 0], [0, 0], [0, 0]]]
    assert third is hidden
    assert not hidden.any(), "the stream behind the block itself is not changed"


def test_parts_of_texts_get_their_own() -> None:
    stack = Deepstack.of_texts(torch.tensor([[1, 9], [9, 2]]), IMAGE_TOKEN, [_features(1, 1), _features(1, 1)], more=2)
    one = torch.zeros(1, 1, HIDDEN)
    assert stack.added(one, 0, 1, slice(0, 1)).tolist() == [[[1, 2]]]
    assert stack.added(one, 0, 1, torch.tensor([1])).tolist() == [[[0, 0]]]
    assert stack.added(torch.zeros(2, 2, HIDDEN), 0, 2, slice(None)).tolist() == [[[0, 0]] * 2] * 2  # tokens to come


def test_an_image_may_be_cut() -> None:
    stack = Deepstack.of_texts(torch.tensor([[9, 9]]), IMAGE_TOKEN, [_features(3, 1)])
    assert stack.features.tolist() == [[[1, 2], [3, 4]]]
