"""The installed C++ package: what it contains, and projects outside of the repository that use it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Final

import pytest
from native_text import BUILD
from pictures import picture
from PIL import Image
from tiny_exports import lower_saved
from tiny_flamingo import save_flamingo
from tiny_llava import build_llava
from tiny_models import save_llama

import awq2trt
from awq2trt.machine.runtime_library import ONNXRUNTIME_VARIABLE, find_onnxruntime_library
from awq2trt.recipe import ExportOptions, QuantizeOptions, Recipe
from awq2trt.runtime import Model
from awq2trt.runtime.ort.loading import DeviceOptions

PLUGINS: Final = Path(__file__).parents[3] / "plugins"
EXAMPLES: Final = PLUGINS / "examples"

CMAKE_PROJECT = """\
cmake_minimum_required(VERSION 3.22)
project(outside LANGUAGES CXX)
find_package(awq2trt {version} REQUIRED)
add_executable(outside outside.cpp)
target_link_libraries(outside PRIVATE {target})
"""

PROGRAM = """\
#include <awq2trt/awq2trt.hpp>
#include <iostream>
int main(int, char** arguments) {
  auto session = awq2trt::Model::load(arguments[1]).session();
  session.append_text("hello");
  awq2trt::GenerateOptions options;
  options.max_tokens = 12;
  for (int32_t token : session.generate(options).tokens) std::cout << token << " ";
}
"""


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the library is installed."""
    if not (BUILD / "libawq2trt.so").is_file():
        pytest.skip("the C++ library is not built: make runtime")
    folder = tmp_path_factory.mktemp("prefix")
    _run("cmake", "--install", str(BUILD), "--prefix", str(folder))
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that was built for `cpu`; its tokenizer knows only bytes."""
    directory = tmp_path_factory.mktemp("built")
    save_llama(directory / "model")
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}>"
    (directory / "model" / "chat_template.jinja").write_text(template)
    recipe = Recipe(quantize=QuantizeOptions(method="rtn", group_size=32), export=ExportOptions(max_seq_len=256))
    awq2trt.build(directory / "model", directory / "made", target="cpu", recipe=recipe)
    return directory / "made" / "cpu"


def _run(*command: str, given: str = "") -> str:
    """Returns what a program prints; the test fails if the program fails."""
    result = subprocess.run(command, input=given, capture_output=True, text=True, env=_environment(), check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def _environment() -> dict[str, str]:
    library = find_onnxruntime_library()
    return {**os.environ, **({ONNXRUNTIME_VARIABLE: str(library)} if library else {})}


def _built_project(project: Path, prefix: Path, build: Path) -> Path:
    """The folder with a project's programs."""
    _run("cmake", "-S", str(project), "-B", str(build), "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}")
    _run("cmake", "--build", str(build))
    return build


def _library(prefix: Path) -> Path:
    (path,) = prefix.glob("lib/**/libawq2trt.so")
    return path


def test_it_shows_its_own_symbols_alone(prefix: Path) -> None:
    lines = _run("nm", "--dynamic", "--defined-only", "--format=posix", str(_library(prefix))).splitlines()
    names = [line.split()[0] for line in lines]
    assert "awq2trt_model_load" in names
    foreign = [name for name in names if not name.startswith(("awq2trt_", "_ZN7awq2trt", "_ZNK7awq2trt"))]
    assert [name for name in foreign if not name.startswith(("_ZTIN7awq2trt", "_ZTSN7awq2trt", "_ZTVN7awq2trt"))] == []
    assert not [name for name in names if name.startswith(("_ZN7awq2trt6detail", "_ZNK7awq2trt6detail"))]


def test_its_soname_has_the_minor_version(prefix: Path) -> None:
    major, minor, *_ = awq2trt.__version__.split(".")
    dynamic = _run("readelf", "--dynamic", str(_library(prefix)))
    assert f"Library soname: [libawq2trt.so.{major}.{minor}]" in dynamic
    assert _library(prefix).resolve().name == f"libawq2trt.so.{awq2trt.__version__}"


def test_its_headers_need_nothing_else(prefix: Path, tmp_path: Path) -> None:
    """They need only the standard library, and the C interface only C."""
    for name, compiler in (("awq2trt.hpp", ("c++", "-std=c++17")), ("awq2trt.h", ("cc", "-std=c11"))):
        source = tmp_path / f"only.{'cpp' if name.endswith('hpp') else 'c'}"
        source.write_text(f"#include <awq2trt/{name}>\n")
        _run(
            *compiler,
            "-Wall",
            "-Wextra",
            "-Wpedantic",
            "-Werror",
            f"-I{prefix}/include",
            "-c",
            str(source),
            "-o",
            os.devnull,
        )


