"""`awq2trt export`: what an ONNX model keeps of its checkpoint, ours or another tool's, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_llava import IMAGE_TOKEN, export_llava
from tiny_llava_next import SIZES, export_llava_next
from tiny_smolvlm import export_smolvlm

from awq2trt.artifact.golden import read_golden
from awq2trt.artifact.manifest import Artifact
from awq2trt.artifact.records import TokensRecord
from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.errors import ArtifactError, CheckpointError, UnsupportedError
from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions
from awq2trt.scheme import QuantScheme
from awq2trt.stages.export import ExportRequest, export_stage


def test_an_onnx_model_keeps_the_origin_and_tells_its_inputs(made: Path) -> None:
    onnx = Artifact.open(made / "onnx", kind="onnx").manifest
    checkpoint = Artifact.open(made / "checkpoint").manifest
    assert onnx.contents.source == checkpoint.contents.source
    assert onnx.contents.quantization == checkpoint.contents.quantization
    assert onnx.contents.model == checkpoint.contents.model
    graph = onnx.contents.graphs["decoder"]
    assert (graph.model, graph.engine, graph.io.capacity) == ("model.onnx", None, 64)
    assert graph.io.cache_pairs[:2] == (("past_key_0", "present_key_0"), ("past_value_0", "present_value_0"))
    assert onnx.contents.operators == {"W4A16Linear": "1"}
    assert onnx.contents.tokens == TokensRecord(bos=256, eos=256, pad=257, unk=None, stop=(256,))
    assert {"model.onnx", "model.onnx.data", "tokenizer.json"} <= set(onnx.files)


def test_a_checkpoint_without_manifest_is_somebody_elses_and_is_exported(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "checkpoint", tmp_path / "theirs")
    (tmp_path / "theirs" / "manifest.json").unlink()
    (tmp_path / "theirs" / "quantization.json").unlink()
    export = ExportRequest(tmp_path / "theirs", tmp_path / "onnx", ExportOptions(max_seq_len=64))
    contents = export_stage(export, SilentProgress()).manifest.contents
    assert contents.source.model == "theirs"
    assert contents.quantization.calibration is None
    assert contents.quantization.scheme == QuantScheme(group_size=32)


def test_a_changed_checkpoint_is_not_exported(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "checkpoint", tmp_path / "checkpoint")
    weights = tmp_path / "checkpoint" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match="it was changed since"):
        export_stage(ExportRequest(tmp_path / "checkpoint", tmp_path / "onnx", ExportOptions()), SilentProgress())
    assert not (tmp_path / "onnx").exists()


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the checkpoint and the ONNX model of a tiny LLaVA."""
    folder = tmp_path_factory.mktemp("seeing")
    export_llava(folder)
    return folder


def test_the_manifest_names_every_graph_of_a_model_that_sees(seeing: Path) -> None:
    manifest = Artifact.open(seeing / "onnx", kind="onnx").manifest
    contents = manifest.contents
    assert {name: (graph.model, graph.engine) for name, graph in contents.graphs.items()} == {
        "decoder": ("model.onnx", None),
        "vision": ("vision.onnx", None),
        "embedding": ("embedding.onnx", None),
    }
    assert contents.model is not None
    assert contents.model.vision is not None
    assert (contents.model.vision.image_token, contents.model.vision.tokens_per_image) == (IMAGE_TOKEN, 16)
    assert {"vision.onnx.data", "embedding.onnx.data", "preprocessor_config.json"} <= set(manifest.files)
    assert contents.operators == {"W4A16Linear": "1"}


