"""What a decoder of embeddings reads: pieces of images in place of image tokens, whatever the calls they come in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import numpy as np
import onnx_ir as ir
import pytest
import torch
from host_memory import HostMemory
from numpy.typing import NDArray
from pictures import picture
from tiny_flamingo import IMAGE_TOKEN as FLAMINGO_IMAGE
from tiny_flamingo import TOWER_CONFIG, export_flamingo
from tiny_llava import IMAGE_TOKEN, export_llava, shown
from tiny_llava_next import export_llava_next
from tiny_qwen_vl import IMAGE_TOKEN as QWEN_IMAGE
from tiny_qwen_vl import export_qwen3_vl, export_qwen_vl
from tiny_smolvlm import export_smolvlm

from awq2trt.artifact.golden import relative_error
from awq2trt.artifact.manifest import MANIFEST_FILE, Artifact
from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.errors import ArtifactError, UsageError
from awq2trt.graph.provider_file import Lowering, lower_
from awq2trt.graph.read import Table, open_decoder
from awq2trt.io_contract import MODEL_FILE, PIXEL_VALUES, ROTARY_TABLES
from awq2trt.models.vision.arranging import arranged
from awq2trt.models.vision.prepared import Grid, Pixels, PreparedImage
from awq2trt.models.vision.seeing import logits_of_text_and_images
from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions
from awq2trt.runtime.bits import STORED, narrow, widen
from awq2trt.runtime.ort import backend as ort_backend
from awq2trt.runtime.ort.backend import OrtBackend
from awq2trt.runtime.ort.cuda import CudaBackend, CudaOptions
from awq2trt.runtime.ort.embedder import Embedder, open_embedder, vision_bytes
from awq2trt.runtime.ort.loading import predict_needs
from awq2trt.runtime.ort.session import Execution, open_session
from awq2trt.runtime.sight import Sight
from awq2trt.stages.export import ExportRequest, export_stage
from awq2trt.stages.kit import model_spec
from awq2trt.stages.lowered import LowerRequest, lower_stage
from awq2trt.target import find_target

PIECES = 16
TOKENS = [5, *[IMAGE_TOKEN] * PIECES, 80, 81, *[IMAGE_TOKEN] * PIECES, 9]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeing")
    export_llava(folder)
    return folder


@pytest.fixture
def embedder(made: Path) -> Embedder:
    opened = open_embedder(Artifact.open(made / "onnx"))
    assert opened is not None
    return opened


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.float32]:
    return np.random.default_rng(3).standard_normal((2, 3, 22, 22)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(made: Path, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits of every position, by PyTorch."""
    checkpoint = QuantizedCheckpoint.open(made / "checkpoint")
    with torch.inference_mode():
        logits = logits_of_text_and_images(checkpoint, TOKENS, [Pixels(image) for image in pixels])
    return np.asarray(logits.numpy(), np.float32)


@pytest.mark.parametrize("chunk", [256, 7, 1], ids=["at-once", "pieces", "one-by-one"])
def test_scores_are_those_of_the_tower_and_the_decoder(
    chunk: int,
    made: Path,
    embedder: Embedder,
    pixels: NDArray[np.float32],
    expected: NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ort_backend, "PREFILL_CHUNK", chunk)  # a chunk ends within an image
    backend = OrtBackend.load(made / "onnx", embedder=embedder)
    backend.show(shown(pixels))
    assert relative_error(backend.forward(TOKENS), expected[-1]) < 3e-3
    backend.reset()
    backend.show(shown(pixels[::-1]))
    assert relative_error(backend.forward(TOKENS), expected[-1]) > 0.05, "the order of the images matters"


def test_the_same_where_scores_stay_on_a_gpu(
    made: Path, embedder: Embedder, pixels: NDArray[np.float32], expected: NDArray[np.float32]
) -> None:
    model, sizes = open_decoder(made / "onnx")
    lower_(model, sizes, Lowering.CUDA_ORT)
    session = open_session(model, made / "onnx")
    memory = HostMemory()
    backend = CudaBackend.start(session, sizes, memory, CudaOptions(graph=False, chunk=7), embedder)
    backend.show(shown(pixels))
    assert relative_error(backend.forward(TOKENS[:-1]), expected[-2]) < 2e-2
    token = backend.choose(TOKENS[-1:])
    assert token == expected[-1].argmax()
    reference = OrtBackend.load(made / "onnx", embedder=open_embedder(Artifact.open(made / "onnx")))
    reference.show(shown(pixels))
    reference.forward(TOKENS)
    assert relative_error(backend.forward([token]), reference.forward([token])) < 2e-2
    backend.close()
    assert memory.held == 0


