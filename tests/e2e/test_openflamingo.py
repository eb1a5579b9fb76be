"""OpenFlamingo through quantizing and evaluation: images reach the statistics of the blocks that attend to them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pictures import picture
from PIL import Image
from safetensors.numpy import save_file
from tiny_flamingo import END_OF_CHUNK, IMAGE_TOKEN, TEXT_CONFIGS, flamingo_config, logits_of_texts, save_flamingo
from transformers import AutoTokenizer

import awq2trt
from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.errors import UsageError
from awq2trt.evaluation.results import CaptionPerplexity, CaptionScore
from awq2trt.images.processor import read_processor
from awq2trt.images.read import read_image
from awq2trt.io_contract import PIXEL_VALUES
from awq2trt.models.cross_attention import Media
from awq2trt.models.decoder import BlockRunner, Ends, run_blocks
from awq2trt.models.sources.opening import open_source
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.models.vision.prepared import Pixels
from awq2trt.models.vision.seeing import pieces_seen
from awq2trt.models.vision.tower import load_vision
from awq2trt.progress import SilentProgress
from awq2trt.quantization.handover import Link
from awq2trt.quantization.job import QuantizeJob, StreamsDue
from awq2trt.recipe import ExportOptions, QuantizeOptions, Recipe
from awq2trt.runtime import Model, Sampler, Sampling, generate
from awq2trt.runtime.attended_images import AttendedImages
from awq2trt.runtime.ort.loading import DeviceOptions
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage

COUNT = 9


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_flamingo(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(COUNT):
        Image.fromarray(np.roll(picture(24, 30), 3 * index, axis=1)).save(folder / f"{index:02}.png")
        (folder / f"{index:02}.txt").write_text(f"Picture {index}, of nothing.")
    return folder


def _black(pictures: Path, folder: Path) -> Path:
    """The same captions of other pictures."""
    folder.mkdir()
    for path in pictures.iterdir():
        if path.suffix == ".png":
            Image.new("RGB", (30, 24)).save(folder / path.name)
        else:
            (folder / path.name).write_text(path.read_text())
    return folder


def _quantize(model: Path, output: Path, *, resume: bool = False, **options: Any) -> QuantizedCheckpoint:
    given = QuantizeOptions.model_validate({"group_size": 32, "samples": 3, "seqlen": 80, "seed": 1, **options})
    quantize_stage(QuantizeRequest(str(model), output, given, resume=resume), SilentProgress())
    return QuantizedCheckpoint.open(output)


def _block_of(name: str) -> int:
    return int(name.removeprefix("lang_encoder.transformer.blocks.").split(".", 1)[0])


@pytest.mark.parametrize("effort", ["default", "best", "max"])
def test_images_change_the_codes_of_blocks_that_attend_to_them(
    effort: str, model: Path, pictures: Path, tmp_path: Path
) -> None:
    """Cross-attention stands before the blocks 1 and 3, so the first block knows nothing of images."""
    seen = _quantize(model, tmp_path / "seen", calib=str(pictures), effort=effort)
    unseen = _quantize(model, tmp_path / "unseen", calib=str(_black(pictures, tmp_path / "black")), effort=effort)
    differ = {
        _block_of(name)
        for name in seen.stored_names
        if np.any(seen.linear(name).codes != unseen.linear(name).codes)
        or np.any(seen.linear(name).scales != unseen.linear(name).scales)
    }
    assert differ == {1, 2, 3}


@pytest.mark.parametrize("text", list(TEXT_CONFIGS))
def test_all_but_the_decoder_stays_in_16_bits(text: str, pictures: Path, tmp_path: Path) -> None:
    source = open_source(str(save_flamingo(tmp_path / "model", text)))
    checkpoint = _quantize(tmp_path / "model", tmp_path / "out", calib=str(pictures))
    assert checkpoint.vision == source.vision
    assert checkpoint.spec == source.spec
    assert all(".decoder_layer." in name for name in checkpoint.stored_names)
    assert len(checkpoint.stored_names) == source.spec.num_layers * len(source.spec.stored_linears())
    kept = [*source.vision_tensors()]
    for layer in range(source.spec.num_layers):
        kept += [source.spec.prefix(layer) + name for name in source.spec.cross_shapes(layer)]
    assert sum("gated_cross_attn_layer" in name for name in kept) == 2 * 11
    for name in kept:
        np.testing.assert_array_equal(checkpoint.tensor(name), source.tensor(name).astype(np.float16))
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    plain = config.get("modules_to_not_convert", config.get("ignore"))
    assert plain[-3:] == ["vision_encoder", "perceiver", "gated_cross_attn_layer"]


def test_the_checkpoint_computes_what_its_weights_say(model: Path, pictures: Path, tmp_path: Path) -> None:
    """Folded scales change nothing: with the checkpoint's weights in place of the original's, so do its logits."""
    checkpoint = _quantize(model, tmp_path / "out", calib=str(pictures))
    (tmp_path / "plain").mkdir()
    names = {**checkpoint.expected_shapes(), **(checkpoint.vision.shapes() if checkpoint.vision else {})}
    names |= {f"{name}.weight": checkpoint.stored_shape(name) for name in checkpoint.stored_names}
    scales = list(checkpoint.spec.optional_block_shapes())
    for layer in range(checkpoint.spec.num_layers):
        names |= {checkpoint.spec.prefix(layer) + name: (128,) for name in scales}
    tensors = {name: np.ascontiguousarray(checkpoint.tensor(name).astype(np.float32)) for name in names}
    save_file(tensors, tmp_path / "plain" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "plain" / "config.json").write_text(json.dumps(flamingo_config()))
    ids = torch.tensor([[5, IMAGE_TOKEN, 51, 52, 9, IMAGE_TOKEN, 8]])
    prepared = [read_processor(model).pixels(read_image(pictures / f"0{index}.png")).values for index in range(2)]
    sources = checkpoint, SafetensorsSource.open(tmp_path / "plain"), open_source(str(model))
    with torch.inference_mode():
        ours, plain, original = (logits_of_texts(one, ids, torch.from_numpy(np.stack(prepared))) for one in sources)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    error = float((ours - original).norm() / original.norm())
    assert 0.01 < error < 0.5


def test_an_interrupted_run_resumes_to_the_same_bytes(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _quantize(model, tmp_path / "whole", calib=str(pictures), effort="best")
    keep = QuantizeJob._keep

    def keep_and_stop(job: QuantizeJob, layer: int, link: Link, due: StreamsDue) -> None:
        keep(job, layer, link, due)
        if layer == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(QuantizeJob, "_keep", keep_and_stop)
        with pytest.raises(KeyboardInterrupt):
            _quantize(model, tmp_path / "resumed", calib=str(pictures), effort="best")
    _quantize(model, tmp_path / "resumed", resume=True, calib=str(pictures), effort="best")
    whole, resumed = (tmp_path / name / "model.safetensors" for name in ("whole", "resumed"))
    assert resumed.read_bytes() == whole.read_bytes()


def test_another_run_may_begin_at_a_checkpoint(model: Path, pictures: Path, tmp_path: Path) -> None:
    """Beginning at codes with nothing to improve keeps them; images are seen once, not twice."""
    first = _quantize(model, tmp_path / "first", calib=str(pictures), method="rtn")
    options: dict[str, Any] = {"calib": str(pictures), "init_from": str(tmp_path / "first"), "effort": "max"}
    second = _quantize(model, tmp_path / "second", **options)
    ids = torch.tensor([[5, IMAGE_TOKEN, 51, 52, 9, 8]])
    pixels = torch.from_numpy(read_processor(model).pixels(read_image(pictures / "00.png")).values)[None]
    with torch.inference_mode():
        one, two, original = (logits_of_texts(each, ids, pixels) for each in (first, second, open_source(str(model))))
    assert (two - original).norm() < (one - original).norm()


@pytest.fixture
def shots(pictures: Path, tmp_path: Path) -> Path:
    """Two conversations of two shots and a question, one of none."""
    rows: list[dict[str, Any]] = []
    for index in (0, 3):
        names = [str(pictures / f"0{index + shot}.png") for shot in range(3)]
        messages = []
        for shot in range(3):
            messages.append({"role": "user", "content": "<image>\nDescribe the image."})
            messages.append({"role": "assistant", "content": f"Picture {index + shot}"})
        rows.append({"image": names, "messages": messages})
    rows.append({"image": str(pictures / "08.png"), "captions": ["Picture 8", "The last one"]})
    file = tmp_path / "shots.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_captions_are_measured_after_shots(model: Path, pictures: Path, shots: Path) -> None:
    (result,) = awq2trt.evaluate(model, awq2trt.CaptionedImages(shots))
    tokenizer, source = AutoTokenizer.from_pretrained(model), open_source(str(model))
    losses, counts = 0.0, 0
    for shown in ((0, 1, 2), (3, 4, 5), (8,)):
        text = "<|endofchunk|>".join(f"<image>Output:Picture {index}" for index in shown)
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        assert ids[0].tolist().count(IMAGE_TOKEN) == len(shown) == ids[0].tolist().count(END_OF_CHUNK) + 1
        images = [read_processor(model).pixels(read_image(pictures / f"0{index}.png")).values for index in shown]
        with torch.inference_mode():
            logits = logits_of_texts(source, ids, torch.from_numpy(np.stack(images)))[0]
        scored = len(f"Picture {shown[-1]}")
        chosen = logits.log_softmax(-1)[-scored - 1 : -1].gather(1, ids[0, -scored:, None])
        losses, counts = losses - float(chosen.sum()), counts + scored
    assert isinstance(result.measured, CaptionPerplexity)
    assert result.measured.value == pytest.approx(math.exp(losses / counts), rel=1e-4)


def test_captions_are_written_of_the_image_that_was_shown_last(model: Path, pictures: Path, shots: Path) -> None:
    """What is written after the prompt goes on attending to the last image, token by token as in one piece."""
    (result,) = awq2trt.evaluate(model, awq2trt.CaptionedImages(shots, task="caption"))
    tokenizer, source = AutoTokenizer.from_pretrained(model), open_source(str(model))
    shown = (0, 1, 2)
    text = "<image>Output:Picture 0<|endofchunk|><image>Output:Picture 1<|endofchunk|><image>Output:"
    ids = tokenizer(text)["input_ids"]
    images = [read_processor(model).pixels(read_image(pictures / f"0{index}.png")).values for index in shown]
    written: list[int] = []
    with torch.inference_mode():
        while len(written) < 32 and not {256, END_OF_CHUNK} & set(written):
            tokens = torch.tensor([ids + written])
            logits = logits_of_texts(source, tokens, torch.from_numpy(np.stack(images)))
            written.append(int(logits[0, -1].argmax()))
    lines = str(tokenizer.decode(written, skip_special_tokens=True)).strip().splitlines()
    assert isinstance(result.measured, CaptionScore)
    assert result.measured.captions[0] == (lines[0].strip() if lines else "")


NEW_TOKENS = 64

DRAWN = Sampling(temperature=1.0, seed=5)


def _build(folder: Path, text: str, quantize: QuantizeOptions) -> Path:
    """Saves `model`, and in `built` what all stages make of it for the CPU."""
    save_flamingo(folder / "model", text)
    recipe = Recipe(quantize=quantize, export=ExportOptions(max_seq_len=160))
    awq2trt.build(folder / "model", folder / "built", target="cpu", recipe=recipe)
    return folder


@pytest.fixture(scope="module", params=list(TEXT_CONFIGS))
def built(request: pytest.FixtureRequest, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `_build` leaves it, of a model whose decoder alone is quantized."""
    quantize = QuantizeOptions(group_size=32, samples=3, seqlen=80, calib=str(pictures))
    return _build(tmp_path_factory.mktemp("built"), request.param, quantize)


