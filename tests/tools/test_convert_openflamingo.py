"""The three parts of a published OpenFlamingo become one directory, which computes what the package computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_openflamingo import convert
from safetensors.torch import load_file, save_file
from tiny_flamingo import (
    END_OF_CHUNK,
    IMAGE_TOKEN,
    TEXT_CONFIGS,
    TOWER_CONFIG,
    flamingo_config,
    flamingo_tensors,
    logits_of_texts,
)
from tiny_models import save_tokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from awq2trt.errors import UnsupportedError
from awq2trt.images.processor import ImageProcessor, read_processor
from awq2trt.models.sources.safetensors import SafetensorsSource

GOLDEN = Path(__file__).parent.parent / "data" / "openflamingo.safetensors"
PUBLISHED_ROWS = 280
"""Rows of the decoder's own embedding, of which more exist than tokens, as in MPT-7B's."""

Tensors = dict[str, torch.Tensor]


def _published(folder: Path, text: str, **changes: Any) -> Tensors:
    """Writes the decoder and the tower as they are published; returns what a checkpoint has of a model."""
    tensors = {name: torch.from_numpy(value) for name, value in flamingo_tensors(flamingo_config(text)).items()}
    language, vision = folder / "language", folder / "vision"
    language.mkdir()
    vision.mkdir()
    trained, decoder, tower = Tensors(), Tensors(), Tensors()
    for name, value in tensors.items():
        if name.startswith("vision_encoder."):
            tower["vision_model." + name.removeprefix("vision_encoder.")] = value
        elif name.startswith("perceiver.") or ".gated_cross_attn_layer." in name or value.shape[0] == 264:
            trained[name] = value
        else:
            decoder[name.removeprefix("lang_encoder.").replace(".decoder_layer.", ".")] = value
    ends = {name.removeprefix("lang_encoder."): (PUBLISHED_ROWS, 32) for name in trained if "embed" in name}
    decoder |= {name: torch.zeros(shape) for name, shape in (ends or {"transformer.wte.weight": (280, 32)}).items()}
    save_file(decoder, language / "model.safetensors")
    save_file(tower, vision / "model.safetensors")
    config = {**TEXT_CONFIGS[text], "vocab_size": PUBLISHED_ROWS, "eos_token_id": 256, "auto_map": {}, **changes}
    (language / "config.json").write_text(json.dumps(config))
    (vision / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": TOWER_CONFIG}))
    save_tokenizer(language)
    CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 20, "width": 20}).save_pretrained(vision)
    return trained


def _convert(folder: Path, checkpoint: Any) -> SafetensorsSource:
    torch.save(checkpoint, folder / "checkpoint.pt")
    convert(folder / "checkpoint.pt", folder / "language", folder / "vision", folder / "whole")
    return SafetensorsSource.open(folder / "whole")


@pytest.mark.parametrize("text", list(TEXT_CONFIGS))
def test_the_whole_computes_what_the_package_computes(text: str, tmp_path: Path) -> None:
    source = _convert(tmp_path, _published(tmp_path, text))
    golden = load_file(GOLDEN)
    with torch.inference_mode():
        got = logits_of_texts(source, golden["tokens"], golden["pixels"][:3])
    torch.testing.assert_close(got, golden[f"{text}.logits"], rtol=2e-4, atol=2e-4)
    assert source.config["media_token_id"] == IMAGE_TOKEN
    assert source.text_config["eos_token_id"] == [256, END_OF_CHUNK]
    assert "auto_map" not in source.text_config
    processor = read_processor(tmp_path / "whole")
    assert isinstance(processor, ImageProcessor)
    assert processor.crop == (20, 20)


def test_checkpoints_of_training_and_second_names_are_read(tmp_path: Path) -> None:
    trained = _published(tmp_path, "mpt")
    mark = "transformer.blocks.1.gated_cross_attn_layer."
    renamed = {f"module.{name.replace(mark, 'gated_cross_attn_layers.1.')}": value for name, value in trained.items()}
    renamed["module.lang_encoder.old_decoder_blocks.0.norm_1.weight"] = torch.zeros(32)
    source = _convert(tmp_path, {"epoch": 1, "model_state_dict": renamed})
    name = "lang_encoder.transformer.blocks.1.gated_cross_attn_layer.attn.to_q.weight"
    assert torch.equal(torch.from_numpy(source.tensor(name)), trained[name])


def test_frozen_embeddings_are_the_first_rows_of_the_decoders(tmp_path: Path) -> None:
    trained = _published(tmp_path, "mpt")
    del trained["lang_encoder.transformer.wte.weight"]
    source = _convert(tmp_path, trained)
    assert source.spec.vocab_size == IMAGE_TOKEN + 1
    assert not source.tensor("lang_encoder.transformer.wte.weight").any()


def test_decoders_without_safetensors_are_read_without_running_code(tmp_path: Path) -> None:
    trained = _published(tmp_path, "gpt_neox")
    file = tmp_path / "language" / "model.safetensors"
    torch.save(load_file(file), file.with_name("pytorch_model.bin"))
    file.unlink()
    assert _convert(tmp_path, trained).spec.family == "gpt_neox"


class _Ran(Exception):  # noqa: N818
    pass


class _Code:
    def __reduce__(self) -> Any:
        return (_Ran, ())


def test_pickled_code_does_not_run(tmp_path: Path) -> None:
    trained: dict[str, Any] = {**_published(tmp_path, "mpt"), "code": _Code()}
    with pytest.raises(SystemExit, match=r"checkpoint\.pt: not a file of tensors"):
        _convert(tmp_path, trained)


@pytest.mark.parametrize(
    ("removed", "says"),
    [
        ("lang_encoder.transformer.blocks.3.", "expected cross-attention before the blocks"),
        ("lang_encoder.", "no gated cross-attention"),
        ("perceiver.layers.5.", r"none of the three has the tensor perceiver\.layers\.5"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(removed: str, says: str, tmp_path: Path) -> None:
    trained = {name: value for name, value in _published(tmp_path, "mpt").items() if not name.startswith(removed)}
    with pytest.raises((SystemExit, UnsupportedError), match=says):
        _convert(tmp_path, trained)
    assert not (tmp_path / "whole").exists()


def test_an_unknown_decoder_is_refused(tmp_path: Path) -> None:
    trained = _published(tmp_path, "mpt", architectures=["GPTJForCausalLM"])
    with pytest.raises(SystemExit, match=r"unknown decoder \['GPTJForCausalLM'\]"):
        _convert(tmp_path, trained)


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    with pytest.raises(SystemExit, match="exists: name another --output"):
        _convert(tmp_path, {})
