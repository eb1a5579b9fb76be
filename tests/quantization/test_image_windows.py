"""Calibration on pictures: what the decoder reads of them reaches the statistics, and the result opens again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from noted_progress import NotedProgress
from pictures import picture, save_pictures
from PIL import Image
from tiny_gemma3 import PIECES as GEMMA3_PIECES
from tiny_gemma3 import SPECIAL, save_gemma3
from tiny_llava import IMAGE_TOKEN, save_llava
from tiny_llava_next import save_llava_next, their_inputs
from tiny_models import save_llama
from tiny_qwen_vl import IMAGE_TOKEN as QWEN_IMAGE
from tiny_qwen_vl import VISION_END, VISION_START, save_qwen3_vl, save_qwen_vl
from tiny_smolvlm import save_smolvlm
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    Idefics3Processor,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    SmolVLMForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.errors import CalibrationError, UsageError
from awq2trt.images.pairs import read_pairs
from awq2trt.images.processor import read_processor
from awq2trt.images.read import read_image
from awq2trt.models.decoder import BlockRunner, Ends, run_blocks
from awq2trt.models.sources.opening import open_source
from awq2trt.models.vision.seeing import logits_of_text_and_images
from awq2trt.progress import SilentProgress
from awq2trt.quantization.handover import Link
from awq2trt.quantization.image_windows import Sight, WindowSizes, image_windows
from awq2trt.quantization.job import QuantizeJob, StreamsDue
from awq2trt.recipe import QuantizeOptions
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage

PIECES = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("models") / "tiny-llava")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    save_pictures(folder, 12, captions=True)
    return folder


def _quantize(model: Path, output: Path, *, resume: bool = False, **options: Any) -> NotedProgress:
    told = NotedProgress()
    given = QuantizeOptions.model_validate({"group_size": 32, "samples": 4, "seqlen": 80, "seed": 1, **options})
    quantize_stage(QuantizeRequest(str(model), output, given, resume=resume), told)
    return told


def _sight(model: Path) -> Sight:
    source = open_source(str(model))
    assert source.vision is not None
    return Sight(source, source.vision, read_processor(model))


def _codes(directory: Path) -> dict[str, np.ndarray]:
    checkpoint = QuantizedCheckpoint.open(directory)
    return {name: checkpoint.linear(name).codes for name in checkpoint.stored_names}


def test_windows_hold_conversations_whose_last_is_cut(model: Path, pictures: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    pairs = read_pairs(pictures)
    length = len(tokenizer(pairs[0].text.replace("<image>", ""))["input_ids"]) + 1 + PIECES
    windows = image_windows(tokenizer, _sight(model), pairs, WindowSizes(2, length + 10, 256), where="pictures")
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
    tokenizer, sight = AutoTokenizer.from_pretrained(model), _sight(model)
    windows = image_windows(tokenizer, sight, read_pairs(pictures), WindowSizes(2, 100), where="pictures")
    hidden = windows.embed(sight, SilentProgress())
    assert windows.positions(sight) is None
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
    with torch.device("meta"):
        assert _sight(model).features(pictures / "00.png").is_meta


def test_pictures_seen_last_are_remembered(model: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def counted(path: Path) -> np.ndarray:
        read.append(path)
        return read_image(path)

    monkeypatch.setattr("awq2trt.quantization.image_windows.read_image", counted)
    sight = _sight(model)
    picture_bytes = 4 * PIECES * sight.source.spec.hidden_size
    monkeypatch.setattr("awq2trt.quantization.image_windows._REMEMBERED_BYTES", 2 * picture_bytes)
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
    assert checkpoint.vision == source.vision
    for name, value in source.vision_tensors().items():
        np.testing.assert_array_equal(
            checkpoint.tensor(name), value.astype(np.float16).astype(checkpoint.tensor(name).dtype)
        )
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    written = config["quantization_config"]
    plain = written.get("modules_to_not_convert", written.get("ignore"))
    assert plain[-2:] == list(source.vision.modules if source.vision else ())
    assert read_processor(tmp_path / "out") == read_processor(model)
    tokens, pixels = [50, *[IMAGE_TOKEN] * PIECES, 51, 52], read_processor(model).pixels(picture(24, 30))
    ours, original = (logits_of_text_and_images(one, tokens, [pixels]) for one in (checkpoint, source))
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

    def keep_and_stop(job: QuantizeJob, layer: int, link: Link, due: StreamsDue) -> None:
        keep(job, layer, link, due)
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


@pytest.fixture(scope="module", params=[save_qwen_vl, save_qwen3_vl])
def any_size(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(request.param(tmp_path_factory.mktemp("models") / "tiny-qwen"))


def test_windows_of_images_of_any_size_are_what_transformers_reads(any_size: Path, pictures: Path) -> None:
    """Tokens, pieces and positions together: logits at all positions before a picture is cut."""
    tokenizer, sight = AutoTokenizer.from_pretrained(any_size), _sight(any_size)
    windows = image_windows(tokenizer, sight, read_pairs(pictures)[1:], WindowSizes(1, 110), where="pictures")
    hidden, positions = windows.embed(sight, SilentProgress()), windows.positions(sight)
    assert positions is not None
    ends = Ends(sight.source)
    with torch.inference_mode():
        runner = BlockRunner.for_positions(sight.source.spec, hidden.shape[1]).placed(
            positions, windows.media(sight, SilentProgress())
        )
        ours = ends.logits(run_blocks(sight.source, hidden, runner=runner))[0]
    tokens = windows.tokens[0].tolist()
    assert tokens.count(VISION_START) == len(windows.images[0]) == 2
    whole = tokens[: tokens.index(VISION_START, tokens.index(VISION_END))]  # before the second picture
    oracle = AutoModelForImageTextToText.from_pretrained(any_size, dtype=torch.float32).eval()
    processor: Any = Qwen2VLImageProcessorPil.from_pretrained(any_size)
    seen = processor(Image.open(windows.images[0][0]).convert("RGB"), return_tensors="pt")
    ids = torch.tensor([whole])
    with torch.inference_mode():
        expected = oracle(input_ids=ids, mm_token_type_ids=(ids == QWEN_IMAGE).int(), **seen).logits[0]
    torch.testing.assert_close(ours[: len(whole)], expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("effort", ["default", "max"])
def test_what_images_of_any_size_show_reaches_the_statistics(
    effort: str, any_size: Path, pictures: Path, tmp_path: Path
) -> None:
    """Turned pictures have the same captions and as many pieces, in other rows and columns."""
    turned = tmp_path / "turned"
    turned.mkdir()
    for path in pictures.iterdir():
        if path.suffix == ".png":
            Image.open(path).transpose(Image.Transpose.ROTATE_90).save(turned / path.name)
        else:
            (turned / path.name).write_text(path.read_text())
    for name, calib in (("seen", pictures), ("again", pictures), ("turned", turned)):
        _quantize(any_size, tmp_path / f"{name}-out", calib=str(calib), effort=effort)
    seen, again, other = (_codes(tmp_path / f"{name}-out") for name in ("seen", "again", "turned"))
    assert all(np.array_equal(seen[name], again[name]) for name in seen)
    assert any(np.any(seen[name] != other[name]) for name in seen)


def test_windows_of_tiles_are_what_transformers_reads(pictures: Path, tmp_path: Path) -> None:
    """Tokens with the texts around tiles, and pieces: logits at all positions before a picture is cut."""
    model = save_smolvlm(tmp_path)
    tokenizer, sight = AutoTokenizer.from_pretrained(model), _sight(model)
    pairs = read_pairs(pictures)[1:]
    windows = image_windows(tokenizer, sight, pairs, WindowSizes(1, 160), where="pictures")
    assert len(windows.images[0]) == 2, "the second one is cut"
    hidden = windows.embed(sight, SilentProgress())
    assert windows.positions(sight) is None
    with torch.inference_mode():
        ours = Ends(sight.source).logits(run_blocks(sight.source, hidden))[0]
    processor: Any = Idefics3Processor(SmolVLMImageProcessorPil.from_pretrained(model), tokenizer, image_seq_len=9)
    image = Image.open(windows.images[0][0]).convert("RGB")
    seen = processor(text=f"{pairs[0].text}\n", images=[[image]], return_tensors="pt", add_special_tokens=False)
    whole = seen["input_ids"][0].tolist()
    assert windows.tokens[0, : len(whole)].tolist() == whole
    oracle = SmolVLMForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = oracle(**seen).logits[0]
    torch.testing.assert_close(ours[: len(whole)], expected, atol=2e-4, rtol=0)


def test_windows_of_mosaics_are_what_transformers_reads(pictures: Path, tmp_path: Path) -> None:
    """A picture's pieces without its margins, with newlines: logits at all positions before the second is cut."""
    model = save_llava_next(tmp_path)
    tokenizer, sight = AutoTokenizer.from_pretrained(model), _sight(model)
    pairs = read_pairs(pictures)[1:]
    windows = image_windows(tokenizer, sight, pairs, WindowSizes(1, 160), where="pictures")
    assert len(windows.images[0]) == 2, "the second one is cut"
    with torch.inference_mode():
        hidden = windows.embed(sight, SilentProgress())
        ours = Ends(sight.source).logits(run_blocks(sight.source, hidden))[0]
    before, after = (tokenizer.encode(text, add_special_tokens=False) for text in f"{pairs[0].text}\n".split("<image>"))
    seen = their_inputs(model, [Image.open(windows.images[0][0]).convert("RGB")], before, after)
    whole = seen["input_ids"][0].tolist()
    assert windows.tokens[0, : len(whole)].tolist() == whole
    oracle = LlavaNextForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = oracle(**seen).logits[0]
    torch.testing.assert_close(ours[: len(whole)], expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("save", [save_smolvlm, save_llava_next])
def test_what_tiles_show_reaches_the_statistics(save: Callable[[Path], Path], pictures: Path, tmp_path: Path) -> None:
    """Mirrored pictures have the same captions and as many tiles."""
    model, mirrored = save(tmp_path / "model"), tmp_path / "mirrored"
    mirrored.mkdir()
    for path in pictures.iterdir():
        if path.suffix == ".png":
            Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored / path.name)
        else:
            (mirrored / path.name).write_text(path.read_text())
    for name, calib in (("seen", pictures), ("mirrored", mirrored)):
        _quantize(model, tmp_path / f"{name}-out", calib=str(calib))
    seen, other = (_codes(tmp_path / f"{name}-out") for name in ("seen", "mirrored"))
    assert any(np.any(seen[name] != other[name]) for name in seen)