def test_golden_outputs_have_an_image_and_what_the_decoder_reads(seeing: Path) -> None:
    golden = read_golden(seeing / "onnx")
    assert golden.image is not None
    assert golden.image.inputs["pixel_values"].shape == (1, 3, 22, 22)
    assert golden.image.embeddings.shape == (16, 48)
    rows = np.fromfile(seeing / "onnx" / "golden.prefill.inputs_embeds.bin", np.float16).reshape(-1, 48)
    table = QuantizedCheckpoint.open(seeing / "checkpoint").tensor("language_model.model.embed_tokens.weight")
    np.testing.assert_array_equal(rows, table[list(golden.calls[0].tokens)].astype(np.float16))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (None, CheckpointError, "expected an image processor"),
        ({"image_processor_type": "SiglipImageProcessor"}, UnsupportedError, "CLIPImageProcessor"),
        ({"crop_size": {"height": 24, "width": 24}}, UnsupportedError, "makes 22 x 22 pixels, .* got .* 24 x 24"),
        ({"do_center_crop": False}, UnsupportedError, "makes 22 x 22 pixels, .* got .* 22 x 44"),
    ],
    ids=["missing", "kind", "size", "shape"],
)
def test_a_model_that_sees_needs_its_image_processor(
    change: dict[str, Any] | None, error: type[Exception], says: str, seeing: Path, tmp_path: Path
) -> None:
    shutil.copytree(seeing / "checkpoint", tmp_path / "theirs")
    for name in ("manifest.json", "quantization.json"):  # as another tool's
        (tmp_path / "theirs" / name).unlink()
    processor = tmp_path / "theirs" / "preprocessor_config.json"
    config = json.loads(processor.read_text())
    processor.unlink()
    if change is not None:
        processor.write_text(json.dumps({**config, **change}))
    with pytest.raises(error, match=says):
        export_stage(ExportRequest(tmp_path / "theirs", tmp_path / "onnx", ExportOptions()), SilentProgress())
    assert not (tmp_path / "onnx").exists()


class _Told(SilentProgress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def test_an_image_has_no_more_tiles_than_the_cache_can_hold(tmp_path: Path) -> None:
    whole = export_smolvlm(tmp_path)
    told = _Told()
    limited = export_stage(
        ExportRequest(tmp_path / "checkpoint", tmp_path / "short", ExportOptions(max_seq_len=50)), told
    )
    (note,) = (note for note in told.notes if note.startswith("images are made as small as"))
    assert "24 pixels a side, 1 tile in all" in note
    for artifact, longest in ((whole, 48), (limited, 24)):
        processor = json.loads((artifact.directory / "preprocessor_config.json").read_text())
        assert processor["size"] == {"longest_edge": longest}
        model = artifact.manifest.contents.model
        assert model is not None
        assert model.vision is not None
        assert model.vision.settings == {"image_size": 24, "patch_size": 4, "scale_factor": 2}


def test_a_mosaic_is_no_larger_than_the_cache_can_hold(tmp_path: Path) -> None:
    """Full images of 22 x 44 pixels have 52 tokens, of 44 x 22 have 56, of 66 x 22 have 76, of 22 x 66 have 68."""
    whole, told = export_llava_next(tmp_path), _Told()
    options = ExportOptions(max_seq_len=80)
    limited = export_stage(ExportRequest(tmp_path / "checkpoint", tmp_path / "short", options), told)
    (note,) = (note for note in told.notes if note.startswith("images are made as small as"))
    assert "44 x 22 pixels, 3 tiles in all" in note or "22 x 44 pixels, 3 tiles in all" in note
    for artifact, sizes in ((whole, SIZES), (limited, SIZES[:2])):
        processor = json.loads((artifact.directory / "preprocessor_config.json").read_text())
        assert processor["image_grid_pinpoints"] == sizes
        model = artifact.manifest.contents.model
        assert model is not None
        assert model.vision is not None
        assert model.vision.settings == {"image_size": 22, "patch_size": 5, "image_grid_pinpoints": sizes}


def test_the_tokens_of_a_mosaic_have_no_limit_but_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published model's image of most tokens has 2928; other towers' images have 1280 at most."""
    monkeypatch.setattr("awq2trt.stages.export._MOST_IMAGE_TOKENS", 1)
    export_llava_next(tmp_path)
    processor = json.loads((tmp_path / "onnx" / "preprocessor_config.json").read_text())
    assert processor["image_grid_pinpoints"] == SIZES
