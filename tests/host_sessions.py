"""Sessions of the C++ library with images, on a backend with the host in the place of a GPU (sessions_on_host.h)."""

from __future__ import annotations

import math
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from native_sessions import save_all
from pictures import picture
from tiny_flamingo import save_flamingo
from tiny_gemma3 import publish_gemma3
from tiny_llava import publish_llava
from tiny_llava_next import publish_llava_next
from tiny_qwen_vl import QWEN2_5_VL, QWEN3_VL, publish_qwen_vl
from tiny_smolvlm import publish_smolvlm

from awq2trt.artifact.manifest import Artifact
from awq2trt.io_contract import DECODER
from awq2trt.models.vision.prepared import PreparedImage
from awq2trt.runtime import ChatTokenizer, Sampler, Sampling, generate
from awq2trt.runtime.backend import Backend
from awq2trt.runtime.sight import Sight

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
"""Saves a model of each kind."""


@dataclass(frozen=True)
class HostSessions(ABC):
    """A model, and the program that has sessions with it.

    Attributes:
        directory: The model's.
        folder: Where `save_pictures` put the pictures.
        line: Command line of the program.
    """

    directory: Path
    folder: Path
    line: tuple[Path, ...]

    def run(self, *commands: str) -> subprocess.CompletedProcess[str]:
        """The program's end."""
        line = [str(part) for part in self.line]
        return subprocess.run(line, input="\n".join(commands), capture_output=True, text=True, check=False)

    def answers(self, *commands: str) -> list[list[int]]:
        """The program's answers, after which no memory is left."""
        done = self.run(*commands)
        assert done.returncode == 0, done.stderr
        *answers, left = done.stdout.splitlines()
        assert left == "left 0"
        return [[int(token) for token in answer.split()] for answer in answers]

    def shown(self, session: int, images: Sequence[int], tokens: Sequence[int]) -> list[str]:
        """Commands that show images, and append tokens."""
        sizes = {image: f"{PICTURES[image].shape[1]} {PICTURES[image].shape[0]}" for image in images}
        looks = [f"image {session} {self.folder / f'{image}.rgb'} {sizes[image]}" for image in images]
        return [*looks, f"append {session} {' '.join(map(str, tokens))}"]

    @property
    def sight(self) -> Sight:
        """How the model is shown images."""
        sight = Sight.of(Artifact.open(self.directory))
        assert sight is not None
        return sight

    def prompt(self, text: str, images: Sequence[int]) -> tuple[list[int], list[PreparedImage]]:
        """Tokens of a text with images, as Python's runtime makes them, and the prepared images."""
        sight, tokenizer = self.sight, ChatTokenizer.load(self.directory)
        shown = sight.prepare([self.folder / f"{image}.png" for image in images])
        token = sight.record.image_token
        tokens = sight.place(
            tokenizer.encode(text, token, sight.around, lambda prompt: sight.spell(prompt, shown)), shown
        )
        return tokens, shown

    def continued(self, tokens: Sequence[int], images: Sequence[int]) -> list[int]:
        """The answer of Python's runtime to tokens with images."""
        _, shown = self.prompt("<image>" * len(images), images)
        return list(generate(self.backend(), tokens, Sampler(Sampling()), max_new_tokens=NEW_TOKENS, images=shown))

    def asked(self, text: str, images: Sequence[int]) -> tuple[list[int], list[int]]:
        """Python's tokens of a text with images, and its answer."""
        tokens, _ = self.prompt(text, images)
        return tokens, self.continued(tokens, images)

    @abstractmethod
    def backend(self) -> Backend:
        """The backend of Python's runtime on the same graphs."""


def save_pictures(folder: Path) -> None:
    """Saves `PICTURES` as files and as raw pixels."""
    save_all(PICTURES, folder)
    for index, image in enumerate(PICTURES):
        (folder / f"{index}.rgb").write_bytes(image.tobytes())


def require_python_answers(sessions: HostSessions, images: Sequence[int]) -> None:
    """Holds the answer to a text with images to Python's."""
    tokens, answer = sessions.asked(PROMPT + "<image>b" * len(images), images)
    got = sessions.answers("open 0", *sessions.shown(0, images, tokens), f"answer 0 {NEW_TOKENS}")
    assert got == [answer]
    assert len(set(answer)) > 3, "an answer of one token again and again would be no proof"


def require_rests_of_images(sessions: HostSessions) -> None:
    """Holds a session that is rewound into an image to Python's: what is left of it sees no more than text does."""
    tokens, _ = sessions.asked("<image>b", [0])
    kept, more = tokens[: tokens.index(sessions.sight.record.image_token) + 4], [5, 6, 7]
    got = sessions.answers(
        *("open 0", *sessions.shown(0, [0], tokens), "answer 0 3", f"rewind 0 {len(kept)}"),
        *(f"append 0 {' '.join(map(str, more))}", "fork 0 1", f"answer 0 {NEW_TOKENS}", f"answer 1 {NEW_TOKENS}"),
    )
    wanted = sessions.continued([*kept, *more], [0])
    assert got[1:] == [wanted, wanted]


def require_few_writes(sessions: HostSessions) -> None:
    """Holds a session to writing its decoder's tables for an image, and not for text behind it."""
    io = Artifact.open(sessions.directory).manifest.contents.graphs[DECODER].io
    types = {tensor.name: np.dtype(tensor.dtype) for tensor in io.inputs}
    tables = sum(math.prod(shape) * types[name].itemsize for name, shape in io.tables.items())
    tokens, _ = sessions.asked("<image>b", [0])
    _, image, _, text, _, more = sessions.answers(
        *("open 0", *sessions.shown(0, [0], tokens), "answer 0 1", "written 0"),
        *("append 0 5", "answer 0 1", "written 0", "answer 0 3", "written 0"),
    )
    assert image[0] > tables > max(*text, *more)