def _logits(
    checkpoint: QuantizedCheckpoint, tokens: list[int], images: list[Pixels], written: list[int]
) -> NDArray[np.float32]:
    """Logits before each written token, all of which attend to the last image, even behind a written image token."""
    assert checkpoint.vision is not None
    ends, weights = Ends(checkpoint), load_vision(checkpoint)
    with torch.inference_mode():
        seen = torch.stack([pieces_seen(checkpoint.vision, weights, image) for image in images])
        media = Media.of_texts(torch.tensor([tokens]), IMAGE_TOKEN, [seen], len(written))
        hidden = ends.embed(torch.tensor([tokens + written]))
        runner = BlockRunner.for_positions(checkpoint.spec, hidden.shape[1]).placed(None, media)
        logits = ends.logits(run_blocks(checkpoint, hidden, runner=runner))
    return np.asarray(logits[0, len(tokens) - 1 : -1].numpy(), np.float32)


def _assert_writes_what_pytorch_writes(built: Path, directory: str, sampling: Sampling, pictures: Path) -> None:
    """Asserts it of each image alone, then of three shots; by induction, since PyTorch would choose every token.

    The best tokens of so small a model soon repeat themselves; drawn ones do not.
    """
    checkpoint = QuantizedCheckpoint.open(built / "built" / "checkpoint")
    model = Model.load(built / "built" / directory, DeviceOptions("cpu"))
    assert model.sight is not None
    answers = set()
    for shown in ([0], [1], [2], [3], [4], [5, 6, 7]):
        text = "<|endofchunk|>".join(f"<image>Output:{'' if index == shown[-1] else 'It'}" for index in shown)
        images = model.sight.prepare([pictures / f"0{index}.png" for index in shown])
        tokens = model.sight.place(model.tokenizer.encode(text, IMAGE_TOKEN), images)
        assert tokens == AutoTokenizer.from_pretrained(built / "model")(text)["input_ids"]
        options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "images": images}
        got = list(generate(model.backend, tokens, Sampler(sampling), **options))
        pixels = [Pixels(image.inputs[PIXEL_VALUES][0]) for image in images]
        logits = _logits(checkpoint, tokens, pixels, got)
        chooser = Sampler(sampling)
        chooser.see(tokens)
        assert len(got) == NEW_TOKENS
        assert got == [chooser.pick(row) for row in logits]
        assert len(set(got)) > 8 or sampling.temperature == 0
        answers.add(tuple(got))
    assert len(answers) > 1, "the same answer to all images would be no proof"


