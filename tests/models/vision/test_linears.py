"""Linears of towers: which there are, what they read, and that whoever watches changes nothing."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from pictures import save_pictures
from seen_by_transformers import SEEING, Seen, seen_by_transformers

from awq2trt.images.processor import read_processor
from awq2trt.images.read import read_image
from awq2trt.models.sources.base import ModelSource
from awq2trt.models.sources.opening import open_source
from awq2trt.models.vision.description import SeeingSpec
from awq2trt.models.vision.linears import VisionWeights, WatchedWeights, linear, with_tensor
from awq2trt.models.vision.prepared import Pixels
from awq2trt.models.vision.seeing import linears_by_input, pieces_seen
from awq2trt.models.vision.tower import load_vision


@dataclass(frozen=True)
class Tiny:
    """A model, how it sees, a picture, and what transformers' class does with it."""

    source: ModelSource
    vision: SeeingSpec
    pixels: Pixels
    theirs: Seen

    @property
    def weights(self) -> VisionWeights:
        return load_vision(self.source)


@pytest.fixture(scope="module", params=SEEING)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder: Path = tmp_path_factory.mktemp("seeing")
    model = SEEING[request.param](folder / "model")
    source, (shown, *_) = open_source(str(model)), save_pictures(folder, 1)
    assert source.vision is not None
    pixels = read_processor(model).pixels(read_image(shown))
    return Tiny(source, source.vision, pixels, seen_by_transformers(model, [shown]))


def test_all_linears_that_matter_are_found(tiny: Tiny) -> None:
    found = [name for names in linears_by_input(tiny.vision) for name in names]
    assert len(set(found)) == len(found)
    assert set(found) == tiny.theirs.used


def test_what_is_not_found_is_no_linear_that_an_image_goes_through(tiny: Tiny) -> None:
    """Tables, what is stored transposed, resamplers, and layers behind the one that is read."""
    found = {name for names in linears_by_input(tiny.vision) for name in names}
    matrices = {name.removesuffix(".weight") for name, shape in tiny.vision.shapes().items() if len(shape) == 2}
    others = ("position_embedding", "pos_embed", "mm_input_projection_weight", "perceiver.", f".{tiny.vision.depth}.")
    assert not {name for name in matrices - found if not any(other in name for other in others)}


def test_linears_that_share_an_input_are_together(tiny: Tiny) -> None:
    inputs = [tiny.theirs.inputs[names[0]] for names in linears_by_input(tiny.vision)]
    for names, x in zip(linears_by_input(tiny.vision), inputs, strict=True):
        assert all(torch.equal(tiny.theirs.inputs[name], x) for name in names)
    for before, after in itertools.pairwise(inputs):
        assert before.shape != after.shape or not torch.equal(before, after)


def test_watchers_see_what_transformers_linears_read_and_change_nothing(tiny: Tiny) -> None:
    read: dict[str, list[torch.Tensor]] = {}
    watched = WatchedWeights(tiny.weights, lambda name, x: read.setdefault(name, []).append(x.flatten(0, -2)))
    with torch.inference_mode():
        seen = pieces_seen(tiny.vision, watched, tiny.pixels)
        torch.testing.assert_close(seen, pieces_seen(tiny.vision, tiny.weights, tiny.pixels), rtol=0, atol=0)
    assert set(read) == tiny.theirs.used
    for name, parts in read.items():
        ours, theirs = torch.cat(parts), tiny.theirs.inputs[name]
        assert ours.shape == theirs.shape, name
        # Windows of patches, and the order of tiles, are ours: rows are compared by what statistics keep of them.
        torch.testing.assert_close(ours.abs().mean(dim=0), theirs.abs().mean(dim=0), atol=2e-4, rtol=0, msg=name)
        torch.testing.assert_close(ours.T @ ours / len(ours), theirs.T @ theirs / len(ours), atol=2e-3, rtol=1e-4)


def test_an_exchanged_tensor_is_watched_still() -> None:
    told: list[str] = []
    weights = {"a.weight": torch.eye(2), "b": torch.zeros(1)}
    watched = with_tensor(WatchedWeights(weights, lambda name, _: told.append(name)), "b", torch.ones(1))
    assert watched["b"] == 1
    torch.testing.assert_close(linear(watched, "a", torch.tensor([[1.0, 2.0]])), torch.tensor([[1.0, 2.0]]))
    assert told == ["a"]
    unwatched = with_tensor(weights, "b", torch.ones(1))
    assert unwatched["b"] == 1
    assert weights["b"] == 0
    linear(unwatched, "a", torch.zeros(1, 2))
    assert told == ["a"]
