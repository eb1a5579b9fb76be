"""What a model sees with, quantized: its codes, and what they were chosen on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import save_pictures
from seeing_families import CALIBRATION, quantize_sight
from seen_by_transformers import SEEING, Seen, seen_by_transformers
from tiny_llava import save_llava
from tiny_qwen_vl import save_qwen_vl

from awq2trt.artifact.arrays import read_arrays
from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.checkpoint.search_files import REPORT_FILE, SEARCH_FILE
from awq2trt.images.pairs import read_pairs
from awq2trt.images.processor import read_processor
from awq2trt.models.sources.base import ModelSource
from awq2trt.models.sources.opening import open_source
from awq2trt.progress import SilentProgress
from awq2trt.quantization import vision as subject
from awq2trt.quantization.block import LoneLinear
from awq2trt.quantization.image_windows import Sight, WindowSizes, image_windows
from awq2trt.quantization.method import method_of
from awq2trt.quantization.vision import VisionLinears, quantize_vision
from awq2trt.recipe import QuantizeOptions
from awq2trt.scheme import QuantizedLinear
from awq2trt.text.tokenizer import bos_of, load_tokenizer


def _sight(model: Path) -> Sight:
    source = open_source(str(model))
    assert source.vision is not None
    return Sight(source, source.vision, read_processor(model))


@dataclass(frozen=True)
class Tiny:
    """A model of one family, and captioned pictures."""

    model: Path
    pictures: Path

    @property
    def source(self) -> ModelSource:
        return open_source(str(self.model))

    @property
    def linears(self) -> VisionLinears:
        assert self.source.vision is not None
        return VisionLinears.of(self.source.vision)

    @cached_property
    def theirs(self) -> Seen:
        """What transformers' class does with the pictures of the calibration windows, each once."""
        tokenizer = load_tokenizer(self.model)
        sizes = WindowSizes(**CALIBRATION, bos=bos_of(tokenizer, self.source.spec.family))
        windows = image_windows(tokenizer, _sight(self.model), read_pairs(self.pictures), sizes, where="pictures")
        shown = [path for images in windows.images for path in images]
        assert len(set(shown)) == len(shown) > 1
        return seen_by_transformers(self.model, shown)

    @cached_property
    def checkpoints(self) -> dict[str, QuantizedCheckpoint]:
        """What each method makes of it."""
        found = {}
        for method in ("rtn", "awq", "gptq"):
            out = self.model.parent / method
            quantize_sight(self.model, out, None if method == "rtn" else self.pictures, method=method)
            found[method] = QuantizedCheckpoint.open(out)
        return found


@pytest.fixture(scope="module", params=SEEING)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("seeing")
    # Most captions are short: a window of a model that attends to pictures has one token for each of those.
    save_pictures(folder / "pictures", 18, captions=True)
    return Tiny(SEEING[request.param](folder / "model"), folder / "pictures")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("llava")
    save_pictures(folder / "pictures", 12, captions=True)
    return Tiny(save_llava(folder / "model"), folder / "pictures")