@pytest.mark.parametrize("export", [export_qwen_vl, export_qwen3_vl])
def test_a_decoder_with_positions_of_three_numbers_reads_images_in_rows_and_columns(
    export: Callable[[Path], Artifact], tmp_path: Path
) -> None:
    """On the CPU and where a GPU keeps the tables; a second conversation begins with those of a text."""
    artifact = export(tmp_path)
    random, spec = np.random.default_rng(3), QuantizedCheckpoint.open(tmp_path / "checkpoint")
    grids = [Grid(1, 4, 6), Grid(1, 8, 6)]
    pixels = [Pixels(random.standard_normal((grid.cells, 96)).astype(np.float32), grid) for grid in grids]
    assert spec.vision is not None
    images = [arranged(spec.vision.record(), one) for one in pixels]
    tokens = [5, 6, *[QWEN_IMAGE] * 6, 80, *[QWEN_IMAGE] * 12, 9, 10, 11]
    with torch.inference_mode():
        expected = np.asarray(logits_of_text_and_images(spec, tokens, pixels).numpy(), np.float32)
        blind = np.asarray(logits_of_text_and_images(spec, [5, 6, 7, 8], []).numpy(), np.float32)
    model, sizes = open_decoder(artifact.directory)
    assert sizes.table_shapes == dict.fromkeys(ROTARY_TABLES, (128, 8))
    lower_(model, sizes, Lowering.CUDA_ORT)
    session, memory = open_session(model, artifact.directory), HostMemory()
    on_gpu = CudaBackend.start(session, sizes, memory, CudaOptions(graph=False, chunk=7), open_embedder(artifact))
    on_cpu = OrtBackend.load(artifact.directory, embedder=open_embedder(artifact))
    for backend, limit in ((on_cpu, 1e-3), (on_gpu, 2e-2)):
        for _ in range(2):
            backend.show(images)
            assert relative_error(backend.forward(tokens[:-2]), expected[-3]) < limit
            assert relative_error(backend.forward(tokens[-2:-1]), expected[-2]) < limit
            assert relative_error(backend.forward(tokens[-1:]), expected[-1]) < limit
            backend.reset()
            assert relative_error(backend.forward([5, 6, 7, 8]), blind[-1]) < limit
            backend.reset()
    on_gpu.close()
    assert memory.held == 0


def test_an_image_token_of_no_image_has_its_own_row(embedder: Embedder, pixels: NDArray[np.float32]) -> None:
    """As in transformers; `Sight.place` refuses a prompt that has one."""
    own = embedder.rows([IMAGE_TOKEN])
    embedder.show(shown(pixels[:1]))
    seen = embedder.rows([IMAGE_TOKEN] * (PIECES + 1))
    np.testing.assert_array_equal(seen[-1:], own)
    np.testing.assert_array_equal(seen[:-1], embedder.see(shown(pixels)[0]))


def test_a_new_conversation_forgets_images_of_the_one_before(
    made: Path, embedder: Embedder, pixels: NDArray[np.float32]
) -> None:
    backend = OrtBackend.load(made / "onnx", embedder=embedder)
    blind = backend.forward(TOKENS)
    backend.show(shown(pixels))
    backend.reset()
    np.testing.assert_array_equal(backend.forward(TOKENS), blind)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("lowered", [False, True])
def test_rows_and_pieces_for_a_gpu_stay_in_its_decoders_type(
    dtype: Literal["float16", "bfloat16"], lowered: bool, made: Path, pixels: NDArray[np.float32], tmp_path: Path
) -> None:
    """The same bits as those that a decoder would be given of fp32, from exported graphs as well as from built ones."""
    request = ExportRequest(made / "checkpoint", tmp_path / "onnx", ExportOptions(max_seq_len=96, dtype=dtype))
    artifact = export_stage(request, SilentProgress())
    wide = open_embedder(artifact)
    if lowered:
        spec = model_spec(str(made / "checkpoint"))
        artifact = lower_stage(artifact, spec, LowerRequest(find_target("cuda"), tmp_path / "cuda"), SilentProgress())
    given = open_embedder(artifact, Execution())
    assert given is not None
    assert wide is not None
    tokens = [5, 80, IMAGE_TOKEN, *range(100, 140)]
    rows = given.rows(tokens)
    assert rows.dtype == STORED[dtype]
    np.testing.assert_array_equal(rows, narrow(wide.rows(tokens), dtype))
    if dtype == "bfloat16":
        return  # the CPU has no kernels for a tower in it
    given.show(shown(pixels[:1]))
    seen = given.rows([IMAGE_TOKEN] * PIECES)
    assert seen.dtype == STORED[dtype]
    np.testing.assert_array_equal(widen(seen, dtype), given.see(shown(pixels)[0]))
    assert relative_error(given.see(shown(pixels)[0]), wide.see(shown(pixels)[0])) < 1e-2


