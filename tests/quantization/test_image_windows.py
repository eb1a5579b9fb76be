"""Calibration on pictures: what the decoder reads of them reaches the statistics, and the result opens again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import picture
from PIL import Image
from tiny_llava import IMAGE_TOKEN, save_llava
from tiny_models import save_llama
from transformers import AutoTokenizer, LlavaForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.errors import CalibrationError, UsageError
from awq2trt.images.pairs import read_pairs
from awq2trt.images.processor import read_processor
from awq2trt.images.read import read_image
from awq2trt.models.sources.opening import open_source
from awq2trt.models.vision.tower import logits_of_text_and_images
from awq2trt.progress import SilentProgress
from awq2trt.quantization.chain import Link
from awq2trt.quantization.image_windows import Sight, WindowSizes, image_windows
from awq2trt.quantization.job import QuantizeJob
from awq2trt.recipe import QuantizeOptions
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage

PIECES = 16


class _Told(SilentProgress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("models") / "tiny-llava")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(12):
        Image.fromarray(np.roll(picture(24, 30), 3 * index, axis=1)).save(folder / f"{index:02}.png")
        (folder / f"{index:02}.txt").write_text(f"Picture {index}.")
    return folder


def _quantize(model: Path, output: Path, *, resume: bool = False, **options: Any) -> _Told:
    told = _Told()
    given = QuantizeOptions.model_validate({"group_size": 32, "samples": 4, "seqlen": 80, "seed": 1, **options})
    quantize_stage(QuantizeRequest(str(model), output, given, resume=resume), told)
    return told


def _codes(directory: Path) -> dict[str, np.ndarray]:
    checkpoint = QuantizedCheckpoint.open(directory)
    return {name: checkpoint.linear(name).codes for name in checkpoint.stored_names}


def test_windows_hold_conversations_whose_last_is_cut(model: Path, pictures: Path) -> None:
    source = open_source(str(model))
    assert source.still_vision is not None
    tokenizer = AutoTokenizer.from_pretrained(model)
    pairs = read_pairs(pictures)
    length = len(tokenizer(pairs[0].text.replace("<image>", ""))["input_ids"]) + 1 + PIECES
    windows = image_windows(tokenizer, source.still_vision, pairs, WindowSizes(2, length + 10, 256), where="pictures")
    assert windows.tokens.shape == (2, length + 10)
    for row, images in zip(windows.tokens.tolist(), windows.images, strict=True):
        assert row[0] == 256
        at = row.index(IMAGE_TOKEN)
        assert tokenizer.decode(row[1:at]) == "USER: "
        assert row[at : at + PIECES] == [IMAGE_TOKEN] * PIECES
        assert len(images) == -(-row.count(IMAGE_TOKEN) // PIECES) == 2
    # The second picture is cut where the window ends.
    assert windows.tokens[0].tolist().count(IMAGE_TOKEN) == PIECES + 10 - 1 - len("USER: ")
    assert windows.images[0] == (pairs[0].images[0], pairs[1].images[0])
    assert windows.images[1] == (pairs[2].images[0], pairs[3].images[0])


def test_the_decoder_reads_what_transformers_decoder_reads(model: Path, pictures: Path) -> None:
    source = open_source(str(model))
    assert source.still_vision is not None
    tokenizer = AutoTokenizer.from_pretrained(model)
    sizes = WindowSizes(2, 100)
    windows = image_windows(tokenizer, source.still_vision, read_pairs(pictures), sizes, where="pictures")
    hidden, _ = windows.embed(source, source.still_vision, read_processor(model), SilentProgress())
    oracle = LlavaForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval()
    processor = CLIPImageProcessorPil.from_pretrained(model)
    for tokens, images, row in zip(windows.tokens, windows.images, hidden, strict=True):
        pixels = processor([Image.open(path).convert("RGB") for path in images], return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            seen = torch.cat([*oracle.model.get_image_features(pixels).pooler_output])
            expected = oracle.get_input_embeddings()(tokens)
            places = tokens == IMAGE_TOKEN
            expected[places] = seen[: int(places.sum())]
        torch.testing.assert_close(row, expected, atol=2e-4, rtol=0)


def test_pictures_are_seen_where_pytorch_computes(model: Path, pictures: Path) -> None:
    """The device `meta` stands for any GPU: what is on another one cannot be computed with."""
    source, image = open_source(str(model)), pictures / "00.png"
    assert source.still_vision is not None
    with torch.device("meta"):
        sight = Sight.of(source, source.still_vision, read_processor(model))
        assert sight.features(image).is_meta


def test_pictures_seen_last_are_remembered(model: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def counted(path: Path) -> np.ndarray:
        read.append(path)
        return read_image(path)

    monkeypatch.setattr("awq2trt.quantization.image_windows.read_image", counted)
    source = open_source(str(model))
    assert source.still_vision is not None
    picture_bytes = 4 * PIECES * source.spec.hidden_size
    monkeypatch.setattr("awq2trt.quantization.image_windows._REMEMBERED_BYTES", 2 * picture_bytes)
    sight = Sight.of(source, source.still_vision, read_processor(model))
    first, second, third = sorted(pictures.glob("*.png"))[:3]
    seen = [sight.features(path) for path in (first, second, first, third, first, second)]
    assert read == [first, second, third, second]
    assert torch.equal(seen[0], seen[4])
    assert not torch.equal(seen[0], seen[1])


def test_what_images_show_reaches_the_statistics(model: Path, pictures: Path, tmp_path: Path) -> None:
    """Black pictures with the same captions give other scales and codes."""
    black = tmp_path / "black"
    black.mkdir()
    for path in pictures.iterdir():
        if path.suffix == ".png":
            Image.new("RGB", (30, 24)).save(black / path.name)
        else:
            (black / path.name).write_text(path.read_text())
    _quantize(model, tmp_path / "seen", calib=str(pictures))
    _quantize(model, tmp_path / "unseen", calib=str(black))
    seen, unseen = _codes(tmp_path / "seen"), _codes(tmp_path / "unseen")
    assert any(np.any(seen[name] != unseen[name]) for name in seen)


def test_the_checkpoint_opens_sees_and_keeps_the_tower(model: Path, pictures: Path, tmp_path: Path) -> None:
    told = _quantize(model, tmp_path / "out", calib=str(pictures), method="rtn")
    assert told.notes == [f"reading {model}"]
    checkpoint, source = QuantizedCheckpoint.open(tmp_path / "out"), open_source(str(model))
    assert checkpoint.vision == source.still_vision
    for name, value in source.vision_tensors().items():
        np.testing.assert_array_equal(
            checkpoint.tensor(name), value.astype(np.float16).astype(checkpoint.tensor(name).dtype)
        )
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    written = config["quantization_config"]
    plain = written.get("modules_to_not_convert", written.get("ignore"))
    assert plain[-2:] == list(source.still_vision.modules if source.still_vision else ())
    assert read_processor(tmp_path / "out") == read_processor(model)
    tokens = torch.tensor([[50, *[IMAGE_TOKEN] * PIECES, 51, 52]])
    pixels = torch.from_numpy(read_processor(model).prepare(picture(24, 30)))[None]
    ours, original = (logits_of_text_and_images(one, tokens, pixels) for one in (checkpoint, source))
    assert ours.shape == original.shape
    assert torch.isfinite(ours).all()


def test_text_alone_is_warned_of(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("It was a bright cold day in April. " * 60)
    told = _quantize(model, tmp_path / "out", calib=str(tmp_path / "text.txt"))
    assert any(note.startswith("calibrating only on text") for note in told.notes)


def test_an_interrupted_run_resumes_to_the_same_bytes(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _quantize(model, tmp_path / "whole", calib=str(pictures))
    keep = QuantizeJob._keep

    def keep_and_stop(job: QuantizeJob, layer: int, link: Link) -> None:
        keep(job, layer, link)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(QuantizeJob, "_keep", keep_and_stop)
        with pytest.raises(KeyboardInterrupt):
            _quantize(model, tmp_path / "resumed", calib=str(pictures))
    _quantize(model, tmp_path / "resumed", resume=True, calib=str(pictures))
    whole, resumed = (tmp_path / name / "model.safetensors" for name in ("whole", "resumed"))
    assert resumed.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("options", "says"),
    [({"tune": True, "effort": "max"}, "step sizes can only be tuned on text"), ({"seqlen": 300}, "--seqlen")],
)
def test_what_cannot_be_is_refused_first(
    model: Path, pictures: Path, tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        _quantize(model, tmp_path / "out", calib=str(pictures), **options)


def test_images_for_a_model_of_text_are_refused(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected text, got images, which this model cannot see"):
        _quantize(save_llama(tmp_path / "text-model"), tmp_path / "out", calib=str(pictures))


def test_a_picture_that_is_not_there_is_refused_first(model: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "cat.jpg", "caption": "A cat."}))
    with pytest.raises(UsageError, match=r"rows\.jsonl, line 1: .*cat\.jpg: no such image"):
        _quantize(model, tmp_path / "out", calib=str(tmp_path / "rows.jsonl"))


def test_too_few_conversations_are_counted(model: Path, pictures: Path, tmp_path: Path) -> None:
    for name in ("00.png", "00.txt"):
        (tmp_path / name).write_bytes((pictures / name).read_bytes())
    with pytest.raises(CalibrationError, match=r"at least one window of 80 tokens, got \d+ tokens in 1 conversations"):
        _quantize(model, tmp_path / "out", calib=str(tmp_path))
