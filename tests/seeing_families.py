"""What tests of families of models that see share: a tower's sizes, logits of a text, and what a checkpoint keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from noted_progress import NotedProgress

from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.models.decoder import Ends, run_model
from awq2trt.models.sources.opening import open_source
from awq2trt.models.vision.description import TowerSpec
from awq2trt.progress import SilentProgress
from awq2trt.recipe import QuantizeOptions
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage


def text_logits(model: Path, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a text [1, S] without images, fp32 [1, S, vocab_size]."""
    source = open_source(str(model))
    with torch.inference_mode():
        return Ends(source).logits(run_model(source, ids))


def assert_text_logits(model: Path, model_class: Any, ids: torch.Tensor) -> None:
    """Asserts that logits of a text are those of transformers' class."""
    theirs = model_class.from_pretrained(model, dtype=torch.float32)
    with torch.inference_mode():
        expected = theirs(input_ids=ids).logits
    torch.testing.assert_close(text_logits(model, ids), expected, atol=2e-4, rtol=0)


def assert_sizes(tower: TowerSpec, theirs: Any) -> None:
    """Asserts that a tower has the sizes in transformers' config of it, whatever its patches."""
    for ours, name in (
        (tower.hidden_size, "hidden_size"),
        (tower.intermediate_size, "intermediate_size"),
        (tower.num_layers, "num_hidden_layers"),
        (tower.num_heads, "num_attention_heads"),
        (tower.image_size, "image_size"),
        (tower.norm_eps, "layer_norm_eps"),
    ):
        assert ours == getattr(theirs, name), name


def quantized_on_a_text(model: Path, folder: Path) -> QuantizedCheckpoint:
    """Quantizes a model on a text, both files in `folder`; asserts that what it sees with stays as it is."""
    text = folder / "text.txt"
    text.write_text("It was a bright cold day in April. " * 60)
    options = QuantizeOptions(group_size=32, samples=2, seqlen=64, calib=str(text))
    quantize_stage(QuantizeRequest(str(model), folder / "out", options), SilentProgress())
    checkpoint, source = QuantizedCheckpoint.open(folder / "out"), open_source(str(model))
    assert checkpoint.vision == source.vision
    stored, kept = checkpoint.vision_tensors(), source.vision_tensors()
    assert kept
    for name, value in kept.items():
        np.testing.assert_allclose(stored[name].astype(np.float32), value.astype(np.float32), atol=2e-3)
    return checkpoint


CALIBRATION: dict[str, int] = {"samples": 2, "seqlen": 160}
"""Windows in which every tiny model has some pictures of 24 to 32 pixels."""


def options_of_sight(calib: Path | None, **changes: Any) -> QuantizeOptions:
    """Options that quantize what a model sees with, too: on pictures, or without any by rounding."""
    chosen = {"calib": str(calib)} if calib else {"method": "rtn"}
    return QuantizeOptions.model_validate(
        {"group_size": 32, **CALIBRATION, "quantize_vision": True, **chosen, **changes}
    )


def quantize_sight(
    model: Path, out: Path, calib: Path | None = None, *, resume: bool = False, **changes: Any
) -> list[str]:
    """Quantizes a model with what it sees with, by `options_of_sight`; returns what was noted."""
    told = NotedProgress()
    quantize_stage(QuantizeRequest(str(model), out, options_of_sight(calib, **changes), resume=resume), told)
    return told.notes
