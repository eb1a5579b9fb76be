"""Prepared images against transformers' own processor, bit for bit, and descriptions that are not supported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import picture
from PIL import Image
from tiny_llava import save_llava
from transformers import CLIPImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from awq2trt.artifact.records import VisionRecord
from awq2trt.errors import Awq2trtError, CheckpointError, UnsupportedError
from awq2trt.images.processor import (
    ImageProcessor,
    describe_processor,
    limit_pieces_,
    processor_of,
    read_processor,
    require_fit,
)
from awq2trt.images.read import read_image
from awq2trt.models.families import describe_vision
from awq2trt.models.sources.opening import open_source

SIZES = [(336, 336), (480, 640), (641, 479), (37, 1000), (1000, 37), (1, 1), (2, 3), (50, 50), (225, 224), (199, 1)]

QWEN: dict[str, Any] = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 2,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}

SETTINGS: dict[str, dict[str, Any]] = {
    "LLaVA 1.5": {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}},
    "CLIP's defaults": {},
    "crop beyond the image": {"size": {"shortest_edge": 20}, "crop_size": {"height": 33, "width": 24}},
    "no resizing": {"do_resize": False, "crop_size": {"height": 51, "width": 40}},
    "both sides": {"size": {"height": 30, "width": 44}, "do_center_crop": False},
    "bilinear": {"resample": 2, "size": {"shortest_edge": 60}, "crop_size": {"height": 61, "width": 60}},
    "no normalising": {"do_normalize": False},
    "other colours": {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3], "rescale_factor": 1 / 127.5},
    "no scaling": {"do_rescale": False},
}


GEMMA3_SETTINGS: dict[str, dict[str, Any]] = {
    "as published": {"size": {"height": 896, "width": 896}, "do_pan_and_scan": None},
    "defaults": {},
    "another filter": {"resample": 3, "size": {"height": 30, "width": 44}},
    "no resizing": {"do_resize": False},
}

PROCESSORS: dict[str, tuple[Any, dict[str, Any]]] = {
    **{name: (CLIPImageProcessorPil, settings) for name, settings in SETTINGS.items()},
    **{f"Gemma 3, {name}": (Gemma3ImageProcessorPil, settings) for name, settings in GEMMA3_SETTINGS.items()},
}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_pixels_are_those_of_transformers(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    make_theirs, settings = PROCESSORS[name]
    theirs = make_theirs(**settings)
    theirs.save_pretrained(tmp_path)
    image = picture(*size)
    expected = theirs(Image.fromarray(image), return_tensors="np")["pixel_values"][0]
    got, grid = read_processor(tmp_path).pixels(image)[:2]
    assert grid is None
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, expected.astype(np.float32))


def test_pan_and_scan_is_refused(tmp_path: Path) -> None:
    Gemma3ImageProcessorPil(do_pan_and_scan=True).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match=r"do_pan_and_scan: expected false, .*, got True"):
        read_processor(tmp_path)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P"])
def test_files_are_prepared_as_transformers_does(mode: str, tmp_path: Path) -> None:
    theirs = CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    theirs.save_pretrained(tmp_path)
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    Image.fromarray(picture(70, 93)).convert(mode).save(path)
    expected = theirs(Image.open(path), return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(read_processor(tmp_path).pixels(read_image(path)).values, expected)


def test_a_processor_saved_with_its_tokenizer_is_the_same(tmp_path: Path) -> None:
    settings = CLIPImageProcessor(size={"shortest_edge": 48}).to_dict()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings, "image_token": "<image>"}))
    found = read_processor(tmp_path)
    assert isinstance(found, ImageProcessor)
    assert (found.shortest_edge, found.crop) == (48, (224, 224))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"image_processor_type": "SiglipImageProcessor"}, "image_processor_type: expected CLIPImageProcessor"),
    "padding": ({"do_pad": True}, "do_pad: expected false, got True"),
    "flag": ({"do_resize": "yes"}, "do_resize: expected true or false, got 'yes'"),
    "size": ({"size": {"longest_edge": 3}}, r"size: expected height and width from 1 to 8192"),
    "no size": ({"size": 0}, r"size: expected a side from 1 to 8192, got 0"),
    "crop": ({"crop_size": {"height": -1, "width": 3}}, r"crop_size: expected height and width from 1 to 8192"),
    "filter": ({"resample": 9}, r"resample: expected .* 0 to 5, got 9"),
    "mean": ({"image_mean": [0.5]}, r"image_mean: expected a number for each of red, green and blue"),
    "std": ({"image_std": [0.5, 0, 1]}, r"image_std: expected positive numbers"),
    "factor": ({"rescale_factor": None}, r"rescale_factor: expected a positive number, got None"),
}


@pytest.mark.parametrize("case", BAD)
def test_descriptions_that_cannot_be_followed_are_refused(case: str) -> None:
    change, message = BAD[case]
    with pytest.raises(UnsupportedError, match=message):
        describe_processor({"image_processor_type": "CLIPImageProcessor", **change}, where="preprocessor_config.json")


@pytest.mark.parametrize("text", [None, "{", "[]", "{}"])
def test_a_directory_without_a_processor_is_refused(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        read_processor(tmp_path)
    assert isinstance(caught.value, Awq2trtError)
    assert caught.value.fix


def test_what_the_user_calls_the_model_is_where_its_processor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="llava-of-mine: expected an image processor"):
        read_processor(tmp_path, name="llava-of-mine")
    (tmp_path / "preprocessor_config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"llava-of-mine: preprocessor_config\.json: .* nested too deeply"):
        read_processor(tmp_path, name="llava-of-mine")


def test_a_model_without_a_processor_is_named(tmp_path: Path) -> None:
    source = open_source(str(save_llava(tmp_path / "model")))
    (tmp_path / "model" / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match="expected an image processor") as raised:
        processor_of(source)
    assert raised.value.where == str(tmp_path / "model")


def test_a_processor_that_makes_no_squares_is_kept_as_it_is(tmp_path: Path) -> None:
    CLIPImageProcessorPil().save_pretrained(tmp_path)
    before = (tmp_path / "preprocessor_config.json").read_bytes()
    vision = VisionRecord(family="llava", image_token=1, tokens_per_image=16, settings={})
    assert limit_pieces_(tmp_path, vision, 3) is None
    assert (tmp_path / "preprocessor_config.json").read_bytes() == before


def test_a_processor_must_fit_the_tower(tmp_path: Path) -> None:
    seeing = describe_vision(QWEN)
    assert seeing is not None
    Qwen2VLImageProcessorPil(patch_size=14).save_pretrained(tmp_path / "its-own")
    require_fit(read_processor(tmp_path / "its-own"), seeing, where="m")
    Qwen2VLImageProcessorPil(patch_size=16).save_pretrained(tmp_path / "other")
    with pytest.raises(UnsupportedError, match="merge_size, 14, 2, 2, got 16, 2, 2"):
        require_fit(read_processor(tmp_path / "other"), seeing, where="m")
    CLIPImageProcessorPil().save_pretrained(tmp_path / "clip")
    with pytest.raises(UnsupportedError, match="14, 2, 2, got one of another kind"):
        require_fit(read_processor(tmp_path / "clip"), seeing, where="m")


def test_tiles_must_be_of_the_towers_size(tmp_path: Path) -> None:
    tower, text = {"image_size": 24, "patch_size": 4}, {"vocab_size": 128300}
    smolvlm = {"architectures": ["SmolVLMForConditionalGeneration"], "text_config": text, "vision_config": tower}
    seeing = describe_vision(smolvlm)
    assert seeing is not None
    for side, name in ((24, "its-own"), (28, "other")):
        SmolVLMImageProcessorPil(size={"longest_edge": 48}, max_image_size={"longest_edge": side}).save_pretrained(
            tmp_path / name
        )
    require_fit(read_processor(tmp_path / "its-own"), seeing, where="m")
    with pytest.raises(UnsupportedError, match="the tower's image_size as its max_image_size, 24, got 28"):
        require_fit(read_processor(tmp_path / "other"), seeing, where="m")
    CLIPImageProcessorPil().save_pretrained(tmp_path / "clip")
    with pytest.raises(UnsupportedError, match="24, got one of another kind"):
        require_fit(read_processor(tmp_path / "clip"), seeing, where="m")
