"""SmolVLM and Idefics3 in PyTorch against transformers' own classes, tiny and at two blocks of real widths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import picture
from PIL import Image
from tiny_smolvlm import IMAGE_TOKEN, KINDS, SIDE, save_smolvlm
from transformers import AutoTokenizer, Idefics3Processor

from awq2trt.errors import UsageError
from awq2trt.images.processor import read_processor
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.models.vision.prepared import Grid, Pixels
from awq2trt.models.vision.seeing import logits_of_text_and_images, pieces_seen
from awq2trt.models.vision.tiled import TiledVisionSpec, bucketed
from awq2trt.models.vision.tiled_tower import tiled_features
from awq2trt.models.vision.tower import load_vision

VARIANTS: dict[str, dict[str, Any]] = {
    "smolvlm": {},
    "idefics3": {"kind": "idefics3"},
    "tied": {"tie_word_embeddings": True, "text": {"tie_word_embeddings": True}},
    "larger squares": {"scale_factor": 3},
    "no squares": {"scale_factor": 1},
    "odd pixels": {"tower": {"image_size": 27}},  # three rows and columns of pixels are ignored
    "shared positions": {"tower": {"image_size": 50, "patch_size": 2}, "scale_factor": 5, "longest": 50},
    "gelu tower": {"tower": {"hidden_act": "gelu", "layer_norm_eps": 1e-3}},
    "quick tower": {"tower": {"hidden_act": "quick_gelu"}},
}


def _inputs(directory: Path, size: tuple[int, int], longest: int, side: int, pieces: int) -> Any:
    """What transformers' own processor makes of a question about an image."""
    images: Any = KINDS["idefics3"][2](size={"longest_edge": longest}, max_image_size={"longest_edge": side})
    processor: Any = Idefics3Processor(images, AutoTokenizer.from_pretrained(directory), image_seq_len=pieces)
    image = Image.fromarray(picture(*size))
    return processor(text="User: <image>What is it?", images=[[image]], return_tensors="pt")


def _compare(directory: Path, inputs: Any, kind: str) -> None:
    source = SafetensorsSource.open(directory)
    tiles = inputs["pixel_values"][0]
    count = len(tiles)
    grid = Grid(1, 1, 1) if count == 1 else Grid(1, 1, count - 1)
    tokens = inputs["input_ids"][0].tolist()
    model = KINDS[kind][1].from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        expected = model(**inputs).logits[0]
        got = logits_of_text_and_images(source, tokens, [Pixels(tiles.numpy(), grid)])
        other = logits_of_text_and_images(source, tokens, [Pixels(tiles.flip(-1).numpy(), grid)])
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-4)
    assert (other - expected).abs().max() > 0.05  # the turned image makes a difference


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(variant: str, tmp_path: Path) -> None:
    options = VARIANTS[variant]
    save_smolvlm(tmp_path, **options)
    side = options.get("tower", {}).get("image_size", SIDE)
    vision = SafetensorsSource.open(tmp_path).vision
    assert isinstance(vision, TiledVisionSpec)
    longest = options.get("longest", 2 * side)
    inputs = _inputs(tmp_path, (30, 40), longest, side, vision.layout.pieces)
    assert len(inputs["pixel_values"][0]) == (1 if longest == side else 5)
    _compare(tmp_path, inputs, options.get("kind", "smolvlm"))


def test_two_blocks_of_real_widths_are_those_of_transformers(tmp_path: Path) -> None:
    """SmolVLM-256M: SigLIP-B/16 at 512 pixels, and SmolLM2-135M."""
    tower = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    text = {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "rope_theta": 1e5,
        "max_position_embeddings": 8192,
    }
    save_smolvlm(tmp_path, tower={**tower, "image_size": 512, "patch_size": 16}, text=text, scale_factor=4)
    model = KINDS["smolvlm"][1].from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:  # as large as trained weights; those of tiny models are larger
                value.mul_(0.1)
    model.save_pretrained(tmp_path)
    inputs = _inputs(tmp_path, (300, 400), 512, 512, 64)
    source = SafetensorsSource.open(tmp_path)
    tiles = inputs["pixel_values"][0]
    with torch.inference_mode():
        expected = model(**inputs).logits[0]
        got = logits_of_text_and_images(source, inputs["input_ids"][0].tolist(), [Pixels(tiles.numpy(), Grid(1, 1, 1))])
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-4)
    assert expected.std() > 0.01


def test_what_is_seen_of_prepared_pictures_is_what_transformers_sees(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_smolvlm(tmp_path))
    assert source.vision is not None
    pixels = read_processor(tmp_path).pixels(picture(50, 33))
    model = KINDS["smolvlm"][1].from_pretrained(tmp_path, dtype=torch.float32)
    with torch.inference_mode():
        features = model.model.get_image_features(torch.from_numpy(pixels.values)[None], return_dict=True)
        seen = pieces_seen(source.vision, load_vision(source), pixels)
    torch.testing.assert_close(seen, features.pooler_output[0], rtol=0, atol=2e-4)


def _theirs(side: int) -> np.ndarray:
    """`Idefics3VisionEmbeddings`, for an image without margins."""
    boundaries = torch.arange(1 / side, 1.0, 1 / side)
    fractions = torch.arange(side, dtype=torch.float32) * (1.0 / torch.tensor(side))
    return torch.bucketize(fractions.clamp(max=1.0 - 1e-6), boundaries, right=True).numpy()


def test_positions_are_rounded_as_transformers_rounds_them() -> None:
    shared = []
    for side in range(1, 200):
        rows = bucketed(side)
        np.testing.assert_array_equal(rows, _theirs(side), err_msg=str(side))
        if not np.array_equal(rows, np.arange(side)):
            shared.append(side)
    assert shared[:4] == [19, 25, 29, 31]
    assert not {26, 27, 32} & {*shared}, "published towers have a row for every patch"


def test_tiles_of_another_size_are_refused(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_smolvlm(tmp_path))
    assert isinstance(source.vision, TiledVisionSpec)
    with pytest.raises(UsageError, match=r"expected images of \[3, 24, 24\], got \[3, 24, 25\]"):
        tiled_features(source.vision, load_vision(source), torch.zeros(1, 3, 24, 25))


def test_a_picture_that_was_not_cut_is_refused(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_smolvlm(tmp_path))
    assert source.vision is not None
    with pytest.raises(UsageError, match=r"expected images of \[3, 24, 24\], got \[24, 24\]"):
        pieces_seen(source.vision, load_vision(source), Pixels(np.zeros((3, SIDE, SIDE), np.float32)))


def test_image_tokens_and_tiles_must_fit(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_smolvlm(tmp_path))
    pixels = Pixels(np.zeros((1, 3, SIDE, SIDE), np.float32), Grid(1, 1, 1))
    with pytest.raises(UsageError, match="expected 9 image tokens, as 1 images need, got 1"):
        logits_of_text_and_images(source, [1, IMAGE_TOKEN, 2], [pixels])
