"""Sessions with images on the CUDA backend of the C++ library, with the host in place of the GPU: Python's tokens."""

from __future__ import annotations

import pytest
from host_memory import HostMemory
from host_sessions import (
    CAPACITY,
    MODELS,
    NEW_TOKENS,
    PROMPT,
    HostSessions,
    require_few_writes,
    require_python_answers,
    require_rests_of_images,
    save_pictures,
)
from native_text import BUILD
from tiny_exports import lower_saved

from awq2trt.artifact.manifest import Artifact
from awq2trt.errors import ToolError
from awq2trt.graph.read import open_decoder
from awq2trt.machine.plugin_library import find_plugin_library
from awq2trt.machine.runtime_library import find_onnxruntime_library
from awq2trt.runtime import Model
from awq2trt.runtime.backend import Backend
from awq2trt.runtime.native import NativeModel
from awq2trt.runtime.ort.cuda import CudaBackend, CudaOptions
from awq2trt.runtime.ort.embedder import open_embedder
from awq2trt.runtime.ort.loading import DeviceOptions
from awq2trt.runtime.ort.session import Execution, open_session

PROGRAM = BUILD / "tests" / "sight_on_host"


class Built(HostSessions):
    """A model for CUDA, and what runs it on the host."""

    def backend(self) -> Backend:
        _, sizes = open_decoder(self.directory)
        session = open_session(None, self.directory, Execution(operators=self.line[-1]))
        options, embedder = CudaOptions(graph=False), open_embedder(Artifact.open(self.directory), Execution())
        return CudaBackend.start(session, sizes, HostMemory(), options, embedder)


@pytest.fixture(scope="module", params=MODELS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    if not PROGRAM.is_file():
        pytest.skip("the C++ library's tests are not built: make runtime")
    try:
        operators = find_plugin_library().path
    except ToolError:
        pytest.skip("the plugin library is not built: make plugins")
    folder = tmp_path_factory.mktemp("seeing")
    MODELS[request.param](folder / "model")
    lower_saved(folder, CAPACITY, "cuda")
    save_pictures(folder)
    onnxruntime = find_onnxruntime_library()
    assert onnxruntime is not None
    return Built(folder / "cuda", folder, (PROGRAM, folder / "cuda", onnxruntime, operators))


@pytest.mark.parametrize("images", [[], [0], [1, 2]], ids=str)
def test_answers_are_those_of_the_python_backend(images: list[int], built: Built) -> None:
    require_python_answers(built, images)


def test_sessions_keep_their_images_apart(built: Built) -> None:
    """Sessions take turns, fork, rewind and end; the next one gets the memory of one that ended."""
    one, other = (
        [f"{line}" for line in built.shown(0, [image], built.asked("<image>b", [image])[0])] for image in (0, 2)
    )
    alone = [built.answers("open 0", *shown, f"answer 0 {NEW_TOKENS}")[0] for shown in (one, other)]
    assert alone[0] != alone[1]
    in_second = [line.replace(" 0 ", " 1 ", 1) for line in other]
    prompt = len(one[-1].split()) - 2
    together = built.answers(
        *("open 0", "open 1", *one, *in_second, f"answer 0 {NEW_TOKENS}", f"answer 1 {NEW_TOKENS}"),
        *("fork 0 2", f"rewind 2 {prompt}", f"answer 2 {NEW_TOKENS}", "open 1", *in_second, f"answer 1 {NEW_TOKENS}"),
    )
    assert together == [alone[0], alone[1], alone[0], alone[1]]


@pytest.mark.parametrize("built", ["seeing each other"], indirect=True)
def test_what_a_rewind_leaves_of_an_image_sees_only_itself(built: Built) -> None:
    require_rests_of_images(built)


@pytest.mark.parametrize("built", ["windows", "seeing each other", "attended"], indirect=True)
def test_tables_are_written_only_if_they_change(built: Built) -> None:
    require_few_writes(built)


@pytest.mark.gpu
def test_a_gpu_answers_as_in_the_python_runtime(built: Built) -> None:
    native = NativeModel.load(built.directory, golden=False)
    worst, allowed = native.check()  # what it sees, too
    assert 0.0 <= worst <= allowed
    python = Model.load(built.directory, DeviceOptions("cuda"))
    for images in ([], [0], [1, 2]):
        prompt, files = PROMPT + "<image>b" * len(images), [built.folder / f"{image}.png" for image in images]
        wanted = python.generate_text(prompt, images=files, raw=True, max_new_tokens=NEW_TOKENS)
        assert native.generate_text(prompt, images=files, raw=True, max_new_tokens=NEW_TOKENS) == wanted