@pytest.mark.parametrize("sampling", [Sampling(), DRAWN], ids=["best", "drawn"])
@pytest.mark.parametrize("directory", ["onnx", "cpu"])
def test_it_writes_of_five_images_what_pytorch_writes(
    directory: str, sampling: Sampling, built: Path, pictures: Path
) -> None:
    _assert_writes_what_pytorch_writes(built, directory, sampling, pictures)


def test_with_a_quantized_tower_it_writes_what_pytorch_writes(pictures: Path, tmp_path: Path) -> None:
    _build(tmp_path, "mpt", QuantizeOptions(group_size=32, method="rtn", quantize_vision=True))
    checkpoint = QuantizedCheckpoint.open(tmp_path / "built" / "checkpoint")
    assert all(name.startswith("vision_encoder.") for name in checkpoint.vision_linears)
    assert checkpoint.vision_linears
    _assert_writes_what_pytorch_writes(tmp_path, "cpu", DRAWN, pictures)


def test_a_conversation_has_no_more_images_than_were_exported_for(built: Path, pictures: Path) -> None:
    model = awq2trt.load(built / "built" / "onnx", backend="ort", device="cpu")
    options: dict[str, Any] = {"raw": True, "max_new_tokens": 1}
    list(model.generate("<image>" * 8, images=[pictures / "00.png"] * 8, **options))
    with pytest.raises(UsageError, match="may have 8 images, got 9"):
        list(model.generate("<image>" * 9, images=[pictures / "00.png"] * 9, **options))


def test_check_shows_the_decoder_an_image(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All stages agree; a decoder that sees nothing is found at the first block behind cross-attention."""
    options: dict[str, Any] = {"model": built / "model", "tokens": 40, "output": tmp_path / "check"}
    whole = awq2trt.check(built / "built", **options).result
    assert whole.passed, whole.first_failure()
    assert awq2trt.check_golden(built / "built" / "onnx").passed
    monkeypatch.setattr(AttendedImages, "append", lambda self, tokens: None)
    failure = awq2trt.check(built / "built", **options).result.first_failure()
    assert failure is not None
    source = open_source(str(built / "model"))
    assert (failure.stage, failure.place) == ("onnx", source.spec.prefix(1).rstrip("."))
    assert not awq2trt.check_golden(built / "built" / "onnx").passed
