"""Sessions with images on the CUDA backend of the C++ library, with the host in place of the GPU: Python's tokens."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from host_memory import HostMemory
from native_sessions import save_all
from native_text import BUILD
from pictures import picture
from tiny_exports import lower_saved
from tiny_flamingo import save_flamingo
from tiny_gemma3 import IMAGE_TOKEN as GEMMA_TOKEN
from tiny_gemma3 import publish_gemma3
from tiny_llava import publish_llava
from tiny_llava_next import publish_llava_next
from tiny_qwen_vl import QWEN2_5_VL, QWEN3_VL, publish_qwen_vl
from tiny_smolvlm import publish_smolvlm

from awq2trt.artifact.manifest import Artifact
from awq2trt.errors import ToolError
from awq2trt.graph.read import open_decoder
from awq2trt.machine.plugin_library import find_plugin_library
from awq2trt.machine.runtime_library import find_onnxruntime_library
from awq2trt.runtime import ChatTokenizer, Model, Sampler, Sampling, generate
from awq2trt.runtime.native import NativeModel
from awq2trt.runtime.ort.cuda import CudaBackend, CudaOptions
from awq2trt.runtime.ort.embedder import open_embedder
from awq2trt.runtime.ort.loading import DeviceOptions
from awq2trt.runtime.ort.session import Execution, open_session
from awq2trt.runtime.sight import Sight

PROGRAM = BUILD / "tests" / "sight_on_host"
CAPACITY = 240
PICTURES = [np.roll(picture(*shape), 5 * index, axis=1) for index, shape in enumerate([(60, 80), (33, 41), (9, 120)])]
NEW_TOKENS = 16
PROMPT = "What is it? "

MODELS: dict[str, Callable[[Path], Path]] = {
    "one size": publish_llava,
    "windows": lambda directory: publish_qwen_vl(directory, QWEN2_5_VL),
    "deepstack": lambda directory: publish_qwen_vl(directory, QWEN3_VL),
    "tiles": lambda directory: publish_smolvlm(directory, "smolvlm"),
    "side by side": lambda directory: publish_llava_next(directory, {"max_position_embeddings": CAPACITY}),
    "seeing each other": publish_gemma3,
    "attended": lambda directory: save_flamingo(directory, n_layers=6, n_heads=8),
}


@dataclass(frozen=True)
class Built:
    """A model for CUDA, and what runs it on the host.

    Attributes:
        directory: Where it is.
        folder: Where the pictures are.
        operators: The plugin library.
    """

    directory: Path
    folder: Path
    operators: Path

    def answers(self, *commands: str) -> list[list[int]]:
        """The program's answers, after which no memory is left."""
        line = [str(path) for path in (PROGRAM, self.directory, find_onnxruntime_library(), self.operators)]
        done = subprocess.run(line, input="\n".join(commands), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        *answers, left = done.stdout.splitlines()
        assert left == "left 0"
        return [[int(token) for token in answer.split()] for answer in answers]

    def asked(self, text: str, images: Sequence[int]) -> tuple[list[int], list[int]]:
        """The Python runtime's tokens of a text with images, and its answer."""
        artifact = Artifact.open(self.directory)
        sight, tokenizer = Sight.of(artifact), ChatTokenizer.load(self.directory)
        assert sight is not None
        shown = sight.prepare([self.folder / f"{image}.png" for image in images])
        token = sight.record.image_token
        tokens = sight.place(
            tokenizer.encode(text, token, sight.around, lambda prompt: sight.spell(prompt, shown)), shown
        )
        return tokens, self.continued(tokens, images)

    def continued(self, tokens: Sequence[int], images: Sequence[int]) -> list[int]:
        """The Python runtime's answer to tokens with images."""
        artifact = Artifact.open(self.directory)
        sight = Sight.of(artifact)
        assert sight is not None
        shown = sight.prepare([self.folder / f"{image}.png" for image in images])
        _, sizes = open_decoder(self.directory)
        session = open_session(None, self.directory, Execution(operators=self.operators))
        options, embedder = CudaOptions(graph=False), open_embedder(artifact, Execution())
        backend = CudaBackend.start(session, sizes, HostMemory(), options, embedder)
        return list(generate(backend, tokens, Sampler(Sampling()), max_new_tokens=NEW_TOKENS, images=shown))

    def shown(self, session: int, images: Sequence[int], tokens: Sequence[int]) -> list[str]:
        """Commands that show images, and append tokens."""
        sizes = {image: f"{PICTURES[image].shape[1]} {PICTURES[image].shape[0]}" for image in images}
        looks = [f"image {session} {self.folder / f'{image}.rgb'} {sizes[image]}" for image in images]
        return [*looks, f"append {session} {' '.join(map(str, tokens))}"]


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
    save_all(PICTURES, folder)
    for index, image in enumerate(PICTURES):
        (folder / f"{index}.rgb").write_bytes(image.tobytes())
    return Built(folder / "cuda", folder, operators)


@pytest.mark.parametrize("images", [[], [0], [1, 2]], ids=str)
def test_answers_are_those_of_the_python_backend(images: list[int], built: Built) -> None:
    tokens, answer = built.asked(PROMPT + "<image>b" * len(images), images)
    got = built.answers("open 0", *built.shown(0, images, tokens), f"answer 0 {NEW_TOKENS}")
    assert got == [answer]
    assert len(set(answer)) > 3, "an answer of one token again and again would be no proof"


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


@pytest.mark.parametrize(("built", "image_token"), [("seeing each other", GEMMA_TOKEN)], indirect=["built"])
def test_what_a_rewind_leaves_of_an_image_sees_only_itself(image_token: int, built: Built) -> None:
    tokens = built.asked("<image>b", [0])[0]
    kept, more = tokens[: tokens.index(image_token) + 4], [5, 6, 7]
    got = built.answers(
        *("open 0", *built.shown(0, [0], tokens), "answer 0 3", f"rewind 0 {len(kept)}"),
        *(f"append 0 {' '.join(map(str, more))}", "fork 0 1", f"answer 0 {NEW_TOKENS}", f"answer 1 {NEW_TOKENS}"),
    )
    wanted = built.continued([*kept, *more], [0])
    assert got[1:] == [wanted, wanted]


@pytest.mark.parametrize("built", ["windows", "seeing each other", "attended"], indirect=True)
def test_tables_are_written_only_if_they_change(built: Built) -> None:
    io = Artifact.open(built.directory).manifest.contents.graphs["decoder"].io
    types = {tensor.name: np.dtype(tensor.dtype) for tensor in io.inputs}
    tables = sum(math.prod(shape) * types[name].itemsize for name, shape in io.tables.items())
    tokens = built.asked("<image>b", [0])[0]
    _, image, _, text, _, more = built.answers(
        *("open 0", *built.shown(0, [0], tokens), "answer 0 1", "written 0"),
        *("append 0 5", "answer 0 1", "written 0", "answer 0 3", "written 0"),
    )
    assert image[0] > tables > max(*text, *more)


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
