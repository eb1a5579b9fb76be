"""OpenFlamingo against what the package's own classes compute (`tools/make_openflamingo_golden.py`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_flamingo import IMAGE_TOKEN, TEXT_CONFIGS, TOWER_CONFIG, logits_of_texts, save_flamingo
from tiny_models import tokens

from awq2trt.errors import UsageError
from awq2trt.models.block_weights import load_blocks
from awq2trt.models.cross_attention import Media
from awq2trt.models.decoder import BlockRunner, Ends, KeyValueCache, run_model
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.models.vision.description import AttendedSpec
from awq2trt.models.vision.prepared import Pixels
from awq2trt.models.vision.seeing import logits_of_text_and_images
from awq2trt.models.vision.tower import image_features, load_vision

GOLDEN = Path(__file__).parent.parent / "data" / "openflamingo.safetensors"


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN)


@pytest.fixture(scope="module", params=list(TEXT_CONFIGS))
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SafetensorsSource:
    return SafetensorsSource.open(save_flamingo(tmp_path_factory.mktemp("flamingo"), request.param))


def _shown(golden: dict[str, torch.Tensor]) -> torch.Tensor:
    """The images that the texts mark: two in the first, one in the second."""
    return golden["pixels"][:3]


def test_logits_are_those_of_the_package(source: SafetensorsSource, golden: dict[str, torch.Tensor]) -> None:
    expected = golden[f"{source.spec.family}.logits"]
    with torch.inference_mode():
        got = logits_of_texts(source, golden["tokens"], _shown(golden))
        blind = logits_of_texts(source, golden["tokens"], _shown(golden).flip(0))
    torch.testing.assert_close(got, expected, rtol=2e-4, atol=2e-4)
    assert (blind[0] - expected[0]).abs().max() > 0.05  # other images make a difference
    torch.testing.assert_close(blind[2], expected[2], rtol=2e-4, atol=2e-4)


def test_text_alone_passes_through_the_gated_mlp(source: SafetensorsSource, golden: dict[str, torch.Tensor]) -> None:
    with torch.inference_mode():
        got = Ends(source).logits(run_model(source, golden["tokens"][2:]))
    torch.testing.assert_close(got, golden[f"{source.spec.family}.logits"][2:], rtol=2e-4, atol=2e-4)


def test_what_follows_attends_to_the_last_image(source: SafetensorsSource, golden: dict[str, torch.Tensor]) -> None:
    vision, ids = source.vision, golden["tokens"][:1]
    assert isinstance(vision, AttendedSpec)
    runner, ends = BlockRunner.for_positions(source.spec, 64), Ends(source)
    blocks = list(load_blocks(source))
    caches = [KeyValueCache.empty(source.spec, 1, 64) for _ in blocks]
    with torch.inference_mode():
        seen = image_features(vision, load_vision(source), golden["pixels"][:2])
        runner = runner.placed(None, Media.of_texts(ids, IMAGE_TOKEN, [seen], len(golden["continuation"])))
        got = []
        for step in (ids, *golden["continuation"].view(-1, 1, 1)):
            hidden = ends.embed(step)
            for layer, (weights, cache) in enumerate(zip(blocks, caches, strict=True)):
                hidden = runner.run(weights, hidden, layer=layer, cache=cache)
            got.append(ends.logits(hidden[:, -1])[0])
    torch.testing.assert_close(torch.stack(got[1:]), golden[f"{source.spec.family}.continued"], rtol=2e-4, atol=2e-4)


def test_texts_have_as_many_markers_as_there_are_images(source: SafetensorsSource) -> None:
    side = TOWER_CONFIG["image_size"]
    ids = tokens(1, 9)
    ids[0, 4] = IMAGE_TOKEN
    with pytest.raises(UsageError, match="expected 2 image tokens, as 2 images need, got 1"):
        logits_of_text_and_images(source, ids[0].tolist(), [Pixels(np.zeros((3, side, side), np.float32))] * 2)


def test_media_are_filled_up_and_counted() -> None:
    ids = torch.tensor([[9, 5, 1, 9, 2], [3, 4, 9, 0, 1]])
    media = Media.of_texts(ids, 9, [torch.ones(2, 3, 4), torch.full((1, 3, 4), 2.0)], more=2)
    assert media.pieces.shape == (2, 2, 3, 4)
    assert media.pieces[1, 1].abs().max() == 0
    assert media.image_of.tolist() == [[1, 1, 1, 2, 2, 2, 2], [0, 0, 1, 1, 1, 1, 1]]
    part = media.part(torch.tensor([1]), slice(1, 3))
    assert part.image_of.tolist() == [[0, 1]]
    assert part.pieces.tolist() == media.pieces[1:].tolist()