@pytest.mark.parametrize("export", [export_smolvlm, export_llava_next])
def test_a_gpu_sees_several_tiles_in_a_call(export: Callable[[Path], Artifact], tmp_path: Path) -> None:
    artifact = export(tmp_path)
    sight = Sight.of(artifact)
    assert sight is not None
    image = arranged(sight.record, sight.processor.pixels(picture(24, 30)))
    assert (len([*image.calls()]), len([*image.calls(8)])) == (5, 1)
    together, alone = open_embedder(artifact, Execution()), open_embedder(artifact)
    assert together is not None
    assert alone is not None
    with patch.object(together, "look", wraps=together.look) as look:
        seen = together.see(image)
    assert look.call_count == 1
    assert relative_error(seen, alone.see(image)) < 1e-2


def test_a_decoder_of_embeddings_alone_is_refused(made: Path, tmp_path: Path) -> None:
    for name in (MODEL_FILE, f"{MODEL_FILE}.data"):
        shutil.copyfile(made / "onnx" / name, tmp_path / name)
    with pytest.raises(ArtifactError, match="reads embeddings, and no graph beside it"):
        OrtBackend.load(tmp_path)


def test_a_model_of_text_shows_no_images(made: Path) -> None:
    artifact = Artifact.open(made / "onnx")
    assert vision_bytes(artifact) == (made / "onnx" / "vision.onnx.data").stat().st_size
    checkpoint = Artifact.open(made / "checkpoint")
    assert (open_embedder(checkpoint), vision_bytes(checkpoint)) == (None, 0)


@pytest.mark.parametrize("text", ["mpt", "gpt_neox"])
def test_a_decoder_attends_to_the_last_image(text: str, tmp_path: Path) -> None:
    """On the CPU and where a GPU keeps keys and values of images; a second conversation has its own images alone."""
    artifact = export_flamingo(tmp_path, text, export=ExportOptions(max_seq_len=96, max_images=3))
    checkpoint, side = QuantizedCheckpoint.open(tmp_path / "checkpoint"), TOWER_CONFIG["image_size"]
    pixels = np.random.default_rng(3).standard_normal((3, 3, side, side)).astype(np.float32)
    images = [PreparedImage({PIXEL_VALUES: image[None]}, 1) for image in pixels]
    tokens = [5, 6, FLAMINGO_IMAGE, 80, 81, FLAMINGO_IMAGE, 9, 10, FLAMINGO_IMAGE, 11, 12]
    alone = [5, FLAMINGO_IMAGE, 7, 8]
    with torch.inference_mode():
        expected = np.asarray(logits_of_text_and_images(checkpoint, tokens, list(map(Pixels, pixels))).numpy())
        blind = np.asarray(logits_of_text_and_images(checkpoint, [5, 6, 7, 8], []).numpy())
        second = np.asarray(logits_of_text_and_images(checkpoint, alone, [Pixels(pixels[2])]).numpy())
    model, sizes = open_decoder(artifact.directory)
    assert sizes.table_shapes == {"attended_images": (3, 64, 2 * 2 * 8 * 64), "image_of_slot": (96,)}
    lower_(model, sizes, Lowering.CUDA_ORT)
    more = replace(sizes, tables={"attended_images": Table(ir.DataType.FLOAT16, (300, 64, 2048))})
    assert predict_needs(model, more).caches - predict_needs(model, sizes).caches > 290 * 64 * 2048 * 2
    session, memory = open_session(model, artifact.directory), HostMemory()
    on_gpu = CudaBackend.start(session, sizes, memory, CudaOptions(graph=False, chunk=4), open_embedder(artifact))
    on_cpu = OrtBackend.load(artifact.directory, embedder=open_embedder(artifact))
    for backend, limit in ((on_cpu, 1e-3), (on_gpu, 2e-2)):
        backend.reset()
        backend.show(images)
        assert relative_error(backend.forward(tokens[:-1]), expected[-2]) < limit
        assert relative_error(backend.forward(tokens[-1:]), expected[-1]) < limit
        backend.reset()
        assert relative_error(backend.forward([5, 6, 7, 8]), blind[-1]) < limit
        backend.reset()
        backend.show(images[2:])
        assert relative_error(backend.forward(alone), second[-1]) < limit
        backend.reset()
        with pytest.raises(UsageError, match="may have 3 images, got 4"):
            backend.show([*images, images[0]])
    on_gpu.close()
    assert memory.held == 0


def test_damaged_sizes_of_images_are_an_error_of_ours(tmp_path: Path) -> None:
    artifact = export_flamingo(tmp_path)
    text = (artifact.directory / MANIFEST_FILE).read_text()
    manifest = json.loads(text)
    inputs = manifest["contents"]["graphs"]["decoder"]["io"]["inputs"]
    (attended,) = (tensor for tensor in inputs if tensor["name"] == "attended_images")
    attended["shape"].pop()
    (artifact.directory / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="sizes of what the decoder is given"):
        open_embedder(Artifact.open(artifact.directory))