def _nearest(weight: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, step sizes and zero points of 4 bits, group by group, as the AWQ paper's equation 1 has them."""
    codes, scales, zeros = [], [], []
    for start in range(0, weight.shape[1], group):
        part = weight[:, start : start + group].astype(np.float32)
        low, high = np.minimum(part.min(axis=1), 0), np.maximum(part.max(axis=1), 0)
        scale = ((high - low) / np.float32(15)).astype(np.float16).astype(np.float32)
        zero = np.clip(np.rint(-low / scale), 0, 15)
        codes.append(np.clip(np.rint(part / scale[:, None]) + zero[:, None], 0, 15))
        scales.append(scale)
        zeros.append(zero)
    return np.concatenate(codes, axis=1), np.stack(scales, axis=1), np.stack(zeros, axis=1)


def test_rounded_codes_are_the_nearest_to_the_weights(tiny: Tiny) -> None:
    checkpoint, source = tiny.checkpoints["rtn"], tiny.source
    assert set(checkpoint.vision_linears) == set(tiny.linears.shapes)
    assert checkpoint.vision_linears
    for name in checkpoint.vision_linears:
        stored = checkpoint.linear(name)
        codes, scales, zeros = _nearest(source.tensor(f"{name}.weight"), 32)
        np.testing.assert_array_equal(stored.codes, codes, err_msg=name)
        np.testing.assert_array_equal(stored.scales.astype(np.float32), scales, err_msg=name)
        np.testing.assert_array_equal(stored.zeros, zeros, err_msg=name)
        bias = source.vision_tensors().get(f"{name}.bias")
        if bias is None:
            assert stored.bias is None
        else:
            np.testing.assert_array_equal(stored.bias, bias.astype(np.float16))


def test_whatever_is_not_quantized_stays(tiny: Tiny) -> None:
    checkpoint = tiny.checkpoints["rtn"]
    kept = checkpoint.vision_tensors(checkpoint.vision_linears)
    original = tiny.source.vision_tensors()
    assert set(kept) == {name for name in original if name.rpartition(".")[0] not in tiny.linears.shapes}
    for name, value in kept.items():
        np.testing.assert_array_equal(value.astype(np.float16), original[name].astype(np.float16), err_msg=name)


def test_those_that_stay_have_rows_that_no_kernel_takes(tiny: Tiny) -> None:
    linears = tiny.linears
    assert set(linears.shapes) | set(linears.kept) == tiny.theirs.used
    assert all(width % 8 for width in linears.kept.values())
    assert not any(width % 8 for _, width in linears.shapes.values())


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_a_search_errs_less_on_what_the_tower_reads(tiny: Tiny, method: str) -> None:
    rounded, searched, source = tiny.checkpoints["rtn"], tiny.checkpoints[method], tiny.source
    for name in searched.vision_linears:
        x, weight = tiny.theirs.inputs[name].numpy(), source.tensor(f"{name}.weight").astype(np.float32)

        def error(linear: QuantizedLinear, x: np.ndarray = x, weight: np.ndarray = weight) -> float:
            return float(np.linalg.norm(x @ (linear.dequantize() - weight).T) / np.linalg.norm(x @ weight.T))

        errors = error(searched.linear(name)), error(rounded.linear(name))
        assert errors[0] < 0.8 * errors[1], name
        report = json.loads((searched.directory / REPORT_FILE).read_text())[name]
        assert (report["error"], report["error_rounded"]) == pytest.approx(errors, rel=0.02), name


def test_what_pictures_show_reaches_the_statistics(tiny: Tiny) -> None:
    """The mean |x| that is stored is that of transformers' own tower, over all pictures, each looked at once."""
    search = read_arrays(tiny.checkpoints["awq"].directory / SEARCH_FILE, fix="")
    for name in tiny.linears.shapes:
        expected = tiny.theirs.inputs[name].abs().mean(dim=0).numpy()
        np.testing.assert_allclose(search[f"{name}.magnitude"], expected, rtol=1e-3, atol=1e-4, err_msg=name)


def test_config_names_what_is_plain_and_nothing_else(tiny: Tiny) -> None:
    """A tool that knows only the config converts exactly the linears of which there are codes."""
    written = tiny.checkpoints["rtn"].config["quantization_config"]
    plain, vision = written.get("modules_to_not_convert", written.get("ignore")), tiny.source.vision
    assert vision is not None
    for name, shape in vision.shapes().items():
        module = name.removesuffix(".weight")
        if len(shape) < 2 or not name.endswith(".weight"):
            continue
        said = any(module == entry or module.startswith(f"{entry}.") for entry in plain)
        assert said == (module not in tiny.linears.shapes), name


def test_linears_that_stay_are_said(tmp_path: Path) -> None:
    model = save_qwen_vl(tmp_path / "model")  # 44 channels within its MLPs
    notes = quantize_sight(model, tmp_path / "out")
    assert any(note.startswith("3 linears that the model sees with stay as they are") for note in notes)
    plain = QuantizedCheckpoint.open(tmp_path / "out").config["quantization_config"]["modules_to_not_convert"]
    assert [name for name in plain if name.endswith("mlp.down_proj")] == [
        f"visual.blocks.{layer}.mlp.down_proj" for layer in range(3)
    ]


@pytest.mark.parametrize(("channels", "layout"), [(64, "gemm"), (24, "awq2trt")])
def test_the_layout_holds_what_it_sees_with(channels: int, layout: str, tmp_path: Path) -> None:
    """Groups of 32 divide all inputs of this decoder, but not 24 channels of a tower."""
    text = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8, "num_key_value_heads": 4}
    tower = {"hidden_size": channels, "intermediate_size": 96, "num_attention_heads": 4}
    model = save_llava(tmp_path / "model", text=text, tower=tower)
    for flag in (False, True):
        notes = quantize_sight(model, tmp_path / f"{flag}", quantize_vision=flag)
        found = QuantizedCheckpoint.open(tmp_path / f"{flag}").format.layout.name
        assert found == (layout if flag else "gemm")
        said = [note for note in notes if note.startswith(f"the checkpoint has the layout {found}")]
        assert len(said) == (found != "gemm")


def _all(model: Path, pictures: Path, **changes: Any) -> dict[str, LoneLinear]:
    method = method_of(QuantizeOptions.model_validate({"group_size": 32, **changes}))
    with torch.no_grad():
        shown = sorted(pictures.glob("*.png"))
        return {found.name: found for found in quantize_vision(_sight(model), shown, method, SilentProgress())}


def test_parts_of_the_moments_give_the_same(llava: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _all(llava.model, llava.pictures)
    parts = len(list(llava.linears.parts()))
    monkeypatch.setattr(subject, "MOMENTS_BYTES", 4 * (24**2 + 40**2))
    assert len(list(llava.linears.parts())) > parts == 1
    assert llava.linears.moments_bytes == 4 * 48**2  # the widest input, that of the projector, is alone
    for name, found in _all(llava.model, llava.pictures).items():
        np.testing.assert_array_equal(found.linear.codes, whole[name].linear.codes)


def test_what_would_learn_in_a_block_is_searched_for_here(llava: Tiny) -> None:
    best, most = (_all(llava.model, llava.pictures, effort=effort) for effort in ("best", "max"))
    assert best.keys() == most.keys()
    for name, found in best.items():
        np.testing.assert_array_equal(found.linear.codes, most[name].linear.codes)
