"""The C++ library's backend for engines, on a stand-in: the Python backend's tokens, and no leaks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from native_text import BUILD
from tiny_engines import GraphSession, as_engines
from tiny_kits import export_tiny

from awq2trt.artifact.manifest import Artifact
from awq2trt.machine.runtime_library import find_onnxruntime_library
from awq2trt.runtime.trt.backend import EngineBackend
from awq2trt.runtime.trt.engine import engine_of

PROGRAM = BUILD / "tests" / "engine_on_host"
LONGEST = 8
"""Tokens of a call in the longer profile."""

PROMPT = list(range(40, 59))
"""More tokens than that."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not PROGRAM.is_file():
        pytest.skip("the C++ library's tests are not built: make runtime")
    folder = tmp_path_factory.mktemp("built")
    return as_engines(export_tiny(folder), folder / "rtx", LONGEST).directory


def run(model: Path, *commands: str) -> list[str]:
    """The program's answer; the last line is what it leaked."""
    line = [str(path) for path in (PROGRAM, model, find_onnxruntime_library())]
    done = subprocess.run(line, input="\n".join(commands), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def append(session: int, tokens: list[int]) -> list[str]:
    """Splits tokens into calls, as the library's sessions do."""
    parts = [tokens[begin : begin + LONGEST] for begin in range(0, len(tokens), LONGEST)]
    return [f"append {session} {' '.join(map(str, part))}" for part in parts]


def test_tokens_are_those_of_the_python_backend(model: Path) -> None:
    engine = engine_of(Artifact.open(model))
    assert engine is not None
    backend = EngineBackend(GraphSession(engine), engine.contract, engine.profiles)
    token = int(backend.forward(PROMPT).argmax())
    expected, commands = [token], ["open 0", *append(0, PROMPT), "best 0"]
    for _ in range(6):
        commands += [*append(0, [token]), "best 0"]
        token = int(backend.forward([token]).argmax())
        expected.append(token)
    *found, left = run(model, *commands)
    assert [int(line) for line in found] == expected
    assert left == "left 0"


def test_sessions_share_contexts_and_not_caches(model: Path) -> None:
    other = [9, 8, 7]
    alone = run(model, "open 0", *append(0, PROMPT), "best 0", *append(0, [5]), "best 0")
    apart = run(model, "open 0", *append(0, other), "best 0", *append(0, [5]), "best 0")
    together = run(
        model,
        *("open 0", "open 1", *append(0, PROMPT), *append(1, other), "best 0", "best 1", "fork 0 2"),
        *("append 0 6", "append 2 5", "append 1 5", "best 2", "best 1", "rewind 0 19", "append 0 5", "best 0"),
        "threads 0 4 6",
    )
    assert together == [alone[0], apart[0], alone[1], apart[1], alone[1], "1", "left 0"]


def test_what_no_profile_takes_is_refused(model: Path) -> None:
    with pytest.raises(AssertionError, match="no profile of the engine takes 9 tokens"):
        run(model, "open 0", f"append 0 {' '.join(map(str, range(LONGEST + 1)))}")
