"""Calibration on pictures without captions: the model describes them and crops of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from noted_progress import NotedProgress
from pictures import picture
from PIL import Image
from tiny_flamingo import save_flamingo
from tiny_gemma3 import save_gemma3
from tiny_llava import save_llava
from tiny_qwen_vl import save_qwen3_vl, save_qwen_vl
from tiny_smolvlm import save_smolvlm

from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.errors import UsageError
from awq2trt.images.pairs import read_pairs
from awq2trt.images.processor import read_processor
from awq2trt.models.sources.opening import open_source
from awq2trt.progress import SilentProgress
from awq2trt.quantization import image_texts
from awq2trt.quantization.described import Describer
from awq2trt.quantization.image_texts import ImagePrompts, likeliest
from awq2trt.quantization.image_windows import Sight, WindowSizes, conversation_tokens, image_windows, written
from awq2trt.recipe import QuantizeOptions
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage
from awq2trt.text.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(3):
        Image.fromarray(np.roll(picture(48, 60), 9 * index, axis=1)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("models") / "tiny-llava")


def _describer(model: Path, sizes: WindowSizes, seed: int = 0) -> Describer:
    source = open_source(str(model))
    assert source.vision is not None
    return Describer(load_tokenizer(model), Sight(source, source.vision, read_processor(model)), sizes, seed)


MODELS: dict[str, Callable[[Path], Path]] = {
    "llava": save_llava,
    "qwen2.5-vl": save_qwen_vl,
    "qwen3-vl": save_qwen3_vl,
    "smolvlm": save_smolvlm,
    "gemma3": save_gemma3,
    "openflamingo": save_flamingo,
}


@pytest.mark.parametrize("name", MODELS)
def test_what_models_say_fills_the_windows(name: str, pictures: Path, tmp_path: Path) -> None:
    describer = _describer(MODELS[name](tmp_path / "model"), WindowSizes(3, 120))
    files = sorted(pictures.iterdir())
    with torch.no_grad():
        pairs = describer.describe(files, tmp_path / "said", SilentProgress())
        windows = image_windows(describer.tokenizer, describer.sight, pairs, describer.sizes, where="pictures")
    assert windows.tokens.shape == (3, 120)
    for pair, file in zip(pairs, files, strict=False):  # first, each as it is
        assert np.array_equal(np.asarray(Image.open(pair.images[0])), np.asarray(Image.open(file)))
    assert len({pair.captions for pair in pairs}) > 1


def test_the_likeliest_continuation_of_a_prompt_is_what_the_model_scores_highest(
    llava: Path, pictures: Path, tmp_path: Path
) -> None:
    """One token at a time with a cache, and all anew for each token."""
    describer = _describer(llava, WindowSizes(1, 30))
    sight, (first, *_) = describer.sight, read_pairs(pictures)
    tokens = [
        *conversation_tokens(describer.tokenizer, sight, written(sight.vision, first.described("")), first.images)
    ]
    with torch.no_grad():
        (said,) = ImagePrompts(sight, [tokens], [first.images]).continued(6, set(), lambda _: None)
        anew: list[int] = []
        for _ in range(6):
            prompts = ImagePrompts(sight, [[*tokens, *anew]], [first.images])
            anew += prompts.continued(1, set(), lambda _: None, likeliest)[0]
    assert said == anew
    assert len(set(said)) > 1


def test_an_interrupted_run_keeps_what_was_said(llava: Path, pictures: Path, tmp_path: Path) -> None:
    files, said = sorted(pictures.iterdir()), tmp_path / "said"
    (tmp_path / "said.partial").mkdir()
    (tmp_path / "said.partial" / "00099.png").write_text("left by a run that was killed")
    with torch.no_grad():
        pairs = _describer(llava, WindowSizes(2, 60)).describe(files, said, SilentProgress())
        again = _describer(llava, WindowSizes(2, 60), seed=5).describe(files, said, SilentProgress())
        other = _describer(llava, WindowSizes(2, 60), seed=5).describe(files, tmp_path / "other", SilentProgress())
    assert [pair.images[0].name for pair in pairs] == [f"{index:05}.png" for index in range(len(pairs))]
    assert [pair.text for pair in pairs] == [pair.text for pair in again]
    assert [pair.text for pair in pairs] != [pair.text for pair in other]


def _codes(model: Path, output: Path, calib: Path, **options: Any) -> tuple[dict[str, np.ndarray], NotedProgress]:
    told = NotedProgress()
    given = QuantizeOptions.model_validate(
        {"calib": str(calib), "group_size": 32, "samples": 4, "seqlen": 80, **options}
    )
    quantize_stage(QuantizeRequest(str(model), output, given, max_memory="8G"), told)
    checkpoint = QuantizedCheckpoint.open(output)
    return {name: checkpoint.linear(name).codes for name in checkpoint.stored_names}, told


def test_pictures_alone_calibrate_a_model(llava: Path, pictures: Path, tmp_path: Path) -> None:
    one, told = _codes(llava, tmp_path / "one", pictures)
    same, _ = _codes(llava, tmp_path / "same", pictures)
    other, _ = _codes(llava, tmp_path / "other", pictures, seed=7)
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert any(not np.array_equal(one[name], other[name]) for name in one)
    assert any("the pictures have no captions; of the first, the model says: " in note for note in told.notes)
    assert any("planned memory" in note and "text " in note for note in told.notes)


def test_a_model_too_large_to_describe_pictures_is_refused(
    llava: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_texts, "available_bytes", lambda: 1000)
    with pytest.raises(UsageError, match="the whole model must be in memory in fp32"):
        _codes(llava, tmp_path / "out", pictures)