@pytest.mark.parametrize("target", ["awq2trt::awq2trt", "awq2trt::static"])
def test_a_project_outside_of_the_repository_runs_a_model(
    target: str, prefix: Path, built: Path, tmp_path: Path
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    major, minor, *_ = awq2trt.__version__.split(".")
    (project / "CMakeLists.txt").write_text(CMAKE_PROJECT.format(version=f"{major}.{minor}", target=target))
    (project / "outside.cpp").write_text(PROGRAM)
    program = _built_project(project, prefix, tmp_path / "build") / "outside"
    tokens = [int(token) for token in _run(str(program), str(built)).split()]
    model = Model.load(built)
    assert model.tokenizer.decode(tokens) == model.generate_text("hello", raw=True, max_new_tokens=12)


def test_another_version_is_not_found(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(CMAKE_PROJECT.format(version="99.0", target="awq2trt::awq2trt"))
    (tmp_path / "outside.cpp").write_text(PROGRAM)
    command = ["cmake", "-S", str(tmp_path), "-B", str(tmp_path / "build"), f"-DCMAKE_PREFIX_PATH={prefix}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert 'compatible with requested version "99.0"' in " ".join(result.stderr.split())


@pytest.mark.skipif(shutil.which("pkg-config") is None, reason="no pkg-config on this machine")
def test_pkg_config_knows_it(prefix: Path, built: Path, tmp_path: Path) -> None:
    folder = next(prefix.glob("lib/**/awq2trt.pc")).parent
    flags = _run("env", f"PKG_CONFIG_PATH={folder}", "pkg-config", "--cflags", "--libs", "awq2trt").split()
    (tmp_path / "outside.cpp").write_text(PROGRAM)
    program = tmp_path / "outside"
    rpath = f"-Wl,-rpath,{_library(prefix).parent}"
    _run("c++", "-std=c++17", str(tmp_path / "outside.cpp"), "-o", str(program), *flags, rpath)
    assert _run(str(program), str(built)).split()


@pytest.fixture(scope="module")
def examples(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The programs of plugins/examples, each built as a project of its own."""
    folder = tmp_path_factory.mktemp("examples")
    names = sorted(path.name for path in EXAMPLES.iterdir())
    assert names == ["batch", "bench", "chat", "embed", "see"]
    for name in names:
        shutil.copytree(EXAMPLES / name, folder / name)  # no example reaches into the repository
    return {name: _built_project(folder / name, prefix, folder / name / "build") / name for name in names}


def test_example_chat_answers(examples: dict[str, Path], built: Path) -> None:
    assert len((EXAMPLES / "chat" / "chat.cpp").read_text().splitlines()) <= 60
    printed = _run(str(examples["chat"]), str(built), given="hi\n\n")
    assert printed.startswith("ONNX Runtime ")
    assert "\n> " in printed


def test_example_chat_compares_golden_outputs(examples: dict[str, Path], built: Path) -> None:
    printed = _run(str(examples["chat"]), str(built), "--check")
    assert re.search(r"\ngolden outputs: off by [\d.e-]+, allowed are 0\.\d+\n$", printed)


def test_example_chat_stops_an_answer_at_ctrl_c(examples: dict[str, Path], built: Path) -> None:
    """It tries up to ten times, since an answer of random weights may end by itself just before the signal."""
    assert any(_interrupted(examples["chat"], built).endswith(b" [stopped]\n\n> ") for _ in range(10))


def _interrupted(chat: Path, built: Path) -> bytes:
    """What the chat prints if it gets a signal in its first answer, and then the end of its input."""
    command = [str(chat), str(built)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment()) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"hi\n")
        process.stdin.flush()
        begun = process.stdout.readline() + process.stdout.readline() + process.stdout.read(3)
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
        assert process.returncode in (0, -signal.SIGINT)
        return begun + rest


def test_example_batch_answers_the_same_with_any_number_of_sessions(examples: dict[str, Path], built: Path) -> None:
    prompts = "".join(f"prompt {number}\n" for number in range(9))
    answers = [_run(str(examples["batch"]), str(built), sessions, given=prompts) for sessions in ("1", "3")]
    assert answers[0] == answers[1]
    assert len(set(answers[0].splitlines())) > 5


def test_example_embed_sorts(examples: dict[str, Path], built: Path) -> None:
    printed = _run(str(examples["embed"]), str(built), "x", "y", given="one\ntwo\n").splitlines()
    assert [line.split("\t")[1] for line in printed] == ["one", "two"]
    assert {line.split("\t")[0] for line in printed} <= {"x", "y"}


def test_example_bench_measures(examples: dict[str, Path], built: Path) -> None:
    printed = _run(str(examples["bench"]), str(built))
    assert re.search(r"\ntoken, median +\d+\.\d+ ms, \d+\.\d a second\n", printed)


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that sees, built for `cpu`, and three pictures beside it."""
    folder = build_llava(tmp_path_factory.mktemp("llava"), "cpu")
    for index, shape in enumerate([(60, 80), (31, 200), (1, 1)]):
        Image.fromarray(picture(*shape)).save(folder / f"{index}.ppm")
    return folder


def test_example_see_answers_about_pictures(examples: dict[str, Path], seeing: Path) -> None:
    assert len((EXAMPLES / "see" / "see.cpp").read_text().splitlines()) <= 80
    model, see = Model.load(seeing / "cpu", DeviceOptions("cpu")), str(examples["see"])
    for question, names in (("What is it?", ["0"]), ("a <image> b <image>", ["2", "1"]), ("a", ["0", "1", "2"])):
        files = [seeing / f"{name}.ppm" for name in names]
        printed = _run(see, str(seeing / "cpu"), question, *map(str, files))
        answer = model.generate_text(question, images=files)
        assert printed == re.sub("\r\n?", "\n", answer) + "\n"  # ends of lines, as `_run` reads them


def test_example_see_goes_on_with_the_text_of_a_model_without_a_chat_template(
    examples: dict[str, Path], seeing: Path, tmp_path: Path
) -> None:
    """OpenFlamingo: pictures without a place come first."""
    save_flamingo(tmp_path / "model")
    lower_saved(tmp_path, 96, "cpu")
    model = Model.load(tmp_path / "cpu", DeviceOptions("cpu"))
    files = [seeing / "1.ppm", seeing / "0.ppm"]
    for question in ("Two pictures of", "a<image>b<image>c"):
        printed = _run(str(examples["see"]), str(tmp_path / "cpu"), question, *map(str, files))
        text = question if "<image>" in question else f"<image><image>{question}"
        answer = model.generate_text(text, images=files, raw=True)
        assert printed == re.sub("\r\n?", "\n", answer) + "\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "expected a PPM"),
        (b"P3 1 1 255 0 0 0", "expected a PPM"),
        (b"P6 2 2 255\n" + bytes(11), "the pixels end too early"),
        (b"P6 2 2 65535\n" + bytes(24), "expected a PPM"),
        (b"P6 -2 2 255\n" + bytes(12), "expected a PPM"),
        (b"P6 99999999999 2 255\n" + bytes(12), "expected a PPM"),
        (b"P6\n# a comment\n16000 # another\n1 255\n" + bytes(48_000), "200 times as long"),
    ],
)
def test_example_see_says_what_is_no_picture(
    content: bytes, says: str, examples: dict[str, Path], seeing: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.ppm").write_bytes(content)
    command = [str(examples["see"]), str(seeing / "cpu"), "a", str(tmp_path / "bad.ppm")]
    result = subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)
    assert result.returncode == 1
    assert says in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("name", ["batch", "bench", "chat", "embed", "see"])
def test_examples_say_how_they_are_used_and_what_is_wrong(name: str, examples: dict[str, Path], tmp_path: Path) -> None:
    def failed(*arguments: str) -> str:
        command = [str(examples[name]), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)
        assert result.returncode == (1 if arguments else 2)
        assert result.stdout == ""
        return result.stderr

    assert failed().startswith(f"usage: {name} DIRECTORY")
    further = {"batch": ["2"], "embed": ["kind"], "see": ["a", "b.ppm"]}.get(name, [])
    assert failed(str(tmp_path), *further).startswith("error: ")


@pytest.mark.parametrize("source", sorted((PLUGINS / "runtime" / "fuzz").glob("*.cpp")), ids=lambda path: path.stem)
def test_fuzzers_compile(source: Path) -> None:
    """Only `make fuzz-runtime` builds them, with clang; that they still fit the library is seen here."""
    if not (BUILD / "engine").is_dir():
        pytest.skip("the C++ library is not built: make runtime")
    runtime = PLUGINS / "runtime"
    folders = [runtime, runtime / "include", PLUGINS, BUILD / "engine"]
    _run("c++", "-std=c++17", "-fsyntax-only", *(f"-I{folder}" for folder in folders), str(source))