def test_windows_of_images_whose_tokens_see_each_other_are_what_transformers_reads(
    pictures: Path, tmp_path: Path
) -> None:
    """Logits at all positions before a picture is cut, and the codes of a model whose pictures are mirrored."""
    model = save_gemma3(tmp_path / "model")
    tokenizer, sight = AutoTokenizer.from_pretrained(model), _sight(model)
    pairs = read_pairs(pictures)[1:]
    windows = image_windows(tokenizer, sight, pairs, WindowSizes(1, 100), where="pictures")
    hidden, media = windows.embed(sight, SilentProgress()), windows.media(sight, SilentProgress())
    runner = BlockRunner.for_positions(sight.source.spec, 100).placed(None, media)
    with torch.inference_mode():
        ours = Ends(sight.source).logits(run_blocks(sight.source, hidden, runner=runner))[0]
    names = dict(zip(("image_token", "boi_token", "eoi_token"), SPECIAL, strict=True))
    named = AutoTokenizer.from_pretrained(model, extra_special_tokens=names)
    processor: Any = Gemma3Processor(
        Gemma3ImageProcessorPil.from_pretrained(model), named, image_seq_length=GEMMA3_PIECES
    )
    image = Image.open(windows.images[0][0]).convert("RGB")
    text = f"{pairs[0].text}\n".replace("<image>", "<start_of_image>")
    seen = processor(text=[text], images=[[image]], return_tensors="pt", add_special_tokens=False)
    whole = seen["input_ids"][0].tolist()
    assert windows.tokens[0, : len(whole)].tolist() == whole
    oracle = Gemma3ForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = oracle(**seen).logits[0]
    torch.testing.assert_close(ours[: len(whole)], expected, atol=2e-4, rtol=0)


def test_what_such_images_show_reaches_the_statistics(pictures: Path, tmp_path: Path) -> None:
    model, turned = save_gemma3(tmp_path / "model"), tmp_path / "turned"
    turned.mkdir()
    for path in pictures.iterdir():
        if path.suffix == ".png":
            Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(turned / path.name)
        else:
            (turned / path.name).write_text(path.read_text())
    for name, calib in (("seen", pictures), ("again", pictures), ("turned", turned)):
        _quantize(model, tmp_path / f"{name}-out", calib=str(calib))
    seen, again, other = (_codes(tmp_path / f"{name}-out") for name in ("seen", "again", "turned"))
    assert all(np.array_equal(seen[name], again[name]) for name in seen)
    assert any(np.any(seen[name] != other[name]) for name in seen)
