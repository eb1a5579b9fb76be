"""Kits of models that see: engines of all graphs, in order, each held to its golden outputs."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from stand_in_orin import Orin, write_sums
from tiny_flamingo import export_flamingo
from tiny_gemma3 import export_gemma3
from tiny_kits import make_tiny_kit
from tiny_llava import export_llava
from tiny_llava_next import export_llava_next
from tiny_qwen_vl import export_qwen3_vl, export_qwen_vl
from tiny_smolvlm import export_smolvlm

from awq2trt.artifact.golden import read_golden
from awq2trt.artifact.manifest import Artifact
from awq2trt.runtime.golden import compare_golden
from awq2trt.runtime.ort.loading import DeviceOptions, open_backend


@pytest.fixture(scope="module")
def any_size_kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a tiny model that sees images of any size."""
    folder = tmp_path_factory.mktemp("any-size")
    export_qwen_vl(folder)
    for jetpack in ("7.2", "6.2"):
        make_tiny_kit(folder, folder / jetpack, jetpack)
    return folder


def _answer_prefill(kit: Path, orin: Orin) -> tuple[str, ...]:
    """Lets the stand-in give what must come out of the golden call `prefill`, the only one left; names the outputs."""
    conf = (kit / "kit.conf").read_text()
    (kit / "kit.conf").write_text(conf.replace("kit_golden_calls='prefill first'", "kit_golden_calls=prefill"))
    write_sums(kit)
    answers = {"image_embeddings": "vision", "inputs_embeds": "prefill", "logits": "prefill"}
    for output, call in answers.items():
        kind = np.float16 if output == "inputs_embeds" else np.float32
        expected = np.fromfile(kit / f"golden.{call}.{output}.bin", kind)
        (orin.folder / "answers" / f"{output}.output.1.raw").write_bytes(expected.astype(np.float16).tobytes())
    return tuple(answers)


@pytest.mark.parametrize("jetpack", ["7.2", "6.2"])
def test_graphs_for_images_of_any_size_compute_what_was_exported(jetpack: str, any_size_kits: Path) -> None:
    kit = Artifact.open(any_size_kits / jetpack, kind="kit")
    backend = open_backend(kit, DeviceOptions("cpu")).backend
    results = compare_golden(backend, read_golden(kit.directory))
    assert [result.name for result in results][:2] == ["vision", "prefill"]
    assert all(result.passed for result in results)


def test_an_engine_for_images_of_any_size_is_built_for_a_range_and_checked_on_one(
    shell: str, any_size_kits: Path, orin: Orin, tmp_path: Path
) -> None:
    kit = Path(shutil.copytree(any_size_kits / "7.2", tmp_path / "kit"))
    _answer_prefill(kit, orin)
    result = orin.finish(shell, kit, "--check")
    assert result.returncode == 0, result.stderr
    recorded = " ".join(orin.recorded)
    assert "--minShapes=pixel_values:4x96,patch_places:4x2,window_patches:1x36,patch_slots:4 " in recorded
    assert "--shapes=pixel_values:112x96,patch_places:112x2,window_patches:6x36,patch_slots:112 " in recorded
    for name in ("pixel_values", "patch_places", "window_patches", "patch_slots"):
        assert f"{name}:{kit}/golden.vision.{name}.bin" in recorded
    assert f",rotary_cos:{kit}/golden.rotary_cos.bin,rotary_sin:{kit}/golden.rotary_sin.bin" in recorded


def test_a_decoder_with_deepstack_is_given_nothing_to_add_for_a_text(shell: str, orin: Orin, tmp_path: Path) -> None:
    text = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [12, 10, 10]}
    export_qwen3_vl(tmp_path, text={**text, "rope_parameters": rope}, tower={"out_hidden_size": 128})
    for jetpack in ("6.2", "7.2"):
        kit = make_tiny_kit(tmp_path, tmp_path / jetpack, jetpack).directory
        backend = open_backend(Artifact.open(kit, kind="kit"), DeviceOptions("cpu")).backend
        assert all(result.passed for result in compare_golden(backend, read_golden(kit)))
    tokens = np.fromfile(kit / "golden.prefill.input_ids.bin", np.int64).size
    assert np.fromfile(kit / "golden.prefill.deepstack_embeds.bin", np.float16).tolist() == [0] * tokens * 2 * 128
    _answer_prefill(kit, orin)
    result = orin.finish(shell, kit, "--check")
    assert result.returncode == 0, result.stderr
    recorded = " ".join(orin.recorded)
    assert "--minShapes=pixel_values:4x96,patch_places:4x2 " in recorded
    assert "--minShapes=inputs_embeds:1x1x128,deepstack_embeds:1x1x256 " in recorded
    assert f"--shapes=inputs_embeds:1x{tokens}x128,deepstack_embeds:1x{tokens}x256 " in recorded
    assert f",deepstack_embeds:{kit}/golden.prefill.deepstack_embeds.bin," in recorded


