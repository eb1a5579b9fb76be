"""The vision graph in ONNX Runtime against the tower in PyTorch, and against transformers' own class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from tiny_flamingo import save_flamingo
from tiny_llava import save_llava
from tiny_llava_next import save_llava_next
from tiny_smolvlm import KINDS, save_smolvlm
from transformers import LlavaForConditionalGeneration, LlavaNextForConditionalGeneration

from awq2trt.errors import ArtifactError, UnsupportedError
from awq2trt.io_contract import IMAGE_EMBEDDINGS, PIXEL_VALUES, VISION_FILE, VISION_WEIGHTS_FILE
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.models.vision.description import AttendedSpec, VisionSpec
from awq2trt.models.vision.mosaic import MosaicSpec
from awq2trt.models.vision.tiled import TiledVisionSpec
from awq2trt.models.vision.tower import image_features, load_vision
from awq2trt.onnx_export.vision_graph import export_vision

VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "first layer": {"vision_feature_layer": 1},
    "what the first layer reads": {"vision_feature_layer": 0},
    "several layers": {"vision_feature_layer": [-2, 1, 3], "vision_feature_select_strategy": "full"},
    "plain projector": {"multimodal_projector_bias": False, "projector_hidden_act": "relu"},
    "silu projector": {"projector_hidden_act": "silu"},
    "gelu tower": {"tower": {"hidden_act": "gelu", "layer_norm_eps": 1e-3}},
    "tanh tower": {"tower": {"hidden_act": "gelu_pytorch_tanh"}},
}


def _pixels(source: SafetensorsSource, images: int) -> NDArray[np.float16]:
    assert isinstance(source.vision, VisionSpec)
    side = source.vision.tower.image_size
    return np.random.default_rng(2).standard_normal((images, 3, side, side)).astype(np.float16)


def _export(source: SafetensorsSource, directory: Path, dtype: ir.DataType = ir.DataType.FLOAT16) -> None:
    assert isinstance(source.vision, VisionSpec)
    export_vision(source.vision, source.vision_tensors(), directory, dtype)


def _run(directory: Path, pixels: NDArray[np.float16]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(directory / VISION_FILE, providers=["CPUExecutionProvider"])
    (embeddings,) = session.run([IMAGE_EMBEDDINGS], {PIXEL_VALUES: pixels})
    return np.asarray(embeddings, np.float32)


def _differ(got: NDArray[np.float32], expected: torch.Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    wanted = expected.numpy()
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("variant", VARIANTS)
def test_embeddings_are_those_of_the_tower(variant: str, tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_llava(tmp_path / "model", **VARIANTS[variant]))
    assert isinstance(source.vision, VisionSpec)
    (tmp_path / "onnx").mkdir()
    _export(source, tmp_path / "onnx")
    pixels = _pixels(source, images=5)
    with torch.inference_mode():
        expected = image_features(source.vision, load_vision(source), torch.from_numpy(pixels.astype(np.float32)))
    got = _run(tmp_path / "onnx", pixels)
    assert _differ(got, expected) < 5e-3  # fp16 has 2^-11
    assert _differ(got, expected.flip(0)) > 0.05  # every image makes a difference
    np.testing.assert_array_equal(_run(tmp_path / "onnx", pixels[3:4])[0], got[3])  # alone as among others


def test_embeddings_are_those_of_transformers(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_llava(tmp_path))
    _export(source, tmp_path)
    pixels = _pixels(source, images=2)
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.inference_mode():
        features = model.get_image_features(torch.from_numpy(pixels.astype(np.float32)), return_dict=True)
    assert _differ(_run(tmp_path, pixels), torch.stack(list(features.pooler_output))) < 5e-3


def test_keys_and_values_are_those_of_the_decoders_layers(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_flamingo(tmp_path / "model"))
    vision = source.vision
    assert isinstance(vision, AttendedSpec)
    readers = {f"{name}.weight": source.tensor(f"{name}.weight") for name in vision.readers}
    assert [name.split(".")[3] for name in readers] == ["1", "3"]  # blocks
    (tmp_path / "onnx").mkdir()
    export_vision(vision, {**source.vision_tensors(), **readers}, tmp_path / "onnx", ir.DataType.FLOAT16)
    side = vision.tower.image_size
    pixels = np.random.default_rng(2).standard_normal((3, 3, side, side)).astype(np.float16)
    with torch.inference_mode():
        pieces = image_features(vision, load_vision(source), torch.from_numpy(pixels.astype(np.float32)))
        expected = torch.cat([pieces @ torch.from_numpy(reader).T for reader in readers.values()], dim=-1)
    got = _run(tmp_path / "onnx", pixels)
    assert _differ(got, expected) < 5e-3
    assert _differ(got, expected.flip(0)) > 0.05
    np.testing.assert_array_equal(_run(tmp_path / "onnx", pixels[1:2])[0], got[1])


def test_the_files_are_whole_and_no_layer_is_written_that_nothing_reads(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_llava(tmp_path / "model", vision_feature_layer=1))
    (tmp_path / "onnx").mkdir()
    _export(source, tmp_path / "onnx", ir.DataType.BFLOAT16)
    assert {path.name for path in (tmp_path / "onnx").iterdir()} == {VISION_FILE, VISION_WEIGHTS_FILE}
    model = onnx.load(tmp_path / "onnx" / VISION_FILE, load_external_data=False)
    names = [tensor.name for tensor in model.graph.initializer]
    assert any("layers.0." in name for name in names)
    assert not any("layers.1." in name for name in names)
    assert {tensor.data_type for tensor in model.graph.initializer} == {onnx.TensorProto.BFLOAT16}


def test_a_weight_beyond_the_dtype_is_named(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_llava(tmp_path / "model"))
    assert isinstance(source.vision, VisionSpec)
    name = f"{source.vision.projector.prefix}linear_2.bias"
    tensors = {**source.vision_tensors(), name: np.full(source.vision.projector.out_features, 1e5, np.float32)}
    (tmp_path / "onnx").mkdir()
    with pytest.raises(UnsupportedError, match=name):
        export_vision(source.vision, tensors, tmp_path / "onnx", ir.DataType.FLOAT16)
    assert not [*(tmp_path / "onnx").iterdir()]


def test_a_directory_that_is_not_there_is_an_error_of_ours(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_llava(tmp_path / "model"))
    with pytest.raises(ArtifactError, match="cannot write"):
        _export(source, tmp_path / "missing")


TILED: dict[str, dict[str, Any]] = {
    "smolvlm": {},
    "idefics3": {"kind": "idefics3"},
    "larger squares": {"scale_factor": 3, "tower": {"hidden_act": "gelu"}},
    "shared positions": {"tower": {"image_size": 50, "patch_size": 2}, "scale_factor": 5, "longest": 50},
}


@pytest.mark.parametrize("variant", TILED)
def test_pieces_of_tiles_are_those_of_transformers(variant: str, tmp_path: Path) -> None:
    options = TILED[variant]
    source = SafetensorsSource.open(save_smolvlm(tmp_path, **options))
    assert isinstance(source.vision, TiledVisionSpec)
    export_vision(source.vision, source.vision_tensors(), tmp_path, ir.DataType.FLOAT16)
    tiles = np.random.default_rng(2).standard_normal((3, *source.vision.pixels_shape)).astype(np.float16)
    model = KINDS[options.get("kind", "smolvlm")][1].from_pretrained(tmp_path, dtype=torch.float32)
    with torch.inference_mode():
        features = model.model.get_image_features(torch.from_numpy(tiles.astype(np.float32))[None], return_dict=True)
    expected = features.pooler_output[0].view(3, *source.vision.pieces_shape)
    got = _run(tmp_path, tiles)
    assert _differ(got, expected) < 5e-3
    assert _differ(got, expected.flip(0)) > 0.05
    np.testing.assert_array_equal(_run(tmp_path, tiles[1:2])[0], got[1])


def test_tiles_that_lie_side_by_side_end_with_a_newline(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_llava_next(tmp_path))
    assert isinstance(source.vision, MosaicSpec)
    export_vision(source.vision, source.vision_tensors(), tmp_path, ir.DataType.FLOAT16)
    tiles = np.random.default_rng(2).standard_normal((3, *source.vision.pixels_shape)).astype(np.float16)
    model = LlavaNextForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).model
    with torch.inference_mode():
        states = model.vision_tower(torch.from_numpy(tiles.astype(np.float32)), output_hidden_states=True)
        pieces = model.multi_modal_projector(states.hidden_states[-2][:, 1:])
    expected = torch.cat((pieces, model.image_newline.detach().expand(3, 1, -1)), dim=1)
    got = _run(tmp_path, tiles)
    assert got.shape == (3, *source.vision.pieces_shape)
    assert _differ(got, expected) < 5e-3
    assert _differ(got, expected.flip(0)) > 0.05
    np.testing.assert_array_equal(_run(tmp_path, tiles[1:2])[0], got[1])