@pytest.mark.parametrize("text", ["mpt", "gpt_neox"])
def test_a_decoder_that_attends_to_images_computes_what_was_exported(text: str, tmp_path: Path) -> None:
    export_flamingo(tmp_path, text)
    for jetpack in ("6.2", "7.2"):
        kit = make_tiny_kit(tmp_path, tmp_path / jetpack, jetpack)
        results = compare_golden(open_backend(kit, DeviceOptions("cpu")).backend, read_golden(kit.directory))
        assert [result.name for result in results][:2] == ["vision", "prefill"]
        assert all(result.passed for result in results)


def test_a_decoder_that_attends_to_images_is_checked_on_one(shell: str, orin: Orin, tmp_path: Path) -> None:
    export_flamingo(tmp_path)
    kit = make_tiny_kit(tmp_path, tmp_path / "kit", "7.2").directory
    assert np.fromfile(kit / "golden.image_of_slot.bin", np.int64).tolist() == [1] * 96
    images = np.fromfile(kit / "golden.attended_images.bin", np.float16).reshape(8, -1)
    assert images.any(axis=1).tolist() == [True, *[False] * 7]
    _answer_prefill(kit, orin)
    result = orin.finish(shell, kit, "--check")
    assert result.returncode == 0, result.stderr
    files = ",".join(f"{name}:{kit}/golden.{name}.bin" for name in ("attended_images", "image_of_slot"))
    assert files in " ".join(orin.recorded)


@pytest.fixture(scope="module")
def seeing_kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with kits of a tiny model that sees, for both JetPacks."""
    folder = tmp_path_factory.mktemp("seeing")
    export_llava(folder)
    for jetpack in ("7.2", "6.2"):
        make_tiny_kit(folder, folder / jetpack, jetpack)
    return folder


@pytest.mark.parametrize("jetpack", ["7.2", "6.2"])
def test_a_model_that_sees_gets_three_engines(
    shell: str, jetpack: str, seeing_kits: Path, orin: Orin, tmp_path: Path
) -> None:
    kit = Path(shutil.copytree(seeing_kits / jetpack, tmp_path / "kit"))
    if jetpack == "6.2":
        orin.jetson_linux, orin.tensorrt = "R36", "100300"
    result = orin.finish(shell, kit)
    assert result.returncode == 0, result.stderr
    graphs = ("embedding", "vision", "model")  # the decoder's engine last: where it is, all are
    calls = " ".join(orin.recorded).split("--onnx=")[1:]
    assert [call.split()[0] for call in calls] == [f"{graph}.onnx" for graph in graphs]
    assert ["--setPluginsToSerialize" in call for call in calls] == [False, False, True]
    assert "--minShapes=inputs_embeds:1x1x48 --optShapes=inputs_embeds:1x96x48" in calls[2]
    assert "--profile=1 --minShapes=input_ids:1x1 --optShapes=input_ids:1x1" in calls[0]
    assert "Shapes" not in calls[1]  # an image at a time, always of one size
    for graph in graphs:
        state = dict(line.split("=") for line in (kit / f"{graph}.engine.state").read_text().splitlines())
        assert state["sha256"] == hashlib.sha256((kit / f"{graph}.engine").read_bytes()).hexdigest()
    (kit / "vision.engine").unlink()
    result = orin.finish(shell, kit)
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("embedding.engine is current", "model.engine is current")
    assert "building vision.engine" in result.stdout


def test_check_compares_every_graph_of_a_model_that_sees(
    shell: str, seeing_kits: Path, orin: Orin, tmp_path: Path
) -> None:
    kit = Path(shutil.copytree(seeing_kits / "7.2", tmp_path / "kit"))
    answers = _answer_prefill(kit, orin)
    result = orin.finish(shell, kit, "--check")
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(
        "embedding.engine answers as it must\nvision.engine answers as it must\nmodel.engine answers as it must\n"
    )
    recorded = " ".join(orin.recorded)
    assert f"--loadInputs=pixel_values:{kit}/golden.vision.pixel_values.bin" in recorded
    assert "--shapes=inputs_embeds:1x16x48 --iterations=1" in recorded
    assert f"--loadInputs=inputs_embeds:{kit}/golden.prefill.inputs_embeds.bin,cache_position:" in recorded
    for output in answers:
        answer = orin.folder / "answers" / f"{output}.output.1.raw"
        right = answer.read_bytes()
        answer.write_bytes(bytes(len(right)))
        result = orin.finish(shell, kit, "--check")
        assert result.returncode == 27, result.stdout
        assert f"relative error of the {output}" in result.stdout.splitlines()[-1]
        answer.write_bytes(right)


@pytest.mark.parametrize("jetpack", ["7.2", "6.2"])
@pytest.mark.parametrize(("export", "side"), [(export_smolvlm, 24), (export_llava_next, 22)])
def test_a_model_that_sees_tiles_has_a_graph_for_one(
    export: Callable[[Path], Artifact], side: int, jetpack: str, tmp_path: Path
) -> None:
    export(tmp_path)
    make_tiny_kit(tmp_path, tmp_path / jetpack, jetpack)
    kit = Artifact.open(tmp_path / jetpack, kind="kit")
    assert kit.manifest.contents.graphs["vision"].io.inputs[0].shape == (1, 3, side, side)
    assert "golden_vision_shapes=''" in (kit.directory / "kit.conf").read_text()
    backend = open_backend(kit, DeviceOptions("cpu")).backend
    results = compare_golden(backend, read_golden(kit.directory))
    assert [result.name for result in results][:2] == ["vision", "prefill"]
    assert all(result.passed for result in results)


@pytest.mark.parametrize("jetpack", ["7.2", "6.2"])
def test_a_decoder_whose_image_tokens_see_each_other_brings_the_table_for_a_text(jetpack: str, tmp_path: Path) -> None:
    text = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    export_gemma3(tmp_path, text=text)
    make_tiny_kit(tmp_path, tmp_path / jetpack, jetpack)
    kit = Artifact.open(tmp_path / jetpack, kind="kit")
    kinds = {node.op_type for node in onnx.load(kit.directory / "model.onnx", load_external_data=False).graph.node}
    assert "CachedAttention" in kinds
    assert "Attention" not in kinds
    assert np.fromfile(kit.directory / "golden.visible_end.bin", np.int64).tolist() == [*range(128)]
    assert "golden_tables=visible_end" in (kit.directory / "kit.conf").read_text()
    assert "It runs the engines of all three graphs." in (kit.directory / "README.md").read_text()
    results = compare_golden(open_backend(kit, DeviceOptions("cpu")).backend, read_golden(kit.directory))
    assert [result.name for result in results][:2] == ["vision", "prefill"]
    assert all(result.passed for result in results)


@pytest.mark.parametrize("jetpack", ["7.2", "6.2"])
def test_the_graphs_of_a_kit_compute_what_was_exported(jetpack: str, seeing_kits: Path) -> None:
    kit = Artifact.open(seeing_kits / jetpack, kind="kit")
    graphs = kit.manifest.contents.graphs
    assert {name: graph.engine for name, graph in graphs.items()} == {
        "decoder": "model.engine",
        "vision": "vision.engine",
        "embedding": "embedding.engine",
    }
    assert graphs["vision"].io.inputs[0].shape == (1, 3, 22, 22)
    opsets = {
        each.version
        for graph in graphs.values()
        for each in onnx.load(kit.directory / graph.model, load_external_data=False).opset_import
        if not each.domain
    }
    assert opsets == {20 if jetpack == "6.2" else 24}
    backend = open_backend(kit, DeviceOptions("cpu")).backend
    results = compare_golden(backend, read_golden(kit.directory))
    assert [result.name for result in results][:2] == ["vision", "prefill"]
    assert all(result.passed for result in results)


def test_the_readme_names_the_graphs(seeing_kits: Path) -> None:
    text = (seeing_kits / "7.2" / "README.md").read_text()
    assert "`vision.onnx`, `vision.onnx.data`" in text
    assert "The script says when `model.engine`, the last of three, is ready" in text
    assert "It runs the engines of all three graphs." in text
